"""How pixels are read, judged and written: codecs, colour, the insonated area, encoding."""

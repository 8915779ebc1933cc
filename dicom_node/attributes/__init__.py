"""How attributes are read, kept and written, byte by byte where they are other people's."""

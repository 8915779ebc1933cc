"""The demonstration: the node, an embedded PACS and real ultrasound on one machine."""

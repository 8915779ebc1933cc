"""The demonstration: real ultrasound through a real node and an embedded PACS."""

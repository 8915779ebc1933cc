"""How the node speaks DICOM: associations, contexts, statuses, streams of received objects."""

"""Tissue, scanners and what they show of it; `model.speckle` puts them together."""

"""A DICOM node that takes the speckle out of ultrasound and sends a derived series back."""

__all__ = ["__version__"]

__version__ = "0.21.0"

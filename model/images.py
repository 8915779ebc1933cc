"""Real ultrasound images of any kind as grey 8-bit frames, for training and for judging.

PNG, JPEG, BMP, TIFF and DICOM, each frame a display image.
"""

from __future__ import annotations

from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ""})
_PREAMBLE = 128


def is_dicom(path: Path) -> bool:
    """Whether a file has a DICOM suffix or none, and the magic of PS3.10 section 7.1."""
    if path.suffix.lower() not in DICOM_SUFFIXES and not path.suffix[1:].isdigit():
        return False
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def image_files(folder: Path) -> list[Path]:
    """Images and DICOM objects below a folder, sorted."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES or (p.is_file() and is_dicom(p))
    )

"""Which real images are trained on, chosen by and judged on: by source and subject, not by frame.

Two frames of one patient are nearly the same image; were one trained on and the other judged on,
the figures would flatter. A *source* is a folder directly below the folder that was searched; a
*subject* is a patient, or the smallest thing known to hold one: a video, a study, a folder below
the source. Where a subject cannot be told from its neighbours, they stay together.
"""

from __future__ import annotations

import hashlib
import os
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom

from model.dicom_images import is_dicom, quiet

HELD_OUT = frozenset({"plus_bone_L14"})
"""Sources that are always tested on: they show how it fares on organs not trained for."""

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
DIVISIBLE = 3
"""A source of fewer subjects is pooled with the other small ones."""
BLOCK = 5
"""Consecutive numbers that count as one subject where only a running number is known."""

_SUBJECT_NAMES = (
    re.compile(r"^(?P<subject>\d+)_\d*HC$"),  # HC18: 593_HC and 593_2HC are one mother
    re.compile(r"^(?P<subject>S\d+)_[LR]\d+_step_\d+$"),  # TimTrack: both legs, all steps
    re.compile(r"(?P<subject>pat\d+)Image_\d+"),  # POCUS lung: all videos of a patient
    re.compile(r"^[A-Za-z]+_(?P<subject>Image)_\d{5,6}(?:_|$)"),  # the same; one sitting
    re.compile(r"^[A-Za-z]+_(?P<subject>convex_volpecelli\w*?)_v\d+"),  # the same; one article
    re.compile(r"^[A-Za-z]+_(?P<subject>\w+_Fig\d+)[A-Z]?$"),  # the same; panels of one figure
    re.compile(
        r"(?:^|[_\- ])(?P<subject>(?:patient|pat|subject|subj|sub|case)[_\-]?\d+)(?=[_\- .]|$)",
        re.IGNORECASE,
    ),  # CAMUS, BIDS and most others
)
_NUMBERED_NAMES = (
    re.compile(r"(?P<list>(?:sub)?standard)_(?P<number>\d+)$"),  # hip: the plane's grade, a number
    re.compile(r"^(?P<list>benign|malignant|normal) \((?P<number>\d+)\)"),  # BUSI
)
_FRAME_NUMBER = re.compile(
    r"(?:^|[_\-. ]+)(?:frame|fr|f|img|image)?[_\- ]?\(?\d+\)?$", re.IGNORECASE
)
_CLOSE_NUMBER = re.compile(r"\(?\d+\)?$")
"""Of a name without a number of its own: ``out0001``, ``IM0001``."""
FEW = 20
"""A folder of at most so many names is taken for a patient's, where others are like it."""


@dataclass(frozen=True)
class Split:
    """Files by their use, each list sorted.

    Attributes
    ----------
    train, validation, test : tuple of Path
        No subject is in two of them.
    """

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    test: tuple[Path, ...]


def subject_of(path: Path, root: Path | None = None) -> str:
    """Name of the subject that a file shows, within its source.

    In this order: (0010,0020) *Patient ID* or (0020,000D) *Study Instance UID* of a DICOM object,
    hashed; a subject in the file name of a known source, or a running number where no folder but
    one of the same name tells more; the folders between the source and the file; the file name
    without a trailing frame number.

    Parameters
    ----------
    path : Path
        Read only where it is DICOM.
    root : Path, optional
        Folder that was searched; without it, folders say nothing.
    """
    stem = path.name if is_dicom(path) else path.stem
    folder = _folder_subject(path, root)
    return _dicom_subject(path) or _named_subject(stem, folder) or folder or _still(stem)


def split(files: Iterable[Path], root: Path, *, held_out: Collection[str] = HELD_OUT) -> Split:
    """Divide files 80 : 10 : 10 by subject, the same way each time.

    A subject's side follows from a hash of its name, so that files which come later leave the
    others where they are. Each source of at least three subjects has one on each side, which in a
    small source may move the subject that is closest to the border. Sources of fewer are divided
    together; if even all of them have fewer than three, they are trained on. DICOM objects count
    as one source, whatever their folder, since a patient may be in several.

    Parameters
    ----------
    files : iterable of Path
        Below `root`.
    root : Path
        Folder that was searched.
    held_out : collection of str
        Sources that are tested on as a whole.
    """
    sources: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    test: list[Path] = []
    for path in sorted(files):
        source = _source(path, root)
        if source in held_out:
            test.append(path)
        elif patient := _dicom_subject(path):
            sources["dicom"][patient].append(path)
        else:
            sources[source][f"{source}/{subject_of(path, root)}"].append(path)
    pooled: dict[str, list[Path]] = {}
    train: list[Path] = []
    validation: list[Path] = []
    for subjects in sources.values():
        if len(subjects) < DIVISIBLE:
            pooled |= subjects
    divisible = [subjects for subjects in sources.values() if len(subjects) >= DIVISIBLE]
    for subjects in [*divisible, pooled]:
        parts = _divide(subjects)
        for side, names in zip((train, validation, test), parts, strict=True):
            side += [path for name in names for path in subjects[name]]
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))


def patient_folders(files: Iterable[Path], root: Path) -> list[str]:
    """Folders directly below `root` that count as sources and look like one patient's each.

    At least three, and most of those that there are: few files each, whose names alone tell
    subjects apart, so that one patient would be on several sides.
    """
    stills: dict[str, set[str]] = defaultdict(set)
    for path in files:
        source = _source(path, root)
        stem = "" if is_dicom(path) or _folder_subject(path, root) else path.stem
        stills[source].add(_still(stem) if stem and not _named_subject(stem) else "")
    alike = [name for name, found in stills.items() if name and 1 < len(found) <= FEW]
    alike = sorted(name for name in alike if "" not in stills[name])
    return alike if len(alike) >= DIVISIBLE and 2 * len(alike) > len(stills) else []


def _divide(subjects: Mapping[str, object]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Subjects to train on, to validate and to test on, by the position of their hash in 0..1."""
    if len(subjects) < DIVISIBLE:
        return sorted(subjects), (), ()
    names = sorted(subjects, key=_position)
    positions = [_position(name) for name in names]
    last = bisect_left(positions, TRAIN_SHARE + VALIDATION_SHARE)
    last = min(max(last, 2), len(names) - 1)
    first = min(max(bisect_left(positions, TRAIN_SHARE), 1), last - 1)
    return names[:first], names[first:last], names[last:]


def _position(name: str) -> float:
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) / 2**64


def _source(path: Path, root: Path) -> str:
    """The folder directly below `root`; empty for a file that lies in it."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else ""


def _dicom_subject(path: Path) -> str:
    """Hash of the patient or the study, which tells nothing of either; empty without them."""
    if not is_dicom(path):
        return ""
    try:
        with quiet():
            dataset = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["PatientID", "StudyInstanceUID"]
            )
            identity = str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or "")
    except Exception:  # noqa: BLE001 pydicom raises what it likes
        return ""  # the reader of its frames reports it
    identity = identity.strip()
    return f"patient-{hashlib.sha256(identity.encode()).hexdigest()[:16]}" if identity else ""


def _named_subject(stem: str, folder: str = "") -> str:
    for pattern in _SUBJECT_NAMES:
        if match := pattern.search(stem):
            return match["subject"]
    for pattern in _NUMBERED_NAMES:
        match = pattern.search(stem)
        if match and folder.rpartition("/")[2] in ("", match["list"]):
            start = int(match["number"]) // BLOCK * BLOCK
            return f"{match['list']}-{start}-{start + BLOCK - 1}"
    return ""


def _folder_subject(path: Path, root: Path | None) -> str:
    return "/".join(path.relative_to(root).parts[1:-1]) if root is not None else ""


def _still(stem: str) -> str:
    found, count = _FRAME_NUMBER.subn("", stem)
    return (found if count else _CLOSE_NUMBER.sub("", stem)) or "frames"

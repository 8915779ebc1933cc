"""The page to read first: what happens to one object, a line a stage.

    decode -> regions -> despeckle -> recombine -> prove -> derive -> encode

One frame at a time passes through, so that a long cine needs no more memory than a short one;
derived frames wait in a temporary file, because what the header says of the pixels is known only
after the last one. Imports no torch: the network comes in as a `Despeckler`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.attributes.identity import derived_identity
from dicom_node.config import Settings
from dicom_node.decode import Decoder, Geometry, open_instance
from dicom_node.derive import derive_dataset
from dicom_node.errors import Permanent, Refused, Transient
from dicom_node.pixels.colour import Frame, luminance
from dicom_node.pixels.encode import encode, require_encodable
from dicom_node.pixels.morphology import Mask
from dicom_node.records import BundleInfo, DerivedIdentity, PixelReport
from dicom_node.regions import (
    PIXEL_POLICY,
    TissueMap,
    prove_untouched,
    recombine,
    tissue_map,
    tissue_pixels,
)
from dicom_node.service.clock import Clock
from dicom_node.service.edge import guarded
from dicom_node.service.folder import (
    FileOutcome,
    FileStatus,
    file_errors,
    find_files,
    make_output,
    write_into,
)
from dicom_node.spool import disk_errors

Luminance = NDArray[np.uint8]
Write = Callable[[str, Iterable[bytes]], Path]
"""Stores a file under a relative name, whole or not at all, and says where."""

_SAMPLES: Final = 8


class Despeckler(Protocol):
    """Takes the speckle out of frames; `despeckle.Despeckler` does it with the student."""

    bundle: BundleInfo

    def fingerprint(self, strength: float) -> str:
        """Digest of everything of its own that changes pixels."""
        ...

    def frames(
        self, luminances: Iterable[Luminance], strength: float, tissue: Mask | None = None
    ) -> Iterator[Luminance]:
        """Frames in, as many frames of the same size out, in the same order.

        What of them is `tissue` may be looked at to see how coarse the speckle is.
        """
        ...


@dataclass(frozen=True)
class Derived:
    """One derived object, written."""

    identity: DerivedIdentity
    path: Path
    sop_class_uid: str
    report: PixelReport
    timings: dict[str, float]
    """Seconds by stage: decode, regions, despeckle, recombine, encode."""


def derive_instance(
    source: Path,
    despeckler: Despeckler,
    settings: Settings,
    write: Write,
    *,
    now: datetime | None = None,
    work_directory: Path | None = None,
) -> Derived:
    """Derive one object from one file.

    Parameters
    ----------
    source : Path
        A DICOM file; only read.
    write : callable
        Given ``<series>/<instance>.dcm`` and the file's bytes.
    now : datetime, optional
        Creation time, aware; the same one gives the same bytes.
    work_directory : Path, optional
        Where frames wait, and what a deflated object inflates to; about the size of the
        uncompressed object each.

    Raises
    ------
    Refused
        Nothing for the node to do, by the object's kind or content.
    Permanent
        The object is damaged or contradicts itself.
    Transient
        The disk is full or fails.
    """
    with disk_errors():
        return _derive(
            source,
            despeckler,
            settings,
            write,
            now=now or datetime.now(UTC),
            work_directory=work_directory,
        )


def _derive(
    source: Path,
    despeckler: Despeckler,
    settings: Settings,
    write: Write,
    *,
    now: datetime,
    work_directory: Path | None,
) -> Derived:
    """`derive_instance`, a line a stage."""
    clock = Clock()
    with clock.measured("decode"):
        decoder = open_instance(source, work_directory)
        samples = _samples(decoder)
    with clock.measured("regions"):
        tissue = tissue_map(decoder.dataset, decoder.geometry, samples, settings.regions)
        _require_tissue(tissue)
    header, geometry = decoder.dataset, decoder.geometry
    _require_room(geometry, settings.derive.transfer_syntax, work_directory)
    identity = identity_of(header, despeckler, settings)
    with tempfile.TemporaryFile(dir=work_directory) as waiting:
        report = _derive_frames(
            decoder, tissue, despeckler, settings=settings, waiting=waiting, clock=clock
        )
        with clock.measured("derive"):
            derived = derive_dataset(
                header,
                geometry,
                identity,
                bundle=despeckler.bundle,
                report=report,
                settings=settings,
                now=now,
            )
        with clock.measured("encode"):
            frames = _read_back(waiting, geometry)
            chunks = encode(derived, frames, settings.derive.transfer_syntax, work_directory)
            name = f"{identity.series_instance_uid}/{identity.sop_instance_uid}.dcm"
            path = write(name, chunks)
    return Derived(identity, path, str(derived.SOPClassUID), report, clock.seconds)


def derive_files(
    sources: Sequence[Path],
    output: Path,
    despeckler: Despeckler,
    settings: Settings,
    progress: Callable[[FileOutcome, int, int], None] | None = None,
) -> list[FileOutcome]:
    """Derive files and whole folders without a network; the originals are only read.

    Parameters
    ----------
    sources : sequence of Path
        Files, and folders that are searched to any depth.
    output : Path
        Derived objects appear below it as ``<series>/<instance>.dcm``; it is not searched.
    progress : callable, optional
        Given each outcome as it comes, how many there are so far and how many there will be.

    Returns
    -------
    list of FileOutcome
        One for each file, in the order of the names; a bad file stops nothing.

    Raises
    ------
    Permanent
        `output` cannot be written to.
    """
    make_output(output)
    files = find_files(sources, output)
    outcomes: list[FileOutcome] = []
    taken: dict[str, Path] = {}
    for source in files:
        action = partial(_derive_file, source, output, taken, despeckler, settings)
        result = guarded(action)
        if isinstance(result, Derived):
            outcome = FileOutcome(source, FileStatus.DERIVED, result.path, result.report)
        elif isinstance(result, Refused):
            outcome = FileOutcome(source, FileStatus.SKIPPED, error=result)
        else:
            outcome = FileOutcome(source, FileStatus.FAILED, error=result)
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome, len(outcomes), len(files))
    return outcomes


def _derive_file(
    source: Path,
    output: Path,
    taken: dict[str, Path],
    despeckler: Despeckler,
    settings: Settings,
) -> Derived:
    """Derive one file; `taken` has the source of each derived name so far, and gets this one."""

    def write(relative: str, chunks: Iterable[bytes]) -> Path:
        name = Path(relative).name
        if name in taken:
            raise Permanent(
                "instance-repeated",
                f"has the SOP Instance UID of '{taken[name]}', whose result it would overwrite; "
                "give only one of the two, or each with an --output of its own",
            )
        path = write_into(output)(relative, chunks)
        taken[name] = source
        return path

    with file_errors():
        return _derive(
            source, despeckler, settings, write, now=datetime.now(UTC), work_directory=None
        )


def identity_of(source: Dataset, despeckler: Despeckler, settings: Settings) -> DerivedIdentity:
    """UIDs of what is derived from a source with this student and these settings."""
    return derived_identity(
        str(source.SOPInstanceUID),
        str(source.SeriesInstanceUID),
        despeckler.bundle.device_uid,
        _pixel_fingerprint(despeckler, settings),
    )


def _pixel_fingerprint(despeckler: Despeckler, settings: Settings) -> str:
    """Everything that changes pixels: the student, the strength and where it may act."""
    regions = settings.regions
    return (
        f"{despeckler.fingerprint(settings.despeckle.strength)}|{PIXEL_POLICY}"
        f"|{regions.without_regions}|{regions.grey_tolerance}"
    )


def _require_room(geometry: Geometry, transfer_syntax: str, work_directory: Path | None) -> None:
    """Find out before the work, which may take long, that its result can be kept.

    Raises
    ------
    Permanent
        ``object-too-large``.
    Transient
        ``disk-full``: frames that wait, and a result as large where nothing compresses it.
    """
    length = _frame_bytes(geometry) * geometry.frames
    require_encodable(length, transfer_syntax)
    if work_directory is None:
        return
    wanted = 2 * length if transfer_syntax == "explicit-le" else length
    free = shutil.disk_usage(work_directory).free
    if wanted > free:
        raise Transient(
            "disk-full",
            f"deriving takes {wanted / 1e6:.0f} MB of the spool's disk for a while and "
            f"{free / 1e6:.0f} MB are free; free some",
        )


def _frame_bytes(geometry: Geometry) -> int:
    return geometry.rows * geometry.columns * (3 if geometry.colour else 1)


def _samples(decoder: Decoder) -> list[Frame]:
    """Up to eight frames, evenly over the cine."""
    last = decoder.geometry.frames - 1
    count = min(_SAMPLES, last + 1)
    wanted = {round(index * last / max(count - 1, 1)) for index in range(count)}
    return [decoder.frame(index) for index in sorted(wanted)]


def _require_tissue(tissue: TissueMap) -> None:
    if tissue.allowed.any():
        return
    remedy = {
        "none": 'regions.without_regions is "skip"; set it to "estimate" to process such objects',
        "estimated": "the object states no usable (0018,6011) regions, and no area of tissue is "
        "certain",
        "ultrasound-regions": "(0018,6011) Sequence of Ultrasound Regions leaves no grey tissue "
        "in a 2-D B-mode region",
    }
    raise Refused("no-tissue", f"nothing to despeckle: {remedy[tissue.source]}")


def _derive_frames(
    decoder: Decoder,
    tissue: TissueMap,
    despeckler: Despeckler,
    *,
    settings: Settings,
    waiting: BinaryIO,
    clock: Clock,
) -> PixelReport:
    """Despeckle every frame into a temporary file and count what changed."""
    geometry = decoder.geometry
    counts = _Counts(geometry)
    # The network may look several frames ahead; these wait for its answers.
    pending: deque[tuple[Frame, Luminance]] = deque()

    def luminances() -> Iterator[Luminance]:
        for frame in clock.timed("decode", decoder.frames()):
            shade = luminance(frame)
            pending.append((frame, shade))
            yield ~shade if geometry.inverted else shade

    strength = settings.despeckle.strength
    for answer in clock.timed(
        "despeckle", despeckler.frames(luminances(), strength, tissue.allowed)
    ):
        with clock.measured("recombine"):
            frame, before = pending.popleft()
            after = ~answer if geometry.inverted else answer
            mask = tissue_pixels(frame, tissue, settings.regions)
            derived = recombine(frame, before, after, mask, tissue.tint)
            changed = prove_untouched(frame, derived, mask)
            counts.add(changed, mask, before, after)
            waiting.write(derived.tobytes())
    if counts.frames != geometry.frames:
        raise Permanent(
            "frame-lost",
            f"{counts.frames} of {geometry.frames} frames came back from the network; "
            "report it to the maintainers",
        )
    return counts.report(tissue.source)


class _Counts:
    """Sums over the frames of one object."""

    def __init__(self, geometry: Geometry) -> None:
        self.frames = 0
        self._pixels = geometry.rows * geometry.columns * geometry.frames
        self._changed = self._tissue = self._shift = 0

    def add(self, changed: Mask, mask: Mask, before: Luminance, after: Luminance) -> None:
        """Count one frame; outside the mask `after` says nothing."""
        self.frames += 1
        self._changed += int(np.count_nonzero(changed))
        self._tissue += int(np.count_nonzero(mask))
        self._shift += int(after.sum(dtype=np.int64, where=changed))
        self._shift -= int(before.sum(dtype=np.int64, where=changed))

    def report(self, region_source: str) -> PixelReport:
        return PixelReport(
            frames=self.frames,
            changed_share=self._changed / self._pixels,
            tissue_share=self._tissue / self._pixels,
            mean_shift=self._shift / max(self._tissue, 1),
            region_source=region_source,
        )


def _read_back(waiting: BinaryIO, geometry: Geometry) -> Iterator[Frame]:
    """The derived frames from the temporary file."""
    shape = (geometry.rows, geometry.columns) + ((3,) if geometry.colour else ())
    waiting.seek(0)
    for _ in range(geometry.frames):
        yield np.frombuffer(waiting.read(_frame_bytes(geometry)), np.uint8).reshape(shape)

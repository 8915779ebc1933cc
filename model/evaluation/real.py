"""Protocol C: real B-mode images. No clean version exists, so every figure here is indirect."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import metrics
from model.baselines import Grey
from model.data import image_files, read_grey
from model.evaluation import figures
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.tables import Table, Value, header, mean, write, write_csv

COLUMNS = (
    "method",
    "enl",
    "ssi",
    "smpi",
    "gradient_kept",
    "residual_structure",
    "residual_correlation",
    "mean_shift",
    "largest_shift",
    "milliseconds",
)
NOTE = (
    "No clean image exists: a method that smooths everything away leads the first three columns "
    "and loses in the others. ENL, SSI, SMPI and shifts are taken in up to eight patches of 32x32 "
    "that look most even in the input. Shifts here are against the speckled input."
)
LARGEST_SIDE_PX = 512
"""Images are cut to their middle of this size, so that slow methods finish."""
DETAIL_PX = 288
"""Side of the cut-out in the comparison of all methods."""

Figures = dict[str, float]


def choose(folder: Path, each: int) -> list[Path]:
    """Evenly spaced images from every source below a folder.

    Parameters
    ----------
    folder : Path
        Its first-level subfolders are sources; images directly in it are one more.
    each : int
        Images from each source.
    """
    if not folder.is_dir():
        return []
    sources: dict[str, list[Path]] = {}
    for path in image_files(folder):
        sources.setdefault(source_of(path, folder), []).append(path)
    chosen: list[Path] = []
    for files in sources.values():
        count = min(each, len(files))
        places = (np.arange(count) + 0.5) / count * len(files)
        chosen += [files[int(place)] for place in places]
    return chosen


def source_of(path: Path, folder: Path) -> str:
    """First folder on the way from `folder` to the image, or the folder's own name."""
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else folder.name


def evaluate(
    contenders: Sequence[Contender],
    files: Sequence[Path],
    *,
    root: Path,
    output: Path,
    described: Mapping[str, object],
    advance: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Run every contender over the images and write tables and pictures.

    Returns
    -------
    list of Path
        Markdown, CSV files and PNG files.
    """
    found: list[tuple[str, str, Figures]] = []
    written: list[Path] = []
    for index, path in enumerate(files):
        source, image = source_of(path, root), middle(read_grey(path), LARGEST_SIDE_PX)
        patches = metrics.homogeneous_patches(image)
        outputs: dict[str, Grey] = {}
        for contender in contenders:
            start = time.perf_counter()
            outputs[contender.name] = contender.method(image)
            elapsed = 1000 * (time.perf_counter() - start)
            measured = measure(image, outputs[contender.name], patches)
            measured["milliseconds"] = math.nan if contender.name == NOISY else elapsed
            found.append((contender.name, source, measured))
            advance()
        written += _pictures(image, outputs, output / f"real-{index:02d}-{source}")
    names = [contender.name for contender in contenders]
    tables = [
        Table(
            "All images",
            COLUMNS,
            [summary(name, [f for n, _, f in found if n == name]) for name in names],
            [NOTE],
            unranked=frozenset({NOISY}),
        )
    ]
    for source in dict.fromkeys(source for _, source, _ in found):
        rows = [
            summary(name, [f for n, s, f in found if n == name and s == source]) for name in names
        ]
        tables.append(Table(source, COLUMNS[:-1], rows, unranked=frozenset({NOISY})))
    head = header(
        "Real images: no reference exists",
        {
            **described,
            "images": f"{len(files)}, the middle {LARGEST_SIDE_PX} px of each side at most",
        },
    )
    documents = write(output, "real", tables, head)
    write_csv(
        output / "real-images.csv",
        ["method", "source", *COLUMNS[1:]],
        [{"method": name, "source": source, **measured} for name, source, measured in found],
    )
    return [*documents, output / "real-images.csv", *written]


def measure(noisy: NDArray[np.uint8], image: Grey, patches: Sequence[NDArray[np.bool_]]) -> Figures:
    """Every reference-free figure of one output on one image."""
    shifts = [metrics.mean_shift(noisy, image, patch) for patch in patches]
    return {
        "enl": mean(metrics.enl(image, patch) for patch in patches),
        "ssi": mean(metrics.ssi(noisy, image, patch) for patch in patches),
        "smpi": mean(metrics.smpi(noisy, image, patch) for patch in patches),
        "gradient_kept": metrics.gradient_kept(noisy, image),
        "residual_structure": metrics.residual_structure(noisy, image),
        "residual_correlation": metrics.residual_correlation(noisy, image),
        "mean_shift": mean(shifts),
        "largest_shift": max(shifts, key=abs) if shifts else math.nan,
    }


def summary(name: str, found: Sequence[Figures]) -> dict[str, Value]:
    """One row: means over images, the largest shift of any patch."""
    row: dict[str, Value] = {"method": name}
    for key in COLUMNS[1:-1]:
        row[key] = mean(measured[key] for measured in found)
    times = [measured["milliseconds"] for measured in found if "milliseconds" in measured]
    row["milliseconds"] = statistics.median(times) if times else math.nan
    shifts = [measured["largest_shift"] for measured in found]
    finite = [shift for shift in shifts if math.isfinite(shift)]
    row["largest_shift"] = max(finite, key=abs) if finite else math.nan
    return row


def middle(image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The middle of an image, at most `side_px` on each side."""
    window = []
    for length in image.shape:
        start = max(0, (length - side_px) // 2)
        window.append(slice(start, start + min(side_px, length)))
    return np.ascontiguousarray(image[tuple(window)])


def _pictures(image: NDArray[np.uint8], outputs: Mapping[str, Grey], stem: Path) -> list[Path]:
    written = []
    detail = {name: _detail(grey) for name, grey in outputs.items() if name != NOISY}
    if detail:
        path = stem.with_name(f"{stem.name}-methods.png")
        written.append(figures.comparison(_detail(image), detail, path))
    for name, grey in outputs.items():
        if name.startswith("student"):
            tiles = [
                figures.Tile("before", image),
                figures.Tile(f"after ({name})", grey),
                figures.Tile("removed", figures.removed(image, grey)),
            ]
            label = name.replace(" ", "-")
            written.append(figures.mosaic([tiles], stem.with_name(f"{stem.name}-{label}.png")))
    return written


def _detail(image: Grey | NDArray[np.uint8]) -> NDArray[np.uint8]:
    return middle(np.clip(image, 0, 255).round().astype(np.uint8), DETAIL_PX)

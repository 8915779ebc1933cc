"""Protocol C: real B-mode images. No clean version exists; what is known is what is planted."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import figures, metrics
from model.baselines import Grey
from model.evaluation import planted
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.images import middle, source_of
from model.evaluation.remembered import timed
from model.evaluation.tables import Table, Value, header, mean, write, write_csv
from model.images import read_grey

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
TURNS = 2
"""Images as they are, and with lesions planted."""
DETAIL_PX = 288
"""Side of the cut-out in the comparison of all methods."""

Figures = dict[str, float]


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

    Parameters
    ----------
    advance : callable
        Called `TURNS` times for each contender and image.

    Returns
    -------
    list of Path
        Markdown, CSV files and PNG files.
    """
    found: list[tuple[str, str, Figures]] = []
    kinds: dict[str, dict[str, list[figures.Tile]]] = {c.name: {} for c in contenders if learned(c)}
    written: list[Path] = []
    images = [middle(read_grey(path), LARGEST_SIDE_PX) for path in files]
    for index, (path, image) in enumerate(zip(files, images, strict=True)):
        source = source_of(path, root)
        patches = metrics.homogeneous_patches(image)
        outputs: dict[str, Grey] = {}
        for contender in contenders:
            outputs[contender.name], elapsed = timed(contender.method, image)
            measured = measure(image, outputs[contender.name], patches)
            measured["milliseconds"] = math.nan if contender.name == NOISY else elapsed
            found.append((contender.name, source, measured))
            advance()
        for name, bands in kinds.items():
            bands.setdefault(source, _triple(source, _detail(image), _detail(outputs[name])))
        written += _pictures(image, outputs, output / f"real-{index:02d}-{source}")
    written += _sheets(kinds, output)
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
    tables.append(planted.table(contenders, planted.grounds(images), advance))
    head = header(
        "Real images: no reference exists",
        {
            **described,
            "images": f"{len(files)} of subjects that the split keeps for tests, the middle "
            f"{LARGEST_SIDE_PX} px of each side at most",
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


def _pictures(image: NDArray[np.uint8], outputs: Mapping[str, Grey], stem: Path) -> list[Path]:
    written = []
    detail = {name: _detail(grey) for name, grey in outputs.items() if name != NOISY}
    if detail:
        path = stem.with_name(f"{stem.name}-methods.png")
        written.append(figures.comparison(_detail(image), detail, path))
    for name, grey in outputs.items():
        if name.startswith("student"):
            path = stem.with_name(f"{stem.name}-{_file_name(name)}.png")
            written.append(figures.mosaic([_triple("before", image, grey)], path))
    return written


def _sheets(kinds: Mapping[str, Mapping[str, Sequence[figures.Tile]]], output: Path) -> list[Path]:
    """For each network a sheet with a band a kind of tissue: before, after, removed."""
    return [
        figures.mosaic(list(bands.values()), output / f"real-sheet-{_file_name(name)}.png")
        for name, bands in kinds.items()
        if bands
    ]


def _triple(before: str, image: NDArray[np.uint8], grey: figures.Picture) -> list[figures.Tile]:
    return [
        figures.Tile(before, image),
        figures.Tile("after", grey),
        figures.Tile("removed", figures.removed(image, grey)),
    ]


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def learned(contender: Contender) -> bool:
    """Whether a contender is a network."""
    return contender.network is not None or contender.name.startswith("student")


def _detail(image: Grey | NDArray[np.uint8]) -> NDArray[np.uint8]:
    return middle(np.clip(image, 0, 255).round().astype(np.uint8), DETAIL_PX)

"""What is small and plain: calcifications and clefts, and how much of their contrast is left.

Simulated even tissue of both simulators in turn, with bright points of two pixels and dark clefts
across and along the beam. The contrast in the reference, which has the blur of the beam, is what is
to be kept.

    python benchmarks/details.py --bundle quality --bundle lesions --tuned out/evaluation/tuned.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from model import figures, metrics
from model.data import VALIDATION_SEED
from model.evaluation.contenders import (
    Contender,
    chosen_baselines,
    classical,
    noisy,
    simulated,
    students,
    trained_runs,
)
from model.evaluation.safety_grounds import imaged
from model.evaluation.safety_measures import lesions_kept
from model.evaluation.tables import Table, header, write
from model.figures import Tile
from model.simulation.phantoms import Lesion, Map, Phantom
from model.simulation.scene import Scene

SEED = VALIDATION_SEED + 110
SIDE_PX, CELL_PX = 256, 26
POINTS_DB = (10.0, 15.0, 20.0)
"""Of points of two pixels a side; the beam leaves less of it."""
CLEFTS_PX, CLEFT_DB, CLEFT_LENGTH_PX = (2.0, 3.0, 4.0, 6.0), -20.0, 40
SHOWN = ("points 20 dB", "across 3 px")
"""In the picture, without `LEFT_OUT`."""
LEFT_OUT = frozenset({"median", "Lee", "Frost", "TV", "wavelet", "OBNLM"})
Draw = Callable[[np.random.Generator], Phantom]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    grounds = {name: _imaged(draw, arguments.images) for name, draw in _kinds()}
    columns = ["method"]
    for name in grounds:
        columns += [name, f"{name}, contrast"]
    rows: list[dict[str, float | str]] = []
    pictures: dict[str, list[Tile]] = {}
    for contender in track(_contenders(arguments), transient=True):
        row: dict[str, float | str] = {"method": contender.name}
        for name, scenes in grounds.items():
            outputs = [contender.method(scene.noisy) for scene in scenes]
            size_px = scenes[0].lesions[0].diameter_px
            row[name], row[f"{name}, contrast"] = lesions_kept(outputs, scenes, size_px)
            if contender.name not in LEFT_OUT:
                pictures.setdefault(name, []).append(Tile(contender.name, outputs[0]))
        rows.append(row)
    settings = {
        "images": f"{arguments.images} of each kind, {SIDE_PX}x{SIDE_PX}, both simulators in turn",
        "seed": str(SEED),
        "contrasts": "in the reference, grey levels: "
        + ", ".join(f"{name} {_expected(scenes):+.0f}" for name, scenes in grounds.items()),
    }
    note = (
        "Share that keeps its sign and half of the contrast in the reference, and how much is left "
        "of all together."
    )
    table = Table("Points and clefts", columns, rows, [note])
    for path in write(arguments.output, "details", [table], header("Details", settings)):
        print(f"wrote {path}")
    print(table.markdown())
    bands = [
        [Tile(name, scenes[0].target.clip(0, 255)), *pictures[name]]
        for name, scenes in grounds.items()
        if name in SHOWN
    ]
    print(f"wrote {figures.mosaic(bands, arguments.output / 'details.png')}")


def _kinds() -> Iterator[tuple[str, Draw]]:
    for level in POINTS_DB:
        yield f"points {level:g} dB", partial(points, level_db=level)
    for width in CLEFTS_PX:
        yield f"across {width:g} px", partial(clefts, width_px=width)
    yield "along 4 px", lambda rng: _turned(clefts(rng, 4.0))


def points(rng: np.random.Generator, level_db: float) -> Phantom:
    """Bright points of two pixels a side in even tissue, one a cell."""
    db = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    found = []
    for top in range(0, SIDE_PX - CELL_PX + 1, CELL_PX):
        for left in range(0, SIDE_PX - CELL_PX + 1, CELL_PX):
            row, column = (
                first + CELL_PX // 2 - 1 + int(rng.integers(-3, 4)) for first in (top, left)
            )
            db[row : row + 2, column : column + 2] = level_db
            found.append(_marked((row + 0.5, column + 0.5), (1, 1), level_db, 2))
    return Phantom(db, np.zeros_like(db), tuple(found))


def clefts(rng: np.random.Generator, width_px: float) -> Phantom:
    """Dark clefts across the beam in even tissue."""
    db = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    rows = np.arange(SIDE_PX)[:, None]
    found = []
    for top in range(0, SIDE_PX - CELL_PX + 1, CELL_PX):
        for middle in np.arange(0.5, SIDE_PX // (CLEFT_LENGTH_PX + 16)) * (CLEFT_LENGTH_PX + 16):
            row = top + CELL_PX / 2 + rng.uniform(-2, 2)
            column = middle + rng.uniform(-4, 4)
            ends = (int(column - CLEFT_LENGTH_PX / 2), int(column + CLEFT_LENGTH_PX / 2))
            weight = np.clip(0.5 + width_px / 2 - np.abs(rows - row), 0, 1)
            db[:, max(ends[0], 0) : ends[1]] += np.float32(CLEFT_DB) * weight
            halves = (max(width_px / 2 - 0.5, 0.5), CLEFT_LENGTH_PX / 2 - 6)
            found.append(_marked((row, column), halves, CLEFT_DB, width_px))
    return Phantom(db, np.zeros_like(db), tuple(found))


def _marked(
    centre: tuple[float, float], halves: tuple[float, float], contrast_db: float, size_px: float
) -> Lesion:
    """The inside of a detail, so many pixels to each side, and the tissue about it."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    down, beside = np.abs(rows - centre[0]), np.abs(columns - centre[1])
    inside = (down <= halves[0]) & (beside <= halves[1])
    reach = np.maximum(down - halves[0], beside - halves[1])
    return Lesion(inside, (reach > 4) & (reach <= 8), contrast_db, size_px)


def _turned(phantom: Phantom) -> Phantom:
    """The same along the beam."""
    lesions = tuple(replace(each, mask=each.mask.T, ring=each.ring.T) for each in phantom.lesions)
    turned: Map = np.ascontiguousarray(phantom.diffuse_db.T)
    return Phantom(turned, np.zeros_like(turned), lesions)


def _imaged(draw: Draw, count: int) -> list[Scene]:
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((SEED, index))
        scenes += imaged(draw(rng), rng, index)
    return scenes


def _expected(scenes: Sequence[Scene]) -> float:
    """Mean contrast in the reference, grey levels."""
    contrasts = [
        metrics.contrast(scene.target, each.mask, each.ring)
        for scene in scenes
        for each in scene.lesions
    ]
    return float(np.mean(contrasts))


def _contenders(arguments: argparse.Namespace) -> list[Contender]:
    found = [noisy()]
    if arguments.tuned:
        found += classical(
            chosen_baselines(arguments.baseline),
            on=simulated(arguments.tuning_scenes),
            cache=arguments.tuned,
        )
    return [*found, *trained_runs(arguments.run), *students(arguments.bundle)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", default=[], metavar="LABEL=FOLDER[@BUNDLE]")
    parser.add_argument("--bundle", action="append", default=[])
    parser.add_argument("--baseline", action="append", default=[], help="all where none is named")
    parser.add_argument("--tuned", type=Path, help="cache of `evaluate`; classical methods as well")
    parser.add_argument("--tuning-scenes", type=int, default=8)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/details"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Decibels at the rim of sectors: tissue that ends at black against tissue that is continued.

Simulated scenes of both simulators, sectors and others, as the bundle is shipped and without its
`rim_px` (`model.network.rim`). Scenes where no rim is found must come out the same.

    python benchmarks/rim.py --bundle quality
"""

from __future__ import annotations

import argparse
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from model import bundle as bundles
from model import figures, metrics
from model.data import VALIDATION_SEED
from model.evaluation.scenes import SIMULATORS
from model.evaluation.tables import Table, header, mean, write
from model.figures import Tile
from model.network.rim import find
from model.simulation.scene import Scene
from model.student import Student, despeckled

SEED = VALIDATION_SEED + 90
NEAR_PX = 4
"""Pixels of the sector from its rim on that count as near it."""
COLUMNS = (
    "scenes",
    "rim found",
    "left, dB",
    "continued, dB",
    "least gain, dB",
    f"within {NEAR_PX} px, left, grey levels",
    "continued, grey levels",
)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    shipped = bundles.load(arguments.bundle).student
    left = copy(shipped)
    left.architecture = replace(shipped.architecture, rim_px=0)
    rows = []
    tiles: list[list[Tile]] = []
    for simulator, simulate in SIMULATORS.items():
        scenes = simulate(arguments.scenes, SEED)
        groups: dict[str, list[Scene]] = {"rim": [], "no rim": []}
        for scene in scenes:
            groups["rim" if len(find(scene.noisy, 1).outside) else "no rim"].append(scene)
        for what, group in groups.items():
            measured = [_measured(left, shipped, scene) for scene in group]
            rows.append(_row(f"{simulator}, {what}", len(group), np.array(measured)))
        tiles += [_tiles(left, shipped, scene) for scene in groups["rim"][:2]]
    settings = {
        "bundle": arguments.bundle,
        "scenes": f"{arguments.scenes} of either simulator, 256x256; seed {SEED}",
        "continued by": f"{shipped.architecture.rim_px} px",
    }
    table = Table(
        "The rim of a sector",
        COLUMNS,
        rows,
        ["Means over scenes of the PSNR of whole images, and of the RMS error near the rim."],
    )
    for path in write(arguments.output, "rim", [table], header("Rim", settings)):
        print(f"wrote {path}")
    print(table.markdown())
    print(f"wrote {figures.mosaic(tiles, arguments.output / 'rim.png')}")


def _row(name: str, count: int, measured: NDArray[np.float64]) -> dict[str, float | str]:
    """Of (scenes, 4): decibels and errors near the rim, either way."""
    before, after, *near = (mean(column) for column in measured.T)
    least = (measured[:, 1] - measured[:, 0]).min()
    shown = ["" if np.isnan(v) else f"{v:.2f}" for v in (before, after, least, *near)]
    return dict(zip(COLUMNS, (name, str(count), *shown), strict=True))


def _measured(left: Student, shipped: Student, scene: Scene) -> tuple[float, ...]:
    outputs = [despeckled(student, scene.noisy) for student in (left, shipped)]
    inside = scene.labels["inside"]
    near = inside & ~ndimage.binary_erosion(inside, iterations=NEAR_PX, border_value=1)
    errors = [
        float(np.sqrt(((out - scene.target)[near] ** 2).mean())) if near.any() else np.nan
        for out in outputs
    ]
    return *(metrics.psnr(out, scene.target, data_range=255) for out in outputs), *errors


def _tiles(left: Student, shipped: Student, scene: Scene) -> list[Tile]:
    before, after = (despeckled(student, scene.noisy) for student in (left, shipped))
    changed = np.clip(128 + 4 * (after - before), 0, 255)
    return [
        Tile("speckled", scene.noisy),
        Tile("rim left", before),
        Tile("tissue continued", after),
        Tile("difference x 4", changed),
        Tile("reference", scene.target),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="quality")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/rim"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

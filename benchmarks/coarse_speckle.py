"""Decibels on enlarged images, whose speckle is coarse: one scale against as many as are needed.

Simulated scenes of either simulator and their references are enlarged as scanners enlarge what they
display. A network sees them at their size alone, and, as the node does it, at half the size first
where the speckle is coarse (`model.network.scales`).

    python benchmarks/coarse_speckle.py --bundle quality --image FILE

`--image` draws real images as well: before, one scale, as shipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model import bundle as bundles
from model import figures, metrics
from model.data import VALIDATION_SEED
from model.evaluation.images import lit, middle
from model.evaluation.safety_grounds import Grounds, Size
from model.evaluation.safety_measures import appeared, lesions_kept
from model.evaluation.scenes import SIMULATORS
from model.evaluation.tables import Table, header, write
from model.figures import Tile
from model.images import read_grey
from model.network.scales import speckle_px
from model.simulation.scene import Scene
from model.student import Student, despeckled

SEED = VALIDATION_SEED + 80
FACTORS = (1, 2, 3)
SIZE = Size(faint=16, plain=0, even=8, blocks=0, cines=0)
LESION_PX = 20
WAYS = ("one scale", "as shipped")
DECIBELS = ("scenes", "enlarged", "speckle px", "speckled dB", *(f"{way}, dB" for way in WAYS))
Grey = NDArray[np.float32]
Method = Callable[[NDArray[np.uint8]], Grey]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    student = bundles.load(arguments.bundle).student
    settings = {"bundle": arguments.bundle, "scenes": f"of 256x256, enlarged; seed {SEED}"}
    tables = [_decibels(student, arguments.scenes), _lesions(student)]
    head = header("Coarse speckle", settings)
    for path in write(arguments.output, "coarse-speckle", tables, head):
        print(f"wrote {path}")
    for table in tables:
        print(table.markdown())
    if arguments.image:
        tiles = [_tiles(student, path, arguments.side) for path in arguments.image]
        print(f"wrote {figures.mosaic(tiles, arguments.output / 'coarse-speckle.png')}")


def _decibels(student: Student, count: int) -> Table:
    rows = []
    for simulator, number in (("speckle", count), ("array", count // 2)):
        scenes = SIMULATORS[simulator](number, SEED)
        for factor in FACTORS:
            found = [_measured(student, _enlarged(scene, factor)) for scene in scenes]
            means = [f"{value:.2f}" for value in np.nanmean(found, axis=0)]
            first = (f"{number} of {simulator}", str(factor))
            rows.append(dict(zip(DECIBELS, (*first, *means), strict=True)))
    return Table("By enlargement", DECIBELS, rows)


def _lesions(student: Student) -> Table:
    """What survives and what appears; lesions are enlarged with their image."""
    grounds = Grounds.make(SEED, SIZE)
    columns = ("enlarged", *(f"{what}, {way}" for what in ("survive", "spots dB") for way in WAYS))
    rows = []
    for factor in FACTORS:
        faint = [_enlarged(scene, factor) for scene in grounds.lesions[3.0]]
        even = [_enlarged(scene, factor) for scene in grounds.even]
        row: dict[str, float | str] = {"enlarged": str(factor)}
        for way, method in _methods(student).items():
            kept = lesions_kept([method(s.noisy) for s in faint], faint, LESION_PX * factor)
            spots = appeared([method(s.noisy) for s in even], even)
            row |= {f"survive, {way}": kept[0], f"spots dB, {way}": spots["16 px, dB"]}
        rows.append(row)
    note = (
        f"Lesions of 3 dB and {LESION_PX} px, times the enlargement, that keep half of their "
        "contrast; 95th percentile of discs of 16 px in even speckle."
    )
    return Table("Faint lesions, and what is not there", columns, rows, [note])


def _methods(student: Student) -> dict[str, Method]:
    one_scale = copy(student)
    one_scale.architecture = replace(student.architecture, halvings=0)
    ways = (one_scale, student)
    return {way: partial(despeckled, one) for way, one in zip(WAYS, ways, strict=True)}


def _measured(student: Student, scene: Scene) -> tuple[float, ...]:
    """Width of the speckle, pixels, and PSNR of the input and of either output, dB."""
    x = torch.from_numpy(np.array(scene.noisy))[None, None].float() / 255
    with torch.inference_mode():
        width_px = speckle_px(x, student.residual(x))
    outputs = [method(scene.noisy) for method in _methods(student).values()]
    images = (scene.noisy.astype(np.float32), *outputs)
    return width_px, *(metrics.psnr(image, scene.target, data_range=255) for image in images)


def _enlarged(scene: Scene, factor: int) -> Scene:
    """As a scanner enlarges what it displays: bicubic; areas and lesions grow with it."""
    if factor == 1:
        return scene
    cell = np.ones((factor, factor), bool)
    return replace(
        scene,
        noisy=_resized(scene.noisy, factor).round().astype(np.uint8),
        target=_resized(scene.target, factor),
        labels={name: np.kron(area, cell) for name, area in scene.labels.items()},
        lesions=tuple(
            replace(
                lesion,
                mask=np.kron(lesion.mask, cell),
                ring=np.kron(lesion.ring, cell),
                diameter_px=lesion.diameter_px * factor,
            )
            for lesion in scene.lesions
        ),
    )


def _resized(image: NDArray[np.generic], factor: int) -> Grey:
    size = (image.shape[1] * factor, image.shape[0] * factor)
    picture = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture).clip(0, 255)


def _tiles(student: Student, path: Path, side: int) -> list[Tile]:
    image = middle(lit(read_grey(path)), side)
    after = [Tile(way, method(image)) for way, method in _methods(student).items()]
    return [Tile("before", image), *after]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="quality")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--side", type=int, default=320, help="of the part that is drawn, pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/coarse-speckle"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

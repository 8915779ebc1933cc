"""How many faint lesions survive in real tissue: planted in real images, found in the output.

A lesion is planted as the scanner would have shown it (`model.planting`), on a display of 60 dB.
Both images are despeckled, and the difference of the lesion's contrast in the two outputs is held
against that in the two inputs, so that what was there before does not count.

    python benchmarks/planted_lesions.py --run planted=model/yardsticks/planted
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import metrics
from model.data import VALIDATION_SEED
from model.evaluation.contenders import Contender, students, trained_runs
from model.evaluation.images import choose, middle, parted
from model.evaluation.safety_grounds import GREY_PER_DB, packed_lesions
from model.evaluation.safety_measures import KEPT_SHARE
from model.evaluation.tables import Table, header, mean, write
from model.images import read_grey
from model.phantoms import Lesion
from model.planting import plant

SEED = VALIDATION_SEED + 70
DIAMETERS_PX = (10, 14, 20, 30)
CONTRAST_DB, SIDE_PX, PLANTINGS = 3.0, 256, 4
DARKEST, BRIGHTEST, MOST_BLACK, WHOLE_SHARE = 30, 200, 0.02, 0.9
"""Mean grey level, share of black pixels and least share of its area of a lesion that counts."""


@dataclass(frozen=True)
class Pair:
    """A real image without and with lesions, (rows, columns), uint8."""

    before: NDArray[np.uint8]
    planted: NDArray[np.uint8]
    lesions: Sequence[Lesion]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    files = choose(
        getattr(parted(arguments.images), arguments.part), arguments.images, arguments.each
    )
    pairs = list(_pairs(files))
    contenders = [*students(arguments.bundle), *trained_runs(arguments.run)]
    rows = [{"method": each.name} | _survival(each, pairs) for each in contenders]
    counts = {d: _count(pairs, d) for d in DIAMETERS_PX}
    note = (
        f"Share of lesions of {CONTRAST_DB:g} dB, brighter and darker ones alike, that keep half "
        f"of the contrast that was planted; {counts} of them by diameter in pixels."
    )
    table = Table("Lesions planted in real images that survive", _columns(), rows, [note])
    described = {"images": f"{len(files)}, {arguments.part} subjects", "seed": SEED}
    written = write(
        arguments.output, "planted-lesions", [table], header("Planted lesions", described)
    )
    print(written[0].read_text("utf-8"))


def _count(pairs: Sequence[Pair], diameter_px: int) -> int:
    return sum(int(lesion.diameter_px == diameter_px) for pair in pairs for lesion in pair.lesions)


def _columns() -> list[str]:
    return ["method", *(f"{d} px" for d in DIAMETERS_PX)]


def _pairs(files: Sequence[Path]) -> Iterator[Pair]:
    for number, path in enumerate(files):
        image = middle(read_grey(path), SIDE_PX)
        for planting in range(PLANTINGS):
            rng = np.random.default_rng((SEED, number, planting))
            phantom = packed_lesions(rng, SIDE_PX, CONTRAST_DB)
            rows, columns = image.shape
            added = phantom.diffuse_db[:rows, :columns]
            lesions = [_cut(lesion, rows, columns) for lesion in phantom.lesions]
            planted, _ = plant(image, added, GREY_PER_DB)
            yield Pair(image, planted, [each for each in lesions if _in_tissue(image, each)])


def _cut(lesion: Lesion, rows: int, columns: int) -> Lesion:
    """A lesion on an image that may be smaller; beyond it there is none."""
    part = np.s_[:rows, :columns]
    return replace(lesion, mask=lesion.mask[part], ring=lesion.ring[part])


def _in_tissue(image: NDArray[np.uint8], lesion: Lesion) -> bool:
    """Whether all of a lesion that counts lies in tissue that is neither black nor white."""
    there = image[lesion.mask | lesion.ring]
    enough = lesion.mask.sum() > WHOLE_SHARE * np.pi / 4 * (lesion.diameter_px - 2) ** 2
    return bool(
        enough
        and lesion.ring.any()
        and DARKEST < there.mean() < BRIGHTEST
        and (there == 0).mean() < MOST_BLACK
    )


def _survival(contender: Contender, pairs: Sequence[Pair]) -> dict[str, float]:
    found: dict[int, list[float]] = {diameter: [] for diameter in DIAMETERS_PX}
    for pair in pairs:
        before, after = contender.method(pair.before), contender.method(pair.planted)
        for lesion in pair.lesions:
            if lesion.diameter_px in found:
                wanted = _gained(pair.before, pair.planted, lesion)
                share = _gained(before, after, lesion) / wanted
                found[int(lesion.diameter_px)].append(float(share >= KEPT_SHARE))
    return {f"{diameter} px": mean(kept) for diameter, kept in found.items()}


def _gained(before: NDArray[np.generic], after: NDArray[np.generic], lesion: Lesion) -> float:
    difference = after.astype(np.float64) - before
    return metrics.contrast(difference, lesion.mask, lesion.ring)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", nargs="*", default=["quality", "lesions"])
    parser.add_argument("--run", nargs="*", default=[], help="LABEL=FOLDER of a training run")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/train"))
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    parser.add_argument("--each", type=int, default=3, help="images a source")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/planted"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Faint lesions in real tissue: planted in real images, looked for in the output.

A lesion is planted as the scanner would have shown it (`model.training.planting`), on a display of
60 dB that is bent as those of real images are. The image is despeckled with lesions and without,
and the difference of the two outputs is held against that of the two inputs, so that what was there
before does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model import metrics
from model.baselines import Grey, Method
from model.data import VALIDATION_SEED
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.images import middle
from model.evaluation.safety_grounds import GREY_PER_DB, Grey8, packed_lesions
from model.evaluation.safety_measures import KEPT_SHARE, lesions_kept
from model.evaluation.tables import Table, Value, mean
from model.simulation.phantoms import Lesion
from model.simulation.scene import Scene
from model.training.planting import plant

SEED = VALIDATION_SEED + 70
DIAMETERS_PX = (10, 14, 20, 30)
CONTRAST_DB, SIDE_PX, PLANTINGS = 3.0, 256, 4
WITHOUT, GAINED = "gCNR without", "gCNR gained"
GROWTH = 0.75
"""Of the display, see `model.training.planting.plant`."""
_DARKEST, _BRIGHTEST, _MOST_BLACK, _WHOLE_SHARE = 30, 200, 0.02, 0.9
"""Mean grey level, share of black pixels and least share of its area of a lesion that counts."""


@dataclass(frozen=True)
class Ground:
    """A real image, and the same with lesions.

    Attributes
    ----------
    image : ndarray, (rows, columns), uint8
    planted : tuple of Scene
        Each with lesions of its own; the target is what their display gained, grey levels.
    """

    image: Grey8
    planted: tuple[Scene, ...]


def grounds(images: Sequence[Grey8], plantings: int = PLANTINGS) -> list[Ground]:
    """Plant lesions in the middle of each image.

    Parameters
    ----------
    images : sequence of ndarray, (rows, columns), uint8
        Cut to `SIDE_PX` on each side.
    plantings : int
        Times that each image is planted anew.
    """
    cut = [middle(image, SIDE_PX) for image in images]
    return [
        Ground(image, tuple(_scene(image, (SEED, number, time)) for time in range(plantings)))
        for number, image in enumerate(cut)
    ]


def table(
    contenders: Sequence[Contender],
    tried_on: Sequence[Ground],
    advance: Callable[[], object] = lambda: None,
) -> Table:
    """How many lesions survive every contender; `advance` is called after each ground."""
    rows: list[dict[str, Value]] = [
        {"method": each.name, **survival(each.method, tried_on, advance)} for each in contenders
    ]
    scenes = [scene for ground in tried_on for scene in ground.planted]
    counts = Counter(lesion.diameter_px for scene in scenes for lesion in scene.lesions)
    numbers = ", ".join(str(counts[diameter]) for diameter in DIAMETERS_PX)
    note = (
        f"Lesions of {CONTRAST_DB:g} dB, brighter and darker ones alike, on displays whose steps "
        f"grow with the power of {GROWTH:g} of the grey level: the share that keeps "
        f"{KEPT_SHARE:g} of the contrast that was planted, and how much of it is left of all "
        f"together; {numbers} of them by diameter. gCNR of whole grey levels, of the same places "
        "without lesions, and what lies between: what else there is in the tissue, and chance, "
        "tell places apart too, by how much depends on the method. The students were trained with "
        "lesions planted like these, in other images."
    )
    columns = ["method", *_columns(), "gcnr", WITHOUT, GAINED]
    title = f"Lesions of {CONTRAST_DB:g} dB planted in these images"
    return Table(title, columns, rows, [note], frozenset({NOISY}))


def survival(
    method: Method, tried_on: Sequence[Ground], advance: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """One row of the table, without its name."""
    gained: list[Grey] = []
    told_apart: list[float] = []
    told_without: list[float] = []
    scenes = [scene for ground in tried_on for scene in ground.planted]
    for ground in tried_on:
        before = method(ground.image)
        for scene in ground.planted:
            after = method(scene.noisy)
            gained.append(after - before)
            for image, told in ((after, told_apart), (before, told_without)):
                shown = image.round()
                told += [metrics.gcnr(shown, each.mask, each.ring) for each in scene.lesions]
        advance()
    kept = {diameter: lesions_kept(gained, scenes, diameter) for diameter in DIAMETERS_PX}
    figures = [share for pair in zip(*kept.values(), strict=True) for share in pair]
    found = dict(zip(_columns(), figures, strict=True))
    found |= {"gcnr": mean(told_apart), WITHOUT: mean(told_without)}
    return found | {GAINED: found["gcnr"] - found[WITHOUT]}


def _columns() -> list[str]:
    sizes = [f"{diameter} px" for diameter in DIAMETERS_PX]
    return [*sizes, *(f"{size}, contrast" for size in sizes)]


def _scene(image: Grey8, seed: tuple[int, ...]) -> Scene:
    phantom = packed_lesions(np.random.default_rng(seed), SIDE_PX, CONTRAST_DB)
    rows, columns = image.shape
    planted, _ = plant(image, phantom.diffuse_db[:rows, :columns], GREY_PER_DB, growth=GROWTH)
    gained = planted.astype(np.float32) - image
    lesions = tuple(each for each in _cut(phantom.lesions, image) if _in_tissue(image, each))
    return Scene(planted, gained, "planted", lesions=lesions)


def _cut(lesions: Sequence[Lesion], image: Grey8) -> Iterator[Lesion]:
    """Lesions on an image that may be smaller; beyond it there are none."""
    part = np.s_[: image.shape[0], : image.shape[1]]
    for lesion in lesions:
        if lesion.diameter_px in DIAMETERS_PX:
            yield replace(lesion, mask=lesion.mask[part], ring=lesion.ring[part])


def _in_tissue(image: Grey8, lesion: Lesion) -> bool:
    """Whether all of a lesion lies in tissue that is neither black nor white."""
    there = image[lesion.mask | lesion.ring]
    enough = lesion.mask.sum() > _WHOLE_SHARE * np.pi / 4 * (lesion.diameter_px - 2) ** 2
    return bool(
        enough
        and lesion.ring.any()
        and _DARKEST < there.mean() < _BRIGHTEST
        and (there == 0).mean() < _MOST_BLACK
    )

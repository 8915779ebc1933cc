"""What candidates for a release, and parts of a recipe, are compared by.

Grounds and scenes have seeds of their own and real images are of validation subjects, so that the
tables of the other protocols see none of them and can judge what was chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import metrics
from model.baselines import Grey, Method
from model.evaluation import planted, real
from model.evaluation.images import choose, middle, parted, source_of
from model.evaluation.physics import DETECTABLE_PX
from model.evaluation.safety_grounds import Grey8, Grounds, Size
from model.evaluation.safety_measures import FLICKER, appeared, flicker_reductions, lesions_kept
from model.evaluation.scenes import ARRAY, SIMULATORS, SPECKLE
from model.evaluation.tables import mean
from model.images import read_grey
from model.simulation.scene import Scene

DARKENED = "hc18_fetal_head"
"""Source whose even patches students darken most."""
IMAGES_EACH = 4
"""Real images of every source."""
Figures = dict[str, float]


@dataclass(frozen=True)
class RealImage:
    """An image of a validation subject: its source, and where it looks even."""

    source: str
    image: Grey8
    patches: Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Trials:
    """All that a network is run over.

    Attributes
    ----------
    grounds : Grounds
        Faint lesions, even and clustered tissue, still tissues under fresh speckle.
    scenes : mapping of str to sequence of Scene
        By simulator.
    real : sequence of RealImage
        Empty where there is no folder of images.
    planted : sequence of planted.Ground
        The same images with lesions.
    """

    grounds: Grounds
    scenes: Mapping[str, Sequence[Scene]]
    real: Sequence[RealImage]
    planted: Sequence[planted.Ground]

    @classmethod
    def make(cls, seed: int, size: Size, scenes: int, images: Path) -> Trials:
        """Draw scenes and grounds, read images.

        Parameters
        ----------
        seed : int
            At least `model.data.VALIDATION_SEED`.
        size : Size
            Of the grounds.
        scenes : int
            Of each simulator.
        images : Path
            Folder of real images, as training takes it.
        """
        files = choose(parted(images).validation, images, IMAGES_EACH)
        shown = [middle(read_grey(path), real.LARGEST_SIDE_PX) for path in files]
        return cls(
            Grounds.make(seed, size),
            {name: SIMULATORS[name](scenes, seed) for name in (SPECKLE, ARRAY)},
            [
                RealImage(source_of(path, images), image, metrics.homogeneous_patches(image))
                for path, image in zip(files, shown, strict=True)
            ],
            planted.grounds(shown, plantings=2),
        )


GROUND_COLUMNS = (
    "even, dB",
    "clustered, dB",
    "flicker",
    *(f"survive {diameter} px" for diameter in planted.DIAMETERS_PX),
)
REAL_COLUMNS = (
    *(f"planted {diameter} px" for diameter in planted.DIAMETERS_PX),
    "ssi",
    "mean_shift",
    f"{DARKENED}, shift",
)
NOTES = {
    "even, clustered": "95th percentile of 10 px discs where the tissue is the same throughout",
    "lesions": "of 3 dB; share that keeps its sign and half of its contrast",
}
GCNR_NOTE = f"of whole grey levels, lesions of {DETECTABLE_PX:g} px and more"
"""Of `on_scenes`."""


def scene_columns(trials: Trials) -> tuple[str, ...]:
    """Keys of `on_scenes`."""
    return tuple(f"{name}, {what}" for name in trials.scenes for what in ("gain dB", "gCNR"))


def on_scenes(method: Method, trials: Trials) -> Figures:
    """Decibels gained and gCNR of lesions, by simulator."""
    found: Figures = {}
    for name, scenes in trials.scenes.items():
        outputs = [method(scene.noisy) for scene in scenes]
        pairs = list(zip(outputs, scenes, strict=True))
        found[f"{name}, gain dB"] = float(np.mean([gain(*pair) for pair in pairs]))
        found[f"{name}, gCNR"] = mean(value for pair in pairs for value in _gcnrs(*pair))
    return found


def on_grounds(method: Method, trials: Trials) -> Figures:
    """What appears in tissue that is the same throughout, what flickers, which lesions survive."""
    grounds, found = trials.grounds, Figures()
    for label, uniform in (("even", grounds.even), ("clustered", grounds.clustered)):
        outputs = [method(scene.noisy) for scene in uniform]
        found[f"{label}, dB"] = appeared(outputs, uniform)["10 px, dB"]
    cines = [[method(scene.noisy) for scene in scenes] for scenes in grounds.cines]
    found["flicker"] = flicker_reductions(cines, grounds.cines)[FLICKER]
    faint = grounds.lesions[3.0]
    outputs = [method(scene.noisy) for scene in faint]
    for diameter in planted.DIAMETERS_PX:
        found[f"survive {diameter} px"], _ = lesions_kept(outputs, faint, diameter)
    return found


def on_real(method: Method, trials: Trials) -> Figures:
    """Speckle left and brightness moved in even patches, which planted lesions survive."""
    if not trials.real:
        return {}
    measured = [
        (each.source, real.measure(each.image, method(each.image), each.patches))
        for each in trials.real
    ]
    kept = planted.survival(method, trials.planted)
    return {
        **{f"planted {diameter} px": kept[f"{diameter} px"] for diameter in planted.DIAMETERS_PX},
        **{key: mean(found[key] for _, found in measured) for key in ("ssi", "mean_shift")},
        f"{DARKENED}, shift": mean(
            found["mean_shift"] for source, found in measured if source == DARKENED
        ),
    }


def gain(image: Grey, scene: Scene) -> float:
    """PSNR of an output above that of the speckled input, dB."""
    target = np.clip(scene.target, 0, 255)
    before, after = (
        metrics.psnr(each, target, data_range=255) for each in (scene.noisy.astype(float), image)
    )
    return after - before


def _gcnrs(image: Grey, scene: Scene) -> list[float]:
    shown = image.round()
    return [
        metrics.gcnr(shown, lesion.mask, lesion.ring)
        for lesion in scene.lesions
        if lesion.diameter_px >= DETECTABLE_PX
    ]

"""The metric-guided controller: loss weights move to where the student falls short most.

Every few hundred steps the metrics that judge a despeckler are computed on validation scenes, not
their differentiable stand-ins. Each governs one term of the loss; the term of the metric that is
furthest from its target gains weight, the others lose it. Metrics that only judge (GMSD, FSIM,
gCNR, false structures, flicker) are never looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model import metrics
from model.metrics.fidelity import MS_SSIM_MINIMUM_PX
from model.simulation.scene import Scene
from model.training.recipe import GuidanceSection

Figures = dict[str, float]


@dataclass(frozen=True)
class Governed:
    """A metric, the term that it governs, and how much of it counts as one step short.

    Attributes
    ----------
    term : str
        Of `model.losses.TERMS`.
    unit : float
        In the metric's own unit.
    """

    term: str
    unit: float


GOVERNED: Mapping[str, Governed] = {
    "psnr": Governed("charbonnier", 0.5),
    "ms_ssim": Governed("ms_ssim", 0.004),
    "edge_strength": Governed("gradient", 0.03),
    "contrast_kept": Governed("contrast", 0.05),
    "survival": Governed("survival", 0.05),
}
"""All are better when higher, up to their target."""


def measure(
    despeckle: Callable[[NDArray[np.uint8]], NDArray[np.float32]], scenes: Sequence[Scene]
) -> Figures:
    """Mean of every governed metric over scenes.

    Parameters
    ----------
    despeckle : callable
        uint8 (rows, columns) to float32 grey levels.
    scenes : sequence of Scene
        With lesions in some of them.
    """
    found: dict[str, list[float]] = {name: [] for name in GOVERNED}
    for scene in scenes:
        image, target = despeckle(scene.noisy), np.clip(scene.target, 0, 255)
        found["psnr"].append(metrics.psnr(image, target, data_range=255))
        if min(image.shape) >= MS_SSIM_MINIMUM_PX:
            found["ms_ssim"].append(metrics.ms_ssim(image, target, data_range=255))
        found["edge_strength"].append(min(1.0, metrics.edge_strength(image, target)))
        for lesion in scene.lesions:
            wanted = metrics.contrast(target, lesion.mask, lesion.ring)
            if abs(wanted) >= _LEAST_CONTRAST:
                got = metrics.contrast(image, lesion.mask, lesion.ring)
                found["contrast_kept"].append(float(np.clip(got / wanted, -1, 1)))
                found["survival"].append(float(metrics.lesion_survives(image, target, lesion)))
    return {name: float(np.nanmean(values)) for name, values in found.items() if values}


_LEAST_CONTRAST = 2.0
"""Grey levels below which a lesion has no contrast to keep."""


def shortfalls(figures: Mapping[str, float], targets: Mapping[str, float]) -> Figures:
    """How far each metric is below its target, in its unit; 0 where the target is reached."""
    return {
        name: max(0.0, (targets[name] - figures[name]) / governed.unit)
        for name, governed in GOVERNED.items()
        if name in figures and name in targets
    }


def adjusted(
    weights: Mapping[str, float],
    base: Mapping[str, float],
    short: Mapping[str, float],
    section: GuidanceSection,
) -> dict[str, float]:
    """New weights of the loss terms.

    ``w = base * exp((shortfall - mean shortfall) / temperature)``, held within ``reach`` of the
    base and mixed with the old weight by the inertia. Terms that no metric governs, or whose base
    is 0, stay.

    Parameters
    ----------
    weights, base : mapping of str to float
        Now, and in the recipe.
    short : mapping of str to float
        See `shortfalls`.
    section : GuidanceSection
        Temperature, inertia and reach.
    """
    governing = {name: GOVERNED[name].term for name in short if base.get(GOVERNED[name].term)}
    if not governing:
        return dict(weights)
    middle = sum(short[name] for name in governing) / len(governing)
    new = dict(weights)
    for name, term in governing.items():
        exponent = (short[name] - middle) / section.temperature
        limit = math.log(section.reach)
        wanted = base[term] * math.exp(min(limit, max(-limit, exponent)))
        new[term] = section.inertia * weights[term] + (1 - section.inertia) * wanted
    return new

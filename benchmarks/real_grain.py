"""How the grains of real images differ from those that the simulator draws.

Three figures of an image, none of which needs a reference:

- *growth*: how the local spread of the grain goes with the local mean, as the slope of their
  logarithms. 0 on a display linear in decibels, 1 on one linear in amplitude.
- *skewness* of the grain, each divided by its local spread; negative in decibels.
- *length* across and along the beam where tissue is most even: standard deviation, in pixels, of
  the Gaussian whose autocorrelation falls as fast.

    python benchmarks/real_grain.py --images FOLDER --scenes 100

Quartiles over images; those of a folder are of subjects that lend themselves to training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from model import metrics, speckle
from model.evaluation import images
from model.evaluation.tables import Table
from model.images import read_grey
from model.simulation import phantoms
from model.simulation.acquisition import Acquisition

SIDE_PX, PATCH_PX, PATCHES = 256, 64, 4
FINE_PX, LOCAL_PX, STEP_PX = 3.0, 5.0, 10
DARKEST, BRIGHTEST = 30, 170
"""Local means between which little is clipped, grey levels."""
FEWEST_PLACES, LEAST_VARIATION = 40, 0.15
"""Places, and their means' spread over their mean, without which a slope says nothing."""
LAG_PX = 4
QUARTILES = (25, 50, 75)
HEADINGS = ("growth", "skewness", "across px", "along px")
Grey = NDArray[np.uint8]


class Grain(NamedTuple):
    """Figures of one image; not a number where it does not show them."""

    growth: float
    skewness: float
    across_px: float
    along_px: float


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    rows = [
        _row("simulated", (grain(image) for image in _drawn(arguments, lambda s, _: s))),
        _row("simulated, widened", (grain(image) for image in _drawn(arguments, _widened))),
    ]
    by_source: dict[str, list[Path]] = {}
    for path in images.parted(arguments.images).train:
        by_source.setdefault(images.source_of(path, arguments.images), []).append(path)
    for source, files in by_source.items():
        chosen = images.choose(files, arguments.images, arguments.scenes)
        shown = (images.middle(read_grey(path), 2 * SIDE_PX) for path in chosen)
        rows.append(_row(source, (grain(image) for image in shown)))
    print(Table("Grains", ("of", "images", *HEADINGS), rows).markdown())


def grain(image: Grey) -> Grain:
    """Figures of one image, (rows, columns)."""
    pixels = image.astype(np.float64)
    fine = pixels - ndimage.gaussian_filter(pixels, FINE_PX)
    mean = ndimage.gaussian_filter(pixels, LOCAL_PX)
    spread = np.sqrt(ndimage.gaussian_filter(fine**2, LOCAL_PX))
    seen = (mean > DARKEST) & (mean < BRIGHTEST) & (spread > 0)
    growth = skewness = np.nan
    part = np.s_[STEP_PX:-STEP_PX:STEP_PX, STEP_PX:-STEP_PX:STEP_PX]
    means, spreads = mean[part][seen[part]], spread[part][seen[part]]
    if len(means) > FEWEST_PLACES and means.std() > LEAST_VARIATION * means.mean():
        growth = float(stats.linregress(np.log(means), np.log(spreads)).slope)
        skewness = float(stats.skew((fine / np.maximum(spread, 1))[seen]))
    patches = metrics.homogeneous_patches(
        image, size_px=PATCH_PX, count=PATCHES, lowest=DARKEST, highest=BRIGHTEST
    )
    lengths = [_lengths(_levelled(pixels[np.ix_(m.any(1), m.any(0))])) for m in patches]
    across, along = np.nanmean(lengths, axis=0) if lengths else (np.nan, np.nan)
    return Grain(growth, skewness, float(across), float(along))


def _levelled(patch: NDArray[np.float64]) -> NDArray[np.float64]:
    """A patch less the quadratic surface that fits it best."""
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : PATCH_PX * 1j, -1 : 1 : PATCH_PX * 1j])
    surface = np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y])
    fitted, *_ = np.linalg.lstsq(surface, patch.ravel(), rcond=None)
    return np.asarray(patch - (surface @ fitted).reshape(patch.shape))


def _lengths(patch: NDArray[np.float64]) -> tuple[float, float]:
    """Across and along the beam, from the autocorrelation at one lag."""
    variance = float(patch.var())
    across = float((patch[:, LAG_PX:] * patch[:, :-LAG_PX]).mean()) / variance
    along = float((patch[LAG_PX:] * patch[:-LAG_PX]).mean()) / variance
    return _length(across), _length(along)


def _length(correlation: float) -> float:
    if correlation <= 0:
        return 0.0
    return LAG_PX / float(np.sqrt(2 * -np.log(min(correlation, 0.99))))


Change = Callable[[Acquisition, np.random.Generator], Acquisition]


def _widened(setting: Acquisition, rng: np.random.Generator) -> Acquisition:
    return setting.widened(rng)


def _drawn(arguments: argparse.Namespace, change: Change) -> Iterator[Grey]:
    for index in range(arguments.scenes):
        rng = np.random.default_rng((arguments.seed, index))
        setting = change(Acquisition.draw(rng), rng)
        side = int(np.ceil((SIDE_PX + 2) / setting.resize))
        phantom = phantoms.draw(rng, (side, side))
        yield speckle.form(phantom, setting, rng)[0].noisy[:SIDE_PX, :SIDE_PX]


def _row(name: str, found: Iterable[Grain]) -> dict[str, str]:
    columns = np.array(list(found))
    figures = {}
    for heading, column in zip(HEADINGS, columns.T, strict=True):
        low, middle, high = np.nanpercentile(column, QUARTILES)
        figures[heading] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return {"of": name, "images": str(len(columns)), **figures}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of B-mode images")
    parser.add_argument("--scenes", type=int, default=100, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Faint lesions planted in real images: what tissue there is, is real; what was added, is known.

A lesion scatters more or less than the tissue around it. Speckle multiplies what is scattered, so
that every grain of the lesion rises by as many decibels. On a display in decibels these are as many
grey levels everywhere; displays of real images are bent, so that they are more where it is bright.
Raising the grains of a real image makes the image that the scanner would have shown with the lesion
in place, but for the blur of its edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model.simulation import phantoms
from model.simulation.phantoms import Map
from model.simulation.scene import Pair
from model.training import pool
from model.training.pool import STEPS_PER_GREY, Pool

DYNAMIC_RANGES_DB = (45.0, 75.0)
"""Of the displays that a training assumes; what a real image was made with is not known."""
GROWTHS = (0.0, 0.95)
"""How displays are bent, see `plant`: real images lie between 0.3 and 1.1, with 0.75 in the middle
(`benchmarks/real_grain.py`)."""
REFERENCE_GREY = 100.0
EDGES_PX = (0.5, 2.0)
"""Standard deviations of the blur of a lesion's edge."""
_LOCAL_PX = 6.0
_DETAILED = 0.5
_CONTENT_VERSION = 2
"""Goes up whenever the same patches would be planted differently."""


def plant(
    image: NDArray[np.uint8],
    added_db: Map,
    grey_per_db: float,
    *,
    growth: float = 0.0,
    edge_px: float = 1.0,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Add echogenicity to a real image.

    Parameters
    ----------
    image : ndarray, (rows, columns), uint8
        What is black stays black: no echo is to be seen there.
    added_db : ndarray, (rows, columns), float32
        Echogenicity to add, dB.
    grey_per_db : float
        Grey levels a decibel of the display, at `REFERENCE_GREY`.
    growth : float
        Power of the grey level that they go with, 0..0.95: 0 on a display in decibels, towards 1 on
        one in amplitude.
    edge_px : float
        Standard deviation of the blur of edges, pixels.

    Returns
    -------
    planted : ndarray, (rows, columns), uint8
    expected : ndarray, (rows, columns), float32
        Grey levels that the tissue gained in the mean: less than what was to be added where grains
        are clipped to black or white.
    """
    blurred = ndimage.gaussian_filter(added_db.astype(np.float32), edge_px)
    raised = partial(_raised, steps=grey_per_db * blurred, growth=growth)
    grains = image.astype(np.float32)
    wanted = raised(grains) - grains
    shown = np.clip(image + wanted, 0, 255).round() * (image > 0)
    planted = np.asarray(shown, dtype=np.uint8)
    gained = np.abs(shown - image)
    over = [ndimage.gaussian_filter(a, _LOCAL_PX) for a in (gained, np.abs(wanted))]
    share = np.clip(over[0] / np.maximum(over[1], 1e-3), 0, 1)
    tissue = ndimage.gaussian_filter(grains, _LOCAL_PX)
    return planted, np.asarray((raised(tissue) - tissue) * share, dtype=np.float32)


def _raised(
    grey: NDArray[np.float32], steps: NDArray[np.float32], growth: float
) -> NDArray[np.float32]:
    """Grey levels after as many steps, each `(grey / REFERENCE_GREY) ** growth` levels high.

    The steps change with the level that they lead to, hence the integral.
    """
    power = 1 - growth
    level = grey**power + power * steps * REFERENCE_GREY**-growth
    return np.asarray(np.maximum(level, 0) ** (1 / power), dtype=np.float32)


@dataclass(frozen=True)
class Planter:
    """Plants lesions in patches that a teacher has looked at before.

    The teacher says what the tissue is, and has not seen the lesions: what it would have made of
    them does not count. They are added to its answer as they are to the patch.

    Attributes
    ----------
    patches : Path
        Array of patches, (patches, side, side), uint8; a file, so that processes can share it.
    answers : Path
        What the teacher says of them, uint16, grey levels times `STEPS_PER_GREY`.
    """

    patches: Path
    answers: Path
    details: bool = False
    """Whether half of the patches get calcifications, clefts and fine lines as well."""

    def draw(self, rng: np.random.Generator) -> Pair:
        """Any of the patches with lesions, and the answer with the same ones."""
        patches, answers = (np.load(path, mmap_mode="r") for path in (self.patches, self.answers))
        index = int(rng.integers(len(patches)))
        shape = patches.shape[1], patches.shape[2]
        added = phantoms.with_subtle_lesions(rng, np.zeros(shape, np.float32))
        if self.details and rng.random() < _DETAILED:
            added = added + _resolved(phantoms.details(rng, shape)[0], rng.uniform(*EDGES_PX))
        planted, gained = plant(
            patches[index],
            added,
            255 / rng.uniform(*DYNAMIC_RANGES_DB),
            growth=rng.uniform(*GROWTHS),
            edge_px=rng.uniform(*EDGES_PX),
        )
        return Pair(planted, answers[index] / np.float32(STEPS_PER_GREY) + gained)


def _resolved(added_db: Map, beam_px: float) -> Map:
    """Echogenicity as a beam sees it, whose width is the standard deviation: powers add up."""
    power = ndimage.gaussian_filter(10 ** (added_db / 10), beam_px)
    return np.asarray(10 * np.log10(power), dtype=np.float32)


def planted_pool(
    taught: Pool,
    *,
    copies: int,
    details: bool = False,
    seed: int,
    workers: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> Pool:
    """Real patches that a teacher has looked at, with faint lesions planted afterwards.

    Parameters
    ----------
    taught : Pool
        Real patches and the teacher's answers, on disk; see `model.training.distill`.
    copies : int
        As many times the patches are drawn, each with lesions of its own.
    details : bool
        Whether there are small, plain things as well.
    seed, workers, advance
        See `model.training.pool.draw`.

    Returns
    -------
    Pool
        Target and answer are the same.
    """
    answers = Path(str(taught.answers.filename))
    content = f"{_CONTENT_VERSION}-details" if details else str(_CONTENT_VERSION)
    drawn = pool.draw(
        taught.folder / f"planted-{content}-{answers.stem}-{copies}-{seed}",
        Planter(taught.folder / "noisy.npy", answers, details).draw,
        count=copies * len(taught),
        side=taught.noisy.shape[1],
        seed=seed,
        workers=workers,
        advance=advance,
    )
    return replace(drawn, taught=drawn.target)

"""Faint lesions planted in real images: what tissue there is, is real; what was added, is known.

A lesion scatters more or less than the tissue around it. Speckle multiplies what is scattered, so
that on a display in decibels the lesion adds the same number of grey levels to every grain. Adding
them to a real image makes the image that the scanner would have shown with the lesion in place, but
for the blur of its edge.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model import phantoms
from model.phantoms import Map
from model.pool import STEPS_PER_GREY, Pool

DYNAMIC_RANGES_DB = (45.0, 75.0)
"""Of the displays that a training assumes; what a real image was made with is not known."""
EDGES_PX = (0.5, 2.0)
"""Standard deviations of the blur of a lesion's edge."""
_CLIPPED_OVER_PX = 6.0


def plant(
    image: NDArray[np.uint8], added_db: Map, grey_per_db: float, *, edge_px: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Add echogenicity to a real image.

    Parameters
    ----------
    image : ndarray, (rows, columns), uint8
        What is black stays black: no echo is to be seen there.
    added_db : ndarray, (rows, columns), float32
        Echogenicity to add, dB.
    grey_per_db : float
        Grey levels a decibel of the display.
    edge_px : float
        Standard deviation of the blur of edges, pixels.

    Returns
    -------
    planted : ndarray, (rows, columns), uint8
    expected : ndarray, (rows, columns), float32
        Grey levels that the tissue gained in the mean: less than what was to be added where grains
        are clipped to black or white.
    """
    wanted = grey_per_db * ndimage.gaussian_filter(added_db.astype(np.float32), edge_px)
    shown = np.clip(image + wanted, 0, 255).round() * (image > 0)
    planted = np.asarray(shown, dtype=np.uint8)
    gained = np.abs(shown - image)
    over = [ndimage.gaussian_filter(a, _CLIPPED_OVER_PX) for a in (gained, np.abs(wanted))]
    share = np.clip(over[0] / np.maximum(over[1], 1e-3), 0, 1)
    return planted, np.asarray(wanted * share, dtype=np.float32)


def planted_pool(taught: Pool, *, copies: int, seed: int) -> Pool:
    """Real patches that a teacher has looked at, with faint lesions planted afterwards.

    The teacher says what the tissue is, and has not seen the lesions: what it would have made of
    them does not count. They are added to its answer as they are to the patch.

    Parameters
    ----------
    taught : Pool
        Real patches and the teacher's answers.
    copies : int
        Of each patch, each with lesions of its own.
    seed : int
        Of the lesions.

    Returns
    -------
    Pool
        Of as many times the patches; target and answer are the same.
    """
    if taught.taught is None:
        raise ValueError("no teacher has looked at these patches")
    answered = hashlib.sha256(np.ascontiguousarray(taught.taught).data).hexdigest()[:12]
    folder = taught.folder / f"planted-{answered}-{copies}-{seed}"
    if not (folder / "target.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shape = (copies * len(taught), *taught.noisy.shape[1:])
        noisy = _new(folder / "noisy.npy", np.uint8, shape)
        answers = _new(folder / "target.part.npy", np.uint16, shape)
        for index in range(shape[0]):
            rng = np.random.default_rng((seed, index))
            source = index % len(taught)
            added = phantoms.with_subtle_lesions(rng, np.zeros(shape[1:], np.float32))
            noisy[index], gained = plant(
                taught.noisy[source],
                added,
                255 / rng.uniform(*DYNAMIC_RANGES_DB),
                edge_px=rng.uniform(*EDGES_PX),
            )
            answer = taught.taught[source] / STEPS_PER_GREY + gained
            answers[index] = (np.clip(answer, 0, 255) * STEPS_PER_GREY).round()
        noisy.flush()
        answers.flush()
        (folder / "target.part.npy").replace(folder / "target.npy")
    noisy, answers = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("noisy", "target"))
    return Pool(folder, noisy, answers, answers)


def _new(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)

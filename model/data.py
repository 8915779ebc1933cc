"""Simulated scenes to train and to validate on, and maps from real anatomy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model import speckle
from model.simulation import drawing, multiplicative, phantoms
from model.simulation.acquisition import Acquisition
from model.simulation.phantoms import Clusters
from model.simulation.scene import Pair, Scene

VALIDATION_SEED = 900_001
"""Training seeds stay below this."""
_ENLARGED, _SMALLEST_MAP = 1.6, 160

Despeckle = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def anatomy_maps(
    images: Iterable[NDArray[np.uint8]], despeckle: Despeckle, largest: int = 640
) -> list[NDArray[np.uint8]]:
    """Strongly despeckled real images, to be speckled anew.

    What a filter leaves of the speckle would become tissue, which a network then learns to keep
    as brush strokes. So images are averaged down, despeckled, and despeckled once more at half
    the size, where coarse speckle is fine. Images smaller than 100 pixels are left out.

    Parameters
    ----------
    images : iterable of ndarray, (rows, columns), uint8
    despeckle : callable
        Works on one grey image; see `strong_filter` for one without a network.
    largest : int
        Longest side of a map, pixels.
    """
    maps = []
    for image in images:
        factor = max(1, round(max(image.shape) / (largest / _ENLARGED)))
        averaged = _rounded(_averaged(image, factor))
        if min(averaged.shape) < _SMALLEST_MAP / _ENLARGED:
            continue
        tissue = despeckle(averaged).astype(np.float32)
        halved = _averaged(tissue, 2)
        coarse = ndimage.zoom(despeckle(_rounded(halved)).astype(np.float32) - halved, 2, order=1)
        tissue = ndimage.median_filter(tissue[: coarse.shape[0], : coarse.shape[1]] + coarse, 3)
        enlarged = ndimage.zoom(tissue, _ENLARGED, order=1)
        if min(enlarged.shape) >= _SMALLEST_MAP:
            maps.append(_rounded(enlarged))
    return maps


def strong_filter(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Iterated median and Gaussian: what lends anatomy where there is no student yet."""
    smooth = image.astype(np.float32)
    for _ in range(2):
        smooth = ndimage.median_filter(smooth, 5)
    return _rounded(ndimage.gaussian_filter(smooth, 1.6))


def _averaged(image: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Downsampled by averaging; what is left over at the far sides is cut."""
    rows, columns = (side // factor * factor for side in image.shape)
    blocks = image[:rows, :columns].astype(np.float32)
    blocks = blocks.reshape(rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.mean((1, 3)), dtype=np.float32)


def _rounded(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(image, 0, 255).round(), dtype=np.uint8)


def data_hash(files: list[Path]) -> str:
    """SHA-256 over the names and contents of the files, for the manifest."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(path.name))
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class Simulation:
    """What training scenes are drawn from.

    Attributes
    ----------
    anatomy : sequence of ndarray, (rows, columns), uint8
        See `anatomy_maps`; may be empty.
    anatomy_share : float
        Part of the scenes that take their map from it.
    faint_share : float
        Part of the scenes that are nearly even tissue with faint lesions.
    detail_share : float
        Part of the scenes that are full of points, clefts and fine lines.
    overlay_share : float
        Part of the scenes with burned-in text, callipers and lines, which are to be kept.
    clustered_share : float
        Part of the scenes whose scatterers gather in clusters.
    widened_share : float
        Part of the scenes with the beams and displays of real images.
    side : int
        Side of a scene, pixels.
    """

    anatomy: Sequence[NDArray[np.uint8]] = ()
    anatomy_share: float = 0.3
    faint_share: float = 0.3
    detail_share: float = 0.0
    overlay_share: float = 0.3
    clustered_share: float = 0.0
    widened_share: float = 0.0
    side: int = 256

    def draw(self, rng: np.random.Generator) -> Pair:
        """One training pair, (side, side)."""
        setting = Acquisition.draw(rng)
        if self.widened_share > 0 and rng.random() < self.widened_share:
            setting = setting.widened(rng)
        before = int(np.ceil((self.side + 2) / setting.resize))
        kind = rng.random()
        detailed = 0 <= kind - self.faint_share - self.anatomy_share < self.detail_share
        if kind < self.faint_share:
            phantom = phantoms.faint(rng, (before, before))
        elif len(self.anatomy) and kind < self.faint_share + self.anatomy_share:
            chosen = self.anatomy[int(rng.integers(len(self.anatomy)))]
            phantom = phantoms.from_anatomy(rng, _at_least(chosen, before), (before, before))
        elif detailed:
            phantom = phantoms.detailed(rng, (before, before))
        else:
            phantom = phantoms.draw(rng, (before, before))
        clustered = self.clustered_share > 0 and rng.random() < self.clustered_share
        if clustered:
            phantom = replace(phantom, clusters=Clusters.draw(rng))
        formed = speckle.form(phantom, setting, rng)[0]
        part = np.s_[: self.side, : self.side]
        noisy, target = formed.noisy[part], formed.target[part]
        if rng.random() < self.overlay_share:
            noisy, target = _overlay(rng, noisy, target)
        return Pair(noisy, target, clustered, detailed)


def _at_least(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Enlarge an image whose shorter side is below `side`."""
    short = min(image.shape)
    if short >= side:
        return image
    return np.asarray(ndimage.zoom(image, (side + 1) / short, order=1))


def _overlay(
    rng: np.random.Generator, noisy: NDArray[np.uint8], target: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw the same text, callipers, lines and frames on both, as a scanner burns them in."""
    speckled, expected = noisy.astype(np.float32), target
    for _ in range(int(rng.integers(1, 4))):
        ink = drawing.ink(rng, (noisy.shape[0], noisy.shape[1]))
        level = np.float32(rng.uniform(110, 255) if rng.random() < 0.6 else rng.uniform(225, 255))
        speckled = speckled + (level - speckled) * ink
        expected = expected + (level - expected) * ink
    return np.asarray(speckled.round(), dtype=np.uint8), expected


def validation_set(
    count: int, seed: int = VALIDATION_SEED, side: int = 256, *, widened: bool = False
) -> list[Scene]:
    """Simulated scenes never trained on: procedural maps and graded lesions in turn.

    Parameters
    ----------
    count : int
        Number of scenes; the first are the same whatever the count.
    seed : int
        At least `VALIDATION_SEED`.
    widened : bool
        The same tissue with the beams and displays of real images.
    """
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        setting = replace(Acquisition.draw(rng), resize=1.0)
        if widened:
            setting = setting.widened(np.random.default_rng((seed, index, 1)))
        if index % 2:
            phantom = phantoms.graded_lesions(
                rng, (side, side), (-12, -6, -3, 3, 6, 12), (20, 14, 10, 7, 5, 4, 3, 2)
            )
            setting = replace(
                setting,
                sector_angle=0.0,
                shadows=0,
                attenuation_db=0.0,
                tgc_ripple_db=0.0,
                noise_floor_db=-45.0,
            )
        else:
            phantom = phantoms.draw(rng, (side, side))
        formed = speckle.form(phantom, setting, rng)[0]
        kind = "lesions" if index % 2 else "procedural"
        scenes.append(
            Scene(
                formed.noisy,
                formed.target,
                f"{kind}-{index:03d}",
                {"inside": formed.inside, **phantom.labels},
                phantom.lesions,
            )
        )
    return scenes


@dataclass(frozen=True)
class NoisyImages:
    """Real images taken as clean, with multiplicative noise: the paper's protocol.

    Attributes
    ----------
    images : sequence of ndarray, (rows, columns), uint8
    side : int
        Side of a scene, pixels; smaller images are mirrored at their borders.
    """

    images: Sequence[NDArray[np.uint8]]
    side: int

    def draw(self, rng: np.random.Generator) -> Pair:
        """One training pair at one of `multiplicative.LEVELS`."""
        image = self.images[int(rng.integers(len(self.images)))]
        lacking = [(0, max(0, self.side - length)) for length in image.shape]
        image = np.pad(image, lacking, mode="symmetric")
        top, left = (int(rng.integers(0, length - self.side + 1)) for length in image.shape)
        clean = image[top : top + self.side, left : left + self.side]
        level = float(rng.choice(multiplicative.LEVELS))
        return Pair(multiplicative.add(clean, level, rng), clean.astype(np.float32))

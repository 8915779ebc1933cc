"""Training and validation data: simulated pairs, drawn on the fly, and maps from real anatomy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor
from torch.utils.data import IterableDataset

from model import phantoms, speckle
from model.phantoms import Lesion

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
VALIDATION_SEED = 900_001
"""Training seeds stay below this."""


@dataclass(frozen=True)
class Scene:
    """One simulated image with its reference.

    Attributes
    ----------
    noisy : ndarray, (rows, columns), uint8
    target : ndarray, (rows, columns), float32, 0..255
        Expected display; see `model.speckle`.
    labels : dict of str to ndarray, (rows, columns), bool
    lesions : tuple of Lesion
    name : str
    """

    noisy: NDArray[np.uint8]
    target: NDArray[np.float32]
    name: str
    labels: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    lesions: tuple[Lesion, ...] = ()


def image_files(folder: Path) -> list[Path]:
    """Image files below a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def read_grey(path: Path) -> NDArray[np.uint8]:
    """Read an image as 8-bit grey, (rows, columns)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def anatomy_maps(
    files: list[Path], sigma: float = 1.6, largest: int = 640
) -> list[NDArray[np.uint8]]:
    """Strongly despeckled real images, to be speckled anew.

    Downsampled by averaging, then smoothed by an iterated median and a Gaussian, which leaves no
    oriented texture behind. Images smaller than 160 pixels are left out.
    """
    maps = []
    for path in files:
        image = read_grey(path).astype(np.float32)
        factor = max(1, round(max(image.shape) / (largest / 1.6)))
        rows, columns = (side // factor * factor for side in image.shape)
        image = image[:rows, :columns]
        image = image.reshape(rows // factor, factor, columns // factor, factor).mean((1, 3))
        for size in (5, 5):
            image = ndimage.median_filter(image, size)
        image = ndimage.gaussian_filter(image, sigma)
        enlarged = ndimage.zoom(image, 1.6, order=1)
        if min(enlarged.shape) >= 160:
            maps.append(np.clip(enlarged, 0, 255).astype(np.uint8))
    return maps


def data_hash(files: list[Path]) -> str:
    """SHA-256 over the names and contents of the files, for the manifest."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def draw_scene(
    rng: np.random.Generator,
    side: int,
    anatomy: list[NDArray[np.uint8]],
    anatomy_share: float,
    overlay_share: float,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One training pair, (side, side) before the scanner's resize: noisy uint8, target float32."""
    if anatomy and rng.random() < anatomy_share:
        chosen = anatomy[int(rng.integers(len(anatomy)))]
        shape = (min(side, chosen.shape[0]), min(side, chosen.shape[1]))
        phantom = phantoms.from_anatomy(rng, chosen, shape)
    else:
        phantom = phantoms.draw(rng, (side, side))
    formed = speckle.form(phantom, speckle.Acquisition.draw(rng), rng)[0]
    noisy, target = formed.noisy, formed.target
    if rng.random() < overlay_share:
        noisy, target = _overlay(rng, noisy, target)
    return noisy, target


def _overlay(
    rng: np.random.Generator, noisy: NDArray[np.uint8], target: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw the same text, crosses and dotted lines on both, as a scanner burns them in."""
    rows, columns = noisy.shape
    drawing = Image.new("L", (columns, rows), 0)
    pen = ImageDraw.Draw(drawing)
    for _ in range(int(rng.integers(1, 7))):
        x, y = int(rng.integers(0, columns)), int(rng.integers(0, rows))
        kind = rng.random()
        if kind < 0.5:
            text = "".join(rng.choice(list("ABCDEFGHKLMRSTVX0123456789.- "), 8))
            pen.text((x, y), text, fill=255)
        elif kind < 0.75:
            size = int(rng.integers(3, 8))
            pen.line((x - size, y, x + size, y), fill=255)
            pen.line((x, y - size, x, y + size), fill=255)
        else:
            step = int(rng.integers(3, 9))
            for k in range(0, 40 * step, step):
                pen.point((x + k, y), fill=255)
    ink = np.asarray(drawing, dtype=np.float32) / 255
    level = float(rng.uniform(150, 255))
    if rng.random() < 0.3:
        ink = np.asarray(np.clip(ndimage.gaussian_filter(ink, 0.6) * 1.6, 0, 1))
    painted = noisy * (1 - ink) + level * ink
    return (
        np.asarray(painted.round(), dtype=np.uint8),
        np.asarray(target * (1 - ink) + level * ink, dtype=np.float32),
    )


class SpeckleStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of simulated pairs: noisy and target, (batch, 1, crop, crop), 0..1.

    Scenes go into a pool and are cropped several times, so that forming them costs no more than
    training on them.

    Parameters
    ----------
    anatomy : list of ndarray
        See `anatomy_maps`.
    batch, crop, side : int
        Patches a batch, their side, and the side of a scene before it is cropped, pixels.
    pool : int
        Scenes that are kept at once.
    scenes_per_batch : float
        New scenes for each batch.
    """

    def __init__(
        self,
        anatomy: list[NDArray[np.uint8]],
        *,
        seed: int,
        batch: int,
        crop: int,
        side: int = 288,
        pool: int = 1500,
        scenes_per_batch: float = 1.0,
        anatomy_share: float = 0.4,
        overlay_share: float = 0.12,
    ) -> None:
        super().__init__()
        self.anatomy, self.seed, self.batch, self.crop, self.side = anatomy, seed, batch, crop, side
        self.pool, self.scenes_per_batch = pool, scenes_per_batch
        self.anatomy_share, self.overlay_share = anatomy_share, overlay_share

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        if worker:
            torch.set_num_threads(1)
        scenes: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
        owed = 24.0
        while True:
            while owed >= 1:
                pair = draw_scene(
                    rng, self.side, self.anatomy, self.anatomy_share, self.overlay_share
                )
                if min(pair[0].shape) >= self.crop:
                    if len(scenes) < self.pool:
                        scenes.append(pair)
                    else:
                        scenes[int(rng.integers(self.pool))] = pair
                owed -= 1
            owed += self.scenes_per_batch
            chosen = rng.integers(len(scenes), size=self.batch)
            crops = [self._crop(rng, *scenes[int(index)]) for index in chosen]
            noisy = torch.from_numpy(np.stack([c[0] for c in crops]))[:, None].float() / 255
            target = torch.from_numpy(np.stack([c[1] for c in crops]))[:, None] / 255
            yield noisy, target

    def _crop(
        self, rng: np.random.Generator, noisy: NDArray[np.uint8], target: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Random patch that is not all black, randomly mirrored."""
        for _ in range(8):
            top = int(rng.integers(0, noisy.shape[0] - self.crop + 1))
            left = int(rng.integers(0, noisy.shape[1] - self.crop + 1))
            window = np.s_[top : top + self.crop, left : left + self.crop]
            if (noisy[window] > 0).mean() > 0.3:
                break
        flip = np.s_[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
        return np.ascontiguousarray(noisy[window][flip]), np.ascontiguousarray(target[window][flip])


def validation_set(count: int, seed: int = VALIDATION_SEED, side: int = 256) -> list[Scene]:
    """Simulated scenes never trained on: procedural maps and graded lesions in turn.

    Parameters
    ----------
    count : int
        Number of scenes; the first are the same whatever the count.
    seed : int
        At least `VALIDATION_SEED`.
    """
    scenes = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        setting = replace(speckle.Acquisition.draw(rng), resize=1.0)
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

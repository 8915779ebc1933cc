"""What a teacher says of a pool of scenes, computed once; and how a student is held to it.

Output distillation aims at a blend of the simulated reference and the teacher's output: against
the blend a quadratic loss has the same minimum as the two weighted losses against each. Feature
affinity compares which places look alike to the two networks, whatever their channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.network.scales import residual_measured
from model.student import Student
from model.training.pool import FEATURE_STRIDE, STEPS_PER_GREY, Pool, load, mapped

MIRRORINGS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""Axes to flip. Turns by 90 degrees are left out: speckle is longer across the beam than along it,
and a teacher has seen it that way only."""
_LEAST_ERROR = (0.1 * STEPS_PER_GREY) ** 2
"""Squared, that of an answer without error: a tenth of a grey level."""
FEATURE_DIMENSIONS = 16
"""Of the projected features; a random projection keeps angles (Johnson, Lindenstrauss 1984)."""


@torch.inference_mode()
def self_ensemble(network: torch.nn.Module, x: Tensor, folds: int = len(MIRRORINGS)) -> Tensor:
    """Mean output over mirrored inputs, (batch, 1, rows, columns)."""
    total = torch.zeros_like(x)
    for axes in MIRRORINGS[:folds]:
        total += network(x.flip(axes)).flip(axes)
    return total / folds


@torch.inference_mode()
def teach(
    pool: Pool,
    teacher: Student,
    identity: str,
    *,
    folds: int = len(MIRRORINGS),
    halvings: int = 0,
    retained: float = 0.0,
    features: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Pool:
    """Have the teacher look at every scene of a pool, or go on where it was stopped.

    Parameters
    ----------
    pool : Pool
    teacher : Student
        A `Teacher` in evaluation mode.
    identity : str
        Of its weights; what another one said is kept apart.
    folds : int
        Mirrored inputs that are averaged.
    halvings : int
        Times that the teacher may halve an image with coarse speckle; see `model.network.scales`.
    retained : float, 0..1
        Share of what it removes over wide surroundings that stays; see `model.network.coarse`.
    features : bool
        Keep projected features as well.
    advance : callable
        Called with the number of scenes done.

    Returns
    -------
    Pool
        With `taught`, and `features` where they were asked for.
    """
    teacher = copy(teacher)  # of the same weights; what a bundle leaves in of speckle is no answer
    teacher.architecture = replace(teacher.architecture, retain=0.0, retain_wide=retained)
    settings = f"{identity} {folds}" + (f" {halvings}" if halvings else "")
    settings += f" retained {retained}" if retained else ""
    mark = hashlib.sha256(settings.encode()).hexdigest()[:12]
    taught, new = _array(pool.folder / f"taught-{mark}.npy", pool.noisy.shape, np.uint16)
    cells = pool.noisy.shape[1] // FEATURE_STRIDE
    kept: NDArray[np.float16] | None = None
    if features:
        shape = (len(pool), cells, cells, FEATURE_DIMENSIONS)
        kept, fresh = _array(pool.folder / f"features-{mark}.npy", shape, np.float16)
        new = new or fresh
    marker = pool.folder / f"taught-{mark}{'-features' if features else ''}.count"
    start = int(marker.read_text()) if marker.exists() and not new else 0
    advance(start)
    device = next(teacher.parameters()).device
    step = 4 if device.type == "cpu" else 64
    for first in range(start, len(pool), step):
        part = slice(first, min(first + step, len(pool)))
        x = torch.from_numpy(np.array(pool.noisy[part])).to(device)[:, None].float() / 255
        removed, seen = teacher.residual_and_features(x)
        answers = x - _over_scales(teacher, x, removed, halvings)
        for axes in MIRRORINGS[1:folds]:
            mirrored = x.flip(axes)
            there = _over_scales(teacher, mirrored, teacher.residual(mirrored), halvings)
            answers += (mirrored - there).flip(axes)
        said = (255 * STEPS_PER_GREY / folds * answers)[:, 0].clamp(0, 255 * STEPS_PER_GREY)
        taught[part] = said.round().int().cpu().numpy()
        if kept is not None:
            kept[part] = _projected(seen, cells).cpu().numpy()
        if (first // step) % 16 == 0 or part.stop == len(pool):
            written = marker.with_suffix(".part")
            written.write_text(str(part.stop))
            written.replace(marker)
        advance(part.stop - first)
    return replace(pool, taught=taught, features=kept)


def _over_scales(teacher: Student, x: Tensor, removed: Tensor, halvings: int) -> Tensor:
    """What the teacher removes, each image over as many scales as its own speckle asks for."""
    parts = [slice(index, index + 1) for index in range(len(x))]
    return torch.cat(
        [residual_measured(teacher.residual, x[p], removed[p], halvings) for p in parts]
    )


def agreed(taught: Sequence[Pool]) -> Pool:
    """What a panel of networks says together of each scene of a pool.

    Networks err apart, so that their mean errs less than any. In each scene an answer counts by the
    inverse square of its mean squared error. Where scatterers gather in clusters the reference
    answers: what networks see in them is chance, and a student would learn to draw it. It answers
    where there are points and clefts, too: networks take those for speckle.

    Parameters
    ----------
    taught : sequence of Pool
        The same scenes, their reference known, with each network's answers as `teach` leaves them
        on disk.

    Returns
    -------
    Pool
        With `taught`.
    """
    scenes, answers = taught[0], [pool.answers for pool in taught]
    names = " ".join(Path(str(answer.filename)).stem for answer in answers)
    mark = hashlib.sha256(f"{names}, not of clusters or details".encode()).hexdigest()[:12]
    path = scenes.folder / f"agreed-{mark}.npy"
    if not path.exists():
        part = path.with_suffix(".part")
        shape = scenes.noisy.shape
        said = mapped(part, np.uint16, shape)
        for index, reference in enumerate(scenes.target):
            if scenes.clustered[index] or scenes.detailed[index]:
                said[index] = reference
                continue
            each = np.stack([answer[index] for answer in answers])
            error = ((each - reference.astype(np.float32)) ** 2).mean((1, 2))
            said[index] = np.average(each, 0, (error + _LEAST_ERROR) ** -2.0).round()
        said.flush()
        part.replace(path)
    return replace(scenes, taught=np.load(path, mmap_mode="r"))


def real_pool(images: Sequence[NDArray[np.uint8]], folder: Path, side: int) -> Pool:
    """Patches of real images as a pool whose target is not known: it is the image itself.

    Parameters
    ----------
    images : sequence of ndarray, (rows, columns), uint8
        Cut into overlapping squares.
    folder : Path
        Where the patches and a teacher's answers are kept; one for each set of images and side.
    side : int
        Pixels.
    """
    if not (folder / "target.npy").exists():
        noisy = np.stack([patch for image in images for patch in _squares(image, side)])
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "noisy.npy", noisy)
        for flags in ("clustered", "detailed"):
            np.save(folder / f"{flags}.npy", np.zeros(len(noisy), bool))  # none that are known
        np.save(folder / "target.part.npy", noisy.astype(np.uint16) * np.uint16(STEPS_PER_GREY))
        (folder / "target.part.npy").replace(folder / "target.npy")
    return load(folder)


def _squares(image: NDArray[np.uint8], side: int) -> Iterator[NDArray[np.uint8]]:
    """Overlapping squares that cover an image, mirrored at the borders where it is smaller."""
    lacking = [(0, max(0, side - length)) for length in image.shape]
    padded = np.pad(image, lacking, mode="symmetric")
    for top in _starts(padded.shape[0], side):
        for left in _starts(padded.shape[1], side):
            yield padded[top : top + side, left : left + side]


def affinity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities between all places of a patch.

    Parameters
    ----------
    student : Tensor, (batch, channels, any rows, any columns)
    teacher : Tensor, (batch, rows, columns, dimensions)
        Brought to the same grid.

    References
    ----------
    He, Shen, Tian, Gong, Sun, Yan, CVPR 2019 (affinity distillation).
    """
    rows, columns = teacher.shape[1:3]
    mine = F.adaptive_avg_pool2d(student, (rows, columns)).flatten(2).transpose(1, 2)
    loss: Tensor = ((_affinity(mine) - _affinity(teacher.flatten(1, 2))) ** 2).mean()
    return loss


def _affinity(places: Tensor) -> Tensor:
    """(batch, places, channels) to (batch, places, places) cosines about the mean place."""
    centred = F.normalize(places - places.mean(1, keepdim=True), dim=-1, eps=1e-4)
    cosines: Tensor = centred @ centred.transpose(1, 2)
    return cosines


def _projected(features: Tensor, cells: int) -> Tensor:
    """(batch, channels, ...) to (batch, cells, cells, dimensions), float16."""
    generator = torch.Generator().manual_seed(features.shape[1])
    matrix = torch.randn(features.shape[1], FEATURE_DIMENSIONS, generator=generator)
    grid = F.adaptive_avg_pool2d(features, (cells, cells)).movedim(1, -1)
    centred = grid - grid.mean((1, 2), keepdim=True)
    projected: Tensor = centred @ matrix.to(grid) / FEATURE_DIMENSIONS**0.5
    return projected.half()


def _starts(length: int, side: int) -> list[int]:
    count = -(-(length - side) // (side // 2)) if length > side else 0
    return [round(index * (length - side) / max(count, 1)) for index in range(count + 1)]


def _array(path: Path, shape: tuple[int, ...], kind: type[np.generic]) -> tuple[NDArray[Any], bool]:
    """Array on disk that can be written, and whether it is new."""
    if path.exists():
        return np.load(path, mmap_mode="r+"), False
    return mapped(path, kind, shape), True

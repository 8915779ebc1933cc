"""Patches of a pool that lies in the memory of a GPU, cut where the network is.

A small network takes milliseconds a step there: processes that cut patches on the CPU, and the way
to the GPU, would take most of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.training.pool import (
    FEATURE_STRIDE,
    LEAST_LIT,
    STEPS_PER_GREY,
    TRIES,
    Batch,
    Cutting,
    Pool,
)

_AT_ONCE = 256
"""Scenes that are sent to the device at once."""


def size_bytes(*pools: Pool) -> int:
    """Memory that the scenes of pools take, with what a teacher has said of them."""
    return sum(
        array.nbytes
        for pool in pools
        for array in (pool.noisy, pool.target, pool.taught, pool.features)
        if array is not None
    )


class ResidentPatches:
    """Endless batches of randomly mirrored patches, as `model.training.pool.PatchStream` has them.

    Parameters
    ----------
    cutting : Cutting
    device : torch.device or str
        Its memory holds all scenes: 0.2 MB each for a side of 256, with a teacher's answers 0.4.
    """

    def __init__(self, cutting: Cutting, device: torch.device | str) -> None:
        self.cutting, self.device = cutting, torch.device(device)
        pools = cutting.pools
        self._noisy = self._sent([each.noisy for each in pools])
        self._target = self._sent([each.target for each in pools])
        self._clustered = self._sent([each.clustered for each in pools])
        self._taught = self._features = None
        if all(each.taught is not None for each in pools):
            self._taught = self._sent([each.taught for each in pools])
        if all(each.features is not None for each in pools):
            self._features = self._sent([each.features for each in pools])
        self._lit = self._lit_before()
        self._random = torch.Generator(self.device).manual_seed(cutting.seed)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._next()

    def _next(self) -> Batch:
        count, scenes = self.cutting.batch, len(self.cutting.pool)
        index = self._integers(scenes, count)
        if self.cutting.real:
            share = torch.rand(count, device=self.device, generator=self._random)
            chosen = scenes + self._integers(len(self.cutting.real), count)
            index = torch.where(share < self.cutting.real_share, chosen, index)
        corner = self._corners(index)
        mirrored = self._integers(2, count, 2).bool()
        place = self._places(index, corner, mirrored, 1)
        batch = {
            "noisy": self._noisy[place][:, None].float() / 255,
            "target": _scaled(self._target[place]),
            "clustered": self._clustered[index][:, None, None, None],
        }
        if self._taught is not None:
            batch["taught"] = _scaled(self._taught[place])
            batch["real"] = (index >= scenes)[:, None, None, None]
        if self._features is not None:
            cells = self._places(index, corner, mirrored, FEATURE_STRIDE)
            batch["features"] = self._features[cells].float()
        return batch

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, device=self.device, generator=self._random)

    def _corners(self, index: Tensor) -> Tensor:
        """A corner for each patch, (batch, 2), cells; of a patch that is not all black."""
        side = self._noisy.shape[1] // FEATURE_STRIDE
        reach = self.cutting.crop // FEATURE_STRIDE
        corners = self._integers(side - reach + 1, len(index), TRIES, 2)
        top, left = corners.unbind(-1)
        scene = index[:, None]
        lit = self._lit[scene, top + reach, left + reach] + self._lit[scene, top, left]
        lit = lit - self._lit[scene, top + reach, left] - self._lit[scene, top, left + reach]
        chosen = (lit > LEAST_LIT * self.cutting.crop**2).int().argmax(1)
        return corners[torch.arange(len(index), device=self.device), chosen]

    def _places(
        self, index: Tensor, corner: Tensor, mirrored: Tensor, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where every pixel, or cell of `stride` pixels, of each patch lies."""
        length = self.cutting.crop // stride
        steps = torch.arange(length, device=self.device)
        way = torch.where(mirrored[..., None], steps.flip(0), steps)
        lines = corner[..., None] * (FEATURE_STRIDE // stride) + way
        return index[:, None, None], lines[:, 0, :, None], lines[:, 1, None, :]

    def _sent(self, parts: Sequence[NDArray[Any] | None]) -> Tensor:
        """Arrays one after the other, on the device; unsigned 16 bits travel as signed ones."""
        given = [part for part in parts if part is not None]
        kind = torch.from_numpy(_signed(given[0][:1])).dtype
        shape = (sum(map(len, given)), *given[0].shape[1:])
        there = torch.empty(shape, dtype=kind, device=self.device)
        start = 0
        for part in given:
            for first in range(0, len(part), _AT_ONCE):
                some = torch.from_numpy(_signed(part[first : first + _AT_ONCE]))
                there[start : start + len(some)] = some.to(self.device)
                start += len(some)
        return there

    def _lit_before(self) -> Tensor:
        """Lit pixels above and to the left of each corner of a cell, (scenes, cells + 1, ...)."""
        scenes, side = self._noisy.shape[0], self._noisy.shape[1] // FEATURE_STRIDE
        counts = torch.empty((scenes, side, side), dtype=torch.int32, device=self.device)
        for first in range(0, scenes, _AT_ONCE):
            lit = self._noisy[first : first + _AT_ONCE] > 0
            lit = lit[:, : side * FEATURE_STRIDE, : side * FEATURE_STRIDE]
            cells = lit.reshape(len(lit), side, FEATURE_STRIDE, side, FEATURE_STRIDE)
            counts[first : first + len(lit)] = cells.sum((2, 4))
        return F.pad(counts.cumsum(1).cumsum(2), (1, 0, 1, 0))


def _signed(array: NDArray[Any]) -> NDArray[Any]:
    """A copy in memory; torch indexes signed integers on every device."""
    copied = np.array(array)
    return copied.view(np.int16) if copied.dtype == np.uint16 else copied


def _scaled(levels: Tensor) -> Tensor:
    """Grey levels times `STEPS_PER_GREY`, as signed 16 bits, to (batch, 1, ...), 0..1."""
    unsigned = levels.to(torch.int32) & 0xFFFF
    return unsigned[:, None].float() / (255 * STEPS_PER_GREY)

"""Training scenes on disk: drawn once by all cores, shared by every run that asks for the same.

A pool is a folder of plain arrays that processes map into memory: what is drawn for the teacher
serves the student, and what the teacher says of a scene is computed once. Drawing can be
interrupted at any time and goes on where it was; of two runs that ask for the same at once, the
second waits for the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from model import cost
from model.simulation.scene import Pair

STEPS_PER_GREY = 256
"""Targets are stored as unsigned 16-bit multiples of 1/256 grey level."""
CHUNK = 16
FEATURE_STRIDE = 8
"""Pixels a cell of the teacher's features; crops begin at multiples of it."""
LEAST_LIT = 0.3
"""Share of a patch that is to be lit."""
TRIES = 8
"""Places that are looked at before a patch that is not is taken."""

Drawer = Callable[[np.random.Generator], Pair]
"""One pair of a fixed size from a generator."""


@dataclass(frozen=True)
class Pool:
    """Arrays of a pool, mapped from disk.

    Attributes
    ----------
    folder : Path
    noisy : ndarray, (scenes, side, side), uint8
    target : ndarray, (scenes, side, side), uint16
        Grey levels times `STEPS_PER_GREY`.
    clustered : ndarray, (scenes,), bool
        Whether scatterers gather in clusters.
    detailed : ndarray, (scenes,), bool
        Whether they are full of points, clefts and fine lines.
    taught : ndarray, (scenes, side, side), uint16, or None
        What a teacher says, in the same unit; see `model.training.distill`.
    features : ndarray, (scenes, side / 8, side / 8, dimensions), float16, or None
        The teacher's features, projected; see `model.training.distill`.
    """

    folder: Path
    noisy: NDArray[np.uint8]
    target: NDArray[np.uint16]
    clustered: NDArray[np.bool_]
    detailed: NDArray[np.bool_]
    taught: NDArray[np.uint16] | None = None
    features: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.noisy)

    @property
    def answers(self) -> np.memmap[Any, Any]:
        """`taught`, which lies on disk under a name of its own.

        Raises
        ------
        ValueError
            No teacher has looked at the pool.
        """
        if isinstance(self.taught, np.memmap):
            return self.taught
        raise ValueError("no teacher has looked at these patches, or its answers are not on disk")


def draw(
    folder: Path,
    drawer: Drawer,
    *,
    count: int,
    side: int,
    seed: int,
    workers: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> Pool:
    """Fill a pool, or what is missing of it.

    Parameters
    ----------
    folder : Path
        Made where it does not exist. Scene `i` depends on `seed` and `i` alone.
    drawer : callable
        Must be picklable.
    count, side : int
        Scenes and their side, pixels.
    workers : int
        Processes; 0 takes the cores that there are.
    advance : callable
        Called with the number of scenes that have come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        for name, (kind, axes) in _ARRAYS.items():
            _make(folder / f"{name}.npy", kind, (count, side, side)[:axes])
        done = _done(folder)
        chunks = [start for start in range(0, count, CHUNK) if start not in done]
        advance(sum(min(CHUNK, count - start) for start in done))
        if workers == 1 or len(chunks) <= 1:
            for start in chunks:
                _finished(folder, done, _draw_chunk(folder, drawer, count, seed, start))
                advance(min(CHUNK, count - start))
        else:
            executor = ProcessPoolExecutor(
                workers or cost.cores(), get_context("spawn"), _adopt, (drawer,)
            )
            with executor:
                job = partial(_draw_chunk, folder, None, count, seed)
                for start in executor.map(job, chunks):
                    _finished(folder, done, start)
                    advance(min(CHUNK, count - start))
    return load(folder)


def alone(folder: Path) -> FileLock:
    """A context in which no other process writes to a pool's folder; it waits for its turn.

    The system gives the lock back when a process is killed.
    """
    return FileLock(folder / "lock")


def is_complete(folder: Path, count: int) -> bool:
    """Whether all scenes of a pool are drawn."""
    return len(_done(folder)) == -(-count // CHUNK)


def load(folder: Path) -> Pool:
    """Map the arrays of a pool."""
    return Pool(folder, *_mapped(folder, "r"))


_adopted: list[Drawer] = []


def _adopt(drawer: Drawer) -> None:
    """Give a worker process its drawer once, not with every chunk; it ends with its parent."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _adopted[:] = [drawer]


def _end_with_parent() -> None:
    """Nobody tells a worker that its parent was killed: it would wait for work for ever."""
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _draw_chunk(folder: Path, drawer: Drawer | None, count: int, seed: int, start: int) -> int:
    drawer = drawer or _adopted[0]
    arrays = _mapped(folder, "r+")
    drawn = Pool(folder, *arrays)
    for index in range(start, min(start + CHUNK, count)):
        _put(drawn, index, drawer(np.random.default_rng((seed, index))))
    for array in arrays:
        array.flush()
    return start


def _put(pool: Pool, index: int, pair: Pair) -> None:
    pool.noisy[index] = pair.noisy
    pool.clustered[index], pool.detailed[index] = pair.clustered, pair.detailed
    pool.target[index] = (np.clip(pair.target, 0, 255) * STEPS_PER_GREY).round()


_ARRAYS: dict[str, tuple[type[np.generic], int]] = {
    "noisy": (np.uint8, 3),
    "target": (np.uint16, 3),
    "clustered": (np.bool_, 1),
    "detailed": (np.bool_, 1),
}
"""What a pool keeps on disk: kind, and how many of scenes, rows and columns are its axes."""


def _make(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> None:
    """An array of zeros; one that is there stays."""
    if path.exists():
        return
    temporary = path.with_suffix(".part")
    mapped(temporary, kind, shape)
    temporary.replace(path)


def mapped(path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new array of zeros, mapped from disk, which has room for all of it.

    Room is asked for now, since the system ends a process that writes to a mapped file where the
    disk is full, without a word.

    Raises
    ------
    OSError
        There is no room; nothing is left behind.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
    try:
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):  # Linux and most others
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink()
        remedy = f"{error.strerror}; free some, or name another folder in data.cache"
        raise OSError(error.errno, remedy, str(path)) from error
    return array


def _mapped(folder: Path, mode: Literal["r", "r+"]) -> tuple[np.memmap[Any, Any], ...]:
    return tuple(np.load(folder / f"{name}.npy", mmap_mode=mode) for name in _ARRAYS)


def _done(folder: Path) -> set[int]:
    marker = folder / "done.json"
    return set(json.loads(marker.read_text("utf-8"))) if marker.exists() else set()


def _finished(folder: Path, done: set[int], start: int) -> None:
    done.add(start)
    temporary = folder / "done.part"
    temporary.write_text(json.dumps(sorted(done)), "utf-8")
    temporary.replace(folder / "done.json")


Batch = dict[str, Tensor]
"""`noisy`, `target` and, where there is a teacher, `taught`, (batch, 1, crop, crop), 0..1;
`clustered`, (batch, 1, 1, 1), bool; `real`, the same: the target is not known; `features`, (batch,
cells, cells, dimensions)."""


@dataclass(frozen=True)
class Cutting:
    """Which patches make the batches of a training.

    Attributes
    ----------
    pool : Pool
    seed : int
        Of the choice of patches.
    batch, crop : int
        Patches a batch and their side, pixels.
    real : Pool, optional
        Real images that a teacher has looked at; same side.
    real_share : float
        Part of the patches that come from it.
    """

    pool: Pool
    seed: int
    batch: int
    crop: int
    real: Pool | None = None
    real_share: float = 0.0

    @property
    def pools(self) -> tuple[Pool, ...]:
        """One, or two where there are real images."""
        return (self.pool, self.real) if self.real else (self.pool,)


class PatchStream(IterableDataset[Batch]):
    """Endless batches of randomly mirrored patches of a pool.

    Parameters
    ----------
    cutting : Cutting
    fresh : callable, optional
        Draws new scenes, which replace those of a copy of the pool in memory.
    fresh_per_batch : float
        Scenes that are replaced a batch.
    """

    def __init__(
        self, cutting: Cutting, *, fresh: Drawer | None = None, fresh_per_batch: float = 0.0
    ) -> None:
        super().__init__()
        self.cutting = cutting
        self.fresh, self.fresh_per_batch = fresh, fresh_per_batch if fresh else 0.0

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        cutting = self.cutting
        rng = np.random.default_rng((cutting.seed, 7, worker.id if worker else 0))
        pool, owed = cutting.pool, 0.0
        if self.fresh_per_batch:
            pool = Pool(
                pool.folder,
                np.array(pool.noisy),
                np.array(pool.target),
                np.array(pool.clustered),
                np.array(pool.detailed),
            )
        while True:
            owed += self.fresh_per_batch
            while self.fresh and owed >= 1:
                index = int(rng.integers(len(pool)))
                _put(pool, index, self.fresh(rng))
                owed -= 1
            patches = []
            for _ in range(cutting.batch):
                real = cutting.real if cutting.real and rng.random() < cutting.real_share else None
                patches.append(self._patch(rng, real or pool, real is not None))
            yield {
                key: torch.from_numpy(np.stack([patch[key] for patch in patches]))
                for key in patches[0]
            }

    def _patch(self, rng: np.random.Generator, pool: Pool, real: bool) -> dict[str, NDArray[Any]]:
        """A patch that is not all black."""
        index, crop = int(rng.integers(len(pool))), self.cutting.crop
        cells = (pool.noisy.shape[1] - crop) // FEATURE_STRIDE
        for _ in range(TRIES):
            top, left = (FEATURE_STRIDE * int(n) for n in rng.integers(0, cells + 1, 2))
            window = np.s_[index, top : top + crop, left : left + crop]
            if (pool.noisy[window] > 0).mean() > LEAST_LIT:
                break
        flip = np.s_[:: int(rng.choice([-1, 1])), :: int(rng.choice([-1, 1]))]
        patch = {
            "noisy": _scaled(pool.noisy[window][flip], 255),
            "target": _scaled(pool.target[window][flip], 255 * STEPS_PER_GREY),
            "clustered": np.full((1, 1, 1), pool.clustered[index]),
        }
        if pool.taught is not None:
            patch["taught"] = _scaled(pool.taught[window][flip], 255 * STEPS_PER_GREY)
            patch["real"] = np.full((1, 1, 1), real)
        if pool.features is not None:
            corner = np.array([top, left]) // FEATURE_STRIDE
            end = corner + crop // FEATURE_STRIDE
            cell = np.s_[index, corner[0] : end[0], corner[1] : end[1]]
            patch["features"] = np.ascontiguousarray(pool.features[cell][flip], dtype=np.float32)
        return patch


def _scaled(image: NDArray[np.uint8] | NDArray[np.uint16], white: int) -> NDArray[np.float32]:
    return np.asarray(image[None], dtype=np.float32) / np.float32(white)

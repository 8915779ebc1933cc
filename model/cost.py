"""What a frame costs: medians of interleaved runs, in every precision the machine can do.

Clocks differ from machine to machine and from minute to minute. Contenders therefore take turns,
and the ratio within one run is the figure to quote.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

Runner = Callable[[Tensor], Tensor]
"""float32 (batch, 1, rows, columns), 0..1, to the same."""

FLOAT32, FLOAT32_LAST = "float32", "float32 channels-last"
BFLOAT16, BFLOAT16_LAST = "bfloat16", "bfloat16 channels-last"
PRECISIONS: Mapping[str, tuple[torch.dtype, torch.memory_format]] = {
    FLOAT32: (torch.float32, torch.contiguous_format),
    FLOAT32_LAST: (torch.float32, torch.channels_last),
    BFLOAT16: (torch.bfloat16, torch.contiguous_format),
    BFLOAT16_LAST: (torch.bfloat16, torch.channels_last),
}


def computed_here() -> list[str]:
    """Precisions that this processor computes in; others it would imitate, a hundred times slower.

    Returns
    -------
    list of str
        Keys of `PRECISIONS`.
    """
    return [
        name for name, (kind, _) in PRECISIONS.items() if kind is torch.float32 or _has_bfloat16()
    ]


class ResidualNetwork(Protocol):
    """A network that predicts what to remove."""

    def residual(self, x: Tensor) -> Tensor:
        """Removed part of x, same shape."""
        ...


def runner(network: nn.Module, precision: str) -> Runner:
    """The network in one precision; input, skip and output stay in float32.

    Parameters
    ----------
    network : nn.Module
        With a method ``residual``; it is copied, not changed.
    precision : str
        A key of `PRECISIONS`.
    """
    kind, layout = PRECISIONS[precision]
    # torch's annotations know no memory format beside a dtype for modules
    ready = copy.deepcopy(network).eval().to(dtype=kind)
    ready = ready.to(memory_format=layout)  # type: ignore[call-overload]
    residual: Callable[[Tensor], Tensor] = ready.residual

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        removed = residual(x.to(dtype=kind).contiguous(memory_format=layout))
        return x - removed.to(torch.float32)

    return run


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    turn_ms: float = 300.0,
    after_each: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median milliseconds of each contender; in every round all take their turn.

    A turn repeats the work, as the frames of a cine do, and counts as its median: a short one would
    pay for the caches that the contender before it has filled.

    Parameters
    ----------
    contenders : mapping
        Name to what is timed.
    rounds, warm_up : int
        Timed and untimed turns.
    turn_ms : float
        A turn repeats the work until so many milliseconds are over.
    after_each : callable
        Called after each turn, for a progress bar.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + rounds):
        for name, work in contenders.items():
            elapsed = _turn(work, turn_ms)
            if turn >= warm_up:
                times[name].append(elapsed)
            after_each()
    return {name: statistics.median(values) for name, values in times.items()}


def _turn(work: Callable[[], object], least_ms: float) -> float:
    """Median milliseconds of as many repetitions as fill the turn; at least one."""
    runs: list[float] = []
    while sum(runs) < least_ms or not runs:
        start = time.perf_counter()
        work()
        runs.append(1000 * (time.perf_counter() - start))
    return statistics.median(runs)


def agreement(output: Tensor, reference: Tensor, *, grey_levels: float = 1.0) -> float:
    """Share of pixels within `grey_levels` of the reference once both are 8-bit."""
    a, b = ((tensor * 255).round().clamp(0, 255) for tensor in (output, reference))
    return float(((a - b).abs() <= grey_levels).float().mean())


def parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def cores() -> int:
    """How many this process is given; the machine may have more."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def machine() -> str:
    """Processor, cores given to this process and torch's threads, in one line."""
    names = []
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    bfloat16 = "bfloat16 in hardware" if _has_bfloat16() else "no bfloat16 in hardware"
    return f"{processor}, {cores()} cores, {torch.get_num_threads()} torch threads, {bfloat16}"


def _has_bfloat16() -> bool:
    information = Path("/proc/cpuinfo")
    return information.is_file() and "avx512_bf16" in information.read_text(errors="replace")

"""Protocol D: what a frame costs, batch 1, at three sizes, for networks and classical methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model.baselines import Method
from model.cost import FLOAT32, Runner, agreement, computed_here, interleaved, parameters, runner
from model.data import validation_set
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.tables import Table, Value, header, write
from model.network.dncnn import DnCNN, FFDNetSized
from model.network.reparameterise import merge
from model.student import multiply_accumulates

SIZES = ((480, 640), (600, 800), (768, 1024))
NETWORK_ROUNDS, CLASSICAL_ROUNDS = 3, 1
COLUMNS = (
    "method",
    "precision",
    "parameters",
    "kMAC a pixel",
    *(f"ms at {columns}x{rows}" for rows, columns in SIZES),
    "% within 1 grey level of float32",
)


def turns(contenders: Sequence[Contender]) -> int:
    """How often `evaluate` will call `advance`."""
    networks = len(_networks(contenders)) * len(computed_here()) * (NETWORK_ROUNDS + 1)
    return len(SIZES) * (networks + len(_classical(contenders)) * CLASSICAL_ROUNDS)


def evaluate(
    contenders: Sequence[Contender],
    *,
    output: Path,
    described: Mapping[str, object],
    advance: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Time everything and write one table.

    Returns
    -------
    list of Path
        Markdown and CSV.
    """
    networks, classical = _networks(contenders), _classical(contenders)
    runners = {
        (name, precision): runner(network, precision)
        for name, network in networks.items()
        for precision in computed_here()
    }
    rows: dict[tuple[str, str], dict[str, Value]] = {}
    for name, network in networks.items():
        pixels = SIZES[0][0] * SIZES[0][1]
        density = multiply_accumulates(network, *SIZES[0]) / pixels / 1000
        for precision in computed_here():
            rows[name, precision] = {
                "method": name,
                "precision": precision,
                "parameters": parameters(network),
                "kMAC a pixel": density,
            }
    for contender in classical:
        rows[contender.name, ""] = {"method": contender.name, "precision": "float64"}
    for size in SIZES:
        _time_at(size, runners, classical, rows, advance)
    head = header(
        "Cost: one frame, batch 1",
        {
            **described,
            "rounds": f"median of {NETWORK_ROUNDS} interleaved for networks, "
            f"{CLASSICAL_ROUNDS} for classical methods",
        },
    )
    note = (
        "DnCNN runs with its normalisation folded into the convolutions, students with their "
        "branches merged. Networks are untrained where they are from neither run nor bundle: "
        "weights do not change the cost. Quote ratios within this table, not milliseconds."
    )
    return write(output, "cost", [Table("All methods", COLUMNS, list(rows.values()), [note])], head)


def _time_at(
    size: tuple[int, int],
    runners: Mapping[tuple[str, str], Runner],
    classical: Sequence[Contender],
    rows: Mapping[tuple[str, str], dict[str, Value]],
    advance: Callable[[], object],
) -> None:
    picture = frame(*size)
    tensor = torch.from_numpy(picture)[None, None].float() / 255
    heading = f"ms at {size[1]}x{size[0]}"
    jobs = {"/".join(key): partial(run, tensor) for key, run in runners.items()}
    times = interleaved(jobs, rounds=NETWORK_ROUNDS, after_each=advance)
    for key, run in runners.items():
        rows[key][heading] = times["/".join(key)]
        if size == SIZES[0]:
            reference = runners[key[0], FLOAT32](tensor)
            rows[key][COLUMNS[-1]] = 100 * agreement(run(tensor), reference)
    methods: dict[str, Callable[[], object]] = {
        contender.name: partial(_call, contender.method, picture) for contender in classical
    }
    slow = interleaved(methods, rounds=CLASSICAL_ROUNDS, warm_up=0, after_each=advance)
    for name, milliseconds in slow.items():
        rows[name, ""][heading] = milliseconds


def frame(rows: int, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A simulated frame of any size, (rows, columns), uint8."""
    noisy = validation_set(1)[0].noisy
    repeats = (-(-rows // noisy.shape[0]), -(-columns // noisy.shape[1]))
    return np.ascontiguousarray(np.tile(noisy, repeats)[:rows, :columns])


def _call(method: Method, picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> object:
    return method(picture)


def _networks(contenders: Sequence[Contender]) -> dict[str, nn.Module]:
    trained = {c.name: _ready(c.network) for c in contenders if c.network is not None}
    return {"DnCNN 17x64": DnCNN().folded(), "FFDNet size": FFDNetSized().eval(), **trained}


def _ready(network: nn.Module) -> nn.Module:
    """The network as it would be used: branches merged, normalisation folded."""
    return network.folded() if isinstance(network, DnCNN) else merge(network)


def _classical(contenders: Sequence[Contender]) -> list[Contender]:
    return [c for c in contenders if c.network is None and c.name != NOISY]

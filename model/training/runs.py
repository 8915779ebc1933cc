"""A training run on disk: ``run.json`` says what it is, ``last.ckpt`` holds its weights.

A run can be kept without what only a training needs: `keep` writes its averaged weights in half
precision, small enough to lie beside the code.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from model import bundle as bundles
from model.cost import machine
from model.student import parameters
from model.training.recipe import NetworkSection, Recipe

LAST = "last.ckpt"
"""Checkpoint from which a run goes on; its ``state_dict`` holds the averaged weights."""
KEPT = "weights.safetensors"
"""Averaged weights of a run that was kept; it cannot be gone on with."""
DESCRIPTION = "run.json"
PREFIX = "network."
"""Of the network's weights within a checkpoint."""


class RunError(ValueError):
    """A folder is no training run, or one that was cut short; the message names what is missing."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained network of any kind.

    Attributes
    ----------
    network : nn.Module
        In evaluation mode, float32, on the CPU: (batch, 1, rows, columns) 0..1 to the same.
    label : str
        Name of the recipe.
    described : str
        For a table: kind, size, steps and minutes.
    kind : str
        student, teacher or dncnn.
    steps : int
        Of the training.
    minutes : float
        The same.
    description : dict
        What ``run.json`` says.
    """

    network: nn.Module
    label: str
    described: str
    kind: str
    steps: int
    minutes: float
    description: dict[str, Any]


def load(folder: Path) -> LoadedRun:
    """Load the averaged weights of a run, or of one that was kept.

    Raises
    ------
    RunError
    """
    description = describe(folder)
    try:
        # Of the recipe no more than this: what is asked of recipes changes, old runs stay of use.
        label, section = description["recipe"]["name"], description["recipe"]["network"]
        shape = NetworkSection.model_validate(section)
        network = shape.build()
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder / DESCRIPTION}: holds no network of this release; run its recipe again"
        ) from error
    path = _weights_file(folder)
    if path.name == KEPT:
        try:
            averaged = {key: value.float() for key, value in load_file(path).items()}
        except SafetensorError as error:
            raise RunError(f"{path}: {error}; copy it again") from error
        steps, minutes = int(description["steps"]), float(description["minutes"])
    else:
        checkpoint = read_checkpoint(path)
        averaged = weights(checkpoint)
        steps, minutes = int(checkpoint["global_step"]), checkpoint["spent_seconds"] / 60
    try:
        network.load_state_dict(averaged)
    except RuntimeError as error:
        raise RunError(f"{path}: is of another network than {DESCRIPTION} says") from error
    described = (
        f"{shape.kind}, {parameters(network):,} parameters, {steps:,} steps in {minutes:.0f} min"
    )
    return LoadedRun(
        network.eval(),
        label,
        described,
        shape.kind,
        steps,
        minutes,
        description,
    )


def keep(folder: Path, target: Path) -> Path:
    """Write a run's averaged weights in half precision, and ``run.json``, to another folder.

    Returns
    -------
    Path
        ``target``, which `load` takes as it takes the run.

    Raises
    ------
    RunError
        There is no such run, or the target is a training run itself.
    """
    if (target / LAST).exists():
        raise RunError(f"{target}: holds a training run; name another folder")
    run = load(folder)
    description = run.description | {"steps": run.steps, "minutes": round(run.minutes, 1)}
    target.mkdir(parents=True, exist_ok=True)
    halves = {key: value.half() for key, value in run.network.state_dict().items()}
    bundles.write_tensors(target / KEPT, halves)
    (target / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return target


def describe(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises
    ------
    RunError
    """
    path = folder / DESCRIPTION
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; name the folder of a training run") from error
    except ValueError as error:
        raise RunError(f"{path}: not JSON; copy the run again") from error
    return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU. Nothing that lies in the file is executed.

    Raises
    ------
    RunError
    """
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        lacking = {"global_step", "spent_seconds", "state_dict"} - set(found)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
    ) as error:
        raise RunError(
            f"{path}: no checkpoint that can be read; copy it again, or train with --fresh"
        ) from error
    if lacking:
        raise RunError(f"{path}: is no checkpoint of this program; it lacks {min(lacking)}")
    return found


def weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The network's weights, contiguous, without the prefix."""
    return {
        key.removeprefix(PREFIX): value.contiguous()
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(PREFIX)
    }


def _weights_file(folder: Path) -> Path:
    """The checkpoint of a run, or else the weights that were kept of it."""
    for name in (LAST, KEPT):
        if (folder / name).is_file():
            return folder / name
    raise RunError(f"{folder / LAST}: missing; run its recipe first")


def start_weights(source: str) -> tuple[nn.Module, str]:
    """Network of a run's folder, or else of a bundle, and the hash of its weights."""
    folder = Path(source)
    if (folder / DESCRIPTION).exists():
        return load(folder).network, bundles.sha256(_weights_file(folder))
    bundle = bundles.load(source)
    return bundle.student, bundle.manifest.weights_sha256


def write_description(folder: Path, recipe: Recipe, more: dict[str, Any]) -> None:
    """Write what the export needs to know of a run: recipe, commit, machine, data."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    description = {
        "recipe": recipe.model_dump(),
        "commit": commit or "unknown",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine(),
        **more,
    }
    temporary = folder / f".{DESCRIPTION}.part"
    temporary.write_text(json.dumps(description, indent=2), "utf-8")
    os.replace(temporary, folder / DESCRIPTION)  # noqa: PTH105 atomic

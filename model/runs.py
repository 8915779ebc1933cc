"""A training run on disk: ``run.json`` says what it is, ``last.ckpt`` holds its weights."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import bundle as bundles
from model.cost import machine
from model.recipe import Recipe
from model.student import parameters

LAST = "last.ckpt"
"""Checkpoint from which a run goes on; its ``state_dict`` holds the averaged weights."""
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
    recipe : Recipe
    checkpoint : dict
        All that the trainer kept.
    description : dict
        What ``run.json`` says.
    """

    network: nn.Module
    label: str
    described: str
    kind: str
    recipe: Recipe
    checkpoint: dict[str, Any]
    description: dict[str, Any]


def load(folder: Path) -> LoadedRun:
    """Load the averaged weights of a run.

    Raises
    ------
    RunError
    """
    description = describe(folder)
    recipe = Recipe.model_validate(description["recipe"])
    path = folder / LAST
    if not path.exists():
        raise RunError(f"{path}: missing; train the recipe {recipe.name!r} first")
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    network = recipe.network.build()
    network.load_state_dict(weights(checkpoint))
    described = (
        f"{recipe.network.kind}, {parameters(network):,} parameters, "
        f"{checkpoint['global_step']:,} steps in {checkpoint['spent_seconds'] / 60:.0f} min"
    )
    return LoadedRun(
        network.eval(),
        recipe.name,
        described,
        recipe.network.kind,
        recipe,
        checkpoint,
        description,
    )


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
    return found


def weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The network's weights, contiguous, without the prefix."""
    return {
        key.removeprefix(PREFIX): value.contiguous()
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(PREFIX)
    }


def start_weights(source: str) -> tuple[nn.Module, str]:
    """Network of a run's folder, or else of a bundle, and the hash of its weights."""
    folder = Path(source)
    if (folder / DESCRIPTION).exists():
        return load(folder).network, bundles.sha256(folder / LAST)
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

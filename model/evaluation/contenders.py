"""Who takes part in a comparison: the input, the tuned classical methods, and every bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model import bundle as bundles
from model.baselines import BASELINES, Baseline, Grey, Method, tune
from model.data import VALIDATION_SEED, Scene, validation_set

TUNING_SEED = VALIDATION_SEED + 100
"""Scenes the classical methods are tuned on; no table is made on them."""
NOISY = "noisy"


@dataclass(frozen=True)
class Contender:
    """One row of every table.

    Parameters
    ----------
    name : str
        First column.
    method : Method
        uint8 (rows, columns) to float32 grey levels.
    settings : str
        What it was tuned to, or which release it is.
    source : str
        Paper and implementation.
    network : nn.Module, optional
        Where the cost can be counted and reduced precision tried.
    """

    name: str
    method: Method
    settings: str = ""
    source: str = ""
    network: nn.Module | None = None


def identity(image: NDArray[np.uint8]) -> Grey:
    """The speckled input as it is."""
    return image.astype(np.float32)


def noisy() -> Contender:
    """The input, the row every gain refers to."""
    return Contender(NOISY, identity, "", "the input")


def students(names: Sequence[str], strength: float = 1.0) -> list[Contender]:
    """One contender for each bundle, in float32 as the bundle's reference is.

    Raises
    ------
    model.bundle.BundleError
        A bundle is missing or damaged.
    """
    found = []
    for name in names:
        loaded = bundles.load(name)

        def method(image: NDArray[np.uint8], bundle: bundles.Bundle = loaded) -> Grey:
            return bundle.apply(image, strength).astype(np.float32)

        manifest = loaded.manifest
        label = "student" if len(names) == 1 else f"student {manifest.name}"
        settings = f"bundle {manifest.name} {manifest.version}, {manifest.parameters:,} parameters"
        if strength != 1:
            settings += f", strength {strength:g}"
        found.append(Contender(label, method, settings, "this project", loaded.student))
    return found


def chosen_baselines(names: Sequence[str]) -> list[Baseline]:
    """Baselines by name, all of them for no name, less those whose library is missing.

    Raises
    ------
    ValueError
        A name is unknown; the message lists those that exist.
    """
    known = {baseline.name.lower(): baseline for baseline in BASELINES}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        existing = ", ".join(baseline.name for baseline in BASELINES)
        raise ValueError(f"method {unknown[0]!r} is unknown; there are: {existing}")
    wanted = [known[name.lower()] for name in names] if names else list(BASELINES)
    return [baseline for baseline in wanted if baseline.available()]


def classical(
    baselines: Sequence[Baseline],
    *,
    scenes: int,
    cache: Path,
    tried: Callable[[str], object] = lambda _: None,
    tuned: Callable[[str], object] = lambda _: None,
) -> list[Contender]:
    """Baselines at the parameters with the highest PSNR on tuning scenes.

    Parameters
    ----------
    baselines : sequence of Baseline
        What to tune.
    scenes : int
        Number of tuning scenes.
    cache : Path
        JSON file that keeps what was found, for the next protocol; an entry is used only where
        grid, seed and number of scenes are the same.
    tried : callable
        Called with a baseline's name after each combination.
    tuned : callable
        Called with a baseline's name once its parameters are known.
    """
    kept = _read(cache)
    tuning: list[Scene] = []
    found = []
    for baseline in baselines:
        question = {"seed": TUNING_SEED, "scenes": scenes, "grid": _plain(baseline)}
        entry = kept.get(baseline.name, {})
        if entry.get("question") == question:
            parameters = entry["parameters"]
        else:
            tuning = tuning or validation_set(scenes, TUNING_SEED)
            parameters = tune(baseline, tuning, tried=partial(tried, baseline.name))
            kept[baseline.name] = {"question": question, "parameters": parameters}
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        tuned(baseline.name)
        text = ", ".join(f"{key} {value}" for key, value in parameters.items())
        found.append(Contender(baseline.name, baseline.method(parameters), text, baseline.source))
    return found


def _plain(baseline: Baseline) -> dict[str, list[object]]:
    return {key: list(values) for key, values in baseline.grid.items()}


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}

"""Who takes part in a comparison: the input, tuned classical methods, training runs, bundles."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model import bundle as bundles
from model.baselines import BASELINES, Baseline, Grey, Method, tune
from model.data import VALIDATION_SEED
from model.evaluation.scenes import SIMULATORS, SPECKLE
from model.network.reparameterise import merge
from model.simulation.scene import Scene
from model.student import Student, despeckled
from model.training.distill import MIRRORINGS, self_ensemble

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
    shipped : bool
        Whether it is a bundle, which all others are held against.
    """

    name: str
    method: Method
    settings: str = ""
    source: str = ""
    network: nn.Module | None = None
    shipped: bool = False


def identity(image: NDArray[np.uint8]) -> Grey:
    """The speckled input as it is."""
    return image.astype(np.float32)


def noisy() -> Contender:
    """The input, the row every gain refers to."""
    return Contender(NOISY, identity, "", "the input")


def students(names: Sequence[str], strength: float = 1.0) -> list[Contender]:
    """One contender for each bundle, in float32 and not rounded, as every other method's output.

    Raises
    ------
    model.bundle.BundleError
        A bundle is missing or damaged.
    """
    found = []
    for name in names:
        loaded = bundles.load(name)
        loaded.self_test()
        method = _despeckle(loaded.student, strength)
        manifest = loaded.manifest
        label = "student" if len(names) == 1 else f"student {manifest.name}"
        settings = f"bundle {manifest.name} {manifest.version}, {manifest.parameters:,} parameters"
        if strength != 1:
            settings += f", strength {strength:g}"
        found.append(
            Contender(label, method, settings, "this project", loaded.student, shipped=True)
        )
    return found


def trained_runs(
    runs: Sequence[str], *, strength: float = 1.0, self_ensembles: Collection[str] = ()
) -> list[Contender]:
    """One contender for each training run, in float32, whatever kind its network is of.

    Parameters
    ----------
    runs : sequence of str
        ``LABEL=FOLDER``: the row's name and the folder of a run; ``LABEL=FOLDER@BUNDLE`` gives a
        student what its export would: the shares, halvings and rim of that bundle, merged branches.
    strength : float
        Share of the removed part that is taken away, 0 to 1.
    self_ensembles : collection of str
        Labels that get a second row: the mean over mirrored images, see `model.training.distill`.
        That row has no network.

    Raises
    ------
    ValueError
        A run is not written so, its folder holds no run, a label is not that of a run, or two runs
        have one.
    model.bundle.BundleError
        A bundle is missing or damaged, or is named for a run of no student.
    """
    named = [_named(run) for run in runs]
    counted = Counter(label for label, _, _ in named)
    twice = [label for label, count in counted.items() if count > 1]
    if twice:
        raise ValueError(f"two runs are called {twice[0]!r}: give one another label")
    unknown = sorted(set(self_ensembles) - set(counted))
    if unknown:
        raise ValueError(f"self-ensemble of {unknown[0]!r}: no run has this label")
    found = []
    for label, folder, bundle in named:
        from model.training.runs import load  # noqa: PLC0415 bundles do not need it

        loaded = load(folder)
        network: nn.Module = loaded.network
        settings = loaded.described
        if bundle:
            network = _set_as(network, bundle, folder)
            settings += f", set as {bundle}"
        if strength != 1:
            settings += f", strength {strength:g}"
        found.append(
            Contender(label, _despeckle(network, strength), settings, "this project", network)
        )
        if label in self_ensembles:
            name = f"{label} x{len(MIRRORINGS)}"
            method = _despeckle(network, strength, partial(self_ensemble, network))
            found.append(Contender(name, method, f"{settings}, self-ensemble", "this project"))
    return found


def _named(run: str) -> tuple[str, Path, str]:
    """Label, folder and bundle, if one is named, of ``LABEL=FOLDER@BUNDLE``."""
    label, _, name = run.partition("=")
    folder, _, bundle = (name, "", "") if Path(name).exists() else name.partition("@")
    if not (label and folder):
        raise ValueError(f"run {run!r}: write it as LABEL=FOLDER, or LABEL=FOLDER@BUNDLE")
    return label, Path(folder), bundle


def _set_as(network: nn.Module, bundle: str, folder: Path) -> Student:
    """What an export of a run's student would compute with the settings of a bundle."""
    if not isinstance(network, Student):
        raise bundles.BundleError(
            f"{folder}: holds no student; only a student can be set as {bundle}"
        )
    student = merge(network)
    student.architecture = student.architecture.set_as(bundles.load(bundle).student.architecture)
    return student


def _despeckle(
    network: nn.Module, strength: float, ensemble: Callable[[Tensor], Tensor] | None = None
) -> Method:
    """A network as a function of a grey image, on the device where its weights are."""
    forward = ensemble or network
    weights = next(network.parameters(), None)
    device = torch.device("cpu") if weights is None else weights.device

    def partly(x: Tensor) -> Tensor:
        return x + strength * (forward(x) - x)

    return lambda image: despeckled(partly, image, device)


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


@dataclass(frozen=True)
class Tuning:
    """What classical methods are tuned on.

    Parameters
    ----------
    name : str
        Tells this tuning's entries in the cache from others'; empty for the simulated speckle.
    described : str
        For the head of a document.
    question : mapping
        An entry of the cache answers only the same question.
    scenes : callable
        Makes the scenes, when something has to be tuned; no table is made on them.
    """

    name: str
    described: str
    question: Mapping[str, object]
    scenes: Callable[[], Sequence[Scene]]


def simulated(count: int, simulator: str = SPECKLE) -> Tuning:
    """Tuning on scenes of a simulator."""
    question: dict[str, object] = {"seed": TUNING_SEED, "scenes": count}
    if simulator != SPECKLE:
        question["simulator"] = simulator
    return Tuning(
        "" if simulator == SPECKLE else simulator,
        f"tuned by PSNR on {count} scenes ({simulator}), seed {TUNING_SEED}",
        question,
        partial(SIMULATORS[simulator], count, TUNING_SEED),
    )


def classical(
    baselines: Sequence[Baseline],
    *,
    on: Tuning,
    cache: Path,
    tried: Callable[[str], object] = lambda _: None,
    tuned: Callable[[str], object] = lambda _: None,
) -> list[Contender]:
    """Baselines at the parameters with the highest PSNR on tuning scenes.

    Parameters
    ----------
    baselines : sequence of Baseline
        What to tune.
    on : Tuning
        The scenes.
    cache : Path
        JSON file that keeps what was found, for the next protocol; an entry is used only where
        the grid and the tuning's question are the same.
    tried : callable
        Called with a baseline's name after each combination.
    tuned : callable
        Called with a baseline's name once its parameters are known.
    """
    kept = _read(cache)
    tuning: Sequence[Scene] = ()
    found = []
    for baseline in baselines:
        question = {**on.question, "grid": _plain(baseline), "all": baseline.quick}
        key = f"{on.name} {baseline.name}".strip()
        entry = kept.get(key, {})
        if entry.get("question") == question:
            parameters = entry["parameters"]
        else:
            tuning = tuning or on.scenes()
            parameters = tune(baseline, tuning, tried=partial(tried, baseline.name))
            kept[key] = {"question": question, "parameters": parameters}
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        tuned(baseline.name)
        settings = ", ".join(_setting(baseline, *item) for item in parameters.items())
        method = baseline.method(parameters)
        found.append(Contender(baseline.name, method, settings, baseline.source))
    return found


def _setting(baseline: Baseline, name: str, value: object) -> str:
    """A tuned parameter; it is said where a wider grid might have found a better one."""
    values = baseline.grid[name]
    at_end = not isinstance(value, str) and value in (values[0], values[-1])
    return f"{name} {value}" + (" (end of the grid)" if at_end else "")


def _plain(baseline: Baseline) -> dict[str, list[object]]:
    return {key: list(values) for key, values in baseline.grid.items()}


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}

"""Going on with a run: one process at a time, by the recipe that it began with or nearly so."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from model.training import runs
from model.training.recipe import Recipe, RecipeError, flat

_FREE_TO_CHANGE = frozenset(
    {
        "accelerator",
        "cuda_graph",
        "data.cache",
        "data.loaders",
        "data.workers",
        "devices",
        "optimiser.minutes",
        "optimiser.steps",
        "precision",
        "threads",
    }
)
"""Keys of the machine and of the budget."""

_log = logging.getLogger(__name__)


def rank() -> int:
    """Of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", 0))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one training at a time write to a run's folder; processes that it starts may, too.

    Raises
    ------
    RecipeError
        Another one does.
    """
    if rank():
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(
            f"another process trains in {folder}; wait for it, or give the recipe another name"
        ) from error
    try:
        yield
    finally:
        lock.release()


def earlier(recipe: Recipe, folder: Path, done: int) -> list[dict[str, Any]]:
    """What the steps that are done were trained by, where it was something else than the recipe.

    Parameters
    ----------
    recipe : Recipe
        To go on by.
    folder : Path
        Of the run.
    done : int
        Steps.

    Returns
    -------
    list of dict
        Oldest first: `steps`, up to which it was so, and `recipe`, the keys that were others.

    Raises
    ------
    RecipeError
        The network is another one.
    model.training.runs.RunError
        The run has no description.
    """
    description = runs.describe(folder)
    now = dict(flat(json.loads(json.dumps(recipe.model_dump()))))
    no_terms = {key: 0.0 for key in now if key.startswith("loss.")}
    before = {
        key: value
        for key, value in {**no_terms, **dict(flat(description.get("recipe", {})))}.items()
        if key not in _FREE_TO_CHANGE and now.get(key) != value
    }
    network = [f"{key} = {value}" for key, value in before.items() if key.startswith("network.")]
    if network:
        raise RecipeError(
            f"{folder} holds {done} steps of another network ({', '.join(network)}); give the "
            "recipe another name, or begin anew with --fresh"
        )
    known: list[dict[str, Any]] = description.get("earlier", [])
    if not before:
        return known
    _log.warning("%s: goes on after %d steps with other %s", folder, done, ", ".join(before))
    return [*known, {"steps": done, "recipe": before}]


def with_images(
    known: list[dict[str, Any]], folder: Path, done: int, sha256: str
) -> list[dict[str, Any]]:
    """What `earlier` gives, and the hash of the images before, where they were others.

    Parameters
    ----------
    known : list of dict
    folder : Path
        Of the run, whose description is still that of before.
    done : int
        Steps.
    sha256 : str
        Of the images to go on with.
    """
    before = runs.describe(folder).get("data_sha256", sha256)
    if before == sha256:
        return known
    _log.warning("%s: goes on after %d steps with other images", folder, done)
    if known and known[-1]["steps"] == done:
        return [*known[:-1], {**known[-1], "data_sha256": before}]
    return [*known, {"steps": done, "recipe": {}, "data_sha256": before}]

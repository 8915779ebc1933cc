"""Who answers for a recipe's scenes and real images, before its student learns from the answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from rich.progress import Progress

from model.bundle import BundleError
from model.student import Student
from model.training import distill, planting, runs
from model.training.pool import Pool
from model.training.prepare import Material
from model.training.recipe import DistillationSection, Recipe, RecipeError


class Taught(NamedTuple):
    """What a student is shown.

    Attributes
    ----------
    scenes : Pool
        Simulated; with answers where there is a teacher.
    real : Pool, optional
        Patches of real images with the teacher's answers, and lesions where they are wanted.
    teacher : Student, optional
        On the CPU.
    """

    scenes: Pool
    real: Pool | None = None
    teacher: Student | None = None


def check(recipe: Recipe) -> None:
    """Name what cannot be had before scenes are drawn.

    Raises
    ------
    RecipeError
        A network that is to answer cannot be had, or the recipe names no real images.
    """
    section = recipe.distillation
    if section.teacher:
        _asked("teacher", section.teacher, "cpu")
    for name in section.panel:
        _asked("panel", name, "cpu")
    if section.real_share and not recipe.data.images:
        raise RecipeError("distillation.real_share: name a folder of images in data.images")


def taught(
    recipe: Recipe, given: Material, scenes: Pool, progress: Progress, device: str
) -> Taught:
    """Have the teacher, or the panel, look at the scenes; at real images where they are wanted.

    Parameters
    ----------
    recipe : Recipe
    given : Material
        Real images to train on.
    scenes : Pool
        Drawn for the recipe.
    progress : Progress
        Shows who has answered how much.
    device : str
        torch's name of what the networks run on.

    Raises
    ------
    RecipeError
        A network that is to answer cannot be had, or there are no real images.
    """
    section = recipe.distillation
    if not section.teacher:
        return Taught(scenes)
    teacher = _asked("teacher", section.teacher, device)
    real = _real(recipe, given, scenes, teacher, progress) if section.real_share else None
    if section.panel:
        panel = [_asked("panel", name, device) for name in section.panel]
        said = [_answers(section, scenes, member, "scenes", progress) for member in panel]
        scenes = distill.agreed(said)
    elif section.output or section.affinity:
        scenes = _answers(section, scenes, teacher, "scenes", progress)
    else:
        scenes = replace(scenes, taught=scenes.target)
    return Taught(scenes, real, teacher.network.cpu())


@dataclass(frozen=True)
class _Asked:
    """A network that is asked for its answers: which it is, and the hash of its weights."""

    name: str
    network: Student
    identity: str


def _asked(key: str, name: str, device: str) -> _Asked:
    """The run or bundle of that name."""
    where = f"distillation.{key} = {name!r}"
    try:
        network, identity = runs.start_weights(name)
    except (BundleError, runs.RunError) as error:
        raise RecipeError(f"{where}: {error}") from error
    if not isinstance(network, Student):
        raise RecipeError(f"{where}: is no teacher")
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Asked(name, network, identity)


def _answers(
    section: DistillationSection,
    pool: Pool,
    asked: _Asked,
    what: str,
    progress: Progress,
    *,
    halvings: int = 0,
    retained: float = 0.0,
) -> Pool:
    task = progress.add_task(f"{asked.name} on {what}", total=len(pool))
    return distill.teach(
        pool,
        asked.network,
        asked.identity,
        folds=section.folds,
        halvings=halvings,
        retained=retained,
        features=section.affinity > 0,
        advance=lambda count: progress.advance(task, count),
    )


def _real(
    recipe: Recipe, given: Material, scenes: Pool, teacher: _Asked, progress: Progress
) -> Pool:
    """Patches of real images as the teacher despeckles them, kept beside the scenes."""
    section, side = recipe.distillation, recipe.data.side
    patches = distill.real_pool(given.train, scenes.folder / f"real-{side}", side)
    real = _answers(
        section,
        patches,
        teacher,
        "real images",
        progress,
        halvings=section.real_halvings,
        retained=section.real_retained,
    )
    if not section.real_planted:
        return real
    task = progress.add_task("planting lesions", total=section.real_planted * len(real))
    return planting.planted_pool(
        real,
        copies=section.real_planted,
        details=recipe.data.detail_share > 0,
        seed=recipe.data.seed,
        workers=recipe.data.workers,
        advance=lambda count: progress.advance(task, count),
    )

"""Compare the student with every other method in one run: tables, CSV and pictures.

A protocol is a function from a `Run` to what it wrote, listed in `PROTOCOLS`. Baselines are tuned
on scenes of their own; the student's rows come from bundles. Every document starts with the
machine, date, versions, seeds and settings that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress, TaskID

from model.data import VALIDATION_SEED
from model.evaluation import cost as cost_protocol
from model.evaluation import physics as physics_protocol
from model.evaluation import real as real_protocol
from model.evaluation.contenders import (
    TUNING_SEED,
    Contender,
    chosen_baselines,
    classical,
    noisy,
    students,
)

EVALUATION_SEED = VALIDATION_SEED + 200
"""Scenes that neither training, nor its validation, nor the tuning of baselines has seen."""
TUNED_FILE = "tuned.json"


class EvaluationError(ValueError):
    """The evaluation cannot run; the message names the setting and the remedy."""


def default_images() -> Path:
    """Real B-mode images beside the project's folder, where a checkout has them."""
    return Path(__file__).resolve().parents[2] / "shared" / "data" / "train"


@dataclass(frozen=True)
class Settings:
    """What a run is asked for."""

    output: Path
    """Folder for tables and pictures."""
    bundles: Sequence[str] = ()
    """Names or folders of bundles, a row each."""
    methods: Sequence[str] = ()
    """Classical methods by name; none means all."""
    strength: float = 1.0
    """Share of the removed part that the students take away."""
    scenes: int = 40
    """Simulated scenes."""
    seed: int = EVALUATION_SEED
    """Of the simulated scenes."""
    tuning_scenes: int = 12
    """Simulated scenes that the classical methods are tuned on."""
    images: Path = field(default_factory=default_images)
    """Folder of real images; a subfolder counts as a source of its own."""
    images_per_source: int = 2
    """Real images from each source."""
    pictures: int = 4
    """Comparison pictures of simulated scenes."""

    def described(self) -> dict[str, object]:
        """What the head of a document says."""
        return {
            "bundles": ", ".join(self.bundles) or "none",
            "strength": self.strength,
            "baselines": f"tuned by PSNR on {self.tuning_scenes} scenes, seed {TUNING_SEED}",
        }


@dataclass(frozen=True)
class Run:
    """What a protocol gets."""

    settings: Settings
    contenders: Sequence[Contender]
    progress: Progress

    def task(self, description: str, total: int) -> TaskID:
        """A line of the progress display."""
        return self.progress.add_task(description, total=total)


@dataclass(frozen=True)
class Outcome:
    """What a protocol leaves."""

    written: Sequence[Path]
    skipped: str = ""
    """Why nothing was done; empty where something was."""


def physics(run: Run) -> Outcome:
    """Table B: simulated scenes with an exact reference."""
    settings = run.settings
    task = run.task("physics", settings.scenes * len(run.contenders))
    written = physics_protocol.evaluate(
        run.contenders,
        count=settings.scenes,
        seed=settings.seed,
        output=settings.output,
        described=settings.described(),
        pictures=settings.pictures,
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


def real(run: Run) -> Outcome:
    """Table C: real images, for which no clean version exists."""
    settings = run.settings
    files = real_protocol.choose(settings.images, settings.images_per_source)
    if not files:
        return Outcome((), f"no images below {settings.images}: name a folder with --images")
    task = run.task("real", len(files) * len(run.contenders))
    written = real_protocol.evaluate(
        run.contenders,
        files,
        root=settings.images,
        output=settings.output,
        described=settings.described(),
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


def cost(run: Run) -> Outcome:
    """Table D: parameters, multiply-accumulates and milliseconds a frame."""
    task = run.task("cost", cost_protocol.turns(run.contenders))
    written = cost_protocol.evaluate(
        run.contenders,
        output=run.settings.output,
        described=run.settings.described(),
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


PROTOCOLS: Mapping[str, Callable[[Run], Outcome]] = {
    "physics": physics,
    "real": real,
    "cost": cost,
}


def evaluate(protocol: str, settings: Settings, progress: Progress) -> Outcome:
    """Run one protocol.

    Parameters
    ----------
    protocol : str
        A key of `PROTOCOLS`.
    settings : Settings
        What is asked for.
    progress : Progress
        Shows how far tuning and protocol are.

    Raises
    ------
    EvaluationError
        A protocol or method is unknown, or a count is too small.
    model.bundle.BundleError
        A bundle is missing or damaged.
    """
    if protocol not in PROTOCOLS:
        raise EvaluationError(
            f"protocol {protocol!r} is unknown; there are: {', '.join(PROTOCOLS)}"
        )
    for name in ("scenes", "tuning_scenes", "images_per_source"):
        if getattr(settings, name) < 1:
            raise EvaluationError(f"{name} must be at least 1, not {getattr(settings, name)}")
    if protocol == "real" and not real_protocol.choose(settings.images, 1):
        return real(Run(settings, (), progress))  # before minutes go into tuning
    trained = students(settings.bundles, settings.strength)
    try:
        baselines = chosen_baselines(settings.methods)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    task = progress.add_task("tuning", total=len(baselines))
    trials: Counter[str] = Counter()

    def tried(name: str) -> None:
        trials[name] += 1
        progress.update(task, description=f"tuning {name}, {trials[name]} tried")

    tuned = classical(
        baselines,
        scenes=settings.tuning_scenes,
        cache=settings.output / TUNED_FILE,
        tried=tried,
        tuned=lambda _: progress.advance(task),
    )
    progress.update(task, description="tuned")
    run = Run(settings, [noisy(), *tuned, *trained], progress)
    return PROTOCOLS[protocol](run)

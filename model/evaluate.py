"""Compare networks with every other method in one run: tables, CSV and pictures.

A protocol is a function from a `Run` to what it wrote, listed in `PROTOCOLS`. Classical methods
are tuned on scenes or images of their own; networks come from training runs and from bundles.
Every document starts with the machine, date, versions, seeds and settings that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from rich.progress import Progress, TaskID

from model.baselines import Baseline, for_strong_noise
from model.data import VALIDATION_SEED
from model.evaluation import cost as cost_protocol
from model.evaluation import images as real_images
from model.evaluation import paper as paper_protocol
from model.evaluation import physics as physics_protocol
from model.evaluation import real as real_protocol
from model.evaluation import safety as safety_protocol
from model.evaluation.contenders import (
    NOISY,
    Contender,
    Tuning,
    chosen_baselines,
    classical,
    noisy,
    simulated,
    students,
    trained_runs,
)
from model.evaluation.remembered import remembered
from model.evaluation.safety_grounds import Grounds
from model.evaluation.scenes import SIMULATORS, SPECKLE
from model.simulation.multiplicative import LEVELS
from model.training.distill import MIRRORINGS

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
    runs: Sequence[str] = ()
    """``LABEL=FOLDER`` of training runs, a row each under its label."""
    self_ensembles: Sequence[str] = ()
    """Labels of runs that get a second row, averaged over mirrored images."""
    simulators: Sequence[str] = (SPECKLE,)
    """Where simulated scenes come from; with several there is a document of all together too."""
    methods: Sequence[str] = ()
    """Classical methods by name; none means all."""
    strength: float = 1.0
    """Share of the removed part that networks take away."""
    scenes: int = 100
    """Scenes of each simulator."""
    seed: int = EVALUATION_SEED
    """Of the simulated scenes, and of the noise that is added to real images."""
    tuning_scenes: int = 12
    """Simulated scenes that the classical methods are tuned on."""
    images: Path = field(default_factory=default_images)
    """Folder of real images; a subfolder counts as a source of its own."""
    images_per_source: int = 2
    """Real images from each source, of subjects that nothing was trained on."""
    pictures: int = 4
    """Comparison pictures of simulated scenes."""
    remember: Path | None = None
    """Folder that keeps outputs of classical methods and runs; none keeps nothing."""

    def described(self) -> dict[str, object]:
        """What the head of a document says."""
        said: dict[str, object] = {
            "bundles": ", ".join(self.bundles) or "none",
            "runs": ", ".join(self.runs) or "none",
            "strength": self.strength,
        }
        if self.remember:
            said["remembered"] = "outputs of unchanged methods may be of an earlier run"
        return said


@dataclass(frozen=True)
class Run:
    """What a protocol gets."""

    settings: Settings
    baselines: Sequence[Baseline]
    """Classical methods, not yet tuned."""
    networks: Sequence[Contender]
    progress: Progress

    @cached_property
    def tuning(self) -> Tuning:
        """What `contenders` are tuned on: the simulator that networks are trained on."""
        return simulated(self.settings.tuning_scenes)

    @cached_property
    def contenders(self) -> Sequence[Contender]:
        """The input, classical methods tuned on simulated scenes, and the networks."""
        return self.tuned_on(self.tuning)

    def tuned_on(self, tuning: Tuning) -> Sequence[Contender]:
        """The input, classical methods tuned on something else, and the networks."""
        name = f"tuning {tuning.name}".strip()
        task = self.task(name, len(self.baselines))
        trials: Counter[str] = Counter()

        def tried(method: str) -> None:
            trials[method] += 1
            self.progress.update(task, description=f"{name} {method}, {trials[method]} tried")

        tuned = classical(
            self.baselines,
            on=tuning,
            cache=self.settings.output / TUNED_FILE,
            tried=tried,
            tuned=lambda _: self.progress.advance(task),
        )
        self.progress.update(task, description=name.replace("tuning", "tuned", 1))
        return [noisy(), *self._remembered([*tuned, *self.networks])]

    def _remembered(self, contenders: Sequence[Contender]) -> Sequence[Contender]:
        """Classical methods and runs from what is kept, where something is."""
        folder = self.settings.remember
        if not folder:
            return contenders
        averaged = {f"{label} x{len(MIRRORINGS)}" for label in self.settings.self_ensembles}
        return [
            each if each.shipped or each.name in averaged else remembered(each, folder)
            for each in contenders
        ]

    def described(self, tuning: Tuning | None = None) -> dict[str, object]:
        """What the head of a document says; baselines as `contenders` unless another is given."""
        return {**self.settings.described(), "baselines": (tuning or self.tuning).described}

    def task(self, description: str, total: int) -> TaskID:
        """A line of the progress display."""
        return self.progress.add_task(description, total=total)


@dataclass(frozen=True)
class Outcome:
    """What a protocol leaves."""

    written: Sequence[Path]
    skipped: str = ""
    """Why nothing was done; empty where something was."""


def paper(run: Run) -> Outcome:
    """Table A: multiplicative noise on real images that are taken as clean."""
    settings = run.settings
    run = replace(run, baselines=[for_strong_noise(baseline) for baseline in run.baselines])
    parts = real_images.parted(settings.images)
    files = real_images.choose(parts.test, settings.images, settings.images_per_source)
    tuned_on = real_images.choose(parts.train, settings.images, 1)
    if not (files and tuned_on):
        return Outcome((), _no_images(settings))
    tunings = {level: paper_protocol.tuning(tuned_on, level) for level in LEVELS}
    contenders = {level: run.tuned_on(tuning) for level, tuning in tunings.items()}
    task = run.task("paper", len(files) * sum(map(len, contenders.values())))
    written = paper_protocol.evaluate(
        contenders,
        files,
        root=settings.images,
        output=settings.output,
        described=run.described(tunings[LEVELS[0]]),
        seed=settings.seed,
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


def physics(run: Run) -> Outcome:
    """Table B: simulated scenes with an exact reference, a document a simulator."""
    settings = run.settings
    written: list[Path] = []
    together = physics_protocol.Judged()
    contenders: dict[str, Sequence[Contender]] = {}
    for simulator in settings.simulators:
        tuning = simulated(settings.tuning_scenes, simulator)
        contenders[simulator] = run.tuned_on(tuning)
        task = run.task(f"physics, {simulator}", settings.scenes * len(contenders[simulator]))
        name = "physics" if simulator == SPECKLE else f"physics-{simulator}"
        judged = physics_protocol.judge(
            contenders[simulator],
            SIMULATORS[simulator](settings.scenes, settings.seed),
            output=settings.output,
            name=name,
            pictures=settings.pictures,
            advance=partial(run.progress.advance, task),
        )
        written += physics_protocol.document(
            judged,
            {simulator: contenders[simulator]},
            output=settings.output,
            described={**run.described(tuning), "scenes": _scenes(settings, simulator)},
            name=name,
        )
        together.add(replace(judged, pictures=[]))
    if len(contenders) > 1:
        everything = ", ".join(contenders)
        written += physics_protocol.document(
            together,
            contenders,
            output=settings.output,
            described={
                **settings.described(),
                "baselines": "tuned for each simulator, on scenes of its own",
                "scenes": _scenes(settings, everything),
            },
            name="physics-together",
        )
    return Outcome(written)


def _scenes(settings: Settings, simulators: str) -> str:
    return f"{settings.scenes} of {simulators}, seed {settings.seed}"


def real(run: Run) -> Outcome:
    """Table C: real images, for which no clean version exists."""
    settings = run.settings
    parts = real_images.parted(settings.images)
    files = real_images.choose(parts.test, settings.images, settings.images_per_source)
    if not files:
        return Outcome((), _no_images(settings))
    contenders = run.contenders
    task = run.task("real", real_protocol.TURNS * len(files) * len(contenders))
    written = real_protocol.evaluate(
        contenders,
        files,
        root=settings.images,
        output=settings.output,
        described=run.described(),
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


def _no_images(settings: Settings) -> str:
    return (
        f"no images of at least three subjects below {settings.images}: name a folder with --images"
    )


def cost(run: Run) -> Outcome:
    """Table D: parameters, multiply-accumulates and milliseconds a frame."""
    task = run.task("cost", cost_protocol.turns(run.contenders))
    written = cost_protocol.evaluate(
        run.contenders,
        output=run.settings.output,
        described=run.described(),
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


def safety(run: Run) -> Outcome:
    """Table E: faint lesions, false structures, brightness, shifts, flicker, text and lines."""
    contenders = run.contenders
    grounds = Grounds.make(run.settings.seed)
    task = run.task("safety", safety_protocol.turns(contenders, grounds))
    written = safety_protocol.evaluate(
        contenders,
        grounds=grounds,
        output=run.settings.output,
        described={**run.described(), "seed": run.settings.seed},
        advance=lambda: run.progress.advance(task),
    )
    return Outcome(written)


PROTOCOLS: Mapping[str, Callable[[Run], Outcome]] = {
    "paper": paper,
    "physics": physics,
    "real": real,
    "cost": cost,
    "safety": safety,
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
        A protocol, method, simulator or run is unknown, two rows have one name, or a count is
        too small.
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
    unknown = [name for name in settings.simulators if name not in SIMULATORS]
    if unknown:
        raise EvaluationError(
            f"simulator {unknown[0]!r} is unknown; there are: {', '.join(SIMULATORS)}"
        )
    try:
        baselines = chosen_baselines(settings.methods)
        networks = _networks(protocol, settings)
    except ValueError as error:
        raise EvaluationError(str(error)) from error
    if protocol == "cost":  # what is remembered takes no time
        settings = replace(settings, remember=None)
    _check_names([NOISY, *(b.name for b in baselines), *(c.name for c in networks)])
    return PROTOCOLS[protocol](Run(settings, baselines, networks, progress))


def _networks(protocol: str, settings: Settings) -> list[Contender]:
    """Runs in the order given, then bundles; an average of several passes is not timed."""
    runs = trained_runs(
        settings.runs,
        strength=settings.strength,
        self_ensembles=() if protocol == "cost" else settings.self_ensembles,
    )
    return [*runs, *students(settings.bundles, settings.strength)]


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise EvaluationError(f"two rows are called {twice[0]!r}: give the run another label")

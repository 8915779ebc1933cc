"""The command ``despeckle-model``: train, evaluate, export and apply students.

Each command imports what it needs when it runs, so that `apply` works without the training extra
and ``--help`` answers at once.
"""

# Imports inside the commands are the point of this module.
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

DEFAULT_BUNDLE = "quality"
TRAINING_PACKAGES = frozenset(
    {"bm3d", "lightning", "matplotlib", "pywt", "scipy", "skimage", "tensorboard", "torchmetrics"}
)
FAILED, UNUSABLE = 1, 2

app = typer.Typer(
    name="despeckle-model",
    help="Train, evaluate, export and apply students that take the speckle out of ultrasound.",
    no_args_is_help=True,
    add_completion=False,
)
console = Console()
errors = Console(stderr=True)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, such as config/model/clinical.toml.")],
    output: Annotated[Path, typer.Option(help="Folder of training runs.")] = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew instead of from the last checkpoint.")
    ] = False,
) -> None:
    """Run a recipe, or go on with it where it was stopped."""
    from model.train import train as run_recipe
    from model.training.checkpoints import DivergedError
    from model.training.recipe import RecipeError
    from model.training.runs import RunError

    try:
        checkpoint = run_recipe(recipe, output, resume=not fresh)
    except (RecipeError, RunError, DivergedError, OSError) as error:
        raise _unusable(str(error)) from error
    console.print(f"checkpoint: {checkpoint}", soft_wrap=True)


@app.command()
def draw(
    recipe: Annotated[Path, typer.Argument(help="Recipe, such as config/model/clinical.toml.")],
) -> None:
    """Draw the scenes of a recipe and train nothing, so that a GPU need not wait for them."""
    from model.training.prepare import drawn
    from model.training.recipe import RecipeError, load

    try:
        scenes = drawn(load(recipe).data)
    except (RecipeError, OSError) as error:
        raise _unusable(str(error)) from error
    console.print(f"scenes: {len(scenes)} in {scenes.folder}", soft_wrap=True)


@app.command()
def keep(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    output: Annotated[Path, typer.Argument(help="Folder for its weights and description.")],
) -> None:
    """Keep a run's weights in half precision, without what only its training needs."""
    from model.training.runs import RunError
    from model.training.runs import keep as keep_weights

    try:
        kept = keep_weights(run, output)
    except RunError as error:
        raise _unusable(str(error)) from error
    console.print(f"kept: {kept}", soft_wrap=True)


@app.command()
def evaluate(
    *,
    protocol: Annotated[
        list[str],
        typer.Option(
            help="paper, physics, real, cost or safety; may be repeated. See docs/evaluation.md."
        ),
    ] = ["physics"],  # noqa: B006 typer copies it
    output: Annotated[Path, typer.Option(help="Folder for tables and pictures.")] = Path(
        "out/evaluation"
    ),
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            help="Bundle by name or folder; may be repeated. "
            f"{DEFAULT_BUNDLE} where neither bundle nor run is given."
        ),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=FOLDER[@BUNDLE]",
            help="Training run, a row under the label, whatever its network; with the shares, "
            "halvings and rim of a bundle where one is named. May be repeated.",
        ),
    ] = None,
    self_ensemble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Run that gets a second row: the mean over mirrored images (4 times slow).",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Classical method to compare with; all where none is given."),
    ] = None,
    simulator: Annotated[
        list[str],
        typer.Option(
            help="Of the physics protocol: speckle (which networks are trained on), widened (with "
            "the beams and displays of real images) or array (an independent one); may be "
            "repeated, the last document is then of all together."
        ),
    ] = ["speckle"],  # noqa: B006 typer copies it
    strength: Annotated[float, typer.Option(min=0, max=1, help="Of the networks.")] = 1.0,
    scenes: Annotated[int, typer.Option(min=1, help="Simulated scenes a simulator.")] = 100,
    tuning_scenes: Annotated[
        int, typer.Option(min=1, help="Simulated scenes that classical methods are tuned on.")
    ] = 12,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of real images, a subfolder a source; only subjects that nothing was "
            "trained on are judged, where it is the data.images of the training."
        ),
    ] = None,
    images_per_source: Annotated[int, typer.Option(min=1, help="Real images a source.")] = 2,
    remember: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what classical methods and runs made, for the next table; "
            "bundles are always run anew, and so is everything whose time is taken."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0 leaves it to torch.")] = 0,
) -> None:
    """Compare networks with every classical method, each tuned first."""
    import torch

    from model.allocator import keep_activations
    from model.bundle import BundleError
    from model.evaluate import EvaluationError, Settings, default_images
    from model.evaluate import evaluate as run_protocol

    if images is not None and not images.is_dir():
        raise _unusable(f"--images {images}: no such folder")
    if threads:
        torch.set_num_threads(threads)
    keep_activations()
    settings = Settings(
        output=output,
        bundles=bundle or ([] if run else [DEFAULT_BUNDLE]),
        runs=run or (),
        self_ensembles=self_ensemble or (),
        simulators=simulator,
        methods=method or (),
        strength=strength,
        scenes=scenes,
        tuning_scenes=tuning_scenes,
        images=images or default_images(),
        images_per_source=images_per_source,
        remember=remember,
    )
    for name in protocol:
        try:
            with _progress() as progress:
                outcome = run_protocol(name, settings, progress)
        except (EvaluationError, BundleError) as error:
            raise _unusable(str(error)) from error
        if outcome.skipped:
            errors.print(f"[yellow]{name} skipped:[/] {outcome.skipped}", soft_wrap=True)
            continue
        console.print(outcome.written[0].read_text(encoding="utf-8"), markup=False, soft_wrap=True)
        for path in outcome.written:
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def targets(
    folder: Annotated[Path, typer.Argument(help="Of an evaluation's documents.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Column of the summary; may be repeated.")
    ] = None,
) -> None:
    """Sum up an evaluation: what was to be reached, and who reaches it."""
    from model.evaluation.targets import COMPARED, TablesError, summary

    try:
        text = summary(folder, method or COMPARED)
    except TablesError as error:
        raise _unusable(str(error)) from error
    (folder / "targets.md").write_text(text, "utf-8")
    console.print(f"written: {folder / 'targets.md'}", soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Training run, or a bundle to change the shares of.")
    ],
    *,
    name: Annotated[str, typer.Option(help="Of the bundle.")],
    version: Annotated[str, typer.Option(help="Of the release, such as 1.0.0.")],
    output: Annotated[Path, typer.Option(help="Folder of bundles.")] = Path("bundles"),
    average: Annotated[
        list[str] | None,
        typer.Option(
            help="Another run or bundle that began as the same network, whose weights are averaged "
            "in: SOURCE=SHARE; may be repeated."
        ),
    ] = None,
    retain: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of what is removed at lesions' size that stays."),
    ] = None,
    retain_wide: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the rest, from 16 pixels on, that stays too."),
    ] = None,
    halvings: Annotated[
        int | None,
        typer.Option(min=0, max=4, help="Times an image with coarse speckle may be halved."),
    ] = None,
    rim: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Pixels that tissue goes on beyond the rim of a sector."),
    ] = None,
    attribution: Annotated[
        list[str] | None, typer.Option(help="Source of real images used; may be repeated.")
    ] = None,
) -> None:
    """Turn a checkpoint into a bundle that the node takes.

    What is not given of shares, halvings and rim is as a bundle has it, and 0 for a run.
    """
    from model.bundle import BundleError
    from model.export import export as write_bundle

    try:
        bundle = write_bundle(
            checkpoint,
            output,
            name=name,
            version=version,
            averaged=dict(map(_share, average or [])),
            retain=retain,
            retain_wide=retain_wide,
            halvings=halvings,
            rim_px=rim,
            attribution=attribution,
        )
    except BundleError as error:
        raise _unusable(str(error)) from error
    console.print(f"bundle: {bundle.folder}", soft_wrap=True)
    for key, value in bundle.manifest.figures.items():
        console.print(f"  {key}: {value:g}")


@app.command()
def apply(
    image: Annotated[list[Path], typer.Argument(help="PNG, JPEG, BMP or TIFF files, or folders.")],
    output: Annotated[Path, typer.Option(help="Folder for the PNG files.")],
    bundle: Annotated[str, typer.Option(help="Bundle by name or folder.")] = DEFAULT_BUNDLE,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="0 changes nothing, 1 removes all it can.")
    ] = 1.0,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for before, after and removed, side by side.")
    ] = None,
) -> None:
    """Write a despeckled PNG of the same name and size for each image."""
    from model.apply import ImageError, plan, run, write_compared
    from model.bundle import BundleError, load

    try:
        loaded = load(bundle)
        loaded.self_test()
    except BundleError as error:
        raise _unusable(str(error)) from error
    jobs, failures = plan(image, output)
    for failure in failures:
        _report(failure.job.source, failure.error)
    failed = len(failures)
    with _progress() as progress:
        task = progress.add_task("despeckling", total=len(jobs))
        for result in run(jobs, lambda grey: loaded.apply(grey, strength)):
            progress.advance(task)
            if result.error:
                failed += 1
                _report(result.job.source, result.error)
                continue
            if pictures is not None:
                try:
                    write_compared(result, output, pictures)
                except ImageError as error:
                    failed += 1
                    _report(result.job.source, str(error))
            if result.note:
                errors.print(
                    f"{result.job.source}: {result.note}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    written = len(jobs) + len(failures) - failed
    console.print(f"{written} written to {output}, {failed} failed", soft_wrap=True)
    if failed:
        raise typer.Exit(FAILED)


def _report(source: Path, message: str) -> None:
    errors.print(f"{source}: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


def _share(text: str) -> tuple[Path, float]:
    """Source and share of ``--average``."""
    source, _, share = text.rpartition("=")
    try:
        return Path(source), float(share)
    except ValueError as error:
        raise _unusable(f"--average {text}: give SOURCE=SHARE, such as runs/mine=0.5") from error


def _unusable(message: str) -> typer.Exit:
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(UNUSABLE)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=errors,
    )


def main() -> None:
    """Entry point; a missing training extra is told in one line."""
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAINING_PACKAGES:
            raise
        errors.print(
            f"{error.name} is not installed; this command needs the training extra: "
            "pip install 'despeckle-node[train]'",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(UNUSABLE)


if __name__ == "__main__":
    main()

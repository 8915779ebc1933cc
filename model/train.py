"""Train a network by a recipe: resumable after a kill, timed by a budget of minutes, logged.

Lightning runs the loop; this module holds only what is particular to despeckling.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model import data, distill, guidance, pool, prepare, report, runs
from model import recipe as recipes
from model.bundle import BundleError
from model.checkpoints import AtomicCheckpoints
from model.data import Scene
from model.growing import grow
from model.logs import RunLog
from model.losses import TERMS
from model.pool import Batch, Pool
from model.prepare import Material
from model.recipe import Recipe, RecipeError
from model.significance import put_back
from model.student import Student, parameters

AGAINST_THE_REFERENCE = frozenset({"contrast"})
"""Terms that always ask for the simulated reference: a teacher's guess may have shrunk a lesion."""
_REPORTED_IMAGES = 4


class Training(pl.LightningModule):
    """The training of one network: weighted terms, AdamW, cosine over the time budget.

    Parameters
    ----------
    recipe : Recipe
    scenes : sequence of Scene
        For the validation.
    targets : mapping of str to float
        What the controller steers at; empty without one.
    """

    def __init__(self, recipe: Recipe, scenes: Sequence[Scene], targets: dict[str, float]) -> None:
        super().__init__()
        self.recipe = recipe
        self.scenes, self.targets = scenes, targets
        self.network = recipe.network.build()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weights = dict(recipe.loss)
        self.spent_seconds = 0.0
        self._since = time.monotonic()

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted sum of the recipe's terms, and of the affinity to the teacher's features."""
        noisy, target = batch["noisy"], batch["target"]
        distillation = self.recipe.distillation
        features = None
        if "features" in batch and isinstance(self.network, Student):
            removed, features = self.network.residual_and_features(noisy)
            output = (noisy - removed).float()
        else:
            output = self.network(noisy).float()
        aim = target
        if "taught" in batch:
            share = distillation.output / (distillation.output + distillation.supervised)
            aim = torch.where(batch["real"], batch["taught"], target.lerp(batch["taught"], share))
            target = torch.where(batch["real"], batch["taught"], target)
        total = torch.zeros((), device=output.device)
        for name, weight in self.weights.items():
            if weight:
                wanted = target if name in AGAINST_THE_REFERENCE else aim
                value = TERMS[name](output, wanted, noisy)
                self.log(f"train/{name}", value)
                total = total + weight * value
        if features is not None and distillation.affinity:
            value = distill.affinity_loss(features, batch["features"])
            self.log("train/affinity", value)
            total = total + distillation.affinity * value
        self.log("train/loss", total, prog_bar=True)
        return total

    def validation_step(self, _batch: Tensor, _index: int) -> None:
        """Governed metrics over the validation scenes; the controller acts on them."""
        figures = guidance.measure(self.despeckle, self.scenes)
        before = guidance.measure(lambda image: image.astype(np.float32), self.scenes)
        for name, value in figures.items():
            self.log(f"val/{name}", value, prog_bar=name == "psnr", batch_size=1)
        self.log("val/gain", figures["psnr"] - before["psnr"], prog_bar=True, batch_size=1)
        section = self.recipe.guidance
        if section.every and self.global_step:
            short = guidance.shortfalls(figures, self.targets)
            self.weights = guidance.adjusted(self.weights, self.recipe.loss, short, section)
            for name, value in short.items():
                self.log(f"shortfall/{name}", value, batch_size=1)
        for name, weight in self.weights.items():
            self.log(f"weight/{name}", weight, batch_size=1)

    @torch.inference_mode()
    def despeckle(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One grey image, (rows, columns) uint8, to float32 grey levels."""
        x = torch.from_numpy(image)[None, None].to(self.device).float() / 255
        return np.asarray(255 * self.network(x).float().clamp(0, 1)[0, 0].cpu())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the rate is set before each step by `on_train_batch_start`."""
        o = self.recipe.optimiser
        return torch.optim.AdamW(
            self.network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay
        )

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1; by time or by steps, whichever is further."""
        o = self.recipe.optimiser
        by_time = self.elapsed / (60 * o.minutes)
        return min(1.0, max(by_time, self.global_step / o.steps))

    @property
    def elapsed(self) -> float:
        """Training time over all runs, seconds."""
        return self.spent_seconds + time.monotonic() - self._since

    def on_fit_start(self) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_train_batch_start(self, _batch: Any, _index: int) -> int | None:
        """Set the learning rate: linear warm-up over 300 steps, then a cosine to 1 %."""
        # Each process has a clock of its own; all must stop at the same step.
        if self.trainer.strategy.reduce_boolean_decision(self.progress >= 1, all=False):
            self.trainer.should_stop = True
            return -1
        warm = min(1.0, (self.global_step + 1) / 300)
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress))
        rate = self.recipe.optimiser.learning_rate * warm * cosine
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        self.log("train/rate", rate)
        self.log("train/minutes", self.elapsed / 60)
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time spent and the loss weights."""
        checkpoint["spent_seconds"] = self.elapsed
        checkpoint["loss_weights"] = dict(self.weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the time spent and the loss weights."""
        self.spent_seconds = float(checkpoint["spent_seconds"])
        self.weights = dict(checkpoint["loss_weights"])


def train(recipe_path: Path, output: Path, *, resume: bool = True) -> Path:
    """Run a recipe, or go on with it.

    Parameters
    ----------
    recipe_path : Path
        TOML; see `model.recipe`.
    output : Path
        Folder of runs; this one goes into ``output/<recipe name>``.
    resume : bool
        Go on from the last checkpoint where there is one.

    Returns
    -------
    Path
        The last checkpoint; its ``state_dict`` holds the averaged weights.

    Raises
    ------
    RecipeError
        The recipe, or what it names, cannot be used.
    """
    recipe = recipes.load(recipe_path)
    folder = output / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / runs.LAST
    start = last if resume and last.exists() else None
    done = _steps_of(start) if start else 0
    pl.seed_everything(recipe.seed)
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)

    with _progress() as progress:
        given = prepare.material(recipe.data)
        drawn = prepare.scenes(recipe.data, given, progress)
        taught, real, teacher = _taught(recipe, given, drawn, progress)
        fresh = None
        if recipe.data.fresh_per_batch:
            fresh = prepare.fresh_drawer(recipe.data, given, progress)
    scenes = data.validation_set(recipe.validation_scenes)
    if recipe.data.source == "paper":
        scenes = prepare.noisy_scenes(recipe.data, given, recipe.validation_scenes)
    targets = {}
    if recipe.guidance.every:
        targets = _targets(recipe, scenes, teacher)
    module = Training(recipe, scenes, targets)
    _start_from(module.network, recipe)
    if _rank() == 0:
        about = {
            "images": len(given.files),
            "data_sha256": data.data_hash(list(given.files)) if given.files else "",
            "scenes": drawn.folder.name,
            "parameters": parameters(module.network),
            "targets": targets,
        }
        runs.write_description(folder, recipe, about)
    stream = pool.PatchStream(
        taught,
        seed=(recipe.seed * 1000 + done) * 64 + _rank(),
        batch=recipe.optimiser.batch,
        crop=recipe.optimiser.crop,
        real=real,
        real_share=recipe.distillation.real_share,
        fresh=fresh,
        fresh_per_batch=recipe.data.fresh_per_batch,
    )
    trainer = _trainer(recipe, folder, done)
    trainer.fit(
        module,
        DataLoader(
            stream,
            batch_size=None,
            num_workers=recipe.data.loaders,
            prefetch_factor=4 if recipe.data.loaders else None,
        ),
        DataLoader(_Once(), batch_size=None),
        ckpt_path=start,
        weights_only=False,
    )
    trainer.save_checkpoint(last)
    if trainer.is_global_zero:
        _report(folder, scenes, given)
    return last


def _trainer(recipe: Recipe, folder: Path, done: int) -> pl.Trainer:
    every = recipe.guidance.every or recipe.validation_steps
    return pl.Trainer(
        default_root_dir=folder,
        accelerator=recipe.accelerator,
        devices=recipe.devices,
        max_epochs=-1,  # the stream has no end
        max_steps=recipe.optimiser.steps,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        precision=recipe.precision,
        gradient_clip_val=recipe.optimiser.clip_norm,
        logger=[RunLog(folder, done), _tensorboard(folder, done)],
        log_every_n_steps=50,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        plugins=[AtomicCheckpoints()],
        callbacks=[
            callbacks.EMAWeightAveraging(decay=recipe.optimiser.ema_decay),
            callbacks.ModelCheckpoint(
                folder,
                "last",
                every_n_train_steps=every,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
            callbacks.RichProgressBar(refresh_rate=20),
        ],
    )


def _rank() -> int:
    """Of this process among those that train together."""
    return int(getattr(rank_zero_only, "rank", 0))


def _tensorboard(folder: Path, done: int) -> loggers.TensorBoardLogger:
    """One curve over all starts of a run."""
    return loggers.TensorBoardLogger(folder, "tensorboard", "", purge_step=done)


def _start_from(network: nn.Module, recipe: Recipe) -> None:
    """Give the network the weights that the recipe names."""
    if not recipe.optimiser.start_from:
        return
    where = f"optimiser.start_from = {recipe.optimiser.start_from!r}"
    try:
        source, _ = runs.start_weights(recipe.optimiser.start_from)
        if isinstance(network, Student) and isinstance(source, Student):
            grow(source, network)
        else:
            network.load_state_dict(source.state_dict())
    except (BundleError, runs.RunError, RuntimeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _taught(
    recipe: Recipe, given: Material, drawn: Pool, progress: Progress
) -> tuple[Pool, Pool | None, nn.Module | None]:
    """Have the recipe's teacher look at the scenes, and at real images where they are wanted."""
    section = recipe.distillation
    if not section.teacher:
        return drawn, None, None
    try:
        teacher, identity = runs.start_weights(section.teacher)
    except (BundleError, runs.RunError) as error:
        raise RecipeError(f"distillation.teacher = {section.teacher!r}: {error}") from error
    if not isinstance(teacher, Student):
        raise RecipeError(f"distillation.teacher = {section.teacher!r}: is no teacher")
    device = "cuda" if torch.cuda.is_available() and recipe.accelerator != "cpu" else "cpu"
    teacher.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = section.affinity > 0

    def answers(pupil: Pool, what: str) -> Pool:
        task = progress.add_task(f"teacher on {what}", total=len(pupil))
        return distill.teach(
            pupil,
            teacher,
            identity,
            folds=section.folds,
            features=features,
            significant=section.significant,
            advance=lambda count: progress.advance(task, count),
        )

    real = None
    if section.real_share:
        if not given.train:
            raise RecipeError("distillation.real_share: name a folder of images in data.images")
        patches = distill.real_pool(
            given.train, drawn.folder / f"real-{recipe.data.side}", recipe.data.side
        )
        real = answers(patches, "real images")
    return answers(drawn, "scenes"), real, teacher.cpu()


def _targets(
    recipe: Recipe, scenes: Sequence[Scene], teacher: nn.Module | None
) -> dict[str, float]:
    """What the controller steers at: the teacher's figures, or those that the recipe names."""
    targets: dict[str, float] = {}
    if teacher is not None:

        def despeckle(image: NDArray[np.uint8]) -> NDArray[np.float32]:
            x = torch.from_numpy(image)[None, None].float() / 255
            y = distill.self_ensemble(teacher, x, recipe.distillation.folds)
            said = np.asarray(255 * y.clamp(0, 1)[0, 0])
            return put_back(image, said) if recipe.distillation.significant else said

        targets = guidance.measure(despeckle, scenes)
    targets |= recipe.guidance.targets
    if not targets:
        raise RecipeError(
            "guidance.every: the controller needs a target; name a distillation.teacher, or give "
            "[guidance.targets]"
        )
    return targets


def _report(folder: Path, scenes: Sequence[Scene], given: Material) -> None:
    network = runs.load(folder).network

    @torch.inference_mode()
    def despeckle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        y = network(torch.from_numpy(np.array(image))[None, None].float() / 255)
        return np.asarray((255 * y.clamp(0, 1)[0, 0]).round().to(torch.uint8))

    step = max(1, len(given.validation) // _REPORTED_IMAGES)
    shown = given.validation[::step][:_REPORTED_IMAGES]
    report.write(
        folder,
        despeckle,
        scenes[:_REPORTED_IMAGES],
        {f"real image {number}": image for number, image in enumerate(shown, 1)},
    )


class _Once(Dataset[Tensor]):
    """One item: the validation looks at its scenes by itself."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(index)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def _steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", weights_only=False)["global_step"])

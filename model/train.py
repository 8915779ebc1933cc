"""Train a student by a recipe: resumable after a kill, timed by a budget of minutes, logged.

Lightning runs the loop; this module holds only what is particular to despeckling.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch import callbacks, loggers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model import data
from model import recipe as recipes
from model.losses import TERMS
from model.recipe import Recipe
from model.student import Student, parameters

LAST = "last.ckpt"
"""Name of the checkpoint from which a run goes on."""


class StudentModule(pl.LightningModule):
    """The training of a student: weighted loss terms, AdamW, cosine over the time budget."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.student = Student(recipe.network.build())
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spent_seconds = 0.0
        self._since = time.monotonic()

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        """Weighted sum of the recipe's terms."""
        noisy, target = batch
        output = self.student(noisy).float()
        total = torch.zeros((), device=output.device)
        for name, weight in self.recipe.loss.items():
            if weight:
                value = TERMS[name](output, target, noisy)
                self.log(f"train/{name}", value)
                total = total + weight * value
        self.log("train/loss", total, prog_bar=True)
        return total

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """PSNR over the insonated display, and the gain over the speckled input, dB."""
        noisy, target = batch
        output = self.student(noisy).float().clamp(0, 1)
        before = -10 * torch.log10(((noisy - target) ** 2).mean())
        after = -10 * torch.log10(((output - target) ** 2).mean())
        self.log("val/psnr", after, prog_bar=True, batch_size=1)
        self.log("val/gain", after - before, prog_bar=True, batch_size=1)
        self.log("val/mean_shift", 255 * (output - target).mean(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; the rate is set before each step by `on_train_batch_start`."""
        o = self.recipe.optimiser
        return torch.optim.AdamW(
            self.student.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay
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
        if self.progress >= 1:
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
        """Keep the time spent."""
        checkpoint["spent_seconds"] = self.elapsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the time spent."""
        self.spent_seconds = float(checkpoint["spent_seconds"])


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
    """
    recipe = recipes.load(recipe_path)
    folder = output / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / LAST
    start = last if resume and last.exists() else None
    pl.seed_everything(recipe.seed)
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)

    files = data.image_files(Path(recipe.data.anatomy)) if recipe.data.anatomy else []
    if recipe.data.anatomy and not files:
        raise recipes.RecipeError(
            f"{recipe_path}: data.anatomy = {recipe.data.anatomy!r}: no images there; name a "
            "folder of B-mode images, or leave it empty for procedural maps alone"
        )
    module = StudentModule(recipe)
    _describe(folder, recipe, files)
    stream = data.SpeckleStream(
        data.anatomy_maps(files),
        seed=recipe.seed * 1000 + (_steps_of(start) if start else 0),
        batch=recipe.optimiser.batch,
        crop=recipe.optimiser.crop,
        side=recipe.data.side,
        pool=recipe.data.pool,
        scenes_per_batch=recipe.data.scenes_per_batch,
        anatomy_share=recipe.data.anatomy_share,
        overlay_share=recipe.data.overlay_share,
    )
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=-1,  # the stream has no end
        max_steps=recipe.optimiser.steps,
        val_check_interval=recipe.validation_steps,
        check_val_every_n_epoch=None,
        precision=recipe.precision,
        gradient_clip_val=recipe.optimiser.clip_norm,
        logger=[loggers.CSVLogger(folder, "log"), loggers.TensorBoardLogger(folder, "tensorboard")],
        log_every_n_steps=50,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        callbacks=[
            callbacks.EMAWeightAveraging(decay=recipe.optimiser.ema_decay),
            callbacks.ModelCheckpoint(
                folder,
                "last",
                every_n_train_steps=recipe.validation_steps,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
            callbacks.RichProgressBar(refresh_rate=20),
        ],
    )
    trainer.fit(
        module,
        DataLoader(
            stream,
            batch_size=None,
            num_workers=recipe.data.workers,
            prefetch_factor=4 if recipe.data.workers else None,
        ),
        DataLoader(_ValidationPairs(recipe.validation_scenes), batch_size=None),
        ckpt_path=start,
        weights_only=False,
    )
    trainer.save_checkpoint(last)
    return last


class _ValidationPairs(Dataset[tuple[Tensor, Tensor]]):
    """Noisy and target of the validation scenes, (1, 1, rows, columns), 0..1."""

    def __init__(self, count: int) -> None:
        self.scenes = data.validation_set(count)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scenes[index]
        return (
            torch.from_numpy(scene.noisy)[None, None].float() / 255,
            torch.from_numpy(np.clip(scene.target, 0, 255))[None, None] / 255,
        )


def _steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", weights_only=False)["global_step"])


def _describe(folder: Path, recipe: Recipe, files: list[Path]) -> None:
    """Write what the export needs to know of the run: recipe, commit, data."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    (folder / "run.json").write_text(
        json.dumps(
            {
                "recipe": recipe.model_dump(),
                "commit": commit or "unknown",
                "images": len(files),
                "data_sha256": data.data_hash(files) if files else "",
                "parameters": parameters(Student(recipe.network.build())),
                "torch": torch.__version__,
            },
            indent=2,
        )
    )

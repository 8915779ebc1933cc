"""One network in training: the step, the validation that steers the weights, the clock.

Lightning runs the loop; this module holds only what is particular to despeckling.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.simulation.scene import Scene
from model.student import despeckled
from model.training import guidance
from model.training.objective import AFFINITY, Objective, Terms, inputs, recorded
from model.training.pool import Batch
from model.training.recipe import Recipe

LOGGED_EVERY = 50
"""Steps from one row of the log to the next; a figure that is read makes a GPU wait."""


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
        self._terms: Terms | None = None
        self._names: tuple[str, ...] = ()
        self.speckled_psnr = 0.0
        self.spent_seconds = 0.0
        self._since = time.monotonic()

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Weighted sum of the recipe's terms, and of the affinity to the teacher's features."""
        if self._terms is None:
            self._terms = self._prepared(batch)
        values = self._terms(*inputs(batch))
        total = torch.zeros((), device=values.device)
        for name, value in zip(self._names, values, strict=True):
            total = total + self._weight(name) * value
            if self._logged:
                self.log(f"train/{name}", value)
        if self._logged:
            self.log("train/loss", total, prog_bar=True)
        return total

    def _prepared(self, batch: Batch) -> Terms:
        """The terms as they come, or recorded where one GPU trains."""
        objective = Objective(self.network, self.recipe)
        self._names = objective.names
        if self.device.type == "cuda" and self.trainer.world_size == 1 and self.recipe.cuda_graph:
            return recorded(objective, inputs(batch))
        return objective.forward  # not the module: its weights are the network's already

    @property
    def _logged(self) -> bool:
        """Whether this step has a row in the log."""
        return (self.global_step + 1) % LOGGED_EVERY == 0

    def _weight(self, term: str) -> float:
        if term == AFFINITY:
            return self.recipe.distillation.affinity
        return self.weights[term]

    def validation_step(self, _batch: Tensor, _index: int) -> None:
        """Governed metrics over the validation scenes; the controller acts on them."""
        figures = guidance.measure(self.despeckle, self.scenes)
        for name, value in figures.items():
            self._log_validation(f"val/{name}", value, shown=name == "psnr")
        self._log_validation("val/gain", figures["psnr"] - self.speckled_psnr, shown=True)
        section = self.recipe.guidance
        if section.every and self.global_step:
            short = guidance.shortfalls(figures, self.targets)
            self.weights = guidance.adjusted(self.weights, self.recipe.loss, short, section)
            for name, value in short.items():
                self._log_validation(f"shortfall/{name}", value)
        for name, weight in self.weights.items():
            self._log_validation(f"weight/{name}", weight)

    def _log_validation(self, name: str, value: float, *, shown: bool = False) -> None:
        """Every device sees the same scenes, so that their mean is the figure itself."""
        self.log(name, value, prog_bar=shown, batch_size=1, sync_dist=True)

    def despeckle(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One grey image, (rows, columns) uint8, to float32 grey levels."""
        return despeckled(self.network, image, self.device)

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

    def _progress_of_all(self) -> float:
        """The furthest of all processes, whose clocks differ.

        By rates of their own their weights would drift apart, and one would stop before the others.
        """
        if self.trainer.world_size == 1:
            return self.progress
        mine = torch.tensor(self.progress, dtype=torch.float64, device=self.device)
        return float(self.trainer.strategy.reduce(mine, reduce_op="max"))

    @property
    def elapsed(self) -> float:
        """Training time over all runs, seconds."""
        return self.spent_seconds + time.monotonic() - self._since

    def on_fit_start(self) -> None:
        """Start the clock; measure the speckled input that gains refer to."""
        before = guidance.measure(lambda image: image.astype(np.float32), self.scenes)
        self.speckled_psnr = before["psnr"]
        self._since = time.monotonic()

    def on_train_batch_start(self, _batch: Any, _index: int) -> int | None:
        """Set the learning rate: linear warm-up over 300 steps, then a cosine to 1 %."""
        progress = self._progress_of_all()
        if progress >= 1:
            self.trainer.should_stop = True
            return -1
        warm = min(1.0, (self.global_step + 1) / 300)
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        rate = self.recipe.optimiser.learning_rate * warm * cosine
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        if self._logged:
            self.log("train/rate", rate)
            self.log("train/minutes", self.elapsed / 60)
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time spent and the loss weights; have the log's row of this step on disk."""
        for logger in self.trainer.loggers:
            logger.save()
        checkpoint["spent_seconds"] = self.elapsed
        checkpoint["loss_weights"] = dict(self.weights)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the time spent and, where a controller moves them, from the loss weights."""
        self.spent_seconds = float(checkpoint["spent_seconds"])
        if self.recipe.guidance.every:
            self.weights = dict(checkpoint["loss_weights"])

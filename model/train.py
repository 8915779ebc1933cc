"""Train a network by a recipe: resumable after a kill, timed by a budget of minutes, logged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks, loggers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model import cost, data
from model.allocator import keep_activations
from model.bundle import BundleError
from model.simulation.scene import Scene
from model.student import Student, despeckled, parameters
from model.training import distill, guidance, pool, prepare, report, resuming, runs, teaching
from model.training import recipe as recipes
from model.training.checkpoints import AtomicCheckpoints
from model.training.growing import grow
from model.training.logs import RunLog
from model.training.module import LOGGED_EVERY, Training
from model.training.pool import Pool
from model.training.prepare import Material
from model.training.recipe import Recipe, RecipeError
from model.training.resident import ResidentPatches, size_bytes

_REPORTED_IMAGES = 4
_SCENES_SHARE = 0.5
"""Of the free memory of a GPU that scenes may take; more of them are cut on the CPU."""
_AVERAGED_EVERY = 8
"""Steps from one look at the weights for their running mean to the next: each makes a GPU wait."""


def train(recipe_path: Path, output: Path, *, resume: bool = True) -> Path:
    """Run a recipe, or go on with it.

    Parameters
    ----------
    recipe_path : Path
        TOML; see `model.training.recipe`.
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
        The recipe, or what it names, cannot be used; or another process trains in this folder.
    model.training.runs.RunError
        The checkpoint to go on from cannot be read.
    model.training.checkpoints.DivergedError
        The weights are no numbers any more.
    OSError
        A folder cannot be written, or a disk is full.
    """
    recipe = recipes.load(recipe_path)
    folder = output / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    with resuming.alone(folder):
        return _train(recipe, folder, resume=resume)


def _train(recipe: Recipe, folder: Path, *, resume: bool) -> Path:
    last = folder / runs.LAST
    start = last if resume and last.exists() else None
    done = int(runs.read_checkpoint(start)["global_step"]) if start else 0
    earlier = resuming.earlier(recipe, folder, done) if start else []
    trainer = _trainer(recipe, folder, done)
    _check(recipe, begins=start is None)
    pl.seed_everything(recipe.seed)
    torch.set_num_threads(recipe.threads or cost.cores())
    keep_activations()

    with prepare.progress_bars() as progress:
        given = prepare.material(recipe.data)
        drawn = prepare.scenes(recipe.data, given, progress)
        with pool.alone(drawn.folder):
            device = _device(recipe)
            taught, real, teacher = teaching.taught(recipe, given, drawn, progress, str(device))
        fresh = None
        if recipe.data.fresh_per_batch:
            fresh = prepare.fresh_drawer(recipe.data, given, progress)
    scenes = data.validation_set(recipe.validation_scenes)
    if recipe.data.source == "paper":
        scenes = prepare.noisy_scenes(recipe.data, given, recipe.validation_scenes)
    targets = {}
    if recipe.guidance.every:
        targets = _targets(recipe, scenes, teacher)
    pl.seed_everything(recipe.seed)  # again: less is built where scenes were drawn before
    module = Training(recipe, scenes, targets)
    if start is None:  # or else the checkpoint has the weights
        _start_from(module.network, recipe)
    if resuming.rank() == 0:
        sha256 = data.data_hash(list(given.files)) if given.files else ""
        about = {
            "images": len(given.files),
            "data_sha256": sha256,
            "scenes": drawn.folder.name,
            "parameters": parameters(module.network),
            "gpu": torch.cuda.get_device_name() if _on_gpu(recipe) else "",
            "targets": targets,
        }
        if start:
            earlier = resuming.with_images(earlier, folder, done, sha256)
        if earlier:
            about["earlier"] = earlier
        if start is None:  # a kill before the first checkpoint must not bring an old one back
            last.unlink(missing_ok=True)
        runs.write_description(folder, recipe, about)
    seed = (recipe.seed * 1000 + done) * 64 + resuming.rank()
    patches = _patches(recipe, taught, real, fresh, seed)
    trainer.fit(
        module,
        patches,
        DataLoader(_Once(), batch_size=None),
        ckpt_path=start,
        weights_only=True,
    )
    trainer.save_checkpoint(last)
    if trainer.is_global_zero:
        _report(folder, scenes, given)
    return last


def _check(recipe: Recipe, *, begins: bool) -> None:
    """Name what cannot be had before anything is read or drawn."""
    unknown = sorted(set(recipe.guidance.targets) - set(guidance.GOVERNED))
    if unknown:
        raise RecipeError(
            f"guidance.targets: no metric {unknown[0]!r} governs a term; there are "
            f"{', '.join(guidance.GOVERNED)}"
        )
    given = recipe.distillation.teacher or recipe.guidance.targets
    if recipe.guidance.every and not given:
        raise RecipeError(
            "guidance.every: the controller needs a target; name a distillation.teacher, or give "
            "[guidance.targets]"
        )
    prepare.check(recipe.data)
    teaching.check(recipe)
    if begins:
        _start_from(recipe.network.build(), recipe)


def _patches(
    recipe: Recipe, taught: Pool, real: Pool | None, fresh: pool.Drawer | None, seed: int
) -> Iterable[pool.Batch]:
    """Batches without end: from the memory of the GPU that trains, or else from the disk."""
    cutting = pool.Cutting(
        taught,
        seed,
        recipe.optimiser.batch,
        recipe.optimiser.crop,
        real,
        recipe.distillation.real_share,
    )
    device = _device(recipe)
    if _on_gpu(recipe) and fresh is None and _fit_into_memory(cutting, device):
        return ResidentPatches(cutting, device)
    loaders = recipe.data.loaders
    return DataLoader(
        pool.PatchStream(cutting, fresh=fresh, fresh_per_batch=recipe.data.fresh_per_batch),
        batch_size=None,
        num_workers=loaders,
        prefetch_factor=4 if loaders else None,
        pin_memory=_on_gpu(recipe),
    )


def _fit_into_memory(cutting: pool.Cutting, gpu: torch.device) -> bool:
    """Whether scenes leave enough of the GPU's memory to the network."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return size_bytes(*cutting.pools) <= _SCENES_SHARE * free


def _on_gpu(recipe: Recipe) -> bool:
    return torch.cuda.is_available() and recipe.accelerator != "cpu"


def _device(recipe: Recipe) -> torch.device:
    """The CPU, or the GPU that is this process's among those that train together."""
    if not _on_gpu(recipe):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _trainer(recipe: Recipe, folder: Path, done: int) -> pl.Trainer:
    every = recipe.guidance.every or recipe.validation_steps
    trainer = partial(
        pl.Trainer,
        default_root_dir=folder,
        accelerator=recipe.accelerator,
        devices=recipe.devices,
        max_epochs=-1,  # the stream has no end
        max_steps=recipe.optimiser.steps,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        precision=_precision(recipe),
        gradient_clip_val=recipe.optimiser.clip_norm,
        logger=[RunLog(folder, done), _tensorboard(folder, done)],
        log_every_n_steps=LOGGED_EVERY,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        plugins=[AtomicCheckpoints()],
        callbacks=[
            callbacks.EMAWeightAveraging(
                decay=recipe.optimiser.ema_decay**_AVERAGED_EVERY,
                update_every_n_steps=_AVERAGED_EVERY,
            ),
            callbacks.ModelCheckpoint(
                folder,
                "last",
                save_on_train_epoch_end=False,  # but when a validation ends
                enable_version_counter=False,
            ),
            callbacks.RichProgressBar(refresh_rate=20),
        ],
    )
    try:
        return trainer()
    except (MisconfigurationException, ValueError) as error:
        raise RecipeError(
            f"accelerator = {recipe.accelerator!r}, devices = {recipe.devices!r}: {error}"
        ) from error


def _precision(recipe: Recipe) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """What `auto` means on this machine."""
    if recipe.precision != "auto":
        return recipe.precision
    if _on_gpu(recipe):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if cost.BFLOAT16 in cost.computed_here() else "32-true"


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


def _targets(
    recipe: Recipe, scenes: Sequence[Scene], teacher: nn.Module | None
) -> dict[str, float]:
    """What the controller steers at: the teacher's figures, or those that the recipe names."""
    targets: dict[str, float] = {}
    if teacher is not None:

        def despeckle(image: NDArray[np.uint8]) -> NDArray[np.float32]:
            folds = recipe.distillation.folds
            return despeckled(lambda x: distill.self_ensemble(teacher, x, folds), image)

        targets = guidance.measure(despeckle, scenes)
    return targets | recipe.guidance.targets


def _report(folder: Path, scenes: Sequence[Scene], given: Material) -> None:
    network = runs.load(folder).network

    def despeckle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return despeckled(network, image).round().astype(np.uint8)

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

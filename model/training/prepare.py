"""From a recipe's data section to a pool of scenes: read, divide, smooth, draw.

The pool's folder is named for everything that decides its content, so that recipes which ask for
the same share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model import bundle as bundles
from model import data, images
from model.data import NoisyImages, Simulation
from model.simulation.scene import Scene
from model.split import Split, patient_folders, split
from model.training import pool
from model.training.recipe import DataSection, RecipeError

CONTENT_VERSION = 7
"""Goes up whenever the same settings would draw other scenes."""

Grey = NDArray[np.uint8]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """Real images of a recipe, by use.

    Attributes
    ----------
    train, validation : sequence of ndarray, (rows, columns), uint8
        Cropped to the tissue. None of the test subjects.
    files : tuple of Path
        What the training ones were read from; what was left out is not among them.
    """

    train: Sequence[Grey]
    validation: Sequence[Grey]
    files: tuple[Path, ...]


def check(section: DataSection) -> None:
    """Name what cannot be had before images are read.

    Raises
    ------
    RecipeError
        There is no such folder or bundle, or the source needs images.
    """
    if section.images and not Path(section.images).is_dir():
        raise RecipeError(f"data.images = {section.images!r}: no such folder")
    if section.source == "paper" and not section.images:
        raise RecipeError("data.images is empty: recipe source 'paper' needs real images")
    _smoother(section)


def material(section: DataSection) -> Material:
    """Read the recipe's real images; none where it names no folder.

    Raises
    ------
    RecipeError
        The folder holds nothing to train on.
    """
    if not section.images:
        return Material((), (), ())
    root = Path(section.images)
    files = images.image_files(root)
    if alike := patient_folders(files, root):
        _log.warning(
            "data.images = %r: folders directly below it count as sources, of several patients "
            "each, and %d look like one patient's. Move them all into one folder below it, or a "
            "patient may be trained on and judged on",
            section.images,
            len(alike),
        )
    parts = split(files, root)
    read = list(images.read_all(parts.train, section.frames_per_file))
    train = [frame for _, frame in read]
    validation = [frame for _, frame in images.read_all(parts.validation, 1)]
    if not train:
        raise RecipeError(
            f"data.images = {section.images!r}: nothing there to train on; name a folder of grey "
            "B-mode images or DICOM objects, or leave it empty for procedural maps alone"
        )
    return Material(train, validation, tuple(dict.fromkeys(path for path, _ in read)))


def divided(section: DataSection) -> Split:
    """Files of the recipe's folder by use."""
    root = Path(section.images)
    return split(images.image_files(root), root)


def scenes(section: DataSection, given: Material, progress: Progress) -> pool.Pool:
    """The pool of a recipe, drawn where it is not there yet."""
    identity = section.model_dump(exclude={"cache", "workers", "loaders", "fresh_per_batch"}) | {
        "version": CONTENT_VERSION,
        "smoothed_by": _smoother_identity(section),
        "images": data.data_hash(list(given.files)),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(section.cache) / f"{section.source}-{digest}"
    if pool.is_complete(folder, section.scenes):
        return pool.load(folder)
    drawer = _drawer(section, given, progress)
    task = progress.add_task("drawing scenes", total=section.scenes)
    drawn = pool.draw(
        folder,
        drawer,
        count=section.scenes,
        side=section.side,
        seed=section.seed,
        workers=section.workers,
        advance=lambda count: progress.advance(task, count),
    )
    (folder / "settings.json").write_text(json.dumps(identity, indent=2), "utf-8")
    return drawn


def drawn(section: DataSection) -> pool.Pool:
    """The pool of a recipe, from its folder of images on.

    Raises
    ------
    RecipeError
        The folder holds nothing to train on.
    """
    with progress_bars() as progress:
        return scenes(section, material(section), progress)


def progress_bars() -> Progress:
    """Shows what is prepared, and how much of it is done."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def noisy_scenes(section: DataSection, given: Material, count: int) -> list[Scene]:
    """Validation scenes of the paper's protocol: validation subjects, noise at all levels."""
    drawer = NoisyImages(given.validation or given.train, section.side)
    drawn = (
        drawer.draw(np.random.default_rng((data.VALIDATION_SEED, index))) for index in range(count)
    )
    return [Scene(p.noisy, p.target, f"real-{i:03d}") for i, p in enumerate(drawn)]


def fresh_drawer(section: DataSection, given: Material, progress: Progress) -> pool.Drawer:
    """What draws new scenes while the training runs."""
    return _drawer(section, given, progress)


def _drawer(section: DataSection, given: Material, progress: Progress) -> pool.Drawer:
    if section.source == "paper":
        if not given.train:
            raise RecipeError("data.images is empty: recipe source 'paper' needs real images")
        return NoisyImages(given.train, section.side).draw
    smoother = _smoother(section)
    despeckle = smoother.apply if smoother else data.strong_filter
    task = progress.add_task("anatomy maps", total=len(given.train))
    maps = []
    for image in given.train:
        maps += data.anatomy_maps([image], despeckle)
        progress.advance(task)
    return Simulation(
        maps,
        section.anatomy_share,
        section.faint_share,
        section.detail_share,
        section.overlay_share,
        section.clustered_share,
        section.widened_share,
        section.side,
    ).draw


def _smoother(section: DataSection) -> bundles.Bundle | None:
    """The bundle that makes anatomy of images; none where a plain filter does."""
    if not section.smoothed_by:
        return None
    try:
        return bundles.load(section.smoothed_by)
    except bundles.BundleError as error:
        raise RecipeError(f"data.smoothed_by: {error}") from error


def _smoother_identity(section: DataSection) -> str:
    smoother = _smoother(section)
    return smoother.manifest.device_uid if smoother else "filter"

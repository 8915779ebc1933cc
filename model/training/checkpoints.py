"""Checkpoints that are whole or absent: a kill while one is written leaves the one before.

Lightning writes to the system's temporary folder and moves the file, which is a copy where that
folder is another file system, and never asks the disk to have it. Nor does it look at the weights.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from model.bundle import finite


class DivergedError(RuntimeError):
    """The weights of a training are no numbers any more; the message says what to do."""


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint, waits for the disk, then renames; a plugin of the trainer."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any = None,
    ) -> None:
        """Put a checkpoint in place of the one before.

        Raises
        ------
        TypeError
            Storage options are given: files have none.
        OSError
            The folder cannot be written, or the disk is full; the checkpoint before is as it was.
        DivergedError
            A weight is infinite or no number; the checkpoint before is as it was.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are plain files and take no storage options")
        target = Path(path)
        if not _finite(checkpoint):
            raise DivergedError(
                f"after {checkpoint['global_step']} steps the weights are no numbers any more. "
                f"{target} is not written; where it exists it is of before. Lower "
                "optimiser.learning_rate, or set precision to 32-true, and start the run again"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error.__context__, OSError):  # torch covers it with an error of its own
                system = error.__context__
                raise OSError(system.errno, system.strerror, str(target)) from error
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _finite(checkpoint: dict[str, Any]) -> bool:
    """Whether all weights are numbers, the averaged ones and those that the training goes on from.

    The running mean takes a look at the weights every few steps only.
    """
    kept = (checkpoint.get("state_dict", {}), checkpoint.get("current_model_state", {}))
    return all(finite(weights.values()) for weights in kept)

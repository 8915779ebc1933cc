"""Checkpoints that are whole or absent: a kill while one is written leaves the one before.

Lightning writes to the system's temporary folder and moves the file, which is a copy where that
folder is another file system, and never asks the disk to have it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


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
            The folder cannot be written; the checkpoint before is as it was.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are plain files and take no storage options")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

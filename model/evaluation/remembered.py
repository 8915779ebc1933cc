"""What methods made of an image, kept on disk for the next table.

Most of the time that a table takes goes into methods that are what they were the last time. An
output is used again where the method, its parameters or weights, the code behind it, the libraries
and the image are the same to the byte. Bundles are always run anew.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model.baselines import Grey, Method
from model.evaluation.contenders import Contender
from model.evaluation.tables import PACKAGES, version_of

_OF_BASELINES_BESIDE = ("bm4d", "PyWavelets")
"""Libraries below those that every document names."""
_OF_CLASSICAL_METHODS = ("baselines",)
_OF_TRAINING_RUNS = (
    "network/coarse",
    "network/dncnn",
    "network/folding",
    "network/reparameterise",
    "network/rim",
    "network/scales",
    "student",
    "teacher",
)
"""Modules that decide what they make of an image."""


@dataclass(frozen=True)
class _Remembered:
    method: Method
    identity: bytes
    folder: Path

    def __call__(self, image: NDArray[np.uint8]) -> Grey:
        return self.timed(image)[0]

    def timed(self, image: NDArray[np.uint8]) -> tuple[Grey, float]:
        asked = hashlib.sha256(self.identity)
        asked.update(repr(image.shape).encode())
        asked.update(np.ascontiguousarray(image).tobytes())
        path = self.folder / f"{asked.hexdigest()}.npz"
        if path.exists():
            with np.load(path) as kept:
                return kept["output"], float(kept["milliseconds"])
        output, milliseconds = timed(self.method, image)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        with temporary.open("wb") as file:
            np.savez(file, output=output, milliseconds=milliseconds)
        temporary.replace(path)
        return output, milliseconds


def timed(method: Method, image: NDArray[np.uint8]) -> tuple[Grey, float]:
    """Output, grey levels, and the milliseconds that it took, or took when it was made."""
    if isinstance(method, _Remembered):
        return method.timed(image)
    start = time.perf_counter()
    output = method(image)
    return output, 1000 * (time.perf_counter() - start)


def remembered(contender: Contender, folder: Path) -> Contender:
    """The same classical method or training run; it looks into `folder` before it does the work."""
    kept_in = folder / _folder_name(contender)
    method = _Remembered(contender.method, _identity(contender), kept_in)
    return replace(contender, method=method)


def _folder_name(contender: Contender) -> str:
    return "".join(c if c.isalnum() else "-" for c in contender.name)


def _identity(contender: Contender) -> bytes:
    """Digest of all that an output depends on, but for the image."""
    digest = hashlib.sha256(f"{contender.name}\n{contender.settings}\n".encode())
    classical = contender.network is None
    for name in _OF_CLASSICAL_METHODS if classical else _OF_TRAINING_RUNS:
        digest.update(Path(__file__).parents[1].joinpath(f"{name}.py").read_bytes())
    for package in (*PACKAGES, *_OF_BASELINES_BESIDE):
        digest.update(f"{package} {version_of(package)}\n".encode())
    if contender.network is not None:
        digest.update(repr(getattr(contender.network, "architecture", "")).encode())
        digest.update(_weights(contender.network))
    return digest.digest()


def _weights(network: nn.Module) -> bytes:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()

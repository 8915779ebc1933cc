"""A bundle: one released student with all that a user needs to trust it. No pickle.

``weights.safetensors`` the network; ``manifest.json`` architecture, data range, Device UID, hashes,
training provenance and figures; ``self_test.safetensors`` an input and the output that float32 must
give; ``MODEL_CARD.md`` intended use and limits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.student import Architecture, Student

BUNDLES = Path(__file__).parent / "bundles"
WEIGHTS, MANIFEST, SELF_TEST, MODEL_CARD = (
    "weights.safetensors",
    "manifest.json",
    "self_test.safetensors",
    "MODEL_CARD.md",
)

LEAST_AGREEMENT = 0.995
"""Share of self-test pixels within 1 grey level."""
LARGEST_DIFFERENCE = 4
"""Of any self-test pixel, grey levels."""
NAME = r"^[a-z0-9][a-z0-9-]*$"
"""Of a bundle, which is a folder's name, too."""


class BundleError(Exception):
    """The bundle is missing, damaged or does not fit; the message names the file and the remedy."""


class Manifest(BaseModel):
    """What ``manifest.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=NAME)]
    version: str
    device_uid: Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")]
    """(0018,1002) *Device UID* of this release; never used for another."""
    architecture: dict[str, list[int] | bool | int | float | str]
    parameters: int
    data_range: tuple[float, float] = (0.0, 255.0)
    weights_sha256: str
    self_test_sha256: str
    training: dict[str, Any]
    """Recipe, commit, data hash, versions."""
    figures: dict[str, float]
    """Validation figures, with their unit in the name."""
    licence: str
    attribution: list[str]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; the student is in evaluation mode, float32, on the CPU."""

    folder: Path
    manifest: Manifest
    student: Student
    self_test_input: NDArray[np.uint8]
    self_test_output: NDArray[np.uint8]

    @torch.inference_mode()
    def apply(self, image: NDArray[np.uint8], strength: float = 1.0) -> NDArray[np.uint8]:
        """Despeckle one grey image in float32; the reference for every faster path.

        Parameters
        ----------
        image : ndarray, (rows, columns), uint8
        strength : float, 0..1
            0 returns the image as it is.
        """
        x = torch.from_numpy(np.array(image))[None, None].float() / 255
        y = self.student(x, strength)[0, 0]
        return np.asarray((y * 255).round().clamp(0, 255).to(torch.uint8).numpy())

    def self_test(self) -> None:
        """Check that this machine computes what the release computed.

        Raises
        ------
        BundleError
        """
        check_agreement(self.apply(self.self_test_input), self.self_test_output, str(self.folder))


def check_agreement(output: NDArray[np.uint8], expected: NDArray[np.uint8], subject: str) -> None:
    """Raise BundleError unless the output agrees with the release's on nearly every pixel."""
    difference = np.abs(output.astype(np.int16) - expected)
    if (difference <= 1).mean() < LEAST_AGREEMENT or difference.max() > LARGEST_DIFFERENCE:
        raise BundleError(
            f"{subject}: the self-test is off by up to {difference.max()} grey levels; the weights "
            "or the installation of torch are damaged: install both again, or set "
            'precision = "float32"'
        )


def locate(name_or_path: str) -> Path:
    """Folder of a packaged bundle, by name, or of any bundle, by path."""
    packaged = BUNDLES / name_or_path
    folder = packaged if "/" not in name_or_path and packaged.is_dir() else Path(name_or_path)
    if not (folder / MANIFEST).is_file():
        known = sorted(p.parent.name for p in BUNDLES.glob(f"*/{MANIFEST}"))
        raise BundleError(
            f"bundle {name_or_path!r}: no {MANIFEST} there; name a packaged bundle "
            f"({', '.join(known) or 'none is installed'}) or the folder of an exported one"
        )
    return folder


def load(name_or_path: str | Path) -> Bundle:
    """Load and verify a bundle.

    Raises
    ------
    BundleError
        A file is missing, a hash or a shape is wrong, or the manifest does not validate.
    """
    folder = locate(str(name_or_path))
    try:
        manifest = Manifest.model_validate(json.loads((folder / MANIFEST).read_text("utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / MANIFEST}: not JSON; export the bundle again") from error
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, p["loc"])) for p in error.errors())
        raise BundleError(f"{folder / MANIFEST}: wrong keys: {keys}; export it again") from error
    for name, expected in (
        (WEIGHTS, manifest.weights_sha256),
        (SELF_TEST, manifest.self_test_sha256),
    ):
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise BundleError(f"{path}: missing, or not the file of the manifest; copy it again")
    try:
        student = Student(Architecture.from_dict(manifest.architecture))
        student.load_state_dict(load_file(folder / WEIGHTS))
        vectors = load_file(folder / SELF_TEST)
        probe, output = vectors["input"].numpy(), vectors["output"].numpy()
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{folder}: weights do not fit the architecture; export again") from error
    if not finite(student.state_dict().values()):
        raise BundleError(f"{folder / WEIGHTS}: holds weights that are no numbers; train anew")
    return Bundle(
        folder,
        manifest,
        student.eval(),
        probe,
        output,
    )


def finite(weights: Iterable[Tensor]) -> bool:
    """Whether no weight is infinite or no number."""
    return all(bool(torch.isfinite(weight).all()) for weight in weights)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Save tensors for all to read; safetensors itself writes for the owner alone."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

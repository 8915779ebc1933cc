"""Frames to frames on GPU or CPU: the only module of the node that imports torch.

The network computes the removed speckle in the fastest precision that passes the bundle's
self-test; the subtraction from the 8-bit frame is done in float32, so that strength 0 and a
residual of 0 leave a pixel as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicom_node.config import DespeckleSection, Settings
from dicom_node.errors import ConfigError, Permanent, Transient
from dicom_node.records import BundleInfo
from model import bundle as bundles
from model.allocator import keep_activations
from model.network.rim import Rim, no_rim
from model.network.rim import find as find_rim
from model.network.scales import coarse_share, speckle_px

Frame = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch says, in a RuntimeError, where the process gets no more."""
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Despeckler:
    """A loaded, self-tested student on its device.

    Parameters
    ----------
    bundle : model.bundle.Bundle
    device : {"cpu", "cuda"}
    precision : {"float32", "bfloat16", "float16"}
    batch_frames : int
        Frames computed at once.

    Raises
    ------
    Permanent
        The self-test fails on this machine.
    """

    def __init__(
        self, bundle: bundles.Bundle, device: str, precision: str, batch_frames: int = 1
    ) -> None:
        self._device, self._dtype = torch.device(device), _DTYPES[precision]
        self._batch_frames = batch_frames
        student = deepcopy(bundle.student).to(self._device, self._dtype)
        self._student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        manifest = bundle.manifest
        where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.bundle = BundleInfo(
            name=manifest.name,
            version=manifest.version,
            device_uid=manifest.device_uid,
            weights_sha256=manifest.weights_sha256,
            runtime=f"torch {torch.__version__} {where} {precision}",
        )
        try:
            bundles.check_agreement(
                next(self.frames([bundle.self_test_input], 1.0)),
                bundle.self_test_output,
                f"{manifest.name} on {self.bundle.runtime}",
            )
        except bundles.BundleError as error:
            raise Permanent("self-test-failed", str(error)) from error

    @classmethod
    def load(cls, settings: DespeckleSection, key: str = "despeckle.bundle") -> Despeckler:
        """Load the configured bundle on the configured device.

        Parameters
        ----------
        settings : DespeckleSection
        key : str
            That names the bundle in the configuration, for errors.

        Raises
        ------
        ConfigError
            No such bundle, or a device that this machine lacks.
        Permanent
            The self-test fails.
        """
        try:
            bundle = bundles.load(settings.bundle)
        except bundles.BundleError as error:
            raise ConfigError("bundle-unusable", f"{key}: {error}") from error
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "no-gpu",
                'despeckle.device = "cuda": torch sees no GPU; install its driver and a CUDA build '
                'of torch, or set "auto"',
            )
        if device == "cpu":
            keep_activations()
            if settings.threads:
                torch.set_num_threads(settings.threads)
        # One frame at a time keeps the activations in a CPU's cache.
        batch_frames = settings.batch_frames if device == "cuda" else 1
        if settings.precision != "auto":
            return cls(bundle, device, settings.precision, batch_frames)
        try:
            return cls(bundle, device, fastest(device), batch_frames)
        except Permanent:  # too coarse for this bundle; a damaged one fails in float32 as well
            return cls(bundle, device, "float32", batch_frames)

    def fingerprint(self, strength: float) -> str:
        """Everything of the model that changes pixels, for the deterministic identifiers."""
        return f"{self.bundle.device_uid}|strength={strength:.4f}"

    def frames(
        self, luminances: Iterable[Frame], strength: float, tissue: Mask | None = None
    ) -> Iterator[Frame]:
        """Despeckle frames in order.

        Parameters
        ----------
        luminances : iterable of ndarray, (rows, columns), uint8
            All of one size.
        strength : float, 0..1
            0 hands the frames through.
        tissue : ndarray, (rows, columns), bool, optional
            Where how coarse the speckle is may be seen; everywhere where none is given.

        Yields
        ------
        ndarray, (rows, columns), uint8

        Raises
        ------
        Transient
            The GPU has no memory for even one frame.
        MemoryError
            Nor has the process, on a CPU.
        """
        if strength == 0:
            yield from luminances
            return
        student = self._student.architecture
        where = None if tissue is None else torch.from_numpy(tissue).to(self._device)
        source, cine = iter(luminances), _Cine(student.rim_px, student.halvings > 0, where)
        while batch := list(islice(source, self._batch_frames)):
            answers, cine = self._batch(batch, strength, cine)
            yield from answers

    def _batch(
        self, frames: Sequence[Frame], strength: float, cine: _Cine
    ) -> tuple[NDArray[np.uint8], _Cine]:
        """Frames at once, or one by one where memory lacks; and what is known of the cine then."""
        seen = replace(cine)
        try:
            return self._infer(np.stack(frames), strength, seen), seen
        except torch.OutOfMemoryError as error:
            if len(frames) == 1:
                raise Transient(
                    "gpu-memory",
                    'the GPU has no memory for one frame; free it, or set despeckle.device = "cpu"',
                ) from error
        except RuntimeError as error:
            if _NO_MEMORY in str(error):
                raise MemoryError from error
            raise
        torch.cuda.empty_cache()
        self._batch_frames = 1
        answers = []
        for frame in frames:
            answer, cine = self._batch([frame], strength, cine)
            answers.append(answer)
        return np.concatenate(answers), cine

    @torch.inference_mode()
    def _infer(self, frames: NDArray[np.uint8], strength: float, cine: _Cine) -> NDArray[np.uint8]:
        """Despeckle (frames, rows, columns) uint8 of a cine; what they have in common holds on."""
        grey: Tensor = torch.from_numpy(frames)[:, None].to(self._device)
        answers = [self._despeckled(some, strength, cine) for some in cine.alike(grey)]
        return np.asarray(torch.cat(answers)[:, 0].cpu().numpy(), dtype=np.uint8)

    def _despeckled(self, grey: Tensor, strength: float, cine: _Cine) -> Tensor:
        """Frames of one rim at once, (frames, 1, rows, columns), uint8."""
        x = (grey.to(torch.float32) / 255).to(self._dtype)
        removed = cine.rim.without(self._removed(cine.rim.continued(x), cine), grey)
        despeckled = grey - (255 * strength) * removed.to(torch.float32)
        return despeckled.round_().clamp_(0, 255).to(torch.uint8)

    def _removed(self, x: Tensor, cine: _Cine) -> Tensor:
        """What to remove; keeps the width of the speckle of the first frame that shows any."""
        if not math.isnan(cine.width_px):
            known: Tensor = self._student.residual_at(x, cine.width_px)
            return known
        removed: Tensor = self._student.residual(x)
        if cine.has_width:
            cine.width_px = speckle_px(x, removed, cine.tissue)
        if coarse_share(cine.width_px):
            removed = self._student.residual_at(x, cine.width_px)
        return removed


@dataclass
class _Cine:
    """What the frames of one object have in common: measured one by one they would not match.

    Attributes
    ----------
    reach_px : int
        Of `model.network.rim.find`.
    has_width : bool
        Whether the width of the speckle is asked for.
    tissue : Tensor or None, (rows, columns), bool
        Where it is measured.
    width_px : float
        Of the speckle.
    rim : Rim
        Of the sector.
    lit : bool
        Whether a frame has shown anything yet.
    """

    reach_px: int
    has_width: bool
    tissue: Tensor | None = None
    width_px: float = math.nan
    rim: Rim = field(default_factory=no_rim)
    lit: bool = False

    def alike(self, grey: Tensor) -> Iterator[Tensor]:
        """Runs of frames, (frames, 1, rows, columns), for which the same holds.

        The rim is that of the first frame that shows anything, and of each later one whose tissue
        crosses it: a frame comes out the same in whatever batch it was.
        """
        if self._known and not self.rim.is_lit(grey):
            yield grey
            return
        start = 0
        for index in range(len(grey)):
            frame = grey[index : index + 1]
            crossed = not self.lit or self.rim.is_lit(frame)
            if self._known and not crossed:
                continue
            if start < index:
                yield grey[start:index]
                start = index
            if crossed:
                self._look(frame)
            if not self._known:
                yield frame
                start = index + 1
        if start < len(grey):
            yield grey[start:]

    @property
    def _known(self) -> bool:
        return self.lit and not (self.has_width and math.isnan(self.width_px))

    def _look(self, frame: Tensor) -> None:
        most = frame[0, 0].cpu().numpy()
        self.lit = bool(most.any())
        self.rim = find_rim(most, self.reach_px).to(frame.device)


def load_all(settings: Settings) -> dict[str, Despeckler]:
    """Load every bundle in use, by what the configuration calls it; see `Despeckler.load`."""
    return {
        section.bundle: Despeckler.load(section, key) for key, section in settings.bundles.items()
    }


def fastest(device: str) -> str:
    """Precision that the arithmetic units of this machine do best.

    bfloat16 on a GPU and on CPUs with AVX-512 BF16 or AMX; others emulate it slowly.
    """
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    abilities = torch.cpu.get_capabilities()
    native = abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16")
    return "bfloat16" if native else "float32"

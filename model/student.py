"""The student: a small multi-scale residual network of plain convolutions, for CPUs and GPUs.

Half the resolution and below only (pixel-unshuffle by 2 or 4), 2x2 strided convolutions down,
transposed ones up, additive skips, no normalisation. It predicts what to remove:
``y = x - strength * r(x)``. Two things are taken from an image, how coarse its speckle is
(`model.network.scales`) and where its sector ends (`model.network.rim`); from a cine they are taken
once, so that it does not flicker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.network.coarse import CELL_PX, coarse_part, halved
from model.network.folding import folded, unfolded
from model.network.reparameterise import ReparameterisedConv
from model.network.rim import Rim, brightest, no_rim
from model.network.rim import find as find_rim
from model.network.scales import residual_measured, residual_over_scales


@dataclass(frozen=True)
class Architecture:
    """What a bundle's manifest needs to build the network again."""

    widths: tuple[int, ...] = (16, 32, 48, 64)
    """Channels at 1/2, 1/4, ... of the resolution."""
    encoder: tuple[int, ...] = (0, 2, 2, 4)
    """3x3 convolutions on the way down, by level; the last level is the bottom."""
    decoder: tuple[int, ...] = (1, 1, 1)
    """3x3 convolutions on the way up, by level."""
    unshuffle: int = 2
    """Pixels a side that become channels before the first convolution: 2 or 4."""
    block: str = "plain"
    """Kind of 3x3 convolution: one of `BLOCKS`."""
    retain: float = 0.0
    """Share of what is removed at the size of lesions that stays; see `coarse_part`."""
    retain_wide: float = 0.0
    """Share of the rest of that, over wider surroundings, that stays too."""
    selective: bool = False
    """Whether the network says, place by place, how much of that stays beyond `retain`."""
    halvings: int = 0
    """How often an image may be halved where its speckle is coarse; see `model.network.scales`."""
    rim_px: int = 0
    """How far tissue is continued beyond the rim of a sector, pixels; see `model.network.rim`."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder) == len(self.decoder) + 1:
            raise ValueError(
                f"widths {self.widths}, encoder {self.encoder}, decoder {self.decoder}: give as "
                "many encoder entries as widths, and one decoder entry fewer"
            )
        if self.block not in BLOCKS:
            raise ValueError(f"block {self.block!r} is unknown; there are: {', '.join(BLOCKS)}")
        if self.unshuffle not in (2, 4):
            raise ValueError(f"unshuffle: 2 or 4, not {self.unshuffle}")
        if not (0 <= self.retain <= 1 and 0 <= self.retain_wide <= 1):
            raise ValueError(f"retain {self.retain}, retain_wide {self.retain_wide}: 0 to 1")
        if self.halvings < 0 or self.rim_px < 0:
            raise ValueError(f"halvings {self.halvings}, rim_px {self.rim_px}: 0 or more")
        if self.selective and len(self.widths) <= self.keep_level:
            raise ValueError(f"selective: needs {self.keep_level + 1} widths at least")

    @property
    def keep_level(self) -> int:
        """The level whose cells are those of the coarse part, where a gate says what stays."""
        return (CELL_PX // self.unshuffle).bit_length() - 1

    @property
    def stride(self) -> int:
        """Sides of the input are padded to a multiple of this."""
        return int(self.unshuffle * 2 ** (len(self.widths) - 1))

    def set_as(self, other: Architecture) -> Architecture:
        """The same, with what an export sets and no training does as another has it."""
        return replace(
            self,
            retain=other.retain,
            retain_wide=other.retain_wide,
            halvings=other.halvings,
            rim_px=other.rim_px,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`; an unknown key is an error."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)

    def to_dict(self) -> dict[str, list[int] | bool | int | str | float]:
        """JSON-ready settings."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class Student(nn.Module):
    """See the module.

    Parameters
    ----------
    architecture : Architecture
    """

    def __init__(self, architecture: Architecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        a = self.architecture
        folded = a.unshuffle**2
        self.head = nn.Conv2d(folded, a.widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            _stack(w, n, a.block) for w, n in zip(a.widths, a.encoder, strict=True)
        )
        self.decoder = nn.ModuleList(
            _stack(w, n, a.block) for w, n in zip(a.widths[:-1], a.decoder, strict=True)
        )
        steps = list(zip(a.widths[:-1], a.widths[1:], strict=True))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, 2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in steps)
        self.tail = nn.Conv2d(a.widths[0], folded, 3, padding=1)
        self.keep = nn.Conv2d(a.widths[a.keep_level], 1, 3, padding=1) if a.selective else None
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw new weights; the residual starts near zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if isinstance(module, nn.ConvTranspose2d):
                    module.weight.mul_(0.5)
        for module in self.modules():
            if isinstance(module, ReparameterisedConv | GatedConv):
                module.reset()
        self.tail.weight.mul_(0.1)
        if self.keep is not None:
            nn.init.zeros_(self.keep.weight)
            nn.init.constant_(self.keep.bias, _KEEPS_NOTHING)  # type: ignore[arg-type]

    def residual(self, x: Tensor) -> Tensor:
        """What the network would remove.

        Parameters
        ----------
        x : Tensor, (batch, 1, rows, columns), 0..1
            Sides of any length.
        """
        removed, _ = self.residual_and_features(x)
        return removed

    def residual_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The residual, and the features of the coarsest level but one on the way up.

        Returns
        -------
        residual : Tensor, (batch, 1, rows, columns)
        features : Tensor, (batch, channels, padded rows / stride * 2, ...)
            What feature distillation compares.
        """
        rows, columns = x.shape[-2:]
        stride = self.architecture.stride
        pad = (0, -columns % stride, 0, -rows % stride)
        h = F.pad(x, pad, mode="replicate") if any(pad) else x
        h = F.relu_(self.head(folded(h, self.architecture.unshuffle)))
        skips = []
        for level, stack in enumerate(self.encoder):
            h = stack(h)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        seen = {len(self.up): h}
        for level in reversed(range(len(self.up))):
            h = self.decoder[level](self.up[level](h).add_(skips[level]))
            seen[level] = h
        tail = self.tail(h)
        removed = unfolded(tail, self.architecture.unshuffle)
        retain, wide = self.architecture.retain, self.architecture.retain_wide
        if self.keep is not None:
            kept = torch.sigmoid(self.keep(seen[self.architecture.keep_level]))
            removed = removed - coarse_part(halved(tail), retain + (1 - retain) * kept, wide)
        elif retain or wide:
            removed = removed - coarse_part(halved(tail), retain, wide)
        return removed[..., :rows, :columns], seen[max(0, len(self.up) - 1)]

    def residual_at(self, x: Tensor, width_px: float) -> Tensor:
        """What to remove of images whose speckle is so wide, over as many scales as that asks for.

        Parameters
        ----------
        x : Tensor, (batch, 1, rows, columns), 0..1
        width_px : float
            From `model.network.scales.speckle_px`; `nan` for one scale.
        """
        return residual_over_scales(self.residual, x, width_px, self.architecture.halvings)

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Remove speckle; `strength` 0 returns the input bit by bit."""
        if strength == 0:
            return x
        rim = self._rim(x)
        seen = rim.continued(x)
        removed = self.residual(seen)
        removed = residual_measured(self.residual, seen, removed, self.architecture.halvings)
        return x - strength * rim.without(removed)

    def _rim(self, x: Tensor) -> Rim:
        """One for all images; a network in training has none, and does not wait for a look."""
        reach_px = self.architecture.rim_px
        return find_rim(brightest(x), reach_px).to(x.device) if reach_px else no_rim()


_KEEPS_NOTHING = -4.0
"""Bias of the gate before it has learned anything: 2 % stay."""


class GatedConv(nn.Module):
    """Two 3x3 convolutions, multiplied: the gate of NAFNet (Chen et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw new weights, small enough that products of many blocks do not run away."""
        nn.init.kaiming_normal_(self.both.weight, nonlinearity="relu")
        self.both.weight.mul_(0.3)
        if self.both.bias is not None:
            nn.init.zeros_(self.both.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) to the same shape."""
        one, other = self.both(x).chunk(2, dim=1)
        gated: Tensor = x + one * other
        return gated


BLOCKS: dict[str, Callable[[int], list[nn.Module]]] = {
    "plain": lambda width: [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)],
    "reparameterised": lambda width: [ReparameterisedConv(width, width), nn.ReLU(inplace=True)],
    "gated": lambda width: [GatedConv(width)],
}


def _stack(width: int, count: int, block: str) -> nn.Sequential:
    """`count` blocks of one kind."""
    return nn.Sequential(*(layer for _ in range(count) for layer in BLOCKS[block](width)))


@torch.inference_mode()
def despeckled(
    network: Callable[[Tensor], Tensor],
    image: NDArray[np.uint8],
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """Run a network of any kind over one grey image.

    Parameters
    ----------
    network : callable
        (batch, 1, rows, columns), 0..1, to the same.
    image : ndarray, (rows, columns), uint8
    device : torch.device or str
        Where the network is.

    Returns
    -------
    ndarray, (rows, columns), float32
        Grey levels, 0..255, not rounded.
    """
    x = torch.from_numpy(np.array(image))[None, None].to(device).float() / 255
    return np.asarray(255 * network(x).float().clamp(0, 1)[0, 0].cpu())


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


@torch.inference_mode()
def multiply_accumulates(network: nn.Module, rows: int = 768, columns: int = 1024) -> int:
    """Multiply-accumulates of all convolutions for one frame of this size, counted by hooks."""
    total = 0

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            per_output = module.weight.numel() / module.stride[0] / module.stride[1]
            total += int(per_output * output.shape[-2] * output.shape[-1])
        elif isinstance(module, nn.Conv2d):
            total += module.weight.numel() * output.shape[-2] * output.shape[-1]

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    network(torch.zeros(1, 1, rows, columns))
    for hook in hooks:
        hook.remove()
    return total

"""The student: a small multi-scale residual network of plain convolutions, for CPUs and GPUs.

Half the resolution and below only (pixel-unshuffle by 2), 2x2 strided convolutions down, transposed
ones up, additive skips, no normalisation and no statistics of the frame, so that a cine does not
flicker. It predicts what to remove: ``y = x - strength * r(x)``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name


@dataclass(frozen=True)
class Architecture:
    """What a bundle's manifest needs to build the network again."""

    widths: tuple[int, ...] = (16, 32, 48, 64)
    """Channels at 1/2, 1/4, ... of the resolution."""
    encoder: tuple[int, ...] = (0, 1, 1, 2)
    """3x3 convolutions on the way down, by level; the last level is the bottom."""
    decoder: tuple[int, ...] = (1, 1, 1)
    """3x3 convolutions on the way up, by level."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder) == len(self.decoder) + 1:
            raise ValueError(
                f"widths {self.widths}, encoder {self.encoder}, decoder {self.decoder}: give as "
                "many encoder entries as widths, and one decoder entry fewer"
            )

    @property
    def stride(self) -> int:
        """Sides of the input are padded to a multiple of this."""
        return int(2 ** len(self.widths))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`; an unknown key is an error."""
        return cls(**{key: tuple(value) for key, value in values.items()})

    def to_dict(self) -> dict[str, list[int]]:
        """JSON-ready settings."""
        return {key: list(value) for key, value in asdict(self).items()}


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
        self.head = nn.Conv2d(4, a.widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_stack(w, n) for w, n in zip(a.widths, a.encoder, strict=True))
        self.decoder = nn.ModuleList(
            _stack(w, n) for w, n in zip(a.widths[:-1], a.decoder, strict=True)
        )
        steps = list(zip(a.widths[:-1], a.widths[1:], strict=True))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, 2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in steps)
        self.tail = nn.Conv2d(a.widths[0], 4, 3, padding=1)
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
        self.tail.weight.mul_(0.1)

    def residual(self, x: Tensor) -> Tensor:
        """What the network would remove.

        Parameters
        ----------
        x : Tensor, (batch, 1, rows, columns), 0..1
            Sides of any length.
        """
        rows, columns = x.shape[-2:]
        stride = self.architecture.stride
        pad = (0, -columns % stride, 0, -rows % stride)
        h = F.pad(x, pad, mode="replicate") if any(pad) else x
        h = F.relu(self.head(F.pixel_unshuffle(h, 2)))
        skips = []
        for level, stack in enumerate(self.encoder):
            h = stack(h)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        for level in reversed(range(len(self.up))):
            h = self.decoder[level](self.up[level](h) + skips[level])
        out: Tensor = F.pixel_shuffle(self.tail(h), 2)[..., :rows, :columns]
        return out

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Remove speckle; `strength` 0 returns the input bit by bit."""
        return x if strength == 0 else x - strength * self.residual(x)


def _stack(width: int, count: int) -> nn.Sequential:
    """`count` 3x3 convolutions with rectifiers."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


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

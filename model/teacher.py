"""The teacher: the student's shape with wider levels and residual blocks; never shipped.

It can be grown from a trained student (`model.training.growing`): its new blocks add nothing at
first. It then begins where the student ended, which is what makes a teacher affordable on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.student import Architecture, Student


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``, nothing added at first (Lim et al. 2017, without scaling)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias if self.second.bias is not None else torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) to the same shape."""
        changed: Tensor = x + self.second(F.relu(self.first(x)))
        return changed


class Teacher(Student):
    """See the module.

    Parameters
    ----------
    architecture : Architecture
        Widths, and the plain convolutions of the student that it can be grown from.
    residual_blocks : sequence of int
        By level on the way down; all but the last also on the way up.
    """

    def __init__(self, architecture: Architecture, residual_blocks: Sequence[int]) -> None:
        super().__init__(architecture)
        if len(residual_blocks) != len(architecture.widths):
            raise ValueError(
                f"residual_blocks {tuple(residual_blocks)}: give one number for each of the widths "
                f"{architecture.widths}"
            )
        for stacks in (self.encoder, self.decoder):
            for stack, width, count in zip(
                stacks, architecture.widths, residual_blocks, strict=False
            ):
                if not isinstance(stack, nn.Sequential):
                    raise TypeError(f"{type(stack).__name__} is no sequence of layers")
                stack.extend(ResidualBlock(width) for _ in range(count))

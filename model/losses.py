"""Differentiable terms of the training loss; images are (batch, 1, rows, columns), 0..1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

Term = Callable[[Tensor, Tensor], Tensor]


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 4e-3) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2) (Charbonnier et al. 1994)."""
    return ((output - target) ** 2 + epsilon**2).sqrt().mean()


def log_mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of ln(MSE): 10/ln(10) times it is minus the PSNR."""
    error = ((output - target) ** 2).mean((1, 2, 3))
    return torch.log(error + 1e-6).mean()


def gradient(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the first differences: edges as steep as the target's."""
    return sum(
        (((output - target).diff(dim=axis)).abs().mean() for axis in (-2, -1)),
        start=torch.zeros((), device=output.device),
    )


def local_mean(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of 16x16 block means: the grey level of tissue does not move."""
    return F.avg_pool2d(output - target, 16).abs().mean()


TERMS: dict[str, Term] = {
    "charbonnier": charbonnier,
    "log_mse": log_mse,
    "gradient": gradient,
    "local_mean": local_mean,
}
"""The terms that a recipe may weigh."""

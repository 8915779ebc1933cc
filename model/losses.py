"""Differentiable terms of the training loss; images are (batch, 1, rows, columns), 0..1.

Every term is quadratic for errors of a few grey levels and linear for large ones. A linear term
throughout would seek the median: where a faint lesion is less likely than speckle, the median is a
flat area, and the lesion is gone. The quadratic one seeks the mean, which keeps its share.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

Term = Callable[[Tensor, Tensor], Tensor]


def charbonnier(output: Tensor, target: Tensor, epsilon: float = 0.05) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2) - epsilon (Charbonnier et al. 1994)."""
    return _robust(output - target, epsilon)


def log_mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of ln(MSE): 10/ln(10) times it is minus the PSNR."""
    error = ((output - target) ** 2).mean((1, 2, 3))
    return torch.log(error + 1e-6).mean()


def gradient(output: Tensor, target: Tensor, epsilon: float = 0.03) -> Tensor:
    """First differences as steep as the target's."""
    error = output - target
    return _robust(error.diff(dim=-1), epsilon) + _robust(error.diff(dim=-2), epsilon)


def local_mean(output: Tensor, target: Tensor, epsilon: float = 0.02) -> Tensor:
    """Means over blocks of 4, 8 and 16 pixels: faint lesions and the grey level stay."""
    error = output - target
    scales = [_robust(F.avg_pool2d(error, side), epsilon) for side in (4, 8, 16)]
    return torch.stack(scales).mean()


def _robust(error: Tensor, epsilon: float) -> Tensor:
    return ((error**2 + epsilon**2).sqrt() - epsilon).mean()


TERMS: dict[str, Term] = {
    "charbonnier": charbonnier,
    "log_mse": log_mse,
    "gradient": gradient,
    "local_mean": local_mean,
}
"""The terms that a recipe may weigh."""

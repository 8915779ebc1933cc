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

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of the output, the target and the speckled input."""


def charbonnier(output: Tensor, target: Tensor, _noisy: Tensor, epsilon: float = 0.05) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2) - epsilon (Charbonnier et al. 1994)."""
    return _robust(output - target, epsilon)


def log_mse(output: Tensor, target: Tensor, _noisy: Tensor) -> Tensor:
    """Mean over the batch of ln(MSE): 10/ln(10) times it is minus the PSNR."""
    error = ((output - target) ** 2).mean((1, 2, 3))
    return torch.log(error + 1e-6).mean()


def gradient(output: Tensor, target: Tensor, _noisy: Tensor, epsilon: float = 0.03) -> Tensor:
    """First differences as steep as the target's."""
    error = output - target
    return _robust(error.diff(dim=-1), epsilon) + _robust(error.diff(dim=-2), epsilon)


def retention(output: Tensor, _target: Tensor, noisy: Tensor, epsilon: float = 0.05) -> Tensor:
    """Nothing large is removed: input and output agree once both are blurred by 5 pixels.

    Where a faint lesion cannot be told from speckle, the best guess of the target is nearly flat.
    This term asks for what the input shows at the size of lesions instead. With the weight of
    `charbonnier`, at least half the contrast stays that the input shows at that size.
    """
    removed = F.avg_pool2d(noisy - output, 4)
    for _ in range(2):
        removed = F.avg_pool2d(removed, 3, stride=1)
    return _robust(removed, epsilon)


def _robust(error: Tensor, epsilon: float) -> Tensor:
    return ((error**2 + epsilon**2).sqrt() - epsilon).mean()


TERMS: dict[str, Term] = {
    "charbonnier": charbonnier,
    "log_mse": log_mse,
    "gradient": gradient,
    "retention": retention,
}
"""The terms that a recipe may weigh."""

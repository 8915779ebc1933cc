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
    """Mean over the batch of ln(MSE): 10/ln(10) times it is minus the PSNR.

    The step follows the error relative to the patch's own, so that easy patches, where the rim of a
    sector or a false structure is most of the error, count as much as hard ones. Half a grey level
    counts as none.
    """
    error = ((output - target) ** 2).mean((1, 2, 3))
    return torch.log(error + (0.5 / 255) ** 2).mean()


def gradient(output: Tensor, target: Tensor, _noisy: Tensor, epsilon: float = 0.03) -> Tensor:
    """First differences as steep as the target's."""
    error = output - target
    return _robust(error.diff(dim=-1), epsilon) + _robust(error.diff(dim=-2), epsilon)


def ms_ssim(output: Tensor, target: Tensor, _noisy: Tensor) -> Tensor:
    """One minus multi-scale structural similarity, four scales, uniform windows.

    The judging metric (Wang et al. 2003) has Gaussian windows and five scales, which a patch has no
    room for; weights are the paper's, made to sum to one.
    """
    similarity = torch.ones((), device=output.device)
    a, b = output, target
    for level, weight in enumerate(_SCALE_WEIGHTS):
        luminance, structure = _similarity(a, b, _WINDOW)
        last = level == len(_SCALE_WEIGHTS) - 1
        kept = (luminance * structure if last else structure).mean().clamp_min(1e-4)
        similarity = similarity * kept**weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return 1 - similarity


_SCALE_WEIGHTS = (0.0517, 0.3295, 0.3462, 0.2726)
_WINDOW = 7
MS_SSIM_LEAST_PX = _WINDOW * 2 ** (len(_SCALE_WEIGHTS) - 1)
"""Side of the smallest patch that `ms_ssim` takes: a window at the coarsest scale."""


def _similarity(a: Tensor, b: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, of SSIM over uniform windows, every other pixel."""
    pooled = F.avg_pool2d(torch.cat((a, b, a * a, b * b, a * b), dim=1), window, stride=2)
    mean_a, mean_b, square_a, square_b, product = pooled.unbind(dim=1)
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    covariance = product - mean_a * mean_b
    variance = square_a - mean_a**2 + square_b - mean_b**2
    return luminance, (2 * covariance + 9e-4) / (variance + 9e-4)


def contrast(
    output: Tensor, target: Tensor, _noisy: Tensor, faint: float = 0.05, emphasis: float = 40.0
) -> Tensor:
    """Grey level over 4 pixels is the target's, above all where the target is faintly unusual.

    The best guess at a lesion that can hardly be told from speckle shrinks with how rare lesions
    are at such a place. Where the target stands out of the median of its surroundings an error
    weighs more, which makes lesions less rare; where it does not, it does not, or the odds of one
    against the other stayed as they were.

    Parameters
    ----------
    output, target : Tensor, (batch, 1, rows, columns), 0..1
        Sides are multiples of 8.
    faint : float
        Departure from the surroundings that weighs most; 0.05 is 3 dB of a display of 60 dB.
        Five times that weighs little more than nothing: what is plain to see needs no help.
    emphasis : float
        What it weighs more.
    """
    departure = F.avg_pool2d(target, 4) - _usual(target)
    weight = 1 + emphasis * _faintness(departure, faint)
    return 2 * (weight * F.avg_pool2d(output - target, 4) ** 2).mean()


def survival(
    output: Tensor, target: Tensor, _noisy: Tensor, faint: float = 0.05, enough: float = 0.7
) -> Tensor:
    """Share of the faintly unusual places that have lost their contrast: a lesion counts once.

    A quadratic term shrinks what it is unsure of, so that a lesion that is as likely as not keeps
    less than half of its contrast and nobody sees it. Here a lesion that keeps `enough` costs
    nothing, one that keeps nothing costs all, and the way from one to the other is steepest in
    between: the network has to decide, and decides by the odds. What false structures cost is
    left to the quadratic terms.

    Contrast is what an observer sees: the level of a place against even tissue beside it, in the
    output as in the target. Against the target's surroundings a halo around the lesion would cost
    nothing, and takes the contrast away. It is asked for at 4 and 8 pixels; at 16 as well brings
    nothing.

    Parameters
    ----------
    output, target : Tensor, (batch, 1, rows, columns), 0..1
        Sides are multiples of 8.
    faint : float
        As for `contrast`.
    enough : float
        Part of its contrast that a lesion needs; more than the half by which survival is counted.
    """
    level, shown = F.avg_pool2d(target, 4), F.avg_pool2d(output, 4)
    least = 0.3 * faint  # less is nothing to keep
    even = ((level - _usual(target)).abs() <= least).float()
    wanted, shown = level - _beside(level, even), shown - _beside(shown, even)
    plain = F.max_pool2d(wanted.abs(), 3, 1, 1) > 3 * faint  # and so are its blurred edges
    weight = _faintness(wanted, faint) ** 2 * (1 - even) * (wanted.abs() > least) * ~plain
    shown = shown * wanted.sign()
    terms = []
    for cells in _SURVIVAL_CELLS:
        there = F.avg_pool2d(weight * wanted.abs(), cells)
        seen = F.avg_pool2d(weight * shown, cells)
        lost = (1 - seen / there.clamp_min(_NOTHING) / enough).clamp(0, 1)
        terms.append((F.avg_pool2d(weight, cells) * lost**2 * (3 - 2 * lost)).mean())
    return torch.stack(terms).mean()


_SURVIVAL_CELLS = (1, 2)
"""Cells of 4 pixels a side over which contrast is to be seen."""
_NOTHING = 1e-6


def _beside(level: Tensor, even: Tensor) -> Tensor:
    """Level of the even cells within 10 pixels; those farther off count where there are none.

    Parameters
    ----------
    level, even : Tensor, (batch, 1, rows, columns)
        Cells of 4 pixels, and 1 for those that count or 0.
    """

    def near(cells: Tensor) -> Tensor:
        about = F.avg_pool2d(cells, 5, 1, 2) + 0.02 * F.avg_pool2d(cells, 13, 1, 6)
        return about + 1e-4 * cells.mean((2, 3), keepdim=True)

    return near(level * even) / near(even).clamp_min(1e-5)


def _faintness(departure: Tensor, faint: float) -> Tensor:
    """1 where the departure is just `faint`, towards 0 for less and for much more."""
    share = departure.abs() / faint
    return share * torch.exp(1 - share)


def _usual(target: Tensor) -> Tensor:
    """Level that the surroundings of each cell of 4 pixels have, (batch, 1, rows / 4, ...)."""
    coarse = _surroundings(F.avg_pool2d(target, 8))
    return F.interpolate(coarse, scale_factor=2.0, mode="bilinear")


def _surroundings(level: Tensor, reach: int = 9) -> Tensor:
    """Median over `reach` by `reach` cells, borders repeated; same shape."""
    padded = F.pad(level, (reach // 2,) * 4, mode="replicate")
    rows, columns = level.shape[-2:]
    near = F.unfold(padded, reach).median(dim=1).values
    return near.reshape(-1, 1, rows, columns)


def _robust(error: Tensor, epsilon: float) -> Tensor:
    return ((error**2 + epsilon**2).sqrt() - epsilon).mean()


TERMS: dict[str, Term] = {
    "charbonnier": charbonnier,
    "log_mse": log_mse,
    "gradient": gradient,
    "ms_ssim": ms_ssim,
    "contrast": contrast,
    "survival": survival,
}
"""The terms that a recipe may weigh."""

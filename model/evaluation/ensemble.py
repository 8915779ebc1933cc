"""Self-ensemble: one network run over the eight flips and quarter turns of an image, averaged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]
"""float (batch, 1, rows, columns) to the same."""


def eightfold(forward: Forward) -> Forward:
    """Average what a network makes of every flip and quarter turn, each turned back first.

    Speckle is not the same along and across the beam, so this is no symmetry of the problem; it
    evens out what a network makes of one orientation only (Timofte et al., CVPR 2016).
    """

    def run(x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for turns, flipped in product(range(4), (False, True)):
            turned = torch.rot90(x.flip(-1) if flipped else x, turns, (-2, -1))
            back = torch.rot90(forward(turned), -turns, (-2, -1))
            total += back.flip(-1) if flipped else back
        return total / 8

    return run

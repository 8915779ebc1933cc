"""An image whose reference is known: a pair to train on, or a labelled scene to judge by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.simulation.phantoms import Lesion


class Pair(NamedTuple):
    """What one training patch is cut from.

    Attributes
    ----------
    noisy : ndarray, (rows, columns), uint8
    target : ndarray, (rows, columns), float32, 0..255
        Expected display.
    clustered : bool
        Whether the scatterers gather in clusters.
    detailed : bool
        Whether it is full of points, clefts and fine lines.
    """

    noisy: NDArray[np.uint8]
    target: NDArray[np.float32]
    clustered: bool = False
    detailed: bool = False


@dataclass(frozen=True)
class Scene:
    """One simulated image with its reference.

    Attributes
    ----------
    noisy : ndarray, (rows, columns), uint8
    target : ndarray, (rows, columns), float32, 0..255
        Expected display; see `model.speckle`.
    labels : dict of str to ndarray, (rows, columns), bool
    lesions : tuple of Lesion
    name : str
    """

    noisy: NDArray[np.uint8]
    target: NDArray[np.float32]
    name: str
    labels: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    lesions: tuple[Lesion, ...] = ()

"""How well the node's inference on a device, in a precision, agrees with float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dicom_node.despeckle import Despeckler
from model import bundle

PRECISIONS = ("float32", "bfloat16", "float16")


def share_within_a_level(
    name: str,
    device: str,
    precision: str,
    images: Iterable[NDArray[np.uint8]],
    strength: float = 1.0,
) -> float:
    """Share of all pixels within one grey level of the bundle in float32 on the CPU."""
    reference, despeckler = bundle.load(name), Despeckler(bundle.load(name), device, precision)
    differences = [
        np.abs(out.astype(int) - reference.apply(image, strength)).ravel()
        for image in images
        for out in despeckler.frames([image], strength)
    ]
    return float((np.concatenate(differences) <= 1).mean())

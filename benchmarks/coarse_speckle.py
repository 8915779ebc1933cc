"""Decibels on enlarged images, whose speckle is coarse: one scale against as many as are needed.

Simulated scenes of either simulator and their references are enlarged as scanners enlarge what they
display. A network sees them at their size alone, and, as the node does it, at half the size first
where the speckle is coarse (`model.scales`).

    python benchmarks/coarse_speckle.py --bundle quality
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model import bundle as bundles
from model import metrics
from model.data import VALIDATION_SEED
from model.evaluation.scenes import SIMULATORS
from model.evaluation.tables import Table, header, write
from model.scales import speckle_px
from model.student import Student, despeckled

SEED = VALIDATION_SEED + 80
FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0)
COLUMNS = ("scenes", "enlarged", "speckle px", "speckled dB", "one scale dB", "as shipped dB")
Grey = NDArray[np.float32]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    student = bundles.load(arguments.bundle).student
    rows = []
    for simulator, count in (("speckle", arguments.scenes), ("array", arguments.scenes // 2)):
        scenes = SIMULATORS[simulator](count, SEED)
        for factor in FACTORS:
            found = [
                _figures(student, _enlarged(s.noisy, factor), _enlarged(s.target, factor))
                for s in scenes
            ]
            means = [f"{value:.2f}" for value in np.nanmean(found, axis=0)]
            rows.append(
                dict(zip(COLUMNS, (f"{count} of {simulator}", f"{factor:g}", *means), strict=True))
            )
    table = Table("By enlargement", COLUMNS, rows)
    settings = {"bundle": arguments.bundle, "scenes": f"of 256x256, enlarged; seed {SEED}"}
    for path in write(
        arguments.output, "coarse-speckle", [table], header("Coarse speckle", settings)
    ):
        print(f"wrote {path}")
    print(table.markdown())


def _figures(student: Student, noisy: Grey, target: Grey) -> tuple[float, ...]:
    """Width of the speckle, pixels, and PSNR of the input and of either output, dB."""
    image = noisy.round().astype(np.uint8)
    x = torch.from_numpy(image)[None, None].float() / 255
    with torch.inference_mode():
        width_px = speckle_px(x, student.residual(x))
    outputs = (
        image.astype(np.float32),
        despeckled(lambda grey: grey - student.residual(grey), image),
        despeckled(student, image),
    )
    return width_px, *(metrics.psnr(output, target, data_range=255) for output in outputs)


def _enlarged(image: NDArray[np.generic], factor: float) -> Grey:
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    picture = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture).clip(0, 255)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="quality")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/coarse-speckle"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

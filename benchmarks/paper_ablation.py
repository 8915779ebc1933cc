"""What distillation and metric guidance add in the paper's protocol: equal steps, with seeds.

All arms begin with new weights, on real images taken as clean with multiplicative noise; the
teacher is that of the recipe `paper-teacher`. Judged on images of test subjects at every level by
PSNR and SSIM, and by GMSD and FSIM, which nothing optimises. Goes on where it was stopped. Writes
tables with the mean and, after the sign, half the range over seeds.

    python benchmarks/paper_ablation.py --steps 4000 --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from arms import Figures, Sections, Study, table, told

from model import metrics
from model.data import VALIDATION_SEED
from model.evaluate import default_images
from model.evaluation import paper
from model.evaluation.images import choose, parted
from model.evaluation.tables import header, write
from model.simulation.multiplicative import LEVELS
from model.simulation.scene import Scene
from model.student import despeckled
from model.training import runs

PIXELS = {"charbonnier": 1.0}
METRICS = PIXELS | {"gradient": 0.25, "ms_ssim": 0.02}
TAUGHT = {"teacher": "{teacher}", "affinity": 0.02, "folds": 1}
STEERED = {"every": 500}
ARMS: Mapping[str, Sections] = {
    "student without distillation": {"loss": METRICS},
    "student without metric guidance": {"loss": PIXELS, "distillation": TAUGHT},
    "student": {"loss": METRICS, "distillation": TAUGHT, "guidance": STEERED},
}
SEED = VALIDATION_SEED + 500
FIGURES = {
    "PSNR, dB": (metrics.psnr, 2),
    "SSIM": (metrics.ssim, 3),
    "GMSD": (metrics.gmsd, 4),
    "FSIM": (metrics.fsim, 4),
}
"""Of an output and what is taken as clean; decimals."""
ARM_SAYS = (
    "Without metric guidance the loss is of pixels alone; with it come terms of gradient and "
    "MS-SSIM, and beside a teacher the controller, which steers at PSNR, MS-SSIM and edges."
)


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    files = choose(parted(arguments.images).test, arguments.images, arguments.images_per_source)
    scenes = {
        level: paper.scenes(files, level, seed=SEED, side_px=paper.LARGEST_SIDE_PX)
        for level in LEVELS
    }
    study = Study(
        "paper-ablation", _recipe(arguments), ARMS, lambda folder: figures(folder, scenes)
    )
    judged = {"teacher": [figures(arguments.teacher, scenes)], **study.judged(arguments)}
    head = header(
        "Ablation in the paper's protocol",
        {
            **told(arguments),
            "teacher": arguments.teacher,
            "images": f"{len(files)} of test subjects, noise of seed {SEED}",
        },
    )
    columns = [_at(level) for level in LEVELS]
    tables = [
        table(name, columns, judged, ARM_SAYS, digits=digits)
        for name, (_, digits) in FIGURES.items()
    ]
    for path in write(arguments.output, "paper-ablation", tables, head):
        print(f"wrote {path}")


def figures(folder: Path, scenes: Mapping[float, Sequence[Scene]]) -> dict[str, Figures]:
    """What the network of a run reaches: by figure, a mean over images a level."""
    network = runs.load(folder).network
    found: dict[str, Figures] = {name: {} for name in FIGURES}
    for level, noisy in scenes.items():
        outputs = [(despeckled(network, scene.noisy), scene.target) for scene in noisy]
        for name, (figure, _) in FIGURES.items():
            values = [figure(*pair, data_range=255) for pair in outputs]
            found[name][_at(level)] = float(np.mean(values))
    return found


def _at(level: float) -> str:
    return f"v = {level:g}"


def _recipe(arguments: argparse.Namespace) -> str:
    return "\n".join(
        [
            "validation_scenes = 16",
            "[network]\nencoder = [0, 1, 2, 4]\ndecoder = [1, 1, 1]",
            f'[data]\nsource = "paper"\nimages = "{arguments.images}"\nscenes = 1600\n',
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, default=Path("runs/paper-teacher"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=Path, default=default_images())
    parser.add_argument("--images-per-source", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("out/paper-ablation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Which shape the student should have: decibels on scenes never trained on against milliseconds.

Every candidate trains for the same steps on the same scenes with the same loss, from new weights;
then all take turns on one frame. Goes on where it was stopped. Writes a table and a plot.

    python benchmarks/student_pareto.py --steps 4000 --output out/pareto
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from model import figures
from model.allocator import keep_activations
from model.cost import FLOAT32, FLOAT32_LAST, interleaved, runner
from model.data import VALIDATION_SEED, validation_set
from model.evaluation.tables import Table, header, write
from model.metrics import psnr
from model.network.reparameterise import merge
from model.student import despeckled, multiply_accumulates, parameters
from model.train import train
from model.training import runs

CANDIDATES = {
    "16-32-48-64": "widths = [16, 32, 48, 64]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]",
    "same, branches": (
        "widths = [16, 32, 48, 64]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]\n"
        'block = "reparameterised"'
    ),
    "deeper, branches": (
        "widths = [16, 32, 48, 64]\nencoder = [0, 2, 2, 4]\ndecoder = [1, 1, 1]\n"
        'block = "reparameterised"'
    ),
    "deeper below": "widths = [16, 32, 48, 64]\nencoder = [0, 1, 2, 4]\ndecoder = [1, 1, 1]",
    "12-24-32-48": "widths = [12, 24, 32, 48]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]",
    "12-24-40-56, gated": (
        'widths = [12, 24, 40, 56]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]\nblock = "gated"'
    ),
    "24-32-48-80": "widths = [24, 32, 48, 80]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]",
    "three levels": "widths = [16, 32, 64]\nencoder = [0, 1, 2]\ndecoder = [1, 1]",
    "unshuffle 4": ("unshuffle = 4\nwidths = [24, 32, 64]\nencoder = [0, 1, 1]\ndecoder = [1, 1]"),
}
"""Branches are re-parameterised; "deeper, branches" is the shape of the shipped student."""
RECIPE = """name = "pareto-{number}"
threads = {threads}
validation_scenes = 4
validation_steps = 2000

[data]
images = "{images}"
smoothed_by = "{smoothed_by}"
scenes = 8000

[optimiser]
minutes = 1000
steps = {steps}
batch = 8
crop = 96
learning_rate = 2e-3
ema_decay = 0.995

[loss]
charbonnier = 1.0
gradient = 0.25

[network]
{network}
"""
SCENES, ROUNDS = 40, 9


def main() -> None:
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    networks = {}
    for number, (name, network) in enumerate(CANDIDATES.items()):
        recipe = arguments.output / f"pareto-{number}.toml"
        recipe.write_text(
            RECIPE.format(
                number=number,
                threads=arguments.threads,
                images=arguments.images,
                smoothed_by=arguments.smoothed_by,
                steps=arguments.steps,
                network=network,
            )
        )
        train(recipe, arguments.runs)
        networks[name] = merge(runs.load(arguments.runs / f"pareto-{number}").network).eval()
    torch.set_num_threads(arguments.threads)
    keep_activations()
    frame = torch.rand(1, 1, 768, 1024)
    jobs = {
        (name, layout): partial(runner(network, layout), frame)
        for name, network in networks.items()
        for layout in (FLOAT32, FLOAT32_LAST)
    }
    times = interleaved({"/".join(key): job for key, job in jobs.items()}, rounds=ROUNDS)
    scenes = validation_set(SCENES, VALIDATION_SEED + 300)
    rows, points = [], {}
    for name, network in networks.items():
        gain = float(np.mean([_gain(network, scene) for scene in scenes]))
        fastest = min(times[f"{name}/{layout}"] for layout in (FLOAT32, FLOAT32_LAST))
        points[name] = (fastest, gain)
        rows.append(
            {
                "candidate": name,
                "parameters": parameters(network),
                "kMAC a pixel": multiply_accumulates(network) / (768 * 1024) / 1000,
                "ms at 1024x768": fastest,
                "gain": gain,
            }
        )
    head = header(
        "Shapes of the student",
        {
            "training": (
                f"{arguments.steps} steps each, from new weights, batches of 8 patches of 96 px"
            ),
            "scenes": f"{SCENES} of 256x256, seed {VALIDATION_SEED + 300}",
            "timing": (
                f"{arguments.threads} thread(s), float32, the faster layout, "
                f"median of {ROUNDS} interleaved rounds"
            ),
        },
    )
    columns = ("candidate", "parameters", "kMAC a pixel", "ms at 1024x768", "gain")
    for path in write(arguments.output, "pareto", [Table("Candidates", columns, rows)], head):
        print(f"wrote {path}")
    path = arguments.output / "pareto.png"
    print(f"wrote {figures.pareto(points, path, title='Students', quality='gain, dB')}")


def _gain(network: torch.nn.Module, scene: object) -> float:
    target = np.clip(scene.target, 0, 255)
    image = despeckled(network, scene.noisy)
    before, after = (psnr(each, target, data_range=255) for each in (scene.noisy, image))
    return after - before


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", default="../shared/data/train")
    parser.add_argument("--smoothed-by", default="quality", help="bundle that prepares anatomy")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("out/pareto"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

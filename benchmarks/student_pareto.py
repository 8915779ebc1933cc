"""Which shape the student should have: decibels on scenes never trained on against milliseconds.

Every candidate trains for the same steps on the same scenes with the same loss, from new weights,
at each of two learning rates, of which the better on validation scenes counts; then all take turns
on one frame. Goes on where it was stopped. Writes a table and a plot.

    python benchmarks/student_pareto.py --steps 6000 --output out/pareto
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from arms import trained

from model import figures
from model.allocator import keep_activations
from model.cost import FLOAT32, FLOAT32_LAST, interleaved, runner
from model.data import VALIDATION_SEED, validation_set
from model.evaluation.scenes import SIMULATORS as SCENES_OF
from model.evaluation.tables import Table, header, write
from model.evaluation.trials import gain
from model.network.reparameterise import merge
from model.simulation.scene import Scene
from model.student import despeckled, multiply_accumulates, parameters
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
    "the same, gate (shipped)": (
        "widths = [16, 32, 48, 64]\nencoder = [0, 2, 2, 4]\ndecoder = [1, 1, 1]\n"
        'block = "reparameterised"\nselective = true'
    ),
    "deeper below": "widths = [16, 32, 48, 64]\nencoder = [0, 1, 2, 4]\ndecoder = [1, 1, 1]",
    "12-24-32-48": "widths = [12, 24, 32, 48]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]",
    "12-24-40-56, products": (
        'widths = [12, 24, 40, 56]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]\nblock = "gated"'
    ),
    "24-32-48-80": "widths = [24, 32, 48, 80]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]",
    "three levels": "widths = [16, 32, 64]\nencoder = [0, 1, 2]\ndecoder = [1, 1]",
    "unshuffle 4": ("unshuffle = 4\nwidths = [24, 32, 64]\nencoder = [0, 1, 1]\ndecoder = [1, 1]"),
}
"""Branches are re-parameterised; products are convolutions multiplied by others."""
LEARNING_RATES = (2e-3, 7e-4)
RECIPE = """name = "{run}"
threads = {threads}
precision = "auto"
validation_scenes = 4
validation_steps = 2000

[data]
images = "{images}"
smoothed_by = "{smoothed_by}"
scenes = 6000

[optimiser]
minutes = 1000
steps = {steps}
batch = 8
crop = 96
learning_rate = {learning_rate}
ema_decay = 0.995

[loss]
charbonnier = 1.0
gradient = 0.25

[network]
{network}
"""
SCENES, ROUNDS = 40, 9
VALIDATION_SCENES = 16
SEED = VALIDATION_SEED + 300
SIMULATORS = ("speckle", "array")


def main() -> None:
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    validation = validation_set(VALIDATION_SCENES)
    students = {
        name: _trained(arguments, f"pareto-{number}", network, validation)
        for number, (name, network) in enumerate(CANDIDATES.items())
    }
    torch.set_num_threads(arguments.threads)
    keep_activations()
    frame = torch.rand(1, 1, 768, 1024)
    jobs = {
        (name, layout): partial(runner(student.network, layout), frame)
        for name, student in students.items()
        for layout in (FLOAT32, FLOAT32_LAST)
    }
    times = interleaved({"/".join(key): job for key, job in jobs.items()}, rounds=ROUNDS)
    scenes = {name: list(SCENES_OF[name](SCENES, SEED)) for name in SIMULATORS}
    rows, points = [], {}
    for name, student in students.items():
        network = student.network
        gains = {f"{which}, gain dB": _gain(network, some) for which, some in scenes.items()}
        fastest = min(times[f"{name}/{layout}"] for layout in (FLOAT32, FLOAT32_LAST))
        points[name] = (fastest, float(np.mean(list(gains.values()))))
        rows.append(
            {
                "candidate": name,
                "parameters": parameters(network),
                "kMAC a pixel": multiply_accumulates(network) / (768 * 1024) / 1000,
                "ms at 1024x768": fastest,
                "learning rate": f"{student.learning_rate:g}",
                **gains,
            }
        )
    head = header(
        "Shapes of the student",
        {
            "training": (
                f"{arguments.steps} steps each, from new weights, batches of 8 patches of 96 px"
            ),
            "scenes": f"{SCENES} of either simulator, 256x256, seed {SEED}",
            "timing": (
                f"{arguments.threads} thread(s), float32, the faster layout, "
                f"median of {ROUNDS} interleaved rounds"
            ),
        },
    )
    columns = tuple(rows[0])
    for path in write(arguments.output, "pareto", [Table("Candidates", columns, rows)], head):
        print(f"wrote {path}")
    path = arguments.output / "pareto.png"
    quality = "mean gain of both simulators, dB"
    print(f"wrote {figures.pareto(points, path, title='Students', quality=quality)}")


@dataclass(frozen=True)
class Trained:
    """A candidate after its training.

    Attributes
    ----------
    network : Module
        Branches merged.
    learning_rate : float
    validation_gain : float
        Mean on scenes apart from those that judge, dB.
    """

    network: torch.nn.Module
    learning_rate: float
    validation_gain: float


def _trained(
    arguments: argparse.Namespace, run: str, network: str, validation: Sequence[Scene]
) -> Trained:
    """By the learning rate that is better on the validation scenes."""
    candidates = []
    for learning_rate in LEARNING_RATES:
        name = f"{run}-{learning_rate:.0e}"
        recipe = arguments.output / f"{name}.toml"
        recipe.write_text(
            RECIPE.format(
                run=name,
                threads=arguments.threads,
                images=arguments.images,
                smoothed_by=arguments.smoothed_by,
                steps=arguments.steps,
                network=network,
                learning_rate=learning_rate,
            )
        )
        made = merge(runs.load(trained(recipe, arguments.runs)).network).eval()
        candidates.append(Trained(made, learning_rate, _gain(made, validation)))
    return max(candidates, key=lambda each: np.nan_to_num(each.validation_gain, nan=-np.inf))


def _gain(network: torch.nn.Module, scenes: Sequence[Scene]) -> float:
    """Mean over scenes, dB."""
    return float(np.mean([gain(despeckled(network, scene.noisy), scene) for scene in scenes]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", default="../shared/data/train")
    parser.add_argument("--smoothed-by", default="quality", help="bundle that prepares anatomy")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("out/pareto"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

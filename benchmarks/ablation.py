"""What each part of the recipe adds: arms from new weights for the same steps, with seeds.

Judged on simulated scenes of either simulator that no training has seen, by figures that were
optimised (PSNR) and by those that never are. Goes on where it was stopped. Writes a table with the
mean and, after the sign, half the range over seeds.

    python benchmarks/ablation.py --steps 4000 --seeds 2
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model import runs
from model.array_simulation import array_scenes
from model.data import VALIDATION_SEED, Scene, validation_set
from model.evaluation.physics import measure
from model.evaluation.tables import Table, header, write
from model.metrics import COLUMNS
from model.student import despeckled
from model.train import train

PLAIN_LOSS = {"charbonnier": 1.0}
METRIC_LOSS = PLAIN_LOSS | {"gradient": 0.25, "ms_ssim": 0.02, "contrast": 1.0}
TEACHER = {
    "teacher": "{teacher}",
    "output": 3.0,
    "affinity": 0.02,
    "folds": 1,
}
ARMS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "plain student": {"loss": PLAIN_LOSS},
    "+ distillation": {"loss": PLAIN_LOSS, "distillation": TEACHER},
    "+ metric terms": {"loss": METRIC_LOSS, "distillation": TEACHER},
    "+ controller": {"loss": METRIC_LOSS, "distillation": TEACHER, "guidance": {"every": 400}},
    "+ real images": {
        "loss": METRIC_LOSS,
        "distillation": TEACHER | {"real_share": 0.2},
        "guidance": {"every": 400},
    },
}
BATCH, CROP = 8, 96
FIGURES = (
    "psnr",
    "gmsd",
    "fsim",
    "gcnr",
    "contrast_error",
    "survival",
    "false_structures",
    "edge_strength",
    "mean_shift",
)


def main() -> None:
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    simulators = {
        "speckle": validation_set(arguments.scenes, VALIDATION_SEED + 400),
        "array": array_scenes(arguments.scenes, VALIDATION_SEED + 400),
    }
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in simulators}
    for number, (arm, sections) in enumerate(ARMS.items()):
        folders = []
        for seed in range(1, arguments.seeds + 1):
            name = f"ablation-{number}-{seed}"
            recipe = arguments.output / f"{name}.toml"
            recipe.write_text(_recipe(name, seed, sections, arguments))
            folders.append(train(recipe, arguments.runs).parent)
        for simulator, scenes in simulators.items():
            found = [_judge(folder, scenes) for folder in folders]
            row: dict[str, object] = {"arm": arm}
            for key in FIGURES:
                values = [figures[key] for figures in found]
                digits = COLUMNS[key].digits
                spread = (max(values) - min(values)) / 2
                row[COLUMNS[key].label] = f"{np.mean(values):.{digits}f} ±{spread:.{digits}f}"
            rows[simulator].append(row)
    columns = ("arm", *(COLUMNS[key].label for key in FIGURES))
    head = header(
        "Ablation",
        {
            "training": (
                f"{arguments.steps} steps an arm and seed, from new weights, "
                f"batches of {BATCH} patches of {CROP} px"
            ),
            "seeds": arguments.seeds,
            "scenes": f"{arguments.scenes} of each simulator, seed {VALIDATION_SEED + 400}",
        },
    )
    notes = (
        "Mean and half the range over seeds. Only PSNR and edge strength were ever steered at.",
    )
    tables = [Table(f"Simulator: {name}", columns, rows[name], notes) for name in simulators]
    for path in write(arguments.output, "ablation", tables, head):
        print(f"wrote {path}")


def _judge(folder: Path, scenes: list[Scene]) -> dict[str, float]:
    network = runs.load(folder).network
    found = [measure(despeckled(network, scene.noisy), scene) for scene in scenes]
    return {key: float(np.nanmean([one.get(key, np.nan) for one in found])) for key in FIGURES}


def _recipe(
    name: str,
    seed: int,
    sections: Mapping[str, Mapping[str, object]],
    arguments: argparse.Namespace,
) -> str:
    lines = [
        f'name = "{name}"',
        f"seed = {seed}",
        "threads = 1",
        "validation_scenes = 8",
        "validation_steps = 1000",
        "[network]\nencoder = [0, 1, 1, 2]\ndecoder = [1, 1, 1]",
        f'[data]\nimages = "{arguments.images}"\nsmoothed_by = "{arguments.smoothed_by}"',
        "scenes = 8000",
        f"[optimiser]\nminutes = 1000\nsteps = {arguments.steps}\nema_decay = 0.995",
        f"batch = {BATCH}\ncrop = {CROP}\nlearning_rate = 2e-3",
    ]
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
            lines.append(f"{key} = {shown}".replace("{teacher}", str(arguments.teacher)))
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, default=Path("model/yardsticks/teacher"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--images", default="../shared/data/train")
    parser.add_argument("--smoothed-by", default="quality", help="bundle that prepares anatomy")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("out/ablation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

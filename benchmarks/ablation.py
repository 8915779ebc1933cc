"""What each part of the recipe adds: arms from new weights for the same steps, with seeds.

The first five arms each add one part to the one before; the next two are what the shipped students
are trained by, with one teacher and with a panel; the last has no controller, but its weights.
Judged by figures that were optimised (PSNR) and by those that never are, on scenes of either
simulator, on tissue that is the same throughout, on faint lesions and on real images of validation
subjects. Goes on where it was stopped. Writes tables with the mean and, after the sign, half the
range over seeds.

    python benchmarks/ablation.py --steps 4000 --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from arms import Figures, Sections, Study, table, told

from model.baselines import Grey
from model.data import VALIDATION_SEED
from model.evaluate import default_images
from model.evaluation import trials
from model.evaluation.physics import measure
from model.evaluation.safety_grounds import Grey8, Size
from model.evaluation.tables import header, write
from model.evaluation.trials import Trials
from model.student import despeckled
from model.training import runs

PLAIN = {"charbonnier": 1.0}
METRICS = PLAIN | {"gradient": 0.25, "ms_ssim": 0.02, "contrast": 1.0}
DECISIONS = METRICS | {"log_mse": 0.06, "survival": 6.0}
ONE_TEACHER = {"teacher": "{teacher}", "output": 3.0, "affinity": 0.02, "folds": 1}
STEERED = {"every": 500}
FOUND = {"charbonnier": 3.24, "gradient": 0.944, "ms_ssim": 0.0051, "contrast": 0.438}
"""Where the controller had brought the weights after 5,000 steps, mean of three seeds."""
REAL = {"real_share": 0.2, "real_halvings": 3, "real_retained": 0.4}
SHIPPED = {"teacher": "{hedging}", "output": 3.0, "folds": 1, "real_planted": 2} | REAL
ARMS: Mapping[str, Sections] = {
    "plain student": {"loss": PLAIN},
    "+ distillation": {"loss": PLAIN, "distillation": ONE_TEACHER},
    "+ metric terms": {"loss": METRICS, "distillation": ONE_TEACHER},
    "+ controller": {"loss": METRICS, "distillation": ONE_TEACHER, "guidance": STEERED},
    "+ real images": {
        "loss": METRICS,
        "distillation": ONE_TEACHER | REAL,
        "guidance": STEERED,
    },
    "shipped terms, one teacher": {
        "loss": DECISIONS,
        "distillation": SHIPPED | {"panel": ["{teacher}"]},
    },
    "shipped terms, panel": {
        "loss": DECISIONS,
        "distillation": SHIPPED | {"panel": ["{teacher}", "quality", "lesions"]},
    },
    "controller's last weights, fixed": {"loss": FOUND, "distillation": ONE_TEACHER},
}
SEED = VALIDATION_SEED + 400
SIZE = Size(faint=16, plain=0, even=8, clustered=9, blocks=0, cines=8)
ON_SCENES = (
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
STEERED_AT = (
    "Terms and controller steer at PSNR, edge strength and contrast alone; the shipped terms ask "
    "for survival as well."
)
GROUNDS, REAL_IMAGES = "even and clustered tissue, 3 dB lesions", "real images"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    given = Trials.make(SEED, SIZE, arguments.scenes, arguments.images)
    study = Study("ablation", _recipe(arguments), ARMS, lambda folder: figures(folder, given))
    judged = study.judged(arguments)
    head = header(
        "Ablation",
        {
            **told(arguments),
            "scenes": f"{arguments.scenes} of each simulator, seed {SEED}",
            "images": f"{len(given.real)} of validation subjects",
            **trials.NOTES,
        },
    )
    columns = dict.fromkeys(given.scenes, ON_SCENES) | {
        GROUNDS: trials.GROUND_COLUMNS,
        REAL_IMAGES: trials.REAL_COLUMNS,
    }
    tables = [table(name, keys, judged, STEERED_AT) for name, keys in columns.items()]
    for path in write(arguments.output, "ablation", tables, head):
        print(f"wrote {path}")


def figures(folder: Path, given: Trials) -> dict[str, Figures]:
    """What the network of a run reaches, by table."""
    network = runs.load(folder).network

    def method(image: Grey8) -> Grey:
        return despeckled(network, image)

    found = {}
    for simulator, scenes in given.scenes.items():
        each = [measure(method(scene.noisy), scene) for scene in scenes]
        found[simulator] = {
            key: float(np.nanmean([one.get(key, np.nan) for one in each])) for key in ON_SCENES
        }
    return found | {
        GROUNDS: trials.on_grounds(method, given),
        REAL_IMAGES: trials.on_real(method, given),
    }


def _recipe(arguments: argparse.Namespace) -> str:
    return "\n".join(
        [
            "validation_scenes = 8",
            "decides_in_clusters = false",
            "[network]\nencoder = [0, 2, 2, 4]\ndecoder = [1, 1, 1]",
            'block = "reparameterised"\nselective = true',
            f'[data]\nimages = "{arguments.images}"\nsmoothed_by = "{arguments.smoothed_by}"',
            f"scenes = {arguments.pool}\nfaint_share = 0.45",
            "clustered_share = 0.2\nwidened_share = 0.5\n",
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, default=Path("model/yardsticks/teacher"))
    parser.add_argument("--hedging", type=Path, default=Path("model/yardsticks/hedging"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=6000, help="scenes to train on")
    parser.add_argument("--scenes", type=int, default=24, help="to judge by, of each simulator")
    parser.add_argument("--images", type=Path, default=default_images())
    parser.add_argument("--smoothed-by", default="quality", help="bundle that prepares anatomy")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--output", type=Path, default=Path("out/ablation"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

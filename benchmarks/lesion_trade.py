"""What keeping more of faint lesions costs: lesions, false structures and decibels by `--retain`.

Networks are run at every setting over scenes of their own seed: 3 dB lesions and even tissue of
either simulator, validation scenes, still tissues under fresh speckle. Classical methods on such
scenes are in the safety protocol.

    python benchmarks/lesion_trade.py --bundle quality --retain 0 0.3 0.1/0.4
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import bundle as bundles
from model import metrics, runs
from model.data import VALIDATION_SEED, Scene, validation_set
from model.evaluation.safety_grounds import Grounds, Size
from model.evaluation.safety_measures import (
    FLICKER,
    appeared,
    flicker_reductions,
    lesions_kept,
)
from model.evaluation.tables import Table, header, write
from model.student import Student, despeckled

SEED = VALIDATION_SEED + 60
DIAMETERS_PX = (10, 14, 20, 30)
SIZE = Size(faint=24, plain=0, even=12, blocks=0)
Grey = NDArray[np.float32]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    grounds = Grounds.make(SEED, SIZE)
    scenes = validation_set(arguments.scenes, SEED)
    rows = []
    for name, network in _networks(arguments).items():
        for retain, wide in arguments.retain:
            network.architecture = replace(
                network.architecture,
                retain=retain,
                retain_wide=wide,
                halvings=arguments.halvings,
                rim_px=arguments.rim,
            )
            figures = _figures(partial(_applied, network), grounds, scenes)
            shares = f"{retain:g}/{wide:g}" if wide else f"{retain:g}"
            rows.append({"method": f"{name}, retain {shares}"} | figures)
    kept = tuple(f"kept {d} px" for d in DIAMETERS_PX)
    survive = tuple(f"survive {d} px" for d in DIAMETERS_PX)
    columns = ("method", "PSNR dB", "gcnr", "even, 95 % dB", "flicker", *kept, *survive)
    settings = {
        "lesions": f"of 3 dB, {SIZE.faint} images; kept: share of their contrast",
        "even": "95th percentile of 10 px discs in even speckle",
        "scenes": f"{arguments.scenes}, for PSNR and gCNR; seed {SEED}",
        "halvings": f"{arguments.halvings}, where speckle is coarse",
        "rim": f"tissue continued by {arguments.rim} px",
    }
    table = Table("By share retained", columns, rows)
    for path in write(arguments.output, "lesion-trade", [table], header("Lesions", settings)):
        print(f"wrote {path}")
    print(table.markdown())


def _applied(network: Student, scene: Scene) -> Grey:
    return despeckled(network, scene.noisy)


def _figures(
    method: Callable[[Scene], Grey], grounds: Grounds, scenes: Sequence[Scene]
) -> dict[str, float | str]:
    faint = grounds.lesions[3.0]
    outputs = [method(scene) for scene in faint]
    found: dict[str, float | str] = {
        "PSNR dB": f"{np.mean([_psnr(method(scene), scene) for scene in scenes]):.2f}",
        "gcnr": float(np.mean([_gcnr(method(s), s) for s in scenes if s.lesions])),
        "even, 95 % dB": appeared([method(s) for s in grounds.even], grounds.even)["10 px, dB"],
        "flicker": flicker_reductions(
            [[method(s) for s in scenes] for scenes in grounds.cines], grounds.cines
        )[FLICKER],
    }
    for diameter in DIAMETERS_PX:
        survival, contrast = lesions_kept(outputs, faint, diameter)
        found |= {f"kept {diameter} px": contrast, f"survive {diameter} px": survival}
    return found


def _psnr(image: Grey, scene: Scene) -> float:
    return metrics.psnr(image, np.clip(scene.target, 0, 255), data_range=255)


def _gcnr(image: Grey, scene: Scene) -> float:
    large = [lesion for lesion in scene.lesions if lesion.diameter_px >= 8]
    return float(np.mean([metrics.gcnr(image, one.mask, one.ring) for one in large]))


def _shares(text: str) -> tuple[float, float]:
    """`retain` and `retain_wide`."""
    retain, _, wide = text.partition("/")
    return float(retain), float(wide or 0)


def _networks(arguments: argparse.Namespace) -> dict[str, Student]:
    """Runs and bundles by label."""
    found: dict[str, Student] = {}
    for text in arguments.run:
        label, _, folder = text.partition("=")
        found[label] = runs.load(Path(folder)).network
    for name in arguments.bundle:
        found[name] = bundles.load(name).student
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", default=[], metavar="LABEL=FOLDER")
    parser.add_argument("--bundle", action="append", default=[])
    parser.add_argument(
        "--retain",
        type=_shares,
        nargs="+",
        default=[(0, 0), (0.3, 0), (0.1, 0.4)],
        metavar="SHARE[/WIDE]",
        help="as of `export`: --retain, and --retain-wide after a slash",
    )
    parser.add_argument("--halvings", type=int, default=3, help="as of `export`")
    parser.add_argument("--rim", type=int, default=32, help="as of `export`")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/lesion-trade"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

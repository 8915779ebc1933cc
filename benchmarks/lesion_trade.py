"""What keeping more of faint lesions costs: lesions, false structures and decibels by `--retain`.

Networks are run at every setting over scenes of their own seed: 3 dB lesions, even and clustered
tissue of either simulator, validation scenes of both, still tissues under fresh speckle, and real
images of validation subjects with lesions planted in them. The tables of evaluation see none of
these, so that candidates for a release can be compared here. Classical methods are in the safety
protocol.

    python benchmarks/lesion_trade.py --bundle quality --retain 0 0.3 0.1/0.4
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from model import bundle as bundles
from model import metrics, runs
from model.baselines import Grey, Method
from model.data import VALIDATION_SEED, Scene
from model.evaluate import default_images
from model.evaluation import planted, real
from model.evaluation.images import choose, middle, parted, source_of
from model.evaluation.safety_grounds import Grey8, Grounds, Size
from model.evaluation.safety_measures import (
    FLICKER,
    appeared,
    flicker_reductions,
    lesions_kept,
)
from model.evaluation.scenes import ARRAY, SIMULATORS, SPECKLE
from model.evaluation.tables import Table, header, mean, write
from model.images import read_grey
from model.student import Student, despeckled

SEED = VALIDATION_SEED + 60
LEAST_DIAMETER_PX = 8
"""Of a lesion whose gCNR counts."""
SIZE = Size(faint=24, plain=0, even=12, blocks=0)
DARKENED = "hc18_fetal_head"
"""Source whose even patches students darken most."""
Figures = dict[str, float | str]


@dataclass(frozen=True)
class RealImage:
    """An image of a validation subject: its source, and where it looks even."""

    source: str
    image: Grey8
    patches: Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class Trials:
    """All that a network is run over."""

    grounds: Grounds
    scenes: Mapping[str, Sequence[Scene]]
    """By simulator."""
    real: Sequence[RealImage]
    planted: Sequence[planted.Ground]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    trials = _trials(arguments)
    networks = _networks(arguments)
    rows: list[Figures] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(networks) * len(arguments.retain))
        for name, network in networks.items():
            for retain, wide in arguments.retain:
                network.architecture = replace(
                    network.architecture,
                    retain=retain,
                    retain_wide=wide,
                    halvings=arguments.halvings,
                    rim_px=arguments.rim,
                )
                shares = f"{retain:g}/{wide:g}" if wide else f"{retain:g}"
                label = f"{name}, retain {shares}"
                progress.update(task, description=label)
                rows.append({"method": label, **_figures(network, trials)})
                progress.advance(task)
    settings = {
        "lesions": f"of 3 dB, {SIZE.faint} images; share that survives",
        "even, clustered": "95th percentile of 10 px discs where the tissue is the same throughout",
        "scenes": f"{arguments.scenes} a simulator, for decibels and gCNR; seed {SEED}",
        "images": f"{len(trials.real)} of validation subjects",
        "halvings": f"{arguments.halvings}, where speckle is coarse",
        "rim": f"tissue continued by {arguments.rim} px",
    }
    tables = [
        Table("By share retained", _columns(trials), rows),
        Table("In real images", _real_columns(trials), rows),
    ]
    for path in write(arguments.output, "lesion-trade", tables, header("Lesions", settings)):
        print(f"wrote {path}")
    for table in tables:
        print(table.markdown())


def _trials(arguments: argparse.Namespace) -> Trials:
    files = choose(parted(arguments.images).validation, arguments.images, 4)
    images = [middle(read_grey(path), real.LARGEST_SIDE_PX) for path in files]
    shown = [
        RealImage(source_of(path, arguments.images), image, metrics.homogeneous_patches(image))
        for path, image in zip(files, images, strict=True)
    ]
    return Trials(
        Grounds.make(SEED, SIZE),
        {name: SIMULATORS[name](arguments.scenes, SEED) for name in (SPECKLE, ARRAY)},
        shown,
        planted.grounds(images, plantings=2),
    )


def _columns(trials: Trials) -> tuple[str, ...]:
    by_simulator = [f"{name}, {what}" for name in trials.scenes for what in ("gain dB", "gCNR")]
    survive = (f"survive {diameter} px" for diameter in planted.DIAMETERS_PX)
    return ("method", *by_simulator, "even, dB", "clustered, dB", "flicker", *survive)


def _real_columns(trials: Trials) -> tuple[str, ...]:
    if not trials.real:
        return ("method",)
    survive = (f"planted {diameter} px" for diameter in planted.DIAMETERS_PX)
    return ("method", *survive, "ssi", "mean_shift", f"{DARKENED}, shift")


def _figures(network: Student, trials: Trials) -> Figures:
    def method(image: Grey8) -> Grey:
        return despeckled(network, image)

    found: Figures = {}
    for name, scenes in trials.scenes.items():
        outputs = [method(scene.noisy) for scene in scenes]
        gains = [_gain(*pair) for pair in zip(outputs, scenes, strict=True)]
        found[f"{name}, gain dB"] = f"{np.mean(gains):.2f}"
        told_apart = [_gcnrs(*pair) for pair in zip(outputs, scenes, strict=True)]
        found[f"{name}, gCNR"] = f"{mean(value for each in told_apart for value in each):.3f}"
    grounds = trials.grounds
    for label, uniform in (("even", grounds.even), ("clustered", grounds.clustered)):
        outputs = [method(scene.noisy) for scene in uniform]
        found[f"{label}, dB"] = appeared(outputs, uniform)["10 px, dB"]
    cines = [[method(scene.noisy) for scene in scenes] for scenes in grounds.cines]
    found["flicker"] = flicker_reductions(cines, grounds.cines)[FLICKER]
    faint = grounds.lesions[3.0]
    outputs = [method(scene.noisy) for scene in faint]
    for diameter in planted.DIAMETERS_PX:
        found[f"survive {diameter} px"], _ = lesions_kept(outputs, faint, diameter)
    return found | _real_figures(method, trials)


def _real_figures(method: Method, trials: Trials) -> Figures:
    if not trials.real:
        return {}
    measured = [
        (each.source, real.measure(each.image, method(each.image), each.patches))
        for each in trials.real
    ]
    kept = planted.survival(method, trials.planted)
    return {
        **{f"planted {diameter} px": kept[f"{diameter} px"] for diameter in planted.DIAMETERS_PX},
        **{key: mean(found[key] for _, found in measured) for key in ("ssi", "mean_shift")},
        f"{DARKENED}, shift": mean(
            found["mean_shift"] for source, found in measured if source == DARKENED
        ),
    }


def _gain(image: Grey, scene: Scene) -> float:
    target = np.clip(scene.target, 0, 255)
    before, after = (
        metrics.psnr(each, target, data_range=255) for each in (scene.noisy.astype(float), image)
    )
    return after - before


def _gcnrs(image: Grey, scene: Scene) -> list[float]:
    shown = image.round()
    return [
        metrics.gcnr(shown, lesion.mask, lesion.ring)
        for lesion in scene.lesions
        if lesion.diameter_px >= LEAST_DIAMETER_PX
    ]


def _shares(text: str) -> tuple[float, float]:
    """`retain` and `retain_wide`."""
    retain, _, wide = text.partition("/")
    return float(retain), float(wide or 0)


def _networks(arguments: argparse.Namespace) -> dict[str, Student]:
    """Runs and bundles by label."""
    found: dict[str, Student] = {}
    for text in arguments.run:
        label, _, folder = text.partition("=")
        network = runs.load(Path(folder)).network
        if not isinstance(network, Student):
            raise SystemExit(f"{folder}: is no student")
        found[label] = network
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
    parser.add_argument("--images", type=Path, default=default_images())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("out/lesion-trade"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

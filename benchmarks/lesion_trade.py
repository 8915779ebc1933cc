"""What keeping more of faint lesions costs: lesions, false structures and decibels by `--retain`.

Networks are run at every setting over the trials of `model.evaluation.trials`, so that candidates
for a release can be compared here. Classical methods are in the safety protocol.

    python benchmarks/lesion_trade.py --bundle quality --retain 0 0.3 0.1/0.4
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress

from model import bundle as bundles
from model.baselines import Grey
from model.data import VALIDATION_SEED
from model.evaluate import default_images
from model.evaluation import trials
from model.evaluation.safety_grounds import Grey8, Size
from model.evaluation.tables import Table, header, write
from model.evaluation.trials import Trials
from model.student import Student, despeckled
from model.training import runs

SEED = VALIDATION_SEED + 60
SIZE = Size(faint=24, plain=0, even=12, blocks=0)
Row = dict[str, float | str]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    given = Trials.make(SEED, SIZE, arguments.scenes, arguments.images)
    networks = _networks(arguments)
    rows: list[Row] = []
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
                rows.append({"method": label, **_figures(network, given)})
                progress.advance(task)
    settings = {
        **trials.NOTES,
        "gCNR": trials.GCNR_NOTE,
        "images of lesions": SIZE.faint,
        "scenes": f"{arguments.scenes} a simulator, for decibels and gCNR; seed {SEED}",
        "images": f"{len(given.real)} of validation subjects",
        "halvings": f"{arguments.halvings}, where speckle is coarse",
        "rim": f"tissue continued by {arguments.rim} px",
    }
    simulated = ("method", *trials.scene_columns(given), *trials.GROUND_COLUMNS)
    tables = [Table("By share retained", simulated, rows)]
    if given.real:
        tables.append(Table("In real images", ("method", *trials.REAL_COLUMNS), rows))
    for path in write(arguments.output, "lesion-trade", tables, header("Lesions", settings)):
        print(f"wrote {path}")
    for table in tables:
        print(table.markdown())


def _figures(network: Student, given: Trials) -> Row:
    def method(image: Grey8) -> Grey:
        return despeckled(network, image)

    found: Row = {
        key: f"{value:.3f}" if key.endswith("gCNR") else value
        for key, value in trials.on_scenes(method, given).items()
    }
    return found | trials.on_grounds(method, given) | trials.on_real(method, given)


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

"""The student against DnCNN (17x64) at 1024x768, batch 1, on the same CPU cores in one run.

Each network runs in every precision that torch has on this machine, the two taking turns, and is
judged by its best. Prints the ratio, frames a second, and how far the student's best precision
departs from float32. No figure is asserted: clocks differ.

    python benchmarks/student_speed.py [--bundle NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from model.bundle import load
from model.cost import FLOAT32, PRECISIONS, agreement, interleaved, machine, parameters, runner
from model.data import validation_set
from model.dncnn import DnCNN
from model.student import Student


def student(bundle: str | None) -> tuple[nn.Module, str]:
    if bundle is None:
        torch.manual_seed(0)
        return Student(), "untrained architecture"
    return load(bundle).student, f"bundle {bundle}"


def picture(path: Path | None, rows: int, columns: int) -> Tensor:
    if path is None:
        scene = next(iter(validation_set(1)))
        tiled = np.tile(scene.noisy, (rows // scene.noisy.shape[0] + 1, columns // 64 + 1))
        grey = tiled[:rows, :columns]
    else:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L").resize((columns, rows)))
    return torch.from_numpy(np.ascontiguousarray(grey))[None, None].float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bundle", default="quality", help='name or folder; "" is the untrained architecture'
    )
    parser.add_argument("--image", type=Path, help="picture to run on; default: a simulated one")
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="of DnCNN; the student runs more")
    parser.add_argument("--student-turns", type=int, default=8, help="student runs in each round")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    console = Console()
    network, name = student(options.bundle)
    networks = {"DnCNN 17x64": DnCNN().folded(), f"student ({name})": network}
    frame = picture(options.image, options.rows, options.columns)
    contenders: dict[str, Callable[[], object]] = {}
    for label, module in networks.items():
        turns = 1 if label.startswith("DnCNN") else options.student_turns
        for precision in PRECISIONS:
            run = runner(module, precision)
            for turn in range(turns):
                contenders[f"{label}/{precision}/{turn}"] = partial(run, frame)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(contenders) * (options.rounds + 1))
        times = interleaved(
            contenders, rounds=options.rounds, after_each=lambda: progress.advance(task)
        )

    table = Table(title=f"{options.columns}x{options.rows}, batch 1, median of interleaved runs")
    for heading in ("network", "parameters", "precision", "ms", "frames/s"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    best: dict[str, tuple[float, str]] = {}
    for label, module in networks.items():
        for precision in PRECISIONS:
            of_this = [ms for key, ms in times.items() if key.startswith(f"{label}/{precision}/")]
            milliseconds = float(np.median(of_this))
            best[label] = min(best.get(label, (np.inf, "")), (milliseconds, precision))
            table.add_row(
                label,
                f"{parameters(module):,}",
                precision,
                f"{milliseconds:.1f}",
                f"{1000 / milliseconds:.1f}",
            )
    console.print(table)
    (slow, slow_precision), (fast, fast_precision) = best.values()
    same = agreement(runner(network, fast_precision)(frame), runner(network, FLOAT32)(frame))
    console.print(f"machine: {machine()}; torch {torch.__version__}")
    console.print(
        f"student ({fast_precision}) is {slow / fast:.0f} times as fast as DnCNN"
        f" ({slow_precision}): {fast:.1f} ms against {slow:.0f} ms, {1000 / fast:.1f} frames/s"
    )
    console.print(
        f"{fast_precision} against float32: {100 * same:.3f} % of pixels within 1 grey level"
    )


if __name__ == "__main__":
    main()

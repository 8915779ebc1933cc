"""The student against DnCNN (17x64), in every precision and engine, batch 1, in one run.

Of each frame size all contenders take turns on the same cores. The table shows medians, their
ratios to the best of DnCNN and to the student's best in torch, and how many pixels stay within 1
grey level of float32. torch runs in every precision, other engines where they are installed
(`engines.py`). No figure is asserted: clocks differ.

    python benchmarks/student_speed.py [--bundle NAME] [--threads 1] [--sizes 640x480 1024x768]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from engines import available
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from dicom_node.despeckle import fastest
from model.allocator import keep_activations
from model.bundle import load
from model.cost import (
    BFLOAT16,
    FLOAT32,
    PRECISIONS,
    Runner,
    agreement,
    interleaved,
    machine,
    parameters,
    runner,
)
from model.data import validation_set
from model.network.dncnn import DnCNN
from model.student import Student

CALIBRATION_FRAMES = 20
LEAST_AGREEMENT, LEAST_GAIN = 0.999, 1.5
"""What an engine has to reach before the node would take it."""


@dataclass(frozen=True)
class Contender:
    """A network in one precision of one engine."""

    network: str
    way: str
    run: Runner

    @property
    def label(self) -> str:
        """Tells contenders apart."""
        return f"{self.network}/{self.way}"


def student(bundle: str) -> tuple[nn.Module, str]:
    if not bundle:
        torch.manual_seed(0)
        return Student().eval(), "student (untrained)"
    return load(bundle).student, f"student ({bundle})"


def pictures(folder: Path | None) -> list[NDArray[np.uint8]]:
    """Grey images of any size: the folder's, or simulated ones."""
    if folder is None:
        return [scene.noisy for scene in validation_set(CALIBRATION_FRAMES)]
    kinds = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds]
    every = max(1, len(paths) // CALIBRATION_FRAMES)
    return [np.asarray(Image.open(path).convert("L")) for path in paths[::every]]


def frames(images: list[NDArray[np.uint8]], columns: int, rows: int) -> list[Tensor]:
    """The images at one size, (1, 1, rows, columns), 0..1."""
    resized = (np.array(Image.fromarray(image).resize((columns, rows))) for image in images)
    return [torch.from_numpy(image)[None, None].float() / 255 for image in resized]


def contenders(
    network: nn.Module, name: str, inputs: list[Tensor], options: argparse.Namespace
) -> list[Contender]:
    slow = DnCNN().folded()
    # Where bfloat16 is emulated, a single frame of DnCNN would take a minute.
    usable = [p for p in PRECISIONS if fastest("cpu") == "bfloat16" or not p.startswith(BFLOAT16)]
    found = [Contender("DnCNN 17x64", f"torch {p}", runner(slow, p)) for p in usable]
    found += [Contender(name, f"torch {p}", runner(network, p)) for p in PRECISIONS]
    if options.engines:
        found += [
            Contender(name, engine, make(network, inputs[0], options.threads))
            for engine, make in available(inputs).items()
        ]
    return found


def measure(ways: list[Contender], frame: Tensor, rounds: int, console: Console) -> list[float]:
    """Median milliseconds of each contender."""
    turns: dict[str, Callable[[], object]] = {way.label: partial(way.run, frame) for way in ways}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(turns) * (rounds + 1))
        times = interleaved(turns, rounds=rounds, after_each=lambda: progress.advance(task))
    return [times[way.label] for way in ways]


def compare(
    network: nn.Module, name: str, inputs: list[Tensor], options: argparse.Namespace
) -> Table:
    """Measure at the size of the inputs."""
    ways = contenders(network, name, inputs, options)
    times = measure(ways, inputs[0], options.rounds, Console(stderr=True))
    reference = runner(network, FLOAT32)
    dncnn = min(ms for way, ms in zip(ways, times, strict=True) if way.network != name)
    torch_best = min(
        ms
        for way, ms in zip(ways, times, strict=True)
        if way.network == name and way.way.startswith("torch")
    )
    rows, columns = inputs[0].shape[-2:]
    table = Table(title=f"{columns}x{rows}, batch 1, median of {options.rounds} interleaved rounds")
    for heading in ("network", "engine, precision"):
        table.add_column(heading)
    for heading in ("ms", "frames/s", "x DnCNN", "x torch", "within 1 grey level"):
        table.add_column(heading, justify="right")
    for way, ms in zip(ways, times, strict=True):
        ours = way.network == name
        same = np.mean([agreement(way.run(x), reference(x)) for x in inputs]) if ours else np.nan
        pays = ours and torch_best / ms >= LEAST_GAIN and same >= LEAST_AGREEMENT
        table.add_row(
            way.network,
            way.way,
            f"{ms:.1f}",
            f"{1000 / ms:.1f}",
            f"{dncnn / ms:.2f}",
            f"{torch_best / ms:.2f}" if ours else "",
            f"{100 * same:.3f} %" if ours else "",
            style="bold" if pays or (ours and ms == torch_best) else "",
        )
    return table


def size(text: str) -> tuple[int, int]:
    columns, rows = text.split("x")
    return int(columns), int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--bundle", default="quality", help='name or folder; "" is the untrained architecture'
    )
    parser.add_argument("--images", type=Path, help="folder of pictures; default: simulated ones")
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=[(640, 480), (800, 600), (1024, 768)]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-engines", dest="engines", action="store_false", help="torch alone")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    keep_activations()
    network, name = student(options.bundle)
    console = Console()
    console.print(f"machine: {machine()}; torch {torch.__version__}")
    console.print(f"DnCNN: {parameters(DnCNN()):,} parameters; {name}: {parameters(network):,}")
    images = pictures(options.images)
    for columns, rows in options.sizes:
        console.print(compare(network, name, frames(images, columns, rows), options))


if __name__ == "__main__":
    main()

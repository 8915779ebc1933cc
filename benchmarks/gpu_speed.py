"""The node's inference on a GPU: frames a second by frame size, precision and batch, in one run.

A cine of simulated frames goes through the node's own `Despeckler`: to the GPU, through the
network, back, and to 8 bits. The same frames go through it on the CPU, and through DnCNN (17x64) on
the GPU in its best precision, without the measurements that the node makes of a cine. Contenders
take turns; the table shows medians and ratios. No figure is asserted.

    python benchmarks/gpu_speed.py [--bundle quality] [--sizes 640x480 1024x768] [--rounds 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from student_speed import size

from dicom_node.despeckle import Despeckler, fastest
from model.bundle import load
from model.cost import BFLOAT16, BFLOAT16_LAST, interleaved, machine, runner
from model.data import validation_set
from model.network.dncnn import DnCNN

PRECISIONS, BATCHES = ("float32", "bfloat16", "float16"), (1, 4, 16)
FRAMES, FEW, DNCNN_BATCH = 64, 4, 4
CPU, DNCNN = "CPU", "GPU, DnCNN 17x64"
Frames = list[NDArray[np.uint8]]
Way = tuple[str, str, int]
"""Where, precision and frames a batch."""


def cine(columns: int, rows: int) -> Frames:
    """Simulated frames of one size, each another, in a sector that stays where it is."""
    scenes = validation_set(4, side=512)
    tissue = [np.array(Image.fromarray(s.noisy).resize((columns, rows))) for s in scenes]
    row, column = np.mgrid[:rows, :columns]
    sector = np.abs(column - columns / 2) < (0.1 + 0.35 * row / rows) * columns
    shifted = (np.roll(tissue[i % len(tissue)], 7 * i, axis=1) for i in range(FRAMES))
    return [np.where(sector, frame.clip(10), 0).astype(np.uint8) for frame in shifted]


def through(despeckler: Despeckler, frames: Frames) -> None:
    """A cine through the node's inference; its answers come back to the CPU."""
    for _ in despeckler.frames(frames, 1.0):
        pass


def dncnn() -> Callable[[Frames], None]:
    network = runner(DnCNN().folded().cuda(), BFLOAT16_LAST)

    def run(frames: Frames) -> None:
        for start in range(0, len(frames), DNCNN_BATCH):
            grey = torch.from_numpy(np.stack(frames[start : start + DNCNN_BATCH]))[:, None].cuda()
            (255 * network(grey.float() / 255)).round_().clamp_(0, 255).byte().cpu().numpy()

    return run


def compare(bundle_name: str, columns: int, rows: int, rounds: int) -> Table:
    bundle, frames = load(bundle_name), cine(columns, rows)
    cpu = fastest("cpu")
    ways: dict[Way, tuple[Callable[[Frames], None], Frames]] = {
        (CPU, cpu, 1): (partial(through, Despeckler(bundle, "cpu", cpu)), frames[:FEW]),
        (DNCNN, BFLOAT16, DNCNN_BATCH): (dncnn(), frames[:16]),
    }
    for precision in PRECISIONS:
        for batch in BATCHES:
            despeckler = Despeckler(bundle, "cuda", precision, batch)
            ways["GPU", precision, batch] = partial(through, despeckler), frames
    turns = {str(way): partial(run, given) for way, (run, given) in ways.items()}
    cines = interleaved(turns, rounds=rounds, turn_ms=0)
    times = {way: cines[str(way)] / len(given) for way, (_, given) in ways.items()}
    on_cpu, slow = times[CPU, cpu, 1], times[DNCNN, BFLOAT16, DNCNN_BATCH]
    table = Table(title=f"{columns}x{rows}, {bundle_name}, median of {rounds} interleaved rounds")
    for heading in ("where", "precision"):
        table.add_column(heading)
    for heading in ("batch", "ms a frame", "frames/s", "x CPU", "x DnCNN on the GPU"):
        table.add_column(heading, justify="right")
    for (where, precision, batch), ms in times.items():
        row = (f"{ms:.2f}", f"{1000 / ms:.0f}", f"{on_cpu / ms:.1f}", f"{slow / ms:.1f}")
        table.add_row(where, precision, str(batch), *row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="quality")
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=[(640, 480), (1024, 768), (1920, 1080)]
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "torch sees no CUDA device; install its driver and a CUDA build of torch\n")
    console = Console(width=110)
    console.print(f"{torch.cuda.get_device_name()}; {machine()}; torch {torch.__version__}")
    for columns, rows in options.sizes:
        console.print(compare(options.bundle, columns, rows, options.rounds))


if __name__ == "__main__":
    main()

"""Real tissue before, after, and what was removed: one image of test subjects for each source.

python benchmarks/tissues.py --images ../shared/data/train --more heart=FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import bundle as bundles
from model import figures
from model.evaluation.images import choose, lit, middle, parted, source_of
from model.figures import Tile
from model.images import read_grey


def main() -> None:
    arguments = _arguments()
    bundle = bundles.load(arguments.bundle)
    bands = []
    for name, image in _pictures(arguments):
        after = bundle.apply(image)
        shown = figures.removed(image, after)
        bands.append([Tile(name, image), Tile("after", after), Tile("removed", shown)])
    paired = [
        [tile for band in bands[start : start + arguments.across] for tile in band]
        for start in range(0, len(bands), arguments.across)
    ]
    print(f"wrote {figures.mosaic(paired, arguments.output)}")


def _pictures(arguments: argparse.Namespace) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    files = choose(parted(arguments.images).test, arguments.images, arguments.each)
    named = [(source_of(path, arguments.images), path) for path in files]
    for text in arguments.more:
        name, _, path = text.partition("=")
        named.append((name, Path(path)))
    for name, path in named:
        yield name, middle(lit(read_grey(path)), arguments.side)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("--more", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--bundle", default="quality")
    parser.add_argument("--side", type=int, default=240)
    parser.add_argument("--across", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("out/tissues.png"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

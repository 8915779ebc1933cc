"""Protocol A: multiplicative noise on real images that are taken as clean, as papers do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import figures, metrics
from model.baselines import Grey
from model.data import data_hash
from model.evaluation.contenders import NOISY, TUNING_SEED, Contender, Tuning
from model.evaluation.images import lit, middle, source_of
from model.evaluation.tables import Table, Value, header, mean, write, write_csv
from model.images import read_grey
from model.simulation.multiplicative import LEVELS, add
from model.simulation.scene import Scene

COLUMNS = ("method", "psnr", "gain", "ssim", "mse")
LARGEST_SIDE_PX, TUNING_SIDE_PX = 384, 192
"""Images are cut to the middle of their lit area, so that slow methods finish."""
DETAIL_PX = 224
PICTURE_LEVEL = LEVELS[1]
NOTE = (
    "The reference is the image taken as clean. "
    "Such images hold speckle of their own, and the noise is independent from pixel "
    "to pixel, which speckle is not. A network that does well here has learned to take away the "
    "noise and to keep the speckle. This table only sets methods beside published ones."
)

Figures = dict[str, float]


def scenes(files: Sequence[Path], level: float, *, seed: int, side_px: int) -> list[Scene]:
    """Real images as the reference, and the same with noise.

    Parameters
    ----------
    files : sequence of Path
        Images taken as clean; the noise of each follows from its place in the sequence.
    level : float
        Variance of the noise, see `model.simulation.multiplicative`.
    seed : int
        Of the noise.
    side_px : int
        Largest side of the part that is used.
    """
    found = []
    for index, path in enumerate(files):
        clean = middle(lit(read_grey(path)), side_px)
        rng = np.random.default_rng((seed, index, round(1000 * level)))
        found.append(Scene(add(clean, level, rng), clean.astype(np.float32), path.stem))
    return found


def tuning(files: Sequence[Path], level: float) -> Tuning:
    """Tuning for one level, on images of the training part."""
    return Tuning(
        f"paper v={level:g}",
        f"tuned by PSNR for each level on {len(files)} images of the training part, "
        f"the middle {TUNING_SIDE_PX} px, seed {TUNING_SEED}",
        {"seed": TUNING_SEED, "images": data_hash(list(files)), "side": TUNING_SIDE_PX},
        partial(scenes, files, level, seed=TUNING_SEED, side_px=TUNING_SIDE_PX),
    )


def evaluate(
    contenders: Mapping[float, Sequence[Contender]],
    files: Sequence[Path],
    *,
    root: Path,
    output: Path,
    described: Mapping[str, object],
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Run every contender at every level and write tables and pictures.

    Parameters
    ----------
    contenders : mapping of float to sequence of Contender
        By level, since classical methods are tuned for each; the names are the same in all.
    files : sequence of Path
        Images below `root` that nothing was trained or tuned on.
    root : Path
        Its first-level subfolders are sources.
    output : Path
        Folder.
    described : mapping
        For the head of the document.
    seed : int
        Of the noise.
    advance : callable
        Called after each contender on each image at each level.

    Returns
    -------
    list of Path
        Markdown, CSV files and PNG files.
    """
    found: dict[float, dict[str, list[Figures]]] = {}
    pictures: list[Path] = []
    for level, present in contenders.items():
        found[level] = {contender.name: [] for contender in present}
        for index, scene in enumerate(scenes(files, level, seed=seed, side_px=LARGEST_SIDE_PX)):
            outputs: dict[str, Grey] = {}
            for contender in present:
                outputs[contender.name] = contender.method(scene.noisy)
                found[level][contender.name].append(measure(outputs[contender.name], scene.target))
                advance()
            if index == 0 and level == PICTURE_LEVEL:
                pictures.append(_picture(scene, outputs, output / "paper-methods.png"))
    head = header(
        "Paper: multiplicative noise on images taken as clean",
        {
            **described,
            "images": f"{len(files)} of subjects that the split keeps for tests, the middle "
            f"{LARGEST_SIDE_PX} px of the lit area",
            "noise": f"y = clip(x (1 + sqrt(v) n), 0, 1), n ~ N(0, 1) in every pixel, seed {seed}",
            "input": "; ".join(_input(level, names[NOISY]) for level, names in found.items()),
        },
    )
    documents = write(output, "paper", [*_tables(found), _parameters(contenders)], head)
    per_image = output / "paper-images.csv"
    write_csv(
        per_image,
        ["level", "method", "source", "image", "psnr", "ssim", "mse"],
        [
            {
                "level": level,
                "method": name,
                "source": source_of(path, root),
                "image": path.stem,
                **measured,
            }
            for level, names in found.items()
            for name, images in names.items()
            for path, measured in zip(files, images, strict=True)
        ],
    )
    return [*documents, per_image, *pictures, *_plot(found, output)]


def measure(image: Grey | NDArray[np.uint8], clean: Grey) -> Figures:
    """Every figure of one output: PSNR, SSIM, MSE."""
    return {
        "psnr": metrics.psnr(image, clean, data_range=255),
        "ssim": metrics.ssim(image, clean, data_range=255),
        "mse": metrics.mse(image, clean),
    }


def _input(level: float, images: Sequence[Figures]) -> str:
    values = [measured["psnr"] for measured in images]
    return f"v {level:g}: PSNR {mean(values):.2f} dB ({min(values):.1f} to {max(values):.1f})"


def _row(name: str, names: Mapping[str, Sequence[Figures]]) -> dict[str, Value]:
    row: dict[str, Value] = {"method": name}
    for key in ("psnr", "ssim", "mse"):
        row[key] = mean(measured[key] for measured in names[name])
    row["gain"] = _gain(name, names)
    return row


def _gain(name: str, names: Mapping[str, Sequence[Figures]]) -> float:
    reached = mean(measured["psnr"] for measured in names[name])
    return reached - mean(measured["psnr"] for measured in names[NOISY])


def _tables(found: Mapping[float, Mapping[str, Sequence[Figures]]]) -> list[Table]:
    apart = frozenset({NOISY})
    tables = [
        Table(
            f"Noise of variance {level:g}",
            COLUMNS,
            [_row(name, names) for name in names],
            unranked=apart,
        )
        for level, names in found.items()
    ]
    columns = ["method", *(f"v = {level:g}" for level in found)]
    rows: list[dict[str, Value]] = [
        {
            "method": name,
            **{f"v = {level:g}": _gain(name, names) for level, names in found.items()},
        }
        for name in next(iter(found.values()))
    ]
    return [*tables, Table("PSNR gain in dB by level", columns, rows, [NOTE], unranked=apart)]


def _parameters(contenders: Mapping[float, Sequence[Contender]]) -> Table:
    columns = ["method", *(f"parameters at v = {level:g}" for level in contenders), "source"]
    rows: list[dict[str, Value]] = []
    for versions in zip(*contenders.values(), strict=True):
        settings = [contender.settings for contender in versions]
        rows.append(
            {
                "method": versions[0].name,
                **dict(zip(columns[1:-1], settings, strict=True)),
                "source": versions[0].source,
            }
        )
    return Table("Methods and their parameters", columns, rows)


def _picture(scene: Scene, outputs: Mapping[str, Grey], path: Path) -> Path:
    captions = {
        name: f"{metrics.psnr(image, scene.target, data_range=255):.1f} dB"
        for name, image in outputs.items()
    }
    return figures.comparison(
        middle(scene.noisy, DETAIL_PX),
        {name: _detail(image) for name, image in outputs.items() if name != NOISY},
        path,
        reference=_detail(scene.target),
        captions=captions,
    )


def _detail(image: Grey) -> NDArray[np.uint8]:
    return middle(np.clip(image, 0, 255).round().astype(np.uint8), DETAIL_PX)


def _plot(found: Mapping[float, Mapping[str, Sequence[Figures]]], output: Path) -> list[Path]:
    gains = {
        name: {level: _gain(name, names) for level, names in found.items()}
        for name in next(iter(found.values()))
        if name != NOISY
    }
    shown = {
        name: values for name, values in gains.items() if all(map(math.isfinite, values.values()))
    }
    if not shown:
        return []
    return [
        figures.lines(
            shown,
            output / "paper-gain.png",
            title="PSNR above the noisy input, images taken as clean",
            across="variance of the multiplicative noise",
            unit="dB",
        )
    ]

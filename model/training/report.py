"""The report of a run: what was trained and on what, its curves, and pictures before and after.

Reads what the run wrote, its log and its description, and draws; it trains and measures nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from model.cost import machine
from model.figures import Tile, mosaic, removed
from model.simulation.scene import Scene
from model.training import logs
from model.training.recipe import flat

mpl.use("Agg")
from matplotlib import pyplot as plt

Grey = NDArray[np.uint8]
Despeckle = Callable[[Grey], Grey]

DESCRIPTION = "run.json"
REPORT = "report.md"
RATE, MINUTES = "train/rate", "train/minutes"
_ACROSS, _MOST_IMAGES = 3, 6
_SIDE = 320
"""Pictures are cut to their middle of this size, so that speckle is seen pixel for pixel."""

_TITLES = {
    "train": "Training",
    "val": "Validation",
    "shortfall": "Shortfalls that the controller sees",
    "weight": "Weights of the loss terms",
}
_TOGETHER = frozenset({"shortfall", "weight"})
"""Groups of figures that share one plot."""


def write(
    folder: Path,
    despeckle: Despeckle,
    scenes: Sequence[Scene] = (),
    images: Mapping[str, Grey] | None = None,
) -> Path:
    """Write ``report.md`` and its pictures into the folder of a run.

    Parameters
    ----------
    folder : Path
        Of the run; holds its log and ``run.json``. What is missing there, the report leaves out.
    despeckle : callable
        The trained network: (rows, columns), uint8 to the same.
    scenes : sequence of Scene
        Simulated ones to show; the first few are taken.
    images : mapping of str to ndarray, (rows, columns), uint8
        Real ones to show, that were not trained on, by caption; the first few are taken.

    Returns
    -------
    Path
        The Markdown document.
    """
    rows = logs.read(folder / logs.FILE)
    parts = [_settings(folder, rows)]
    if rows:
        parts += [_summary(rows), *curves(rows, folder)]
    simulated = [_simulated(scene, despeckle) for scene in scenes[:_MOST_IMAGES]]
    if simulated:
        mosaic(simulated, folder / "scenes.png")
        parts.append(_section("Simulated scenes", "scenes.png", "Never trained on."))
    real = [_real(*item, despeckle) for item in list((images or {}).items())[:_MOST_IMAGES]]
    if real:
        mosaic(real, folder / "images.png")
        note = "Of subjects that were not trained on. No clean image of them exists."
        parts.append(_section("Real images", "images.png", note))
    document = folder / REPORT
    document.write_text("\n".join(parts), encoding="utf-8")
    return document


def curves(rows: Sequence[Mapping[str, float]], folder: Path) -> list[str]:
    """Draw every logged figure against the step, a picture for each group of them.

    The group is what comes before the slash. Weights of loss terms share one plot, as do
    shortfalls; the others have one each.

    Returns
    -------
    list of str
        A Markdown section for each picture.
    """
    names = sorted({name for row in rows for name in row} - {logs.STEP, MINUTES, "epoch"})
    sections = []
    groups = {name.partition("/")[0] for name in names}
    for group in [*_TITLES, *sorted(groups - set(_TITLES))]:
        members = [name for name in names if name.startswith(f"{group}/")]
        if members:
            plots = [members] if group in _TOGETHER else [[name] for name in members]
            _draw(rows, plots, folder / f"curves-{group}.png")
            sections.append(_section(_TITLES.get(group, group), f"curves-{group}.png"))
    return sections


def _draw(rows: Sequence[Mapping[str, float]], plots: list[list[str]], path: Path) -> None:
    across = min(_ACROSS, len(plots))
    down = math.ceil(len(plots) / across)
    figure, grid = plt.subplots(
        down, across, figsize=(4.2 * across, 2.8 * down), layout="constrained", squeeze=False
    )
    for axes, names in zip(grid.flat, plots, strict=False):
        for name in names:
            steps, values = _series(rows, name)
            axes.plot(steps, values, label=name.partition("/")[2], marker="." * (len(steps) == 1))
        if len(names) > 1:
            axes.legend(fontsize=7)
        else:
            axes.set_title(names[0], fontsize=9)
        if names[0].startswith("train/") and names[0] != RATE and _all_positive(rows, names[0]):
            axes.set_yscale("log")
        axes.tick_params(labelsize=7)
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(plots) :]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _series(
    rows: Sequence[Mapping[str, float]], name: str
) -> tuple[Sequence[float], Sequence[float]]:
    found = [(row[logs.STEP], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]


def _all_positive(rows: Sequence[Mapping[str, float]], name: str) -> bool:
    return min(_series(rows, name)[1]) > 0


def _settings(folder: Path, rows: Sequence[Mapping[str, float]]) -> str:
    """Title, and where the run came from."""
    path = folder / DESCRIPTION
    described: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    recipe: dict[str, Any] = described.get("recipe", {})
    minutes = max((row[MINUTES] for row in rows if MINUTES in row), default=math.nan)
    facts = {
        "steps": f"{int(rows[-1][logs.STEP]) + 1:,}" if rows else "",
        "minutes": f"{minutes:.0f}" if math.isfinite(minutes) else "",
        "machine": described.get("machine") or machine(),
        "seed": recipe.get("seed", ""),
        "parameters": f"{described['parameters']:,}" if "parameters" in described else "",
        "real images": described.get("images", ""),
        "SHA-256 of the images": described.get("data_sha256", ""),
        "commit": described.get("commit", ""),
        "torch": described.get("torch", ""),
    }
    lines = [f"# {recipe.get('name', folder.name)}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if value != ""]
    if recipe:
        lines += ["", "| recipe key | value |", "|---|---|"]
        lines += [f"| `{key}` | `{json.dumps(value)}` |" for key, value in flat(recipe)]
    return "\n".join([*lines, ""])


def _summary(rows: Sequence[Mapping[str, float]]) -> str:
    """First, best and last of every validation figure; neither sign is better for a shift."""
    names = sorted({name for row in rows for name in row if name.startswith("val/")})
    if not names:
        return ""
    lines = ["| figure | first | lowest | highest | last |", "|---|---:|---:|---:|---:|"]
    for name in names:
        values = _series(rows, name)[1]
        shown = (values[0], min(values), max(values), values[-1])
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    return "\n".join([*lines, ""])


def _section(title: str, picture: str, note: str = "") -> str:
    return "\n".join(
        [f"## {title}", "", *([note, ""] if note else []), f"![{title}]({picture})", ""]
    )


def _simulated(scene: Scene, despeckle: Despeckle) -> list[Tile]:
    output = despeckle(scene.noisy)
    gain = _psnr(output, scene.target) - _psnr(scene.noisy, scene.target)
    return [
        Tile(f"before: {scene.name}", _middle(scene.noisy)),
        Tile(f"after: {gain:+.1f} dB", _middle(output)),
        Tile("reference", _middle(scene.target)),
        Tile("removed", _middle(removed(scene.noisy, output))),
        Tile("speckle", _middle(removed(scene.noisy, scene.target))),
    ]


def _real(caption: str, image: Grey, despeckle: Despeckle) -> list[Tile]:
    output = despeckle(image)
    return [
        Tile(f"before: {caption}", _middle(image)),
        Tile("after", _middle(output)),
        Tile("removed", _middle(removed(image, output))),
    ]


def _psnr(image: NDArray[Any], target: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of 8-bit levels, dB."""
    error = np.mean((image.astype(np.float64) - np.clip(target, 0, 255)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _middle(image: NDArray[Any]) -> NDArray[Any]:
    top, left = (max(0, (length - _SIDE) // 2) for length in image.shape)
    return image[top : top + _SIDE, left : left + _SIDE]

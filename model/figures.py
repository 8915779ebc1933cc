"""Pictures of an evaluation: mosaics pixel for pixel, bars, and quality against cost.

Mosaics are assembled without resampling, so that what is seen is what a method gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

mpl.use("Agg")
from matplotlib import pyplot as plt

Picture = NDArray[Any]
CAPTION_PX, GAP_PX = 22, 6
PAPER, INK = 255, 20
LABEL_STEP_POINTS = 4
REMOVED_MIDDLE = 128.0
"""Grey that stands for nothing removed."""


@dataclass(frozen=True)
class Tile:
    """One picture with its caption.

    Parameters
    ----------
    caption : str
        Above the picture.
    picture : ndarray, (rows, columns)
        Grey levels 0 to 255.
    """

    caption: str
    picture: Picture


def removed(noisy: Picture, image: Picture) -> Picture:
    """What a method took away, around middle grey, unscaled and clipped to 0..255."""
    difference = noisy.astype(np.float64) - image.astype(np.float64)
    return np.clip(difference + REMOVED_MIDDLE, 0, 255).round().astype(np.uint8)


def mosaic(bands: Sequence[Sequence[Tile]], path: Path) -> Path:
    """Write tiles, one band a row, as a PNG.

    Parameters
    ----------
    bands : sequence of sequence of Tile
        At least one tile; tiles may differ in size.
    path : Path
        Written; its folder is made.
    """
    widths = [sum(t.picture.shape[1] + GAP_PX for t in band) + GAP_PX for band in bands]
    heights = [max(t.picture.shape[0] for t in band) + CAPTION_PX + GAP_PX for band in bands]
    sheet = Image.new("L", (max(widths), sum(heights) + GAP_PX), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    top = GAP_PX
    for band, height in zip(bands, heights, strict=True):
        left = GAP_PX
        for tile in band:
            columns = tile.picture.shape[1]
            caption = _fitting(tile.caption, columns, pen, font)
            pen.text((left, top), caption, fill=INK, font=font)
            pixels = np.clip(tile.picture.astype(np.float64), 0, 255).round().astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (left, top + CAPTION_PX))
            left += columns + GAP_PX
        top += height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def comparison(
    noisy: Picture,
    outputs: Mapping[str, Picture],
    path: Path,
    *,
    reference: Picture | None = None,
    captions: Mapping[str, str] | None = None,
    across: int = 6,
) -> Path:
    """Write before, after and removed for every method.

    Parameters
    ----------
    noisy : ndarray, (rows, columns)
        The input.
    outputs : mapping of str to ndarray, (rows, columns)
        Output of each method.
    path : Path
        PNG to write.
    reference : ndarray, optional
        The expected image; shown first, with what is truly to be removed.
    captions : mapping of str to str, optional
        More to say of a method, such as its PSNR.
    across : int
        Pictures side by side.
    """
    more = captions or {}
    columns = [(Tile("before", noisy), Tile("nothing removed", removed(noisy, noisy)))]
    if reference is not None:
        columns.append(
            (Tile("reference", reference), Tile("to be removed", removed(noisy, reference)))
        )
    columns += [
        (
            Tile(f"{name} {more.get(name, '')}".strip(), image),
            Tile("removed", removed(noisy, image)),
        )
        for name, image in outputs.items()
    ]
    bands: list[list[Tile]] = []
    for start in range(0, len(columns), across):
        part = columns[start : start + across]
        bands += [[upper for upper, _ in part], [lower for _, lower in part]]
    return mosaic(bands, path)


def bars(values: Mapping[str, float], path: Path, *, title: str, unit: str) -> Path:
    """Write a horizontal bar for each method, the largest at the top."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(ordered) + 1.2), layout="constrained")
    colours = [_colour(name) for name, _ in ordered]
    drawn = axes.barh([name for name, _ in ordered], [v for _, v in ordered], color=colours)
    axes.bar_label(drawn, fmt="%.2f", padding=3)
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def lines(
    series: Mapping[str, Mapping[float, float]], path: Path, *, title: str, across: str, unit: str
) -> Path:
    """Write a line for each method.

    Parameters
    ----------
    series : mapping of str to mapping of float to float
        For each method its values by what the horizontal axis shows.
    path : Path
        PNG to write.
    title, across, unit : str
        Heading and labels of the horizontal and the vertical axis.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, values) in enumerate(series.items()):
        networks = name.startswith("student")
        axes.plot(
            list(values),
            list(values.values()),
            marker="os^Dvx"[index % 6],
            linewidth=2.2 if networks else 1.2,
            label=name,
        )
    axes.set_xlabel(across)
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    return _saved(figure, path)


def pareto(
    points: Mapping[str, tuple[float, float]], path: Path, *, title: str, quality: str
) -> Path:
    """Write quality against milliseconds, a labelled point for each method.

    Parameters
    ----------
    points : mapping of str to (float, float)
        Milliseconds a frame (above 0) and quality, higher better.
    path : Path
        PNG to write.
    title, quality : str
        Heading and label of the vertical axis.
    """
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    front = _front(points)
    axes.step(
        [ms for ms, _ in front], [value for _, value in front], where="post", color="0.8", zorder=1
    )
    axes.set_xscale("log")
    labels = []
    for name, (milliseconds, value) in points.items():
        axes.scatter(milliseconds, value, s=55, color=_colour(name), zorder=2)
        labels.append(
            axes.annotate(name, (milliseconds, value), xytext=(6, 5), textcoords="offset points")
        )
    axes.set_xlabel("ms a frame, this machine (log scale)")
    axes.set_ylabel(quality)
    axes.set_title(title)
    axes.margins(x=0.15, y=0.1)
    axes.grid(which="major", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    _set_apart(figure, labels)
    return _saved(figure, path)


def _set_apart(figure: Any, labels: Sequence[Any]) -> None:
    """Move labels down until none lies over another."""
    figure.canvas.draw()
    placed: list[Any] = []
    for label in labels:
        while any(label.get_window_extent().overlaps(other) for other in placed):
            across, up = label.get_position()
            label.set_position((across, up - LABEL_STEP_POINTS))
        placed.append(label.get_window_extent())


def _front(points: Mapping[str, tuple[float, float]]) -> list[tuple[float, float]]:
    front: list[tuple[float, float]] = []
    for milliseconds, value in sorted(points.values()):
        if not front or value > front[-1][1]:
            front.append((milliseconds, value))
    return front


def _colour(name: str) -> str:
    return "#c2410c" if name.startswith("student") else "#64748b"


def _fitting(text: str, columns: int, pen: ImageDraw.ImageDraw, font: Any) -> str:
    while len(text) > 1 and pen.textlength(text, font=font) > columns:
        text = text[:-1]
    return text


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path

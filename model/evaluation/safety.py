"""Protocol E: what despeckling may take away, and what it may put there that is not.

Faint lesions must stay, nothing may appear in even speckle, brightness must not move, the output
must not depend on where the image lies on a network's grid, a still tissue must not flicker, text
and thin lines must stay as they are, and strength 0 must be the input itself. Colour is the node's
own duty: no method here sees any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model import figures
from model.baselines import Grey
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.safety_grounds import (
    BRIGHTNESS_DB,
    CLUSTERS_DB,
    CLUSTERS_PX,
    DIAMETERS_PX,
    LINE_WIDTHS_PX,
    Grey8,
    Grounds,
)
from model.evaluation.safety_measures import (
    DISCS_PX,
    FLICKER,
    LESIONS_TOLD,
    NOTHING_TOLD,
    PERIODS_PX,
    RARELY,
    STANDS_OUT_DB,
    STROKE_LENGTH_PX,
    TEXT_CHANGE_GREY,
    TOLD_FROM_PX,
    TOLD_OVER_CHANCE,
    Figures,
    appeared,
    brightness_shifts,
    drawing_changes,
    flicker_reductions,
    identity_at_zero,
    lesions_kept,
    shift_differences,
    told_apart,
)
from model.evaluation.tables import Table, Value, header, write
from model.simulation.scene import Scene

ACROSS = 6
"""Pictures side by side."""
CLUSTERED = "clustered, "
_CLUSTERS = ", ".join(f"{length:g}" for length in CLUSTERS_PX)
STANDING_OUT = (
    *(f"{diameter} px, {unit}" for diameter in DISCS_PX for unit in ("dB", "%")),
    "stroke, dB",
    "stroke, %",
)
FAINT_DB = 3.0
"""Contrast of the lesions that are to be told apart."""
GROUPS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        f"Lesions of {FAINT_DB:g} dB told apart",
        (LESIONS_TOLD, NOTHING_TOLD, TOLD_OVER_CHANCE),
        (
            f"gCNR of whole grey levels: of lesions of {TOLD_FROM_PX} px and more, of the same "
            "places in even tissue, and what lies between. In few grains two areas differ by "
            "chance, and a method decides how many of them are independent: gCNR alone favours "
            "those that leave grains coarse."
        ),
    ),
    (
        "Structures in even speckle",
        STANDING_OUT,
        (
            "How far a disc of this size stands out of its ring where the tissue is even: the "
            f"95th percentile, and the share of places above {STANDS_OUT_DB:g} dB. The same for "
            f"the most conspicuous of strokes of {STROKE_LENGTH_PX} px in any direction."
        ),
    ),
    (
        "The rarest of these structures",
        (*(f"{diameter} px, {RARELY}" for diameter in DISCS_PX), f"stroke, {RARELY}"),
        (
            "What one place in a thousand stands out by: a method that decides is seldom wrong, "
            "but plainly."
        ),
    ),
    (
        "Structures where scatterers gather in clusters",
        tuple(f"{CLUSTERED}{key}" for key in STANDING_OUT),
        (
            f"As in even speckle; the tissue is the same throughout, but its scatterers' power "
            f"spreads by {CLUSTERS_DB:g} dB, over {_CLUSTERS} px. A method that despeckles keeps "
            "some of that; one that sees structures in it invents them."
        ),
    ),
    (
        "Mean shift by brightness",
        (*(f"{level:g} dB" for level in BRIGHTNESS_DB), "largest"),
        "Grey levels, output minus input, over even tissue; 0 dB is ordinary tissue.",
    ),
    (
        "Shifts, flicker, strength",
        (
            "shift, RMS",
            "shift, largest",
            *(f"grid {period}" for period in PERIODS_PX),
            FLICKER,
            f"{FLICKER}, least",
            "strength 0 is the input",
        ),
        (
            "Shifts: grey levels between outputs of an image shifted by 0 to 3 pixels on each "
            "axis, laid over one another. Grid: spread over the shifts of a period. Flicker: of "
            "still tissues under fresh speckle, mean of the tissues and the least of them. "
            "Strength 0: 1 where a network then returns its input bit for bit."
        ),
    ),
    (
        "Text and thin lines",
        (
            "text changed, %",
            "text moved, grey",
            *(
                f"{width:g} px line, {what}"
                for width in LINE_WIDTHS_PX
                for what in ("wider px", "peak kept")
            ),
        ),
        (
            f"Burned into speckle. Text is changed where it moved by more than "
            f"{TEXT_CHANGE_GREY:g} grey levels; the node protects it apart from the method. A line "
            "that is gone has no width, and counts in its peak alone."
        ),
    ),
)
"""Title, columns and note of the tables that need no reference to lesions."""


@dataclass(frozen=True)
class Judged:
    """What one method did on all grounds.

    Attributes
    ----------
    survival, contrast : dict of (float, float) to float
        Share of the lesions that survive, and share of their contrast that is kept, by contrast
        in dB and diameter in pixels.
    figures : dict of str to float
        All others, by the heading of their column.
    pictures : list of ndarray, (rows, columns)
        Output on even speckle, on the widest clusters of scatterers and on faint lesions.
    """

    survival: dict[tuple[float, float], float]
    contrast: dict[tuple[float, float], float]
    figures: Figures
    pictures: list[Grey]


def evaluate(
    contenders: Sequence[Contender],
    *,
    grounds: Grounds,
    output: Path,
    described: Mapping[str, object],
    advance: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Try every contender on the same grounds and write tables, a picture and a plot.

    Parameters
    ----------
    contenders : sequence of Contender
        The noisy input among them.
    grounds : Grounds
    output : Path
        Folder for tables and pictures.
    described : mapping of str to object
        What the head of the document says of the run.
    advance : callable
        Called after each of the `turns` of each contender.

    Returns
    -------
    list of Path
        The Markdown first.
    """
    judged = {each.name: judge(each, grounds, advance) for each in contenders}
    counts = {contrast: len(scenes) for contrast, scenes in grounds.lesions.items()}
    head = header(
        "Safety: what is lost, and what appears",
        {**described, "images": f"{grounds.turns}, lesions in {counts} of them, display 60 dB"},
    )
    documents = write(output, "safety", tables(judged, grounds), head)
    return [*documents, _picture(judged, grounds, output), _plot(judged, grounds, output)]


def turns(contenders: Sequence[Contender], grounds: Grounds) -> int:
    """How often `evaluate` calls `advance`: once an image, and once for all shifts."""
    return len(contenders) * (grounds.turns + 1)


def judge(
    contender: Contender, grounds: Grounds, advance: Callable[[], object] = lambda: None
) -> Judged:
    """Try one method on all grounds."""

    def run(scenes: Sequence[Scene]) -> list[Grey]:
        return [run_one(scene.noisy) for scene in scenes]

    def run_one(image: Grey8) -> Grey:
        result = contender.method(image)
        advance()
        return result

    survival: dict[tuple[float, float], float] = {}
    kept: dict[tuple[float, float], float] = {}
    pictures = []
    faint: list[Grey] = []
    for contrast, scenes in grounds.lesions.items():
        outputs = run(scenes)
        if contrast == FAINT_DB:
            faint = outputs
        pictures.append(outputs[0])
        for diameter in DIAMETERS_PX:
            key = contrast, diameter
            survival[key], kept[key] = lesions_kept(outputs, scenes, diameter)
    even, clustered = run(grounds.even), run(grounds.clustered)
    lumps = appeared(clustered, grounds.clustered)
    found = {
        **told_apart(faint, grounds.lesions.get(FAINT_DB, []), even),
        **appeared(even, grounds.even),
        **{f"{CLUSTERED}{key}": value for key, value in lumps.items()},
        **brightness_shifts(run(grounds.blocks), grounds.blocks),
        **flicker_reductions([run(scenes) for scenes in grounds.cines], grounds.cines),
        **drawing_changes(run_one(grounds.drawn.image), grounds.drawn),
        **shift_differences(contender.method, grounds.shifted),
        "strength 0 is the input": identity_at_zero(contender),
    }
    advance()
    return Judged(survival, kept, found, [even[0], clustered[-1], pictures[0]])


def tables(judged: Mapping[str, Judged], grounds: Grounds) -> list[Table]:
    """All tables of the document."""
    found: list[Table] = []
    for contrast, scenes in grounds.lesions.items():
        sizes = [lesion.diameter_px for scene in scenes for lesion in scene.lesions]
        fewest = min(sizes.count(diameter) for diameter in DIAMETERS_PX)
        found += [
            _by_diameter(
                f"Lesions of {contrast:g} dB that survive",
                {name: each.survival for name, each in judged.items()},
                contrast,
                "Share that keeps its sign and half of its contrast in the reference, brighter and "
                f"darker ones alike, at least {fewest} a size (a standard error of "
                f"{_standard_error(fewest):.3f} at most), against tissue up to 5 px beyond the "
                "edge. In the speckled input itself some are lost to chance.",
            ),
            _by_diameter(
                f"Contrast kept by lesions of {contrast:g} dB",
                {name: each.contrast for name, each in judged.items()},
                contrast,
                "Sum of the lesions' contrasts over that in the reference; 1 is ideal.",
            ),
        ]
    found += [
        Table(
            title,
            ["method", *columns],
            [{"method": name, **_some(each.figures, columns)} for name, each in judged.items()],
            [note],
        )
        for title, columns, note in GROUPS
    ]
    return found


def _standard_error(count: int) -> float:
    """Of a share of one half, where it is largest."""
    return 0.5 / math.sqrt(count) if count else math.nan


def _by_diameter(
    title: str,
    values: Mapping[str, Mapping[tuple[float, float], float]],
    contrast: float,
    note: str,
) -> Table:
    rows: list[dict[str, Value]] = [
        {"method": name, **{f"{d} px": found.get((contrast, d)) for d in DIAMETERS_PX}}
        for name, found in values.items()
    ]
    return Table(title, ["method", *(f"{d} px" for d in DIAMETERS_PX)], rows, [note])


def _some(found: Figures, columns: Sequence[str]) -> dict[str, Value]:
    return {column: found.get(column) for column in columns}


def _picture(judged: Mapping[str, Judged], grounds: Grounds, output: Path) -> Path:
    """What `Judged.pictures` shows: before, reference, and after each method."""
    contrast, lesions = next(iter(grounds.lesions.items()))
    bands = []
    for index, (title, scene) in enumerate(
        (
            ("even tissue", grounds.even[0]),
            ("clustered scatterers", grounds.clustered[-1]),
            (f"{contrast:g} dB", lesions[0]),
        )
    ):
        tiles = [
            figures.Tile(f"{title}: before", scene.noisy),
            figures.Tile("reference", scene.target),
        ]
        tiles += [
            figures.Tile(name, each.pictures[index])
            for name, each in judged.items()
            if name != NOISY
        ]
        bands += [tiles[start : start + ACROSS] for start in range(0, len(tiles), ACROSS)]
    return figures.mosaic(bands, output / "safety-pictures.png")


def _plot(judged: Mapping[str, Judged], grounds: Grounds, output: Path) -> Path:
    contrast = next(iter(grounds.lesions))
    series = {
        name: {float(d): each.survival.get((contrast, d), math.nan) for d in DIAMETERS_PX}
        for name, each in judged.items()
    }
    return figures.lines(
        series,
        output / "safety-survival.png",
        title=f"Lesions of {contrast:g} dB that keep their sign and half of their contrast",
        across="diameter, pixels",
        unit="share of the lesions",
    )

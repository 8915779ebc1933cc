"""Protocol B: simulated scenes whose speckle-free expectation is known exactly."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import figures, metrics
from model.baselines import Grey
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.remembered import timed
from model.evaluation.tables import Table, Value, header, mean, write, write_csv
from model.metrics.fidelity import MS_SSIM_MINIMUM_PX
from model.simulation.phantoms import Lesion
from model.simulation.scene import Scene

FIDELITY = ("psnr", "gain", "ssim", "ms_ssim", "gmsd", "fsim", "edge_preservation", "milliseconds")
THIN = ("line_width", "point_width")
"""Only where a scene is labelled with lines or points."""
TISSUE = (
    "gcnr",
    "gcnr_shown",
    "contrast_error",
    "survival",
    "false_structures",
    "edge_strength",
    "edge_width",
    *THIN,
    "mean_shift",
    "largest_shift",
)
COLUMNS = ("method", *FIDELITY, *TISSUE)
COMPARED = ("psnr", "gcnr", "gcnr_shown", "survival")
"""Figures that a shipped student is held against each other method by, scene by scene."""
REFERENCE = "reference"
FIDELITY_NOTE = "PSNR and gain are means over scenes, of whole images."
NOTE = (
    "gCNR and edge width are of lesions of 10 px and more. gCNR asks whether a lesion can be told "
    "apart, not how much of its contrast is left, and counts fractions of a grey level as well, "
    "which a display of 8 bits has not: read it beside contrast error and survival. The "
    "reference row judges the expectation itself: no method can honestly show sharper edges or "
    "more contrast."
)
DIFFERENCES_NOTE = (
    "Mean difference over the scenes and its 95 % interval (normal approximation). A difference "
    "within the interval is chance."
)
DETECTABLE_PX = 10.0
"""Least diameter of a lesion that has pixels enough for a histogram."""
FALSE_STRUCTURE_GREY = 4.25
"""1 dB on a display of 60 dB."""

Figures = dict[str, float]
Survival = dict[tuple[float, float], list[float]]


@dataclass
class Judged:
    """What the contenders reached on the scenes of one simulator, or of several.

    Attributes
    ----------
    figures : dict of str to list
        By contender, and for the reference, the figures of each scene.
    survival : dict of str to dict
        By contender, which lesions survived, by contrast and size.
    pictures : list of Path
        Written on the way.
    """

    figures: dict[str, list[Figures]] = field(default_factory=dict)
    survival: dict[str, Survival] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def add(self, other: Judged) -> None:
        """Take in what was found on other scenes."""
        for name, found in other.figures.items():
            self.figures.setdefault(name, []).extend(found)
        for name, survival in other.survival.items():
            mine = self.survival.setdefault(name, {})
            for key, outcomes in survival.items():
                mine.setdefault(key, []).extend(outcomes)
        self.pictures += other.pictures


def judge(
    contenders: Sequence[Contender],
    scenes: Iterable[Scene],
    *,
    output: Path,
    name: str = "physics",
    pictures: int = 4,
    advance: Callable[[], object] = lambda: None,
) -> Judged:
    """Run every contender over the same scenes; write a picture of the first few.

    Parameters
    ----------
    contenders : sequence of Contender
        The noisy input among them.
    scenes : iterable of Scene
        With their references.
    output : Path
        Folder for pictures.
    name : str
        How their file names start.
    pictures : int
        Scenes that get one.
    advance : callable
        Called after each contender on each scene.
    """
    judged = Judged({c.name: [] for c in contenders}, {c.name: {} for c in contenders})
    judged.figures[REFERENCE] = []
    for index, scene in enumerate(scenes):
        judged.figures[REFERENCE].append(measure(scene.target, scene))
        outputs: dict[str, Grey] = {}
        for contender in contenders:
            outputs[contender.name], elapsed = timed(contender.method, scene.noisy)
            found = measure(outputs[contender.name], scene)
            found["milliseconds"] = math.nan if contender.name == NOISY else elapsed
            judged.figures[contender.name].append(found)
            _add_survival(judged.survival[contender.name], outputs[contender.name], scene)
            advance()
        if index < pictures:
            judged.pictures.append(_picture(scene, outputs, output / f"{name}-{scene.name}.png"))
    return judged


def document(
    judged: Judged,
    settings: Mapping[str, Sequence[Contender]],
    *,
    output: Path,
    described: Mapping[str, object],
    name: str = "physics",
) -> list[Path]:
    """Write tables and plots of what was found.

    Parameters
    ----------
    judged : Judged
        From `judge`.
    settings : mapping of str to sequence of Contender
        Contenders as they were tuned for each simulator, for the table of parameters.
    output : Path
        Folder.
    described : mapping
        For the head of the document.
    name : str
        Of the document; all file names start with it.

    Returns
    -------
    list of Path
        Markdown, CSV files and PNG files.
    """
    names = [method for method in judged.figures if method != REFERENCE]
    rows = [summary(method, judged.figures) for method in [*names, REFERENCE]]
    head = header("Physics: simulated scenes with an exact reference", described)
    shipped = [c.name for c in next(iter(settings.values()), ()) if c.shipped]
    tables = [
        *_tables(rows, judged.survival),
        *(differences(one, judged.figures) for one in shipped),
        *_parameters(settings),
    ]
    documents = write(output, name, tables, head)
    per_scene = output / f"{name}-scenes.csv"
    _write_scenes(per_scene, judged.figures)
    return [*documents, per_scene, *judged.pictures, *_plots(rows, output, name)]


def measure(image: Grey, scene: Scene) -> Figures:
    """Every figure of one output on one scene; `nan` where a scene has no place for a figure."""
    target, inside = scene.target, scene.labels.get("inside")
    homogeneous = scene.labels.get("background")
    large = [lesion for lesion in scene.lesions if lesion.diameter_px >= DETECTABLE_PX]
    figures_found: Figures = {
        "psnr": metrics.psnr(image, target, data_range=255),
        "ssim": metrics.ssim(image, target, data_range=255),
        "gmsd": metrics.gmsd(image, target, data_range=255),
        "fsim": metrics.fsim(image, target, data_range=255),
        "edge_strength": metrics.edge_strength(image, target),
        "edge_preservation": metrics.edge_preservation_index(image, target),
        "mean_shift": metrics.mean_shift(target, image, inside),
        "gcnr": mean(metrics.gcnr(image, lesion.mask, lesion.ring) for lesion in large),
        "gcnr_shown": mean(
            metrics.gcnr(np.rint(image), lesion.mask, lesion.ring) for lesion in large
        ),
        "contrast_error": mean(
            metrics.contrast_error(image, target, lesion.mask, lesion.ring)
            for lesion in scene.lesions
        ),
        "edge_width": mean(metrics.edge_width(image, lesion.mask) for lesion in large),
        "survival": metrics.lesion_survival(image, target, scene.lesions),
    }
    for key, label in zip(THIN, ("lines", "points"), strict=True):
        if label in scene.labels:
            figures_found[key] = metrics.thin_width(image, scene.labels[label])
    if min(image.shape) >= MS_SSIM_MINIMUM_PX:
        figures_found["ms_ssim"] = metrics.ms_ssim(image, target, data_range=255)
    if homogeneous is not None and homogeneous.any():
        figures_found["largest_shift"] = metrics.mean_shift(target, image, homogeneous)
        figures_found["false_structures"] = 100 * metrics.false_structures(
            image, target, homogeneous, threshold=FALSE_STRUCTURE_GREY
        )
    return figures_found


def summary(name: str, figures_of: Mapping[str, Sequence[Figures]]) -> dict[str, Value]:
    """One row: means over scenes, the largest shift, medians of time and edge strength.

    A scene without a single clear edge has a strength of many times the reference's.
    """
    found = figures_of[name]
    row: dict[str, Value] = {"method": name}
    for key in COLUMNS[1:]:
        row[key] = mean(scene.get(key, math.nan) for scene in found)
    row["edge_strength"] = statistics.median(scene["edge_strength"] for scene in found)
    speckled = mean(scene["psnr"] for scene in figures_of[NOISY])
    row["gain"] = mean(scene["psnr"] for scene in found) - speckled
    shifts = [scene.get("largest_shift", math.nan) for scene in found]
    finite = [shift for shift in shifts if math.isfinite(shift)]
    row["largest_shift"] = max(finite, key=abs) if finite else math.nan
    times = [scene["milliseconds"] for scene in found if "milliseconds" in scene]
    row["milliseconds"] = statistics.median(times) if times else math.nan
    return row


def differences(name: str, figures_of: Mapping[str, Sequence[Figures]]) -> Table:
    """How much more one method reaches than each other one, over the scenes that both were given.

    Paired, since scenes differ more than methods do: what lies within the interval is chance.
    """
    others = [other for other in figures_of if other not in (name, NOISY, REFERENCE)]
    rows: list[dict[str, Value]] = []
    for other in others:
        row: dict[str, Value] = {"less": other}
        for key in COMPARED:
            pairs = zip(figures_of[name], figures_of[other], strict=True)
            found = np.array([a.get(key, math.nan) - b.get(key, math.nan) for a, b in pairs])
            row[metrics.COLUMNS[key].label] = _interval(
                found[np.isfinite(found)], metrics.COLUMNS[key].digits
            )
        rows.append(row)
    columns = ["less", *(metrics.COLUMNS[key].label for key in COMPARED)]
    return Table(f"{name}, less each other method", columns, rows, [DIFFERENCES_NOTE])


def _interval(values: NDArray[np.float64], digits: int) -> str:
    """Mean and half of its 95 % interval."""
    if len(values) < 2:  # noqa: PLR2004 one says nothing of the spread
        return "-"
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():+.{digits}f} ± {half:.{digits}f}"


def _tables(
    rows: Sequence[Mapping[str, Value]], survival_of: Mapping[str, Survival]
) -> list[Table]:
    apart = frozenset({NOISY, REFERENCE})
    absent = {key for key in THIN if all(_missing(row[key]) for row in rows)}
    tissue = ("method", *(key for key in TISSUE if key not in absent))
    tables = [
        Table("Fidelity", ("method", *FIDELITY), rows, [FIDELITY_NOTE], unranked=apart),
        Table("Tissue, lesions and edges", tissue, rows, [NOTE], unranked=apart),
    ]
    keys = sorted({key for survival in survival_of.values() for key in survival})
    if keys:
        columns = ["method", *(f"{contrast:g} dB, {size:g} px" for contrast, size in keys)]
        tables.append(
            Table(
                "Lesions that survive, by contrast and diameter",
                columns,
                [
                    {
                        "method": name,
                        **{
                            column: mean(survival.get(key, []))
                            for column, key in zip(columns[1:], keys, strict=True)
                        },
                    }
                    for name, survival in survival_of.items()
                ],
                ("Part of the lesions that keep their sign and half of their contrast.",),
            )
        )
    return tables


def _parameters(settings: Mapping[str, Sequence[Contender]]) -> list[Table]:
    title = "Methods and their parameters"
    return [
        Table(
            title if len(settings) == 1 else f"{title}, {simulator}",
            ["method", "parameters", "source"],
            [{"method": c.name, "parameters": c.settings, "source": c.source} for c in contenders],
        )
        for simulator, contenders in settings.items()
    ]


def _missing(value: Value) -> bool:
    return not isinstance(value, float) or math.isnan(value)


def _add_survival(survival: Survival, image: Grey, scene: Scene) -> None:
    for lesion in scene.lesions:
        key = (abs(lesion.contrast_db), _size_class(lesion))
        survives = metrics.lesion_survives(image, scene.target, lesion)
        survival.setdefault(key, []).append(float(survives))


def _size_class(lesion: Lesion) -> float:
    """Lower edge of the diameter's class: 4, 10, or 20 px and more."""
    return max((edge for edge in (4.0, 10.0, 20.0) if lesion.diameter_px >= edge), default=0.0)


def _picture(scene: Scene, outputs: Mapping[str, Grey], path: Path) -> Path:
    shown = {name: image for name, image in outputs.items() if name != NOISY}
    captions = {
        name: f"{metrics.psnr(image, scene.target, data_range=255):.1f} dB"
        for name, image in shown.items()
    }
    return figures.comparison(
        scene.noisy,
        shown,
        path,
        reference=scene.target,
        captions=captions,
    )


def _plots(rows: Sequence[Mapping[str, Value]], output: Path, name: str) -> list[Path]:
    gains: dict[str, float] = {}
    points: dict[str, tuple[float, float]] = {}
    for row in rows:
        method, gain, milliseconds = str(row["method"]), row["gain"], row["milliseconds"]
        if not isinstance(gain, float) or not isinstance(milliseconds, float):
            continue
        if method not in (NOISY, REFERENCE) and np.isfinite((gain, milliseconds)).all():
            gains[method], points[method] = gain, (milliseconds, gain)
    if not gains:
        return []
    return [
        figures.bars(
            gains, output / f"{name}-gain.png", title="PSNR above the speckled input", unit="dB"
        ),
        figures.pareto(
            points,
            output / f"{name}-pareto.png",
            title="Quality against cost, simulated scenes of 256x256",
            quality="PSNR above the input, dB",
        ),
    ]


def _write_scenes(path: Path, figures_of: Mapping[str, Sequence[Figures]]) -> None:
    rows: list[dict[str, Value]] = [
        {"method": name, "scene": index, **found}
        for name, scenes in figures_of.items()
        for index, found in enumerate(scenes)
    ]
    columns = ["method", "scene", *(key for key in COLUMNS[1:] if key != "gain")]
    write_csv(path, columns, rows)

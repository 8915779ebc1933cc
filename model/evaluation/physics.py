"""Protocol B: simulated scenes whose speckle-free expectation is known exactly."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from model import metrics
from model.baselines import Grey
from model.data import Scene, validation_set
from model.evaluation import figures
from model.evaluation.contenders import NOISY, Contender
from model.evaluation.tables import Table, Value, header, mean, write, write_csv
from model.metrics.fidelity import MS_SSIM_MINIMUM_PX
from model.phantoms import Lesion

FIDELITY = ("psnr", "gain", "ssim", "ms_ssim", "gmsd", "fsim", "edge_preservation", "milliseconds")
TISSUE = (
    "gcnr",
    "contrast_error",
    "survival",
    "false_structures",
    "edge_strength",
    "edge_width",
    "mean_shift",
    "largest_shift",
)
COLUMNS = ("method", *FIDELITY, *TISSUE)
REFERENCE = "reference"
FIDELITY_NOTE = "PSNR and gain are means over scenes, of whole images."
NOTE = (
    "gCNR and edge width are of lesions of 10 px and more. gCNR asks whether a lesion can be told "
    "apart, not how much of its contrast is left: read it beside contrast error and survival. The "
    "reference row judges the expectation itself: no method can honestly show sharper edges or "
    "more contrast."
)
DETECTABLE_PX = 10.0
"""Least diameter of a lesion that has pixels enough for a histogram."""
FALSE_STRUCTURE_GREY = 4.25
"""1 dB on a display of 60 dB."""

Figures = dict[str, float]
Survival = dict[tuple[float, float], list[float]]


def evaluate(
    contenders: Sequence[Contender],
    *,
    count: int,
    seed: int,
    output: Path,
    described: Mapping[str, object],
    pictures: int = 4,
    advance: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Run every contender over the same scenes and write tables and pictures.

    Returns
    -------
    list of Path
        Markdown, CSV files and PNG files.
    """
    figures_of: dict[str, list[Figures]] = {c.name: [] for c in contenders}
    figures_of[REFERENCE] = []
    survival_of: dict[str, Survival] = {c.name: {} for c in contenders}
    written: list[Path] = []
    for index, scene in enumerate(validation_set(count, seed)):
        figures_of[REFERENCE].append(measure(scene.target, scene))
        outputs: dict[str, Grey] = {}
        for contender in contenders:
            start = time.perf_counter()
            outputs[contender.name] = contender.method(scene.noisy)
            elapsed = time.perf_counter() - start
            found = measure(outputs[contender.name], scene)
            found["milliseconds"] = math.nan if contender.name == NOISY else 1000 * elapsed
            figures_of[contender.name].append(found)
            _add_survival(survival_of[contender.name], outputs[contender.name], scene)
            advance()
        if index < pictures:
            written.append(_picture(scene, outputs, output))
    names = [scene_figures for scene_figures in figures_of if scene_figures != REFERENCE]
    rows = [summary(name, figures_of) for name in [*names, REFERENCE]]
    head = header(
        "Physics: simulated scenes with an exact reference",
        {**described, "scenes": f"{count} of 256x256, seed {seed}, procedural and graded lesions"},
    )
    documents = write(output, "physics", _tables(contenders, rows, survival_of), head)
    _write_scenes(output / "physics-scenes.csv", figures_of)
    documents.append(output / "physics-scenes.csv")
    return [*documents, *written, *_plots(rows, output)]


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
        "contrast_error": mean(
            metrics.contrast_error(image, target, lesion.mask, lesion.ring)
            for lesion in scene.lesions
        ),
        "edge_width": mean(metrics.edge_width(image, lesion.mask) for lesion in large),
        "survival": metrics.lesion_survival(image, target, scene.lesions),
    }
    if min(image.shape) >= MS_SSIM_MINIMUM_PX:
        figures_found["ms_ssim"] = metrics.ms_ssim(image, target, data_range=255)
    if homogeneous is not None and homogeneous.any():
        figures_found["largest_shift"] = metrics.mean_shift(target, image, homogeneous)
        figures_found["false_structures"] = 100 * metrics.false_structures(
            image, target, homogeneous, threshold=FALSE_STRUCTURE_GREY
        )
    return figures_found


def summary(name: str, figures_of: Mapping[str, Sequence[Figures]]) -> dict[str, Value]:
    """One row: means over scenes, the largest shift, the median time."""
    found = figures_of[name]
    row: dict[str, Value] = {"method": name}
    for key in COLUMNS[1:]:
        row[key] = mean(scene.get(key, math.nan) for scene in found)
    speckled = mean(scene["psnr"] for scene in figures_of[NOISY])
    row["gain"] = mean(scene["psnr"] for scene in found) - speckled
    shifts = [scene.get("largest_shift", math.nan) for scene in found]
    finite = [shift for shift in shifts if math.isfinite(shift)]
    row["largest_shift"] = max(finite, key=abs) if finite else math.nan
    times = [scene["milliseconds"] for scene in found if "milliseconds" in scene]
    row["milliseconds"] = statistics.median(times) if times else math.nan
    return row


def _tables(
    contenders: Sequence[Contender],
    rows: Sequence[Mapping[str, Value]],
    survival_of: Mapping[str, Survival],
) -> list[Table]:
    apart = frozenset({NOISY, REFERENCE})
    tables = [
        Table("Fidelity", ("method", *FIDELITY), rows, [FIDELITY_NOTE], unranked=apart),
        Table("Tissue, lesions and edges", ("method", *TISSUE), rows, [NOTE], unranked=apart),
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
    tables.append(
        Table(
            "Methods and their parameters",
            ["method", "parameters", "source"],
            [{"method": c.name, "parameters": c.settings, "source": c.source} for c in contenders],
        )
    )
    return tables


def _add_survival(survival: Survival, image: Grey, scene: Scene) -> None:
    for lesion in scene.lesions:
        key = (abs(lesion.contrast_db), _size_class(lesion))
        survives = metrics.lesion_survives(image, scene.target, lesion)
        survival.setdefault(key, []).append(float(survives))


def _size_class(lesion: Lesion) -> float:
    """Lower edge of the diameter's class: 4, 10, or 20 px and more."""
    return max((edge for edge in (4.0, 10.0, 20.0) if lesion.diameter_px >= edge), default=0.0)


def _picture(scene: Scene, outputs: Mapping[str, Grey], output: Path) -> Path:
    shown = {name: image for name, image in outputs.items() if name != NOISY}
    captions = {
        name: f"{metrics.psnr(image, scene.target, data_range=255):.1f} dB"
        for name, image in shown.items()
    }
    return figures.comparison(
        scene.noisy,
        shown,
        output / f"physics-{scene.name}.png",
        reference=scene.target,
        captions=captions,
    )


def _plots(rows: Sequence[Mapping[str, Value]], output: Path) -> list[Path]:
    gains: dict[str, float] = {}
    points: dict[str, tuple[float, float]] = {}
    for row in rows:
        name, gain, milliseconds = str(row["method"]), row["gain"], row["milliseconds"]
        if not isinstance(gain, float) or not isinstance(milliseconds, float):
            continue
        if name not in (NOISY, REFERENCE) and np.isfinite((gain, milliseconds)).all():
            gains[name], points[name] = gain, (milliseconds, gain)
    if not gains:
        return []
    return [
        figures.bars(
            gains, output / "physics-gain.png", title="PSNR above the speckled input", unit="dB"
        ),
        figures.pareto(
            points,
            output / "physics-pareto.png",
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

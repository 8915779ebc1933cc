"""The catalogue of every figure a despeckled image is judged by.

The functions live by what they need: a reference (:mod:`model.metrics.fidelity`), regions
(:mod:`model.metrics.contrast`) or neither (:mod:`model.metrics.reference_free`). `COLUMNS` says
how a table prints each and which way is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.metrics.contrast import (
    cnr,
    contrast,
    contrast_error,
    edge_width,
    false_structures,
    gcnr,
    lesion_survival,
    lesion_survives,
    line_width,
    structure_departures,
    thin_width,
)
from model.metrics.fidelity import (
    edge_preservation_index,
    edge_strength,
    gmsd,
    ms_ssim,
    mse,
    psnr,
    ssim,
)
from model.metrics.fsim import fsim
from model.metrics.reference_free import (
    enl,
    flicker,
    gradient_kept,
    grid_energy,
    homogeneous_patches,
    looks,
    mean_shift,
    residual_correlation,
    residual_structure,
    smpi,
    ssi,
)

__all__ = [
    "COLUMNS",
    "Column",
    "cnr",
    "contrast",
    "contrast_error",
    "edge_preservation_index",
    "edge_strength",
    "edge_width",
    "enl",
    "false_structures",
    "flicker",
    "fsim",
    "gcnr",
    "gmsd",
    "gradient_kept",
    "grid_energy",
    "homogeneous_patches",
    "lesion_survival",
    "lesion_survives",
    "line_width",
    "looks",
    "mean_shift",
    "ms_ssim",
    "mse",
    "psnr",
    "residual_correlation",
    "residual_structure",
    "smpi",
    "ssi",
    "ssim",
    "structure_departures",
    "thin_width",
]

Better = Literal["higher", "lower", "zero", "one", "none"]


@dataclass(frozen=True)
class Column:
    """How a table shows one figure.

    Parameters
    ----------
    label : str
        Heading, with its unit.
    digits : int
        Decimals.
    better : str
        The best value in a column: the highest, the lowest, the nearest to 0 or to 1; "none"
        where a figure only informs.
    note : str
        One sentence for the legend under the table.
    """

    label: str
    digits: int
    better: Better
    note: str


COLUMNS: dict[str, Column] = {
    "psnr": Column("PSNR dB", 2, "higher", "against the reference, the expected image"),
    "gain": Column("gain dB", 2, "higher", "PSNR above that of the speckled input"),
    "ssim": Column("SSIM", 3, "higher", "Gaussian window, Wang 2004"),
    "mse": Column("MSE", 1, "lower", "grey levels squared, of 255"),
    "ms_ssim": Column("MS-SSIM", 3, "higher", "five scales, Wang 2003"),
    "gmsd": Column("GMSD", 3, "lower", "Xue 2014; never optimised in training"),
    "fsim": Column("FSIM", 3, "higher", "Zhang 2011; never optimised in training"),
    "gcnr": Column("gCNR", 3, "higher", "lesion against its ring, Rodriguez-Molares 2020"),
    "gcnr_shown": Column("gCNR, 8 bits", 3, "higher", "gCNR of whole grey levels, as displayed"),
    "contrast_error": Column(
        "contrast error", 2, "lower", "grey levels, absolute, lesion against its ring"
    ),
    "edge_strength": Column(
        "edge strength",
        2,
        "one",
        "gradient at the reference's edges as a share of the reference's, median of the scenes",
    ),
    "edge_preservation": Column(
        "EPI", 3, "higher", "correlation of Laplacians with the reference's, Sattar 1997"
    ),
    "edge_width": Column(
        "edge width px", 2, "none", "10 to 90 % rise across lesion borders, all lesions together"
    ),
    "line_width": Column("line width px", 2, "none", "at half height across thin bright lines"),
    "point_width": Column("point width px", 2, "none", "at half height across bright points"),
    "mean_shift": Column("mean shift", 2, "zero", "grey levels, output minus reference"),
    "largest_shift": Column("largest shift", 2, "zero", "grey levels, in the worst region"),
    "survival": Column(
        "survival", 2, "higher", "lesions that keep their sign and half of their contrast"
    ),
    "false_structures": Column(
        "false structures %", 2, "lower", "discs of 10 px that stand out of homogeneous tissue"
    ),
    "enl": Column("ENL", 1, "higher", "(mean/std)^2 as displayed; not the number of looks"),
    "ssi": Column("SSI", 2, "lower", "coefficient of variation left, Sheng and Xia 1996"),
    "smpi": Column("SMPI", 2, "lower", "spread left, times 1 + shift of the mean"),
    "gradient_kept": Column("gradient kept", 2, "one", "steepness left at the input's large edges"),
    "residual_correlation": Column(
        "residual corr.", 3, "zero", "what was removed against what was kept"
    ),
    "residual_structure": Column(
        "residual edges", 3, "zero", "share of the kept edges found in what was removed"
    ),
    "milliseconds": Column("ms", 1, "lower", "median a frame, this machine, this run"),
}

"""How well clustered tissue can be told from even tissue by anyone.

Statistics of the speckle itself, input minus reference, which no method has: standard deviation,
skewness, kurtosis and the share of it over 8 pixels. A linear discriminant of them is fitted to
every other scene and judged on the rest: the share of pairs of a clustered and an even scene that
it puts in order (area under the ROC curve). Scenes are those of the training, without real images.

    python benchmarks/clusters_told_apart.py --scenes 1200
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from model.evaluation.tables import Table
from model.training import pool, prepare
from model.training.recipe import DataSection

PATCHES_PX = (64, 128, 256)
NAMES = ("spread", "skewness", "kurtosis", "coarse share", "all four")
DARKEST, BRIGHTEST, LEAST_SHARE = 60, 180, 0.4
"""Grey levels of the reference between which nothing is clipped, and their least share."""
COARSE_PX = 4.0
"""Standard deviation of the Gaussian that is left of 8 pixels and more."""


def main() -> None:
    arguments = _arguments()
    section = DataSection(
        faint_share=0.45, clustered_share=0.5, scenes=arguments.scenes, seed=arguments.seed
    )
    scenes = prepare.drawn(section)
    rows = []
    for side in PATCHES_PX:
        found, clustered = _measured(scenes, side)
        shares = [ordered(column, clustered) for column in found.T]
        shares = [max(share, 1 - share) for share in shares]  # whichever way it points
        shares.append(discriminated(found, clustered))
        figures = {name: f"{each:.2f}" for name, each in zip(NAMES, shares, strict=True)}
        rows.append({"patch px": str(side), "scenes": str(len(found)), **figures})
    print(Table("Pairs in order", ("patch px", "scenes", *NAMES), rows).markdown())


def _measured(scenes: pool.Pool, side: int) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Statistics, (scenes, 4), of those that are bright enough, and which are clustered."""
    rows, flags = [], []
    part = np.s_[:side, :side]
    for noisy, target, clustered in zip(scenes.noisy, scenes.target, scenes.clustered, strict=True):
        reference = target[part] / pool.STEPS_PER_GREY
        speckle = noisy[part] - reference
        seen = (reference > DARKEST) & (reference < BRIGHTEST)
        if seen.mean() > LEAST_SHARE:
            rows.append(statistics(speckle, seen))
            flags.append(bool(clustered))
    return np.array(rows), np.array(flags)


def statistics(speckle: NDArray[np.floating], seen: NDArray[np.bool_]) -> tuple[float, ...]:
    """Spread in grey levels, skewness, kurtosis and coarse share where pixels count."""
    values = speckle[seen]
    blurred = ndimage.gaussian_filter(speckle * seen, COARSE_PX)
    weight = ndimage.gaussian_filter(seen.astype(float), COARSE_PX)
    coarse = (blurred / np.maximum(weight, 0.2))[seen]
    spread = float(values.std())
    return (
        spread,
        float(stats.skew(values)),
        float(stats.kurtosis(values)),
        float(coarse.std()) / spread,
    )


def ordered(score: NDArray[np.floating], clustered: NDArray[np.bool_]) -> float:
    """Share of pairs in which the clustered scene has the higher score."""
    higher = stats.mannwhitneyu(score[clustered], score[~clustered]).statistic
    return float(higher / (clustered.sum() * (~clustered).sum()))


def discriminated(found: NDArray[np.floating], clustered: NDArray[np.bool_]) -> float:
    """The same of a linear discriminant, fitted to every other scene and judged on the rest."""
    given = np.column_stack([(found - found.mean(0)) / found.std(0), np.ones(len(found))])
    fitted, *_ = np.linalg.lstsq(given[::2], clustered[::2].astype(float), rcond=None)
    return ordered(given[1::2] @ fitted, clustered[1::2])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""What safety is tried on: scenes of both simulators in which every structure is known.

All displays are linear over 60 dB, so that a grey level is a known part of a decibel. Even scenes
come from `model.speckle`, odd ones from `model.simulation.array`, which no training has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model import speckle
from model.simulation import array as array_simulation
from model.simulation import phantoms
from model.simulation.acquisition import Acquisition
from model.simulation.phantoms import Lesion, Map, Phantom
from model.simulation.scene import Scene

Grey8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

DYNAMIC_RANGE_DB, TISSUE_LEVEL, NOISE_DB = 60.0, 0.45, -45.0
GREY_PER_DB = 255 / DYNAMIC_RANGE_DB

DIAMETERS_PX = (4, 6, 10, 14, 20, 30)
_BANDS_PX = (30, 30, 20, 20, 14, 14, 10, 6, 4)
"""Diameters of one image, a band each: over four hundred lesions of any size in 36 images."""
_GAP_PX, _JITTER_PX, _BORDER_PX = 10, 1.5, 6
_RING_PX = (2.0, 4.5)
"""Beyond the radius: tissue a lesion is compared with."""

BRIGHTNESS_DB = (-22.0, -12.0, -4.0, 4.0, 12.0, 20.0)
"""Classes of even tissue, from nearly black to nearly white."""
_BLOCK_MARGIN_PX = 12

CLUSTERS_DB, CLUSTERS_PX = 3.0, (1.0, 2.0, 4.0)
"""Spread of the local power and its correlation length, where scatterers gather in clusters."""

INK, LINE_GREY = 255, 230
LINE_WIDTHS_PX, LINE_ANGLES = (1.0, 2.0, 3.0), (0.0, 30.0, 65.0, 90.0)
_LINE_LENGTH_PX, _TEXT_HEIGHT_PX, _OVERSAMPLING = 40, 50, 8


@dataclass(frozen=True)
class Line:
    """One bright line drawn on a display.

    Attributes
    ----------
    centre : (float, float)
        Row and column.
    angle : float
        From the horizontal, radians.
    width_px : float
    """

    centre: tuple[float, float]
    angle: float
    width_px: float


@dataclass(frozen=True)
class Drawn:
    """Speckle with text and lines burned in.

    Attributes
    ----------
    image : ndarray, (rows, columns), uint8
    text : ndarray, (rows, columns), bool
        Pixels of full ink.
    lines : tuple of Line
    """

    image: Grey8
    text: Mask
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Size:
    """How much is tried; the default costs a method about 130 images of 256x256."""

    side_px: int = 256
    faint: int = 36
    """Images of lesions of 3 dB."""
    plain: int = 10
    """Images of lesions of 6 dB."""
    even: int = 12
    """Images of nothing but speckle."""
    clustered: int = 12
    """Images of the same tissue throughout, whose scatterers gather in clusters."""
    blocks: int = 8
    """Images of tissue in classes of brightness."""
    cines: int = 16
    """Of a still tissue each."""
    frames: int = 4
    """Of each cine."""
    shifted_side_px: int = 124
    """Of the image that is shifted by whole pixels."""


@dataclass(frozen=True)
class Grounds:
    """Everything that each method is tried on.

    Attributes
    ----------
    lesions : dict of float to list of Scene
        By contrast, dB; either sign in turn.
    even, clustered, blocks : list of Scene
        See `Size`; blocks are labelled with their level in dB.
    cines : list of list of Scene
        Frames of one still tissue each, under fresh speckle.
    shifted : ndarray, (rows, columns), uint8
        Anatomy, for shifts by whole pixels.
    drawn : Drawn
    """

    lesions: dict[float, list[Scene]]
    even: list[Scene]
    clustered: list[Scene]
    blocks: list[Scene]
    cines: list[list[Scene]]
    shifted: Grey8
    drawn: Drawn

    @classmethod
    def make(cls, seed: int, size: Size | None = None) -> Grounds:
        """Draw all grounds; every part has a seed of its own.

        Parameters
        ----------
        seed : int
            At least `model.data.VALIDATION_SEED`.
        """
        size = size or Size()
        side = size.side_px

        def many(part: int, count: int, contrast_db: float) -> list[Scene]:
            scenes = []
            for index in range(count):
                rng = np.random.default_rng((seed, part, index))
                scenes += imaged(packed_lesions(rng, side, contrast_db), rng, index)
            return scenes

        def one(part: int, index: int, phantom: Phantom, frames: int = 1) -> list[Scene]:
            return imaged(phantom, np.random.default_rng((seed, part, index)), index, frames)

        rng = np.random.default_rng((seed, 5))
        shifted = one(5, 0, phantoms.draw(rng, (size.shifted_side_px, size.shifted_side_px)))
        stills = [phantoms.draw(rng, (side, side)) for _ in range(size.cines)]
        return cls(
            {3.0: many(0, size.faint, 3.0), 6.0: many(1, size.plain, 6.0)},
            [s for i in range(size.even) for s in one(2, i, _even_tissue(side))],
            [clustered_tissue((seed, 7, i), side, i) for i in range(size.clustered)],
            [s for i in range(size.blocks) for s in one(3, i, brightness_blocks(side))],
            [one(4, i, still, size.frames) for i, still in enumerate(stills)],
            shifted[0].noisy,
            draw_on(one(6, 0, _even_tissue(side))[0].noisy),
        )

    @property
    def turns(self) -> int:
        """Images that each method is given, shifted crops not counted."""
        lists = [*self.lesions.values(), self.even, self.clustered, self.blocks, *self.cines]
        return sum(map(len, lists)) + 1


def imaged(phantom: Phantom, rng: np.random.Generator, index: int, frames: int = 1) -> list[Scene]:
    """Image a phantom by one simulator or the other, on the display that all grounds share.

    Parameters
    ----------
    index : int
        Even for `model.speckle`, odd for `model.simulation.array`.
    frames : int
        Images with scatterers of their own.
    """
    side = min(phantom.diffuse_db.shape)
    if index % 2:
        setting = replace(
            array_simulation.Imaging.draw(rng, side),
            sector_angle=0.0,
            noise_db=NOISE_DB,
            dynamic_range_db=DYNAMIC_RANGE_DB,
            tissue_level=TISSUE_LEVEL,
        )
        tissue = array_simulation.Tissue.of(phantom, setting)
        target = tissue.target()
        images = [tissue.image(tissue.scatterers(rng), rng) for _ in range(frames)]
    else:
        formed = speckle.form(phantom, linear_scanner(rng), rng, frames)
        target, images = formed[0].target, [each.noisy for each in formed]
    return [
        Scene(image, target, f"safety-{index:02d}", phantom.labels, phantom.lesions)
        for image in images
    ]


def linear_scanner(rng: np.random.Generator) -> Acquisition:
    """Draw a linear scanner whose display is linear in dB and not processed any further."""
    return replace(
        Acquisition.draw(rng),
        sector_angle=0.0,
        attenuation_db=0.0,
        tgc_ripple_db=0.0,
        shadows=0,
        noise_floor_db=NOISE_DB,
        dynamic_range_db=DYNAMIC_RANGE_DB,
        tissue_level=TISSUE_LEVEL,
        grey_gamma=1.0,
        grey_s_curve=0.0,
        smooth_sigma=0.0,
        sharpen=0.0,
        jpeg_quality=0,
        resize=1.0,
    )


def packed_lesions(rng: np.random.Generator, side: int, contrast_db: float) -> Phantom:
    """Round lesions of all sizes, brighter and darker in turn, as many as one image holds."""
    db = np.zeros((side, side), dtype=np.float32)
    lesions: list[Lesion] = []
    top = float(_BORDER_PX)
    for diameter in rng.permutation(_BANDS_PX):
        cell = diameter + _GAP_PX
        if top + cell > side - _BORDER_PX:
            continue
        across = int((side - 2 * _BORDER_PX) // cell)
        left = rng.uniform(_BORDER_PX, side - _BORDER_PX - across * cell)
        for place in range(across):
            middle = (top + cell / 2, left + (place + 0.5) * cell)
            centre = np.asarray(middle) + rng.uniform(-_JITTER_PX, _JITTER_PX, 2)
            sign = -1 if len(lesions) % 2 else 1
            lesions.append(_add_lesion(db, centre, diameter / 2, sign * contrast_db))
        top += cell
    return Phantom(db, np.zeros_like(db), tuple(lesions))


def _add_lesion(db: Map, centre: NDArray[np.float64], radius: float, contrast_db: float) -> Lesion:
    z = np.arange(db.shape[0], dtype=np.float32)[:, None] - centre[0]
    x = np.arange(db.shape[1], dtype=np.float32)[None, :] - centre[1]
    distance = np.hypot(z, x)
    db += (contrast_db * np.clip(radius - distance + 0.5, 0, 1)).astype(np.float32)
    nearest, farthest = (radius + beyond for beyond in _RING_PX)
    return Lesion(
        distance < max(radius - 1.0, 0.6 * radius),
        (distance > nearest) & (distance < farthest),
        contrast_db,
        2 * radius,
    )


def _even_tissue(side: int) -> Phantom:
    db = np.zeros((side, side), dtype=np.float32)
    return Phantom(db, np.zeros_like(db))


def clustered_tissue(seed: tuple[int, ...], side: int, index: int) -> Scene:
    """The same tissue throughout, scatterers in clusters; the reference is that without clusters.

    The mean of a display in decibels is lower with clusters than without by a constant, which is
    not taken into account.
    """
    even = _even_tissue(side)
    length_px = CLUSTERS_PX[index // 2 % len(CLUSTERS_PX)]
    rng = np.random.default_rng((*seed, 1))
    lumps = CLUSTERS_DB * phantoms.smooth_field(rng, (side, side), length_px)
    uneven, plain = (
        imaged(phantom, np.random.default_rng(seed), index)[0]
        for phantom in (replace(even, diffuse_db=lumps), even)
    )
    return replace(uneven, target=plain.target)


def brightness_blocks(side: int) -> Phantom:
    """Even tissue in two rows of three, labelled with each block's level where it is pure."""
    db = np.zeros((side, side), dtype=np.float32)
    labels: dict[str, Mask] = {}
    rows, columns = (np.linspace(0, side, count + 1).astype(int) for count in (2, 3))
    for index, level in enumerate(BRIGHTNESS_DB):
        row, column = divmod(index, 3)
        top, bottom, left, right = rows[row], rows[row + 1], columns[column], columns[column + 1]
        db[top:bottom, left:right] = level
        pure = np.zeros((side, side), dtype=bool)
        margin = _BLOCK_MARGIN_PX
        pure[top + margin : bottom - margin, left + margin : right - margin] = True
        labels[f"{level:g}"] = pure
    return Phantom(db, np.zeros_like(db), (), labels)


def draw_on(image: Grey8) -> Drawn:
    """Burn text and thin lines of several widths and angles into an image."""
    rows, columns = image.shape
    ink = Image.new("L", (columns, rows), 0)
    pen = ImageDraw.Draw(ink)
    for top, size in ((4, 10), (18, 12), (33, 14)):
        text = "LIVER  DEPTH 12.5 cm  TIS 0.4  MI 1.1  24 Hz"
        pen.text((6, top), text, fill=INK, font=ImageFont.load_default(size=size))
    text_ink = np.asarray(ink, dtype=np.float32) / INK
    lines = _line_places(rows, columns)
    weight = _line_weight(lines, image.shape)
    painted = image * (1 - weight) + LINE_GREY * weight
    painted = painted * (1 - text_ink) + INK * text_ink
    return Drawn(painted.round().astype(np.uint8), text_ink == 1, lines)


def _line_places(rows: int, columns: int) -> tuple[Line, ...]:
    """One line for each width and angle, on a lattice below the text."""
    height = (rows - _TEXT_HEIGHT_PX) / len(LINE_WIDTHS_PX)
    width = columns / len(LINE_ANGLES)
    return tuple(
        Line(
            (_TEXT_HEIGHT_PX + (i + 0.5) * height, (j + 0.5) * width),
            float(np.deg2rad(angle)),
            width_px,
        )
        for i, width_px in enumerate(LINE_WIDTHS_PX)
        for j, angle in enumerate(LINE_ANGLES)
    )


def _line_weight(lines: tuple[Line, ...], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Share of each pixel that lines cover, 0 to 1."""
    fine = (np.arange(_OVERSAMPLING) + 0.5) / _OVERSAMPLING - 0.5
    covered = np.zeros(shape, dtype=np.float32)
    for line in lines:
        for dz in fine:
            for dx in fine:
                z = np.arange(shape[0])[:, None] + dz - line.centre[0]
                x = np.arange(shape[1])[None, :] + dx - line.centre[1]
                along = x * np.cos(line.angle) - z * np.sin(line.angle)
                across = x * np.sin(line.angle) + z * np.cos(line.angle)
                within = (np.abs(across) <= line.width_px / 2) & (
                    np.abs(along) <= _LINE_LENGTH_PX / 2
                )
                covered += within
    return np.asarray(covered / _OVERSAMPLING**2, dtype=np.float32)

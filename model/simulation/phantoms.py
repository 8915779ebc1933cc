"""Echogenicity maps: what the tissue scatters, in dB, before any ultrasound is sent into it.

Not images: a phantom has no speckle and no grey levels. `model.speckle` turns it into both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Lesion:
    """One inclusion with a known contrast.

    Attributes
    ----------
    mask : ndarray, (rows, columns), bool
        Pixels well inside.
    ring : ndarray, (rows, columns), bool
        Surrounding tissue, clear of the edge.
    contrast_db : float
        Echogenicity inside minus outside, dB.
    diameter_px : float
        Mean diameter in pixels.
    """

    mask: Mask
    ring: Mask
    contrast_db: float
    diameter_px: float


@dataclass(frozen=True)
class Clusters:
    """How scatterers gather, which makes tissue uneven where it is the same throughout.

    Attributes
    ----------
    spread_db : float
        Standard deviation of the local power, dB; log-normal.
    length_px : float
        Correlation length, pixels.

    References
    ----------
    Jakeman, Pusey, IEEE Trans. Antennas Propag. 24(6), 1976 (K-distributed speckle).
    """

    spread_db: float
    length_px: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Clusters:
        """From hardly any to lumps as wide as a grain: wider ones look like lesions."""
        return cls(rng.uniform(1, 4), float(np.exp(rng.uniform(np.log(0.7), np.log(2.5)))))


@dataclass(frozen=True)
class Phantom:
    """Scatterer strength of a slice of tissue.

    Attributes
    ----------
    diffuse_db : ndarray, (rows, columns), float32
        Power of the diffuse scatterers, dB; 0 is ordinary tissue.
    specular : ndarray, (rows, columns), float32
        Amplitude of coherent reflectors (interfaces, wires), relative to ordinary tissue.
    lesions : tuple of Lesion
    labels : dict of str to ndarray, (rows, columns), bool
        Homogeneous areas and lines, for the metrics.
    clusters : Clusters, optional
        Of the diffuse scatterers; chance like the speckle, so that the reference knows their mean.
    """

    diffuse_db: Map
    specular: Map
    lesions: tuple[Lesion, ...] = ()
    labels: dict[str, Mask] = field(default_factory=dict)
    clusters: Clusters | None = None


def smooth_field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    scale: float,
    angle: float = 0.0,
    elongation: float = 1.0,
) -> Map:
    """Random field of zero mean and unit variance.

    Parameters
    ----------
    shape : (rows, columns)
    scale : float
        Correlation length across the short axis, pixels.
    angle : float
        Direction of the long axis from the horizontal, radians.
    elongation : float
        Long axis over short axis.
    """
    rows, columns = shape
    fz = np.fft.fftfreq(rows)[:, None]
    fx = np.fft.rfftfreq(columns)[None, :]
    along = fx * np.cos(angle) + fz * np.sin(angle)
    across = -fx * np.sin(angle) + fz * np.cos(angle)
    spectrum = np.exp(-2 * (np.pi * scale) ** 2 * ((elongation * along) ** 2 + across**2))
    white = np.fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    out = np.fft.irfft2(white * spectrum, s=shape)
    return np.asarray((out - out.mean()) / (out.std() + 1e-9), dtype=np.float32)


def blob(
    rng: np.random.Generator,
    shape: tuple[int, int],
    centre: tuple[float, float],
    radius: float,
    lobes: float,
) -> Map:
    """Signed distance, in pixels and positive inside, of an ellipse with a lobed outline."""
    rows, columns = shape
    z = np.arange(rows, dtype=np.float32)[:, None] - centre[0]
    x = np.arange(columns, dtype=np.float32)[None, :] - centre[1]
    tilt = rng.uniform(0, np.pi)
    squeeze = rng.uniform(0.55, 1.0)
    u = x * np.cos(tilt) + z * np.sin(tilt)
    v = (-x * np.sin(tilt) + z * np.cos(tilt)) / squeeze
    distance = np.hypot(u, v)
    outline = np.full_like(distance, radius)
    if lobes > 0:
        phi = np.arctan2(v, u)
        for order in range(2, 6):
            outline += (
                radius
                * lobes
                * rng.normal()
                / order
                * np.cos(order * phi + rng.uniform(0, 2 * np.pi))
            )
    return np.asarray(outline - distance, dtype=np.float32)


def _curve(
    rng: np.random.Generator, length: int, swing: float, scale: float
) -> NDArray[np.float64]:
    """Smooth random function of one coordinate, standard deviation `swing`."""
    white = ndimage.gaussian_filter1d(rng.standard_normal(length + 8 * int(scale)), scale)
    curve = white[4 * int(scale) : 4 * int(scale) + length]
    return np.asarray(
        swing * curve / (curve.std() + 1e-9)
        + rng.normal(0, 0.3) * np.linspace(-1, 1, length) * swing
    )


def _thin_line(rng: np.random.Generator, shape: tuple[int, int], width: float) -> Map:
    """Weight 0 to 1 of a curved line that crosses the image, `width` pixels wide."""
    rows, columns = shape
    steep = rng.random() < 0.3
    length, breadth = (rows, columns) if steep else (columns, rows)
    path = rng.uniform(0.05, 0.95) * breadth + _curve(
        rng, length, rng.uniform(0, 0.12) * breadth, rng.uniform(10, 60)
    )
    path += rng.normal(0, 0.4) * (np.arange(length) - length / 2)
    slope = np.hypot(1, np.gradient(path))
    distance = np.abs(np.arange(breadth)[:, None] - path[None, :]) / slope[None, :]
    weight = np.clip(0.5 + width / 2 - distance, 0, 1)
    start, stop = sorted(rng.uniform(-0.3, 1.3, 2) * length)
    if stop - start > 0.2 * length:
        along = np.arange(length)
        weight *= ((along > start) & (along < stop))[None, :]
    return np.asarray(weight.T if steep else weight, dtype=np.float32)


def _paint_layers(rng: np.random.Generator, shape: tuple[int, int]) -> Map:
    """Curved layers, each with its own level and texture; some striated like muscle."""
    rows, columns = shape
    depth = np.arange(rows, dtype=np.float32)[:, None]
    out = np.zeros(shape, dtype=np.float32)
    boundary = np.full(columns, -1e3)
    for _ in range(int(rng.integers(1, 5))):
        level = rng.normal(0, 5)
        layer = np.full(shape, level, dtype=np.float32)
        if rng.random() < 0.6:
            layer += rng.uniform(0.5, 4) * smooth_field(rng, shape, rng.uniform(4, 40))
        if rng.random() < 0.15:
            layer += rng.uniform(1, 5) * smooth_field(
                rng, shape, rng.uniform(2, 5), rng.normal(0, 0.4), rng.uniform(6, 40)
            )
        inside = np.clip(depth - boundary[None, :] + 0.5, 0, 1)
        out = np.asarray(out * (1 - inside) + layer * inside, dtype=np.float32)
        step = rng.uniform(0.1, 0.6) * rows
        start = max(float(boundary.mean()), 0.0) + step
        boundary = start + _curve(rng, columns, rng.uniform(0, 0.08) * rows, rng.uniform(15, 80))
    return out


def _paint_fibres(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Map, Map]:
    """Muscle or tendon cut along: bright septa, nearly parallel, in plain dark tissue.

    The septa are discrete and the tissue between them is even, so that stripes which speckle
    happens to form are not taken for fibres.

    Returns
    -------
    diffuse_db, specular : ndarray, (rows, columns), float32
    """
    rows, columns = shape
    db = np.full(shape, rng.normal(-3, 3), dtype=np.float32)
    specular = np.zeros(shape, dtype=np.float32)
    angle, bend = rng.normal(0, 0.3), rng.normal(0, 2e-4)
    z, x = np.mgrid[:rows, :columns].astype(np.float32)
    along = (x - columns / 2) * np.cos(angle) + (z - rows / 2) * np.sin(angle)
    across = -(x - columns / 2) * np.sin(angle) + (z - rows / 2) * np.cos(angle)
    across += bend * along**2
    reach = float(np.hypot(rows, columns)) / 2
    strength, regular = rng.uniform(3, 14), rng.uniform(0, 0.06)
    for _ in range(int(rng.integers(8, 90))):
        offset, middle = rng.uniform(-reach, reach), rng.uniform(-reach, reach)
        half = np.exp(rng.uniform(np.log(8), np.log(reach)))
        tilt = rng.normal(0, regular + 1e-3)
        distance = np.abs(across - offset - tilt * (along - middle))
        body = np.clip(0.5 + rng.uniform(0.4, 1.8) - distance, 0, 1)
        body *= np.clip((half - np.abs(along - middle)) / 4, 0, 1)
        level = rng.uniform(0.3, 1) * strength
        if rng.random() < 0.25:
            specular = np.maximum(specular, body * np.float32(10 ** (level / 20 - 0.2)))
        else:
            db = np.maximum(db, db + np.float32(level) * body)
    return np.asarray(db, dtype=np.float32), np.asarray(specular, dtype=np.float32)


def _paint_lobules(rng: np.random.Generator, shape: tuple[int, int]) -> Map:
    """Fat or gland: even lobules of slightly different level between thin bright septa."""
    rows, columns = shape
    count = int(rng.integers(3, 60))
    centres = rng.uniform(-0.15, 1.15, (count, 2)) * np.array([rows, columns])
    z, x = np.mgrid[:rows, :columns].astype(np.float32)
    wobble = float(rng.uniform(0, 12))
    z = z + wobble * smooth_field(rng, shape, 20)
    x = x + wobble * smooth_field(rng, shape, 20)
    flat = rng.uniform(1.0, 3.0)
    distance, owner = spatial.cKDTree(centres * [flat, 1.0]).query(
        np.stack([z.ravel() * flat, x.ravel()], axis=1), k=2
    )
    gap = (distance[:, 1] - distance[:, 0]).reshape(shape)
    levels = rng.normal(0, rng.uniform(0, 3), count)
    db = levels[owner[:, 0]].reshape(shape)
    width = rng.uniform(0.8, 4.0)
    septa = np.clip(width - gap / 2, 0, 1) * (smooth_field(rng, shape, 30) > rng.uniform(-3, 0.5))
    return np.asarray(db + rng.uniform(2, 14) * septa, dtype=np.float32)


def plain(rng: np.random.Generator, shape: tuple[int, int]) -> Phantom:
    """Draw tissue of one kind, nothing in it."""
    return Phantom(np.full(shape, rng.normal(0, 3), dtype=np.float32), np.zeros(shape, np.float32))


def faint(rng: np.random.Generator, shape: tuple[int, int]) -> Phantom:
    """Draw nearly even tissue full of faint lesions of all sizes, round or lobed.

    What matters most and shows least: without many of these a network learns that a faint lesion
    is speckle. Half of the contrasts are 2 to 4.5 dB.
    """
    db = plain(rng, shape).diffuse_db
    if rng.random() < _UNEVEN:
        db = db + np.float32(rng.uniform(0.3, 2)) * smooth_field(rng, shape, rng.uniform(30, 90))
    free = np.ones(shape, dtype=bool)
    largest = 0.18 * min(shape)
    radii = np.exp(rng.uniform(np.log(2.5), np.log(largest), int(rng.integers(6, 40))))
    for radius in sorted(radii, reverse=True):
        z, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        reach = 1.5 * radius + 4
        part = np.s_[
            max(0, int(z - reach)) : int(z + reach), max(0, int(x - reach)) : int(x + reach)
        ]
        if not free[part].all():
            continue
        free[part] = False
        centre = (z - max(0, int(z - reach)), x - max(0, int(x - reach)))
        distance = blob(rng, _shape(db[part]), centre, radius, rng.choice([0.0, 0.0, 0.12]))
        contrast = rng.uniform(2, 4.5) if rng.random() < _HARDEST else rng.uniform(4.5, 12)
        inside = np.clip(distance / rng.uniform(0.8, 2.0) + 0.5, 0, 1)
        db[part] += np.float32(rng.choice([-1, 1]) * contrast) * inside
    return Phantom(np.asarray(db, dtype=np.float32), np.zeros(shape, np.float32))


def detailed(rng: np.random.Generator, shape: tuple[int, int]) -> Phantom:
    """Draw tissue with what is small and plain: calcifications, clefts, needles and fine septa.

    A point of 10 dB over the tissue is brighter than any grain of speckle in thousands, and a cleft
    is dark along more grains than chance darkens: without many of these a network takes them for
    speckle all the same.
    """
    even = rng.random() < _UNEVEN
    tissue = plain(rng, shape).diffuse_db if even else _paint_layers(rng, shape)
    added, specular = details(rng, shape)
    return Phantom(tissue + added, specular)


def details(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Map, Map]:
    """Draw points, alone and in groups, clefts and fine lines.

    Returns
    -------
    added_db, specular : ndarray, (rows, columns), float32
        What they add to the diffuse scatterers, and coherent reflectors.
    """
    db = np.zeros(shape, np.float32)
    specular = np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(2, 13))):
        line = _segment(rng, shape, rng.uniform(1.0, 6.0))
        db -= np.float32(rng.uniform(8, 30)) * line
    for _ in range(int(rng.integers(0, 7))):
        line = _segment(rng, shape, rng.uniform(0.8, 2.5))
        if rng.random() < _COHERENT:
            specular = np.maximum(specular, line * np.float32(10 ** rng.uniform(0, 1)))
        else:
            db += np.float32(rng.uniform(5, 20)) * line
    for _ in range(int(rng.integers(2, 15))):
        middle = rng.uniform(0, 1, 2) * shape
        group = 1 if rng.random() < _ALONE else int(rng.integers(2, 12))
        for place in middle + rng.normal(0, rng.uniform(4, 20), (group, 2)) * (group > 1):
            z, x = (int(each) for each in place)
            side = int(rng.integers(1, 4))
            part = np.s_[max(z, 0) : max(z + side, 0), max(x, 0) : max(x + side, 0)]
            if rng.random() < _COHERENT:
                specular[part] = np.float32(10 ** rng.uniform(0.3, 1.4) / side)
            else:
                db[part] += np.float32(rng.uniform(8, 28))
    return db, specular


def _segment(rng: np.random.Generator, shape: tuple[int, int], width: float) -> Map:
    """Weight 0 to 1 of a piece of a line, `width` pixels wide, more often across the beam."""
    angle = rng.normal(0, 0.35) if rng.random() < _ACROSS else rng.uniform(0, np.pi)
    half = np.exp(rng.uniform(np.log(5), np.log(0.3 * min(shape))))
    z0, x0 = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
    z = np.arange(shape[0], dtype=np.float32)[:, None] - z0
    x = np.arange(shape[1], dtype=np.float32)[None, :] - x0
    along = x * np.cos(angle) + z * np.sin(angle)
    across = -x * np.sin(angle) + z * np.cos(angle) + rng.normal(0, 0.15) * along**2 / half
    weight = np.clip(0.5 + width / 2 - np.abs(across), 0, 1)
    weight *= np.clip(0.5 + half - np.abs(along), 0, 1)
    return np.asarray(weight, dtype=np.float32)


_UNEVEN, _HARDEST = 0.4, 0.5
_COHERENT, _ALONE, _ACROSS = 0.5, 0.5, 0.6


def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Phantom:
    """Draw a procedural phantom.

    Even tissue, even tissue with faint lesions, muscle, fat, or layers; the last two with lesions,
    vessels, septa and points.
    """
    rows, columns = shape
    kind = rng.random()
    if kind < 0.1:
        return plain(rng, shape)
    if kind < 0.3:
        even = plain(rng, shape).diffuse_db
        return Phantom(with_subtle_lesions(rng, even), np.zeros(shape, np.float32))
    if kind < 0.4:
        db, specular = _paint_fibres(rng, shape)
        return Phantom(with_subtle_lesions(rng, db) if rng.random() < 0.3 else db, specular)
    db = _paint_lobules(rng, shape) if kind < 0.5 else _paint_layers(rng, shape)
    specular = np.zeros(shape, dtype=np.float32)
    for _ in range(int(rng.integers(0, 7))):
        db = _with_lesion(rng, db)
    if rng.random() < 0.5:
        db = with_subtle_lesions(rng, db)
    for _ in range(int(rng.integers(0, 3))):
        lumen = _thin_line(rng, shape, rng.uniform(4, 24))
        wall = np.clip(ndimage.grey_dilation(lumen, size=(3, 3)) - lumen, 0, 1)
        db += (rng.uniform(-30, -10) * lumen + rng.uniform(0, 12) * wall).astype(np.float32)
    for _ in range(int(rng.integers(0, 8))):
        line = _thin_line(rng, shape, rng.uniform(0.8, 3.0))
        if rng.random() < 0.45:
            specular = np.maximum(specular, line * np.float32(10 ** rng.uniform(-0.3, 1.0)))
        else:
            db += (rng.uniform(3, 18) * line).astype(np.float32)
    for _ in range(int(rng.integers(0, 6))):
        z, x = int(rng.integers(0, rows)), int(rng.integers(0, columns))
        specular[z, x] = 10 ** rng.uniform(0.3, 1.4)
    return Phantom(db, specular)


def _with_lesion(rng: np.random.Generator, db: Map) -> Map:
    """Add a cyst or solid lesion: lobed, with or without a capsule, a shadow or enhancement."""
    radius = float(np.exp(rng.uniform(np.log(2.5), np.log(0.22 * min(db.shape)))))
    centre = (rng.uniform(0, db.shape[0]), rng.uniform(0, db.shape[1]))
    contrast = float(rng.choice([rng.uniform(-28, -12), rng.uniform(-12, -2), rng.uniform(2, 12)]))
    distance = blob(rng, _shape(db), centre, radius, rng.choice([0.0, 0.1, 0.25]))
    inside = np.clip(distance / rng.uniform(0.5, 3.0) + 0.5, 0, 1)
    out = np.asarray(db + contrast * inside, dtype=np.float32)
    if rng.random() < 0.3:
        rim = np.exp(-0.5 * ((distance - 0.5) / rng.uniform(0.6, 1.6)) ** 2)
        out += (rng.uniform(3, 14) * rim).astype(np.float32)
    if rng.random() < 0.25:
        below = np.maximum.accumulate(inside, axis=0) * (1 - inside)
        out += (rng.uniform(-12, 6) * ndimage.gaussian_filter(below, (0, 2))).astype(np.float32)
    return out


def with_subtle_lesions(rng: np.random.Generator, db: Map) -> Map:
    """Add several lesions of low contrast.

    They are far more frequent here than in patients, on purpose: the student's best guess at what
    it can hardly tell from speckle shrinks with how rare it is, and a lesion must not shrink.
    """
    out = db.copy()
    for _ in range(int(rng.integers(4, 22))):
        radius = float(np.exp(rng.uniform(np.log(3.0), np.log(0.16 * min(db.shape)))))
        z, x = rng.uniform(0, db.shape[0]), rng.uniform(0, db.shape[1])
        reach = 1.7 * radius + 3
        top, left = max(0, int(z - reach)), max(0, int(x - reach))
        part = out[top : int(z + reach), left : int(x + reach)]
        lobes = rng.choice([0.0, 0.0, 0.15])
        distance = blob(rng, _shape(part), (z - top, x - left), radius, lobes)
        inside = np.clip(distance / rng.uniform(0.5, 2.0) + 0.5, 0, 1)
        part += np.float32(rng.choice([-1, 1]) * rng.uniform(2.0, 9.0)) * inside
    return out


def _shape(db: Map) -> tuple[int, int]:
    return db.shape[0], db.shape[1]


def from_anatomy(
    rng: np.random.Generator, anatomy: NDArray[np.uint8], shape: tuple[int, int]
) -> Phantom:
    """Take a strongly despeckled real image as echogenicity; see `model.data.anatomy_maps`.

    Parameters
    ----------
    anatomy : ndarray, (any rows, any columns), uint8
        At least as large as `shape` in both directions.
    """
    rows, columns = shape
    top = int(rng.integers(0, anatomy.shape[0] - rows + 1))
    left = int(rng.integers(0, anatomy.shape[1] - columns + 1))
    part = anatomy[top : top + rows, left : left + columns].astype(np.float32)
    if rng.random() < 0.5:
        part = part[:, ::-1]
    db = part / 255 * rng.uniform(35, 65)
    db = db - np.median(db[part > 8]) if (part > 8).mean() > 0.05 else db - db.mean()
    tissue = np.asarray(np.clip(db, -60, 30), dtype=np.float32)
    if rng.random() < 0.4:
        tissue = with_subtle_lesions(rng, tissue)
    return Phantom(tissue, np.zeros(shape, np.float32))


def graded_lesions(
    rng: np.random.Generator,
    shape: tuple[int, int],
    contrasts_db: tuple[float, ...],
    radii_px: tuple[float, ...],
) -> Phantom:
    """Round lesions of given contrasts and sizes in homogeneous tissue, labelled."""
    db = np.zeros(shape, dtype=np.float32)
    free = np.ones(shape, dtype=bool)
    lesions = []
    for radius in sorted(radii_px, reverse=True):
        for _ in range(60):
            margin = radius + 6
            centre = (
                rng.uniform(margin, shape[0] - margin),
                rng.uniform(margin, shape[1] - margin),
            )
            z = np.arange(shape[0], dtype=np.float32)[:, None] - centre[0]
            x = np.arange(shape[1], dtype=np.float32)[None, :] - centre[1]
            distance = np.hypot(z, x)
            surround = distance < 1.6 * radius + 8
            if free[surround].all():
                break
        else:
            continue
        contrast = float(rng.choice(contrasts_db))
        db += contrast * np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)
        free &= ~surround
        lesions.append(
            Lesion(
                distance < max(radius - 1.5, 0.6 * radius),
                (distance > radius + 2.5) & (distance < 1.4 * radius + 6),
                contrast,
                2 * radius,
            )
        )
    edge = np.zeros(shape, dtype=bool)
    edge[8:-8, 8:-8] = True
    return Phantom(db, np.zeros(shape, np.float32), tuple(lesions), {"background": free & edge})

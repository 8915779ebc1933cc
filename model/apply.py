"""Despeckle image files: one PNG of the same name and size for each, nothing rescaled.

Only grey pixels change. Coloured ones, alpha, size and bit depth stay; grey levels are never
stretched, and 16-bit files of one folder are taken as of one depth, so that two frames of one cine
stay comparable. What cannot keep its depth, colour or alpha of 16 bits, is refused. A result says
in its PNG keyword *Software* what made it, and replaces nothing but an earlier result. For DICOM
use ``dicom-node process``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from scipy import ndimage

from model import depth
from model.pictures import write_panel

Grey = NDArray[np.uint8]
Despeckle = Callable[[Grey], Grey]
"""uint8 (rows, columns) to uint8 of the same shape."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
COLOUR_TOLERANCE = 12
"""Largest spread of red, green and blue in a pixel that still counts as grey: JPEG's chroma."""
_LIT, _TINTED_SHARE = 40, 0.1
"""Share of the pixels above a level that are coloured: a tint, more than a caption or a bar."""
_BOX_PX = 16
"""Side of the smallest square that counts as drawn: no speckle is even over so much."""
STILL_FORMATS_WITH_FRAMES = frozenset({"MPO"})
"""Formats whose further frames are previews of the first."""
COMPARED = ".compared.png"
"""How the name of a picture for people ends; it is no image to be despeckled."""
SOFTWARE, MADE_BY = "Software", "despeckle-model apply"
"""Keyword of a PNG, and its text, by which a result is known again."""


class ImageError(Exception):
    """One file cannot be despeckled; the message says why and what to do, without its name."""


@dataclass(frozen=True)
class Job:
    """One file to read and the one to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Result:
    """What became of one file.

    Parameters
    ----------
    job : Job
        Which one.
    error : str
        Why it failed; empty where the target was written.
    note : str
        Something to know about a file that was written, such as that all of it is coloured.
    bits : int
        Depth that it was taken as, and its neighbours were, where it is a 16-bit file.
    """

    job: Job
    error: str = ""
    note: str = ""
    bits: int = 8


def plan(paths: Sequence[Path], output: Path) -> tuple[list[Job], list[Result]]:
    """Which files become which, and the arguments that are no images.

    All go flat into `output` as ``<stem>.png``. Where two would collide, all keep their place below
    the folder that was named, or that all arguments have in common; where two still collide, such
    as ``a.png`` and ``a.jpg``, those keep their whole name, ``a.jpg.png``.

    Parameters
    ----------
    paths : sequence of Path
        Files of any suffix, and folders, searched recursively for `SUFFIXES`.
    output : Path
        Folder for the PNG files; what lies in it already is not read.

    Returns
    -------
    jobs, errors
        In the order of the arguments, each file once.
    """
    found: dict[Path, Path] = {}
    errors: list[Result] = []
    roots: list[Path] = []
    for path in paths:
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 without .. and with links as they are
        if path.is_dir():
            inside = list(_images_below(absolute, output))
            if not inside:
                errors.append(_failed(path, "no PNG, JPEG, BMP or TIFF file in this folder"))
            roots.append(absolute)
        elif path.is_file():
            inside = [absolute]
            roots.append(absolute.parent)
        else:
            inside = []
            errors.append(_failed(path, "no such file or folder"))
        for file in inside:
            found.setdefault(file.resolve(), file)
    if not found:
        return [], errors
    common = os.path.commonpath(roots)
    places = _places([file.relative_to(common) for file in found.values()])
    sources = found.values()
    return [
        Job(source, output / place) for source, place in zip(sources, places, strict=True)
    ], errors


def run(jobs: Sequence[Job], despeckle: Despeckle) -> Iterator[Result]:
    """Do one job after the other; a file that fails does not stop the next."""
    together: defaultdict[Path, list[Path]] = defaultdict(list)
    for job in jobs:
        together[job.source.parent].append(job.source)

    @cache
    def bits_in(folder: Path) -> int:
        return depth.shared(together[folder])

    for job in jobs:
        bits = bits_in(job.source.parent)
        try:
            note = apply_file(job, despeckle, bits)
        except ImageError as error:
            yield Result(job, error=str(error))
        else:
            yield Result(job, note=note, bits=bits)


def apply_file(job: Job, despeckle: Despeckle, least_bits: int = 8) -> str:
    """Despeckle one file.

    Parameters
    ----------
    job : Job
    despeckle : callable
    least_bits : int
        Depth of a 16-bit file, as its neighbours have it; more where its own grey levels need it.

    Returns
    -------
    str
        A note for the user, mostly empty.

    Raises
    ------
    ImageError
        The file is not a readable still image of a supported kind, or cannot be written.
    """
    if job.target.exists() and job.target.resolve() == job.source.resolve():
        raise ImageError("the result would overwrite the image itself; choose another --output")
    if job.target.exists() and not _is_result(job.target):
        raise ImageError(
            f"{job.target} is there already and bears no mark of this command, nor do results of "
            "0.18.0 and before; remove it, or choose another --output"
        )
    try:
        with Image.open(job.source) as image:
            frames = int(getattr(image, "n_frames", 1))
            if frames > 1 and image.format not in STILL_FORMATS_WITH_FRAMES:
                raise ImageError(f"holds {frames} frames; give it frame by frame")
            if _loses_depth(image):
                raise ImageError(
                    "has 16 bits of colour or alpha, of which 8 would be lost; store it as 16-bit "
                    "grey without alpha, or with 8 bits"
                )
            image.load()
            result, note = despeckle_image(image, despeckle, least_bits)
            keep = _kept_information(image)
    except UnidentifiedImageError as error:
        raise ImageError("not an image that can be read (PNG, JPEG, BMP, TIFF)") from error
    except Image.DecompressionBombError as error:
        raise ImageError("has more pixels than can be taken safely; cut it into parts") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot be read: {reason}") from error
    _save(result, job.target, keep)
    return note


def write_compared(result: Result, output: Path, folder: Path) -> None:
    """Write before, after and what was removed side by side, of a file that was done.

    Parameters
    ----------
    result : Result
    output : Path
        Of `plan`; what is written has its place below `folder`, as ``<stem>.compared.png``.
    folder : Path

    Raises
    ------
    ImageError
        The picture cannot be written.
    """
    job = result.job
    path = (folder / job.target.relative_to(output)).with_suffix(COMPARED)
    try:
        with Image.open(job.source) as before, Image.open(job.target) as after:
            write_panel(_shown(before, result.bits), _shown(after, result.bits), path)
    except OSError as error:
        raise ImageError(f"cannot write {path}: {error.strerror or error}") from error


def _shown(image: Image.Image, bits: int) -> Grey:
    """Grey of a depth, or red, green and blue, with 8 bits; alpha is left out."""
    if depth.is_deep(image):
        return depth.eight_bits(np.asarray(image), bits)
    grey = image.mode in ("L", "1", "LA", "La")
    return np.asarray(image.convert("L" if grey else "RGB"))


def _loses_depth(image: ImageFile.ImageFile) -> bool:
    """Whether a picture that is not loaded yet has samples of 16 bits that Pillow makes 8."""
    deep = any(re.search(";16[BLN]", str(tile.args)) for tile in image.tile)  # BGR;16 is 5, 6, 5
    return deep and not depth.is_deep(image)


def despeckle_image(
    image: Image.Image, despeckle: Despeckle, least_bits: int = 8
) -> tuple[Image.Image, str]:
    """Despeckle a loaded picture of any Pillow mode.

    Parameters
    ----------
    image : Image
        Grey stays grey, colour stays colour, alpha is kept; palettes are expanded.
    despeckle : callable
        Works on 8-bit grey.
    least_bits : int
        Of `apply_file`.

    Returns
    -------
    image, note
        Of the same size.

    Raises
    ------
    ImageError
        The kind of pixels is not supported.
    """
    despeckle = _sparing_boxes(despeckle)
    if depth.is_deep(image):
        return _sixteen_bit(image, despeckle, least_bits)
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose black and white are not known")
    transparent = "transparency" in image.info
    match image.mode:
        case "L" | "1" if not transparent:
            return Image.fromarray(despeckle(np.asarray(image.convert("L")))), ""
        case "L" | "1" | "LA" | "La":
            pixels = np.asarray(image.convert("RGBA" if image.mode == "L" else "LA"))
            grey, alpha = np.ascontiguousarray(pixels[..., 0]), pixels[..., -1]
            return Image.fromarray(np.dstack([despeckle(grey), alpha]), "LA"), ""
        case "RGBA" | "RGBa" | "PA":
            return _coloured(np.asarray(image.convert("RGBA")), despeckle)
        case _:
            mode = "RGBA" if transparent else "RGB"
            return _coloured(np.asarray(image.convert(mode)), despeckle)


def _sparing_boxes(despeckle: Despeckle) -> Despeckle:
    """The same, but squares of (nearly) one level stay: boxes are drawn over tissue, or beside it.

    The network sees them as tissue without speckle, and draws into them what lies about.
    """

    def spared(grey: Grey) -> Grey:
        square, half = (_BOX_PX, _BOX_PX), _BOX_PX // 2
        most = ndimage.maximum_filter(grey, square, origin=-half)  # of each square, top left
        least = ndimage.minimum_filter(grey, square, origin=-half)
        even = most - least <= 1
        rows, columns = (max(0, side - _BOX_PX + 1) for side in grey.shape)
        even[rows:] = even[:, columns:] = False
        boxes = ndimage.maximum_filter(even, square, origin=half - 1, mode="constant")
        return np.where(boxes, grey, despeckle(grey))

    return spared


def _coloured(pixels: Grey, despeckle: Despeckle) -> tuple[Image.Image, str]:
    """Grey pixels of (rows, columns, 3 or 4) change by what was removed; the others stay."""
    colours = pixels[..., :3].astype(np.int16)
    grey = colours.max(axis=-1) - colours.min(axis=-1) <= COLOUR_TOLERANCE
    if not grey.any():
        return Image.fromarray(pixels), "all pixels are coloured: nothing was changed"
    luminance = _luminance(colours)
    share = (~grey)[luminance > _LIT].mean() if (luminance > _LIT).any() else 0.0
    note = ""
    if share > _TINTED_SHARE:
        note = f"{share:.0%} of what is lit is coloured and stays: convert a tinted picture to grey"
    change = despeckle(luminance).astype(np.int16) - luminance.astype(np.int16)
    result = pixels.copy()
    changed = np.clip(colours + change[..., None], 0, 255).astype(np.uint8)
    result[..., :3] = np.where(grey[..., None], changed, pixels[..., :3])
    return Image.fromarray(result), note


def _luminance(colours: NDArray[np.int16]) -> Grey:
    """ITU-R BT.601 luma of (rows, columns, 3), exact for equal components."""
    wide = colours.astype(np.int32)
    luma = 299 * wide[..., 0] + 587 * wide[..., 1] + 114 * wide[..., 2]
    return ((luma + 500) // 1000).astype(np.uint8)


def _sixteen_bit(
    image: Image.Image, despeckle: Despeckle, least_bits: int
) -> tuple[Image.Image, str]:
    """Change 16-bit grey by what 8-bit despeckling removes, on the scale of its bit depth."""
    if "transparency" in image.info:
        raise ImageError("has 16-bit grey of which one level is transparent; store it without")
    if depth.is_inverted(image):
        raise ImageError("has 16-bit grey whose white is 0; store it with black as 0")
    pixels = np.asarray(image).astype(np.int64)
    try:
        bits = max(least_bits, depth.needed(pixels))
    except ValueError as error:
        raise ImageError(str(error)) from error
    white = (1 << bits) - 1
    grey = depth.eight_bits(pixels, bits)
    change = despeckle(grey).astype(np.int64) - grey
    result = np.clip(pixels + np.rint(change * (white / 255)).astype(np.int64), 0, white)
    note = (
        "" if bits == depth.CONTAINER_BITS[-1] else f"16-bit file taken as {bits}-bit grey levels"
    )
    return Image.fromarray(result.astype(np.uint16)), note


def _kept_information(image: Image.Image) -> dict[str, object]:
    """Resolution, colour profile and orientation; nothing that could name a patient."""
    keep: dict[str, object] = {
        key: image.info[key] for key in ("dpi", "icc_profile") if image.info.get(key)
    }
    if image.mode == "CMYK":  # the result is RGB, of which its profile says nothing
        keep.pop("icc_profile", None)
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        keep["exif"] = exif
    return keep


def _is_result(path: Path) -> bool:
    """Whether this command has written a file."""
    try:
        with Image.open(path) as image:
            return image.info.get(SOFTWARE) == MADE_BY
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _save(image: Image.Image, target: Path, keep: dict[str, object]) -> None:
    """Write a PNG whole or not at all."""
    temporary, made_by = "", PngImagePlugin.PngInfo()
    made_by.add_text(SOFTWARE, MADE_BY)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=".", suffix=".part", delete=False
        ) as file:
            temporary = file.name
            image.save(file, "PNG", pnginfo=made_by, **keep)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ImageError(f"cannot write {target}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _images_below(folder: Path, output: Path) -> Iterator[Path]:
    inside = output.resolve()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        hidden |= path.name.endswith(COMPARED)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            below_output = inside in path.resolve().parents and inside != folder.resolve()
            if not below_output:
                yield path


def _places(relative: Sequence[Path]) -> list[Path]:
    flat = [Path(path.stem + ".png") for path in relative]
    if _distinct(flat):
        return flat
    nested = [path.with_name(path.stem + ".png") for path in relative]
    counts: dict[str, int] = {}
    for place in nested:
        counts[_key(place)] = counts.get(_key(place), 0) + 1
    places: list[Path] = []
    taken: set[str] = set()
    for path, place in zip(relative, nested, strict=True):
        candidate = place if counts[_key(place)] == 1 else path.with_name(path.name + ".png")
        number = 2
        while _key(candidate) in taken:
            candidate = path.with_name(f"{path.name}-{number}.png")
            number += 1
        taken.add(_key(candidate))
        places.append(candidate)
    return places


def _distinct(places: Sequence[Path]) -> bool:
    return len({_key(place) for place in places}) == len(places)


def _key(place: Path) -> str:
    """Equal for names that some file systems take as one."""
    return str(place).casefold()


def _failed(path: Path, message: str) -> Result:
    return Result(Job(path, path), error=message)

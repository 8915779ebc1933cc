"""Tissue goes on beyond the rim of a sector for the network to see, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from model import bundle, metrics
from model.network.rim import BLACK, DEAD_PX, _evenly_black, brightest, find, no_rim, squares
from model.simulation.array import array_scenes
from model.student import despeckled

ROWS, COLUMNS = 200, 260


def sector(seed=0, level=90.0):
    """A fan of speckle on black with dark grains at its rim, and where it lies."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:ROWS, :COLUMNS]
    down, beside = row + 60, column - COLUMNS / 2
    radius = np.hypot(down, beside)
    inside = (radius > 80) & (radius < 250) & (np.abs(np.arctan2(beside, down)) < 0.55)
    speckle = level * rng.rayleigh(0.8, inside.shape)
    return np.where(inside, np.clip(speckle, 0, 255), 0).astype(np.uint8), inside


def replaced(rim, shape=(ROWS, COLUMNS)):
    mask = np.zeros(shape, bool)
    mask.ravel()[rim.outside.numpy()] = True
    return mask


def test_all_of_the_band_beyond_the_rim_and_nothing_of_the_sector():
    image, inside = sector()
    mask = replaced(find(image, 12))
    assert (mask & inside).sum() < 10  # dark grains in the corners
    beside = np.zeros_like(inside)
    beside[:, 1:] |= inside[:, :-1]
    beside[:, :-1] |= inside[:, 1:]
    assert mask[beside & ~inside].all()
    assert image[mask].max() <= BLACK


def test_what_the_network_sees_beyond_the_rim_is_tissue_mirrored():
    image, inside = sector()
    rim = find(image, 12)
    seen = rim.continued(torch.from_numpy(image)[None, None])[0, 0].numpy()
    kept = ~replaced(rim)
    assert np.array_equal(seen[kept], image[kept])
    assert seen[replaced(rim)].mean() == pytest.approx(image[inside].mean(), rel=0.1)
    row = 120
    first = int(np.flatnonzero(inside[row])[0])
    assert seen[row, first - 1] == image[row, first]
    assert seen[row, first - 4] == image[row, first + 3]


def test_pixels_beyond_the_rim_never_change():
    image, _ = sector()
    student = bundle.load("quality").student
    student.architecture = replace(student.architecture, rim_px=32)
    out = despeckled(student, image)
    beyond = replaced(find(image, 32))
    assert np.abs(out[beyond] - image[beyond]).max() < 1e-3


def test_letters_and_ticks_close_to_the_tissue_stay_as_they_are():
    image, inside = sector()
    letters = np.zeros_like(image)
    for row in range(40, ROWS - 40, 24):
        column = int(np.flatnonzero(inside[row : row + 9].any(0)).max()) + 3
        letters[row : row + 9, column : column + 2] = 230
        letters[row + 7 : row + 9, column : column + 7] = 230
    assert (letters > 0).any()
    assert not (letters[inside] > 0).any()
    written = np.maximum(image, letters)
    out = despeckled(bundle.load("quality").student, written)
    assert np.abs(out - written)[letters > 0].max() < 1e-3
    assert np.abs(out - written)[inside].mean() > 3


def test_bright_grains_that_fade_belong_to_the_tissue():
    grains = np.zeros((ROWS, COLUMNS), np.uint8)
    grains[:, :200] = FULL[:, :200]
    row, column = np.mgrid[-6:7, -6:7]
    grain = (200 * np.exp(-(row**2 + column**2) / 8)).astype(np.uint8)
    grains[90:103, 204:217] = grain
    assert not replaced(find(grains, 12))[90:103, 204:217].any()
    grains[90:103, 204:217] = np.where(grain > BLACK, 200, 0)
    assert replaced(find(grains, 12))[90:103, 204:212].any()


BOX = np.s_[140:ROWS, 150:COLUMNS]
"""Of an anonymiser, in a corner."""


@pytest.mark.parametrize("enlarged", [1, 2])
def test_nothing_is_drawn_into_a_black_box(enlarged):
    scene = next(iter(array_scenes(1, 31)))
    image = np.asarray(
        Image.fromarray(scene.noisy).resize(
            (COLUMNS * enlarged, ROWS * enlarged), Image.Resampling.BICUBIC
        )
    ).copy()
    box = tuple(slice(part.start * enlarged, part.stop * enlarged) for part in BOX)
    image[box] = 0
    student = bundle.load("quality").student
    assert student.architecture.rim_px
    out = despeckled(student, image)
    assert (out[box] == 0).all()
    assert np.abs(out - image)[: box[0].start].mean() > 1
    student.architecture = replace(student.architecture, rim_px=0)
    assert despeckled(student, image)[box].max() > 3


def test_only_what_is_evenly_black_and_large_is_left_as_it_is():
    image = FULL.copy()
    image[20 : 20 + DEAD_PX, 40 : 40 + DEAD_PX] = RIPPLE[:DEAD_PX, :DEAD_PX]
    image[60 : 60 + DEAD_PX - 1, 40:120] = 0
    image[120:160, 40:120] = RIPPLE
    image[120:160:8, 40:120:8] = BLACK + 1
    image[170:190, 40:120] = BLACK + 1
    rim = find(image, 32)
    left = np.zeros(image.shape, bool)
    left[20 : 20 + DEAD_PX, 40 : 40 + DEAD_PX] = True
    assert np.array_equal(rim.black.numpy(), left)
    assert not rim.is_lit(torch.from_numpy(image))
    image[22:26, 42:46] = 100
    assert rim.is_lit(torch.from_numpy(image))


def shadowed(image):
    """The sides grow dark over 30 pixels, as beside a shadow."""
    fade = np.clip((np.arange(COLUMNS) - 60) / 30, 0, 1)
    return (image * fade).astype(np.uint8)


RIPPLE = np.random.default_rng(2).integers(0, BLACK + 1, (40, 80))
"""What a compression leaves of black."""
FULL = np.random.default_rng(1).integers(20, 200, (ROWS, COLUMNS)).astype(np.uint8)
CYST = FULL.copy()
CYST[80:140, 100:170] = 0
AT_THE_BORDER = FULL.copy()
AT_THE_BORDER[:20, 100:130] = 0


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(FULL, id="no black"),
        pytest.param(np.zeros_like(FULL), id="nothing lit"),
        pytest.param(CYST, id="a cyst"),
        pytest.param(AT_THE_BORDER, id="a cyst at the border"),
        pytest.param(shadowed(FULL), id="a shadow"),
        pytest.param(sector(level=8.0)[0], id="hardly anything lit"),
    ],
)
def test_what_is_no_rim_is_left_alone(image):
    assert not len(find(image, 32).outside)


def test_text_beside_the_sector_is_no_tissue():
    image, inside = sector()
    image[10:22, 20:60:3] = 220
    rim = find(image, 32)
    assert len(rim.outside)
    assert not np.isin(rim.source.numpy(), np.flatnonzero(~inside)).any()


def test_squares_found_in_later_frames_are_those_of_the_first():
    image, _ = sector()
    image[150:190, 120:160] = 0
    found = squares(torch.from_numpy(image)[None] <= BLACK)[0].numpy()
    assert found.any()
    assert np.array_equal(found, _evenly_black(image))
    square = np.ones((DEAD_PX, DEAD_PX), bool)
    assert np.array_equal(found, ndimage.binary_opening(image <= BLACK, square))
    assert not squares(torch.ones(1, DEAD_PX - 1, 99, dtype=torch.bool)).any()


def test_no_reach_and_no_rim_change_nothing():
    image, _ = sector()
    x = torch.from_numpy(image)[None, None].float() / 255
    for rim in (find(image, 0), no_rim()):
        assert rim.continued(x) is x
        assert rim.without(x) is x
        assert not rim.is_lit(torch.full(image.shape, 255, dtype=torch.uint8))


def test_tissue_that_crosses_the_rim_is_seen():
    image, _ = sector()
    rim = find(image, 32)
    assert not rim.is_lit(torch.from_numpy(image))
    assert rim.is_lit(torch.full(image.shape, BLACK + 1, dtype=torch.uint8))


def test_brightest_of_several():
    x = torch.zeros(2, 1, 3, 4)
    x[0, 0, 1, 1], x[1, 0, 2, 2] = 1.0, 0.5
    found = brightest(x)
    assert (found[1, 1], found[2, 2], found[0, 0]) == (255, 128, 0)


def test_sectors_of_an_independent_simulator_gain_and_nothing_else_loses():
    student = bundle.load("quality").student
    gains = {}
    for scene in array_scenes(8, 31):
        if (scene.noisy <= BLACK).mean() < 0.1:
            continue
        psnr = {}
        for reach in (0, 32):
            student.architecture = replace(student.architecture, rim_px=reach)
            psnr[reach] = metrics.psnr(
                despeckled(student, scene.noisy), scene.target, data_range=255
            )
        gains[scene.name] = psnr[32] - psnr[0]
    assert gains
    assert min(gains.values()) > 0.2

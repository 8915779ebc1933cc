"""How coarse the speckle is, and what the network does about it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F  # noqa: N812 - the customary name

from model import bundle, metrics
from model.data import VALIDATION_SEED, validation_set
from model.network.coarse import wide_part
from model.network.scales import coarse_share, residual_over_scales, speckle_px
from model.student import Architecture, Student, despeckled


def grain(sigma_rows, sigma_columns, shape=(200, 240)):
    """Noise of a Gaussian autocorrelation on middle grey, (1, 1, rows, columns), and the noise."""
    noise = ndimage.gaussian_filter(
        np.random.default_rng(3).normal(size=shape), (sigma_rows, sigma_columns)
    )
    removed = torch.from_numpy(0.05 * noise / noise.std())[None, None].float()
    return 0.5 + removed, removed


def enlarged(image, factor):
    """Bicubic, as scanners enlarge what they display."""
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize(size, Image.BICUBIC))


@pytest.mark.parametrize(("rows", "columns"), [(1.0, 1.0), (2.0, 2.0), (1.5, 4.0)])
def test_width_is_that_of_the_autocorrelation(rows, columns):
    expected = 4 * math.sqrt(math.log(2)) * math.sqrt(rows * columns)  # exp(-lag^2 / 4 sigma^2)
    assert speckle_px(*grain(rows, columns)) == pytest.approx(expected, rel=0.12)


def test_text_hardly_changes_the_width():
    x, removed = grain(2.0, 2.0)
    plain = speckle_px(x, removed)
    x, removed = x.clone(), removed.clone()
    removed[..., 20:30, 20:200:2] = 0.4
    x[..., 20:30, 20:200:2] = 1.0
    assert speckle_px(x, removed) == pytest.approx(plain, rel=0.15)


def test_width_is_that_of_the_speckle_also_between_dark_gaps():
    x, removed = grain(3.0, 3.0)
    plain = speckle_px(x, removed)
    x, removed = x.clone(), removed.clone()
    for top in range(0, 200, 20):
        x[..., top : top + 10, :] = 0.0
        removed[..., top : top + 10, :] = 0.0
    assert speckle_px(x, removed) == pytest.approx(plain, rel=0.15)


def test_a_dark_or_small_or_untouched_image_says_nothing():
    x, removed = grain(2.0, 2.0)
    assert math.isnan(speckle_px(torch.zeros_like(x), removed))
    assert math.isnan(speckle_px(x[..., :40, :40], removed[..., :40, :40]))
    assert math.isnan(speckle_px(x, torch.zeros_like(x)))


def test_the_share_grows_with_the_width():
    shares = [coarse_share(width) for width in (0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 20.0)]
    assert shares == sorted(shares)
    assert (shares[2], shares[-1]) == (0.0, 1.0)
    assert coarse_share(math.nan) == 0.0


def test_fine_speckle_and_no_halvings_are_one_scale():
    x, _ = grain(2.0, 2.0)
    seen = []

    def residual(image):
        seen.append(tuple(image.shape[-2:]))
        return 0.1 * image

    assert torch.equal(residual_over_scales(residual, x, 3.0, 3), 0.1 * x)
    assert torch.equal(residual_over_scales(residual, x, 30.0, 0), 0.1 * x)
    assert torch.equal(residual_over_scales(residual, x, math.nan, 3), 0.1 * x)
    assert set(seen) == {(200, 240)}


def test_coarse_speckle_is_taken_out_at_half_the_size_first():
    x, _ = grain(2.0, 2.0, (101, 75))
    seen = []

    def residual(image):
        seen.append(tuple(image.shape[-2:]))
        return image - 0.5

    removed = residual_over_scales(residual, x, 9.0, 1)
    assert seen == [(51, 38), (101, 75)]
    half = F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2) - 0.5
    large = F.interpolate(half, scale_factor=2, mode="bilinear")[..., :101, :75]
    fine = x - large - 0.5
    assert torch.allclose(removed, large + fine - wide_part(fine, 1.0), atol=1e-6)


def test_what_half_the_size_has_left_stays_where_it_is_wide():
    """The whole size removes grain, not what is as wide as a lesion."""
    grain_, _ = grain(1.0, 1.0)
    lesion = torch.zeros_like(grain_)
    lesion[..., 60:140, 80:160] = 0.1

    def residual(image):
        whole = image.shape[-1] == grain_.shape[-1]
        return image - 0.5 if whole else torch.zeros_like(image)

    left = grain_ + lesion - residual_over_scales(residual, grain_ + lesion, 9.0, 1)
    inside, outside = left[..., 80:120, 100:140], left[..., 10:40, 10:60]
    assert float(inside.mean() - outside.mean()) == pytest.approx(0.1, abs=0.01)
    assert float(inside.std()) < 0.3 * float(grain_.std())


def test_very_coarse_speckle_is_halved_again():
    seen = []

    def residual(image):
        seen.append(image.shape[-1])
        return torch.zeros_like(image)

    residual_over_scales(residual, torch.rand(1, 1, 64, 64), 30.0, 3)
    assert seen == [8, 16, 32, 64]


def test_a_student_without_halvings_never_looks_at_the_width():
    x, _ = grain(4.0, 4.0)
    student = Student(Architecture()).eval()
    with torch.inference_mode():
        assert torch.equal(student(x), x - student.residual(x))


@pytest.mark.parametrize("name", ["quality", "lesions"])
def test_the_shipped_student_despeckles_enlarged_images_as_well(name):
    student = bundle.load(name).student
    scales, one = [], []
    for scene in validation_set(4, VALIDATION_SEED + 31, side=160):
        image = enlarged(scene.noisy, 3).round().clip(0, 255).astype(np.uint8)
        target = enlarged(scene.target, 3).clip(0, 255)
        x = torch.from_numpy(image)[None, None].float() / 255
        scales.append(metrics.psnr(despeckled(student, image), target, data_range=255))
        with torch.inference_mode():
            single = 255 * (x - student.residual(x)).clamp(0, 1)[0, 0].numpy()
        one.append(metrics.psnr(single, target, data_range=255))
    assert np.mean(scales) > np.mean(one) + 0.5

"""The terms of the training loss: what each asks for, and that none seeks the median."""

import pytest
import torch

from model import losses
from model.losses import TERMS, charbonnier


@pytest.fixture
def images():
    torch.manual_seed(0)
    target = torch.rand(2, 1, 64, 64)
    return target, (target + 0.1 * torch.randn_like(target)).clamp(0, 1)


@pytest.mark.parametrize("name", sorted(set(TERMS) - {"log_mse"}))
def test_a_perfect_output_costs_nothing_and_a_worse_one_more(images, name):
    target, noisy = images
    term = TERMS[name]
    assert float(term(target, target, noisy)) == pytest.approx(0, abs=1e-6)
    near, far = target + 0.02 * torch.randn_like(target), target + 0.1 * torch.randn_like(target)
    assert 0 < float(term(near, target, noisy)) < float(term(far, target, noisy))


def test_log_mse_is_the_psnr_in_other_units(images):
    target, noisy = images
    decibels = torch.stack(
        [-10 * torch.log10(((n - t) ** 2).mean()) for n, t in zip(noisy, target, strict=True)]
    )
    loss = TERMS["log_mse"](noisy, target, noisy)
    assert float(-10 / torch.log(torch.tensor(10.0)) * loss) == pytest.approx(
        float(decibels.mean()), abs=0.01
    )


def test_the_mean_costs_less_than_the_median():
    # A place that is faintly bright in one image of three: flat is the median, a third the mean.
    target = torch.tensor([0.0, 0.0, 0.03]).reshape(3, 1, 1, 1).expand(3, 1, 32, 32)
    mean, median = torch.full_like(target, 0.01), torch.zeros_like(target)
    assert charbonnier(mean, target, target) < charbonnier(median, target, target)


def test_losing_a_faint_lesion_costs_more_contrast_than_inventing_one():
    disc = torch.zeros(1, 1, 64, 64)
    disc[..., 24:40, 24:40] = 0.05
    flat = torch.zeros_like(disc)
    contrast = TERMS["contrast"]
    assert float(contrast(flat, disc, disc)) > 2 * float(contrast(disc, flat, disc)) > 0


def test_an_invention_beside_a_faint_lesion_costs_as_little_as_one_far_from_it():
    lesion = torch.full((1, 1, 128, 128), 0.4)
    lesion[..., 24:40, 24:40] += 0.05
    inside, beside, far = lesion.clone(), lesion.clone(), lesion.clone()
    inside[..., 28:36, 28:36] -= 0.05
    beside[..., 28:36, 48:56] += 0.05
    far[..., 96:104, 96:104] += 0.05
    cost = {
        name: float(TERMS["contrast"](image, lesion, lesion))
        for name, image in {"inside": inside, "beside": beside, "far": far}.items()
    }
    assert cost["beside"] == pytest.approx(cost["far"], rel=0.01)
    assert cost["inside"] > 10 * cost["far"]


def test_a_lesion_survives_or_does_not():
    lesion = torch.full((1, 1, 64, 64), 0.4)
    lesion[..., 24:40, 24:40] += 0.05
    cost = {
        kept: float(
            TERMS["survival"](lesion.lerp(torch.full_like(lesion, 0.4), 1 - kept), lesion, lesion)
        )
        for kept in (0.0, 0.35, 0.7, 1.0, 1.3)
    }
    assert cost[0.0] > 1.5 * cost[0.35] > cost[0.7]
    assert [cost[0.7], cost[1.0], cost[1.3]] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_halo_takes_the_contrast_away():
    lesion = torch.full((1, 1, 128, 128), 0.4)
    lesion[..., 48:80, 48:80] += 0.05
    halo = lesion.clone()
    halo[..., 36:92, 36:92] = 0.45
    flat = torch.full_like(lesion, 0.4)
    cost = {
        name: float(TERMS["survival"](image, lesion, lesion))
        for name, image in {"lesion": lesion, "halo": halo, "flat": flat}.items()
    }
    assert cost["lesion"] == pytest.approx(0, abs=1e-6)
    assert cost["halo"] > 0.5 * cost["flat"] > 0


def test_half_a_lesion_in_patches_is_no_lesion():
    lesion = torch.full((1, 1, 128, 128), 0.4)
    lesion[..., 48:80, 48:80] += 0.05
    patchy = lesion.clone()
    patchy[..., 48:80, 48:56] = patchy[..., 48:80, 64:72] = 0.4
    even = lesion.lerp(torch.full_like(lesion, 0.4), 0.3)
    cost = {
        name: float(TERMS["survival"](image, lesion, lesion))
        for name, image in {"patchy": patchy, "even": even}.items()
    }
    assert cost["even"] == pytest.approx(0, abs=1e-4)
    assert cost["patchy"] > 100 * max(cost["even"], 1e-6)


@pytest.mark.parametrize("place", [24, 26])
def test_what_is_plain_to_see_is_no_lesion_to_keep_nor_are_its_edges(place):
    def loss(contrast):
        image = torch.full((1, 1, 64, 64), 0.2)
        image[..., place : place + 16, place : place + 16] += contrast
        return float(TERMS["survival"](torch.full_like(image, 0.2), image, image))

    assert loss(0.05) > 0.01
    assert loss(0.25) == 0


def test_structural_similarity_counts_structure_and_not_level(images):
    target, noisy = images
    ms_ssim = TERMS["ms_ssim"]
    shifted = ms_ssim(target + 0.01, target, noisy)
    blurred = ms_ssim(torch.nn.functional.avg_pool2d(target, 5, 1, 2), target, noisy)
    assert float(shifted) < 0.05 * float(blurred)


def test_the_smallest_patch_of_structural_similarity_is_what_is_said():
    patch = torch.rand(1, 1, losses.MS_SSIM_LEAST_PX, losses.MS_SSIM_LEAST_PX)
    assert float(losses.ms_ssim(patch, patch, patch)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(RuntimeError):
        losses.ms_ssim(patch[..., 1:], patch[..., 1:], patch)

"""The controller: weights go where the student falls short, and nowhere else."""

import numpy as np
import pytest

from model import data
from model.losses import TERMS
from model.training import guidance
from model.training.recipe import GuidanceSection

BASE = {"charbonnier": 1.0, "ms_ssim": 0.1, "gradient": 0.25, "contrast": 0.5, "survival": 0.3}
BASE |= {"log_mse": 0.2}
SECTION = GuidanceSection(every=100, temperature=1.0, inertia=0.0, reach=4.0)


def test_every_governed_term_exists():
    assert {governed.term for governed in guidance.GOVERNED.values()} <= set(TERMS)


def test_the_term_of_the_largest_shortfall_gains_and_the_others_lose():
    short = {"psnr": 0.0, "ms_ssim": 0.0, "edge_strength": 2.0, "contrast_kept": 0.0}
    new = guidance.adjusted(BASE, BASE, short, SECTION)
    assert new["gradient"] > BASE["gradient"]
    assert new["charbonnier"] < BASE["charbonnier"]
    assert new["log_mse"] == BASE["log_mse"]


def test_equal_shortfalls_change_nothing():
    short = dict.fromkeys(guidance.GOVERNED, 1.5)
    assert guidance.adjusted(BASE, BASE, short, SECTION) == pytest.approx(BASE)


def test_weights_stay_within_reach_and_inertia_slows_them():
    short = {"psnr": 0.0, "contrast_kept": 50.0}
    new = guidance.adjusted(BASE, BASE, short, SECTION)
    assert new["contrast"] == pytest.approx(4 * BASE["contrast"])
    assert new["charbonnier"] == pytest.approx(BASE["charbonnier"] / 4)
    slow = guidance.adjusted(BASE, BASE, short, SECTION.model_copy(update={"inertia": 0.9}))
    assert slow["contrast"] == pytest.approx(1.3 * BASE["contrast"])


def test_a_term_that_the_recipe_does_not_use_stays_out():
    base = BASE | {"contrast": 0.0}
    new = guidance.adjusted(base, base, {"psnr": 0.0, "contrast_kept": 9.0}, SECTION)
    assert new == base


def test_reaching_a_target_is_no_shortfall():
    targets = {"psnr": 30.0, "ms_ssim": 0.95}
    assert guidance.shortfalls({"psnr": 31.0, "ms_ssim": 0.93}, targets) == pytest.approx(
        {"psnr": 0.0, "ms_ssim": 5.0}
    )


def test_a_perfect_output_keeps_all_contrast_and_a_flat_one_none():
    scenes = data.validation_set(2, side=192)
    answers = {scene.noisy.tobytes(): scene.target for scene in scenes}
    perfect = guidance.measure(lambda image: answers[image.tobytes()], scenes)
    assert perfect["contrast_kept"] == pytest.approx(1, abs=0.01)
    assert perfect["survival"] == 1
    assert perfect["edge_strength"] == pytest.approx(1, abs=0.01)
    flat = guidance.measure(lambda image: np.full(image.shape, 90, np.float32), scenes)
    assert flat["contrast_kept"] == pytest.approx(0, abs=0.01)
    assert flat["survival"] == 0

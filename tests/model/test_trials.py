"""What candidates are compared by: who changes nothing gains nothing, who flattens loses lesions."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from model.data import VALIDATION_SEED
from model.evaluation import trials
from model.evaluation.contenders import identity
from model.evaluation.safety_grounds import Size
from model.evaluation.trials import Trials

SEED = VALIDATION_SEED + 460
SIZE = Size(side_px=176, faint=2, plain=0, even=1, clustered=1, blocks=0, cines=1, frames=2)
SUBJECTS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / trials.DARKENED).mkdir()
    rng = np.random.default_rng(3)
    for subject in range(SUBJECTS):
        grain = ndimage.gaussian_filter(rng.standard_normal((200, 200)), 1.0)
        image = np.clip(100 + 20 * grain / grain.std(), 1, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / trials.DARKENED / f"{subject:03d}_HC.png")
    return folder


@pytest.fixture(scope="module")
def given(folder):
    return Trials.make(SEED, SIZE, 2, folder)


def flattened(image):
    return np.full(image.shape, 100, np.float32)


def test_who_changes_nothing_gains_nothing_and_keeps_what_is_planted(given):
    scenes, real = trials.on_scenes(identity, given), trials.on_real(identity, given)
    assert tuple(scenes) == trials.scene_columns(given)
    assert [scenes[f"{name}, gain dB"] for name in given.scenes] == pytest.approx([0, 0])
    assert set(real) == set(trials.REAL_COLUMNS)
    assert real["planted 30 px"] == real["ssi"] == 1
    assert real[f"{trials.DARKENED}, shift"] == real["mean_shift"] == 0


def test_who_flattens_shows_nothing_and_no_lesion(given):
    shown, kept = trials.on_grounds(flattened, given), trials.on_grounds(identity, given)
    assert set(shown) == set(kept) == set(trials.GROUND_COLUMNS)
    assert shown["survive 30 px"] == 0 < kept["survive 30 px"]
    assert shown["even, dB"] == pytest.approx(0, abs=1e-6)
    assert kept["even, dB"] > 1
    assert kept["flicker"] == pytest.approx(1)
    assert trials.on_real(flattened, given)["ssi"] == pytest.approx(0, abs=1e-6)


def test_without_images_simulated_trials_are_left(tmp_path):
    given = Trials.make(SEED, SIZE, 1, tmp_path / "none")
    assert given.real == []
    assert trials.on_real(identity, given) == {}

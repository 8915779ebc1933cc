"""Multiplicative noise, and the protocol that judges on it."""

import csv

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress
from scipy import ndimage

from model import evaluate as evaluation
from model.baselines import Baseline, median
from model.evaluation import images, paper
from model.evaluation.contenders import Contender, noisy
from model.simulation import multiplicative

FLAT = np.full((200, 200), 80, np.uint8)


def smooth(image):
    return ndimage.gaussian_filter(image.astype(np.float32), 1.0)


# --- noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.01, 0.05])
def test_noise_has_mean_and_variance_of_the_formula(level):
    noise = multiplicative.add(FLAT, level, np.random.default_rng(1)).astype(float)
    assert noise.mean() == pytest.approx(80, abs=0.5)
    assert noise.std() == pytest.approx(80 * np.sqrt(level), rel=0.03)


def test_noise_is_of_its_own_in_every_pixel():
    noise = multiplicative.add(FLAT, 0.05, np.random.default_rng(2)).astype(float) - 80
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / noise.var()
    assert abs(neighbours) < 0.02


@pytest.mark.parametrize("level", multiplicative.LEVELS)
def test_noise_stays_in_eight_bits_and_black_stays_black(level):
    image = np.tile(np.array([0, 255], np.uint8), (50, 50))
    noise = multiplicative.add(image, level, np.random.default_rng(3))
    assert noise.dtype == np.uint8
    assert not noise[:, ::2].any()
    assert (noise[:, 1::2] == 255).mean() > 0.4  # clipped, not wrapped around


def test_noise_follows_from_the_seed_and_level_zero_is_the_image():
    first, again = (multiplicative.add(FLAT, 0.5, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(multiplicative.add(FLAT, 0, np.random.default_rng(4)), FLAT)


@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf")])
def test_level_that_is_no_variance_is_refused(level):
    with pytest.raises(ValueError, match="variance"):
        multiplicative.add(FLAT, level, np.random.default_rng(5))


# --- protocol ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Six subjects of one source, dark around the picture."""
    source = tmp_path / "images" / "liver"
    source.mkdir(parents=True)
    for subject in range(6):
        rng = np.random.default_rng(subject)
        picture = np.zeros((72, 80), np.uint8)
        tissue = 110 + 30 * ndimage.gaussian_filter(rng.normal(size=(48, 64)), 4) * 10
        picture[10:58, 8:72] = np.clip(tissue, 20, 235)
        Image.fromarray(picture).save(source / f"patient{subject}.png")
    return source.parent


def test_scenes_are_cut_to_what_is_lit_and_keep_the_image_as_reference(folder):
    (scene,) = paper.scenes([folder / "liver" / "patient0.png"], 0.1, seed=1, side_px=40)
    assert scene.noisy.shape == (40, 40)
    assert scene.target.min() >= 20
    assert np.std(scene.noisy - scene.target) > 20


def test_figures_of_a_perfect_output():
    clean = np.random.default_rng(0).uniform(0, 255, (32, 32)).astype(np.float32)
    found = paper.measure(clean, clean)
    assert found == {"psnr": float("inf"), "ssim": pytest.approx(1), "mse": 0}
    assert paper.measure(clean + 3, clean)["mse"] == pytest.approx(9, rel=1e-4)


def test_paper_protocol_writes_a_table_a_level_and_prints_the_input(folder, tmp_path):
    files = sorted(folder.rglob("*.png"))[:2]
    contenders = {level: [noisy(), Contender("smooth", smooth, f"tuned at {level}")]
                  for level in multiplicative.LEVELS}  # fmt: skip
    turns = []
    written = paper.evaluate(
        contenders,
        files,
        root=folder,
        output=tmp_path / "out",
        described={"bundles": "none"},
        seed=7,
        advance=lambda: turns.append(1),
    )
    assert len(turns) == 2 * 2 * len(multiplicative.LEVELS)
    assert all(path.is_file() for path in written)
    text = written[0].read_text()
    for level in multiplicative.LEVELS:
        assert f"### Noise of variance {level:g}" in text
        assert f"v {level:g}: PSNR" in text
        assert f"tuned at {level}" in text
    assert "clip(x (1 + sqrt(v) n), 0, 1)" in text
    with (tmp_path / "out" / "paper-psnr-gain-in-db-by-level.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["noisy"]["v = 0.1"]) == 0
    assert float(rows["smooth"]["v = 0.75"]) > 3
    with (tmp_path / "out" / "paper-images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * len(multiplicative.LEVELS)
    assert {path.name for path in written} >= {"paper-gain.png", "paper-methods.png"}


def test_classical_methods_are_tuned_for_each_level_on_other_subjects(
    folder, tmp_path, monkeypatch
):
    seen = []

    choose = images.choose

    def chosen(files, root, each):
        found = choose(files, root, each)
        seen.append(set(found))
        return found

    monkeypatch.setattr(evaluation.real_images, "choose", chosen, raising=True)
    baseline = Baseline("m", "", median, {"size_px": (1, 3, 5)})
    monkeypatch.setattr(evaluation, "chosen_baselines", lambda _: [baseline])
    settings = evaluation.Settings(tmp_path / "out", images=folder)
    outcome = evaluation.evaluate("paper", settings, Progress(disable=True))
    judged, tuned = seen
    assert judged
    assert tuned
    assert not judged & tuned
    kept = (tmp_path / "out" / evaluation.TUNED_FILE).read_text()
    for level in multiplicative.LEVELS:
        assert f'"paper v={level:g} m"' in kept
    assert outcome.written


def test_paper_protocol_is_skipped_visibly_without_images(tmp_path):
    settings = evaluation.Settings(tmp_path / "out", images=tmp_path / "absent")
    outcome = evaluation.evaluate("paper", settings, Progress(disable=True))
    assert not outcome.written
    assert "absent" in outcome.skipped

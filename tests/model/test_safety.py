"""The safety protocol catches what it is there to catch, and finds no fault in the input."""

import csv
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress
from scipy import ndimage
from torch import nn

from model import evaluate as evaluation
from model.data import VALIDATION_SEED
from model.evaluation import safety
from model.evaluation.contenders import Contender, identity, noisy
from model.evaluation.safety_grounds import (
    DIAMETERS_PX,
    GREY_PER_DB,
    Grounds,
    Size,
    brightness_blocks,
    packed_lesions,
)
from model.evaluation.safety_measures import (
    FLICKER,
    RARELY,
    appeared,
    brightness_shifts,
    drawing_changes,
    flicker_reductions,
    identity_at_zero,
    lesions_kept,
    shift_differences,
    told_apart,
)

torch.set_num_threads(1)
SEED = VALIDATION_SEED + 444
TINY = Size(
    side_px=176,
    faint=2,
    plain=1,
    even=1,
    clustered=2,
    blocks=2,
    cines=2,
    frames=3,
    shifted_side_px=92,
)


@pytest.fixture(scope="module")
def grounds():
    return Grounds.make(SEED, TINY)


def smooth(image, sigma=3.0):
    return ndimage.gaussian_filter(image.astype(np.float32), sigma)


def with_grid(period):
    """A method that draws a line in every so many rows, wherever the image lies."""

    def method(image):
        result = image.astype(np.float32)
        result[::period] += 6
        return result

    return method


def test_the_input_itself_is_safe(grounds):
    found = safety.judge(noisy(), grounds).figures
    assert found["flicker, times lower"] == pytest.approx(1.0)
    for key in ("largest", "text changed, %", "shift, RMS", "shift, largest", "grid 8"):
        assert found[key] == 0
    for width in (1, 2, 3):
        assert found[f"{width} px line, peak kept"] == pytest.approx(1)
        assert found[f"{width} px line, wider px"] == pytest.approx(0)


def test_every_lesion_survives_in_the_reference(grounds):
    for scenes in grounds.lesions.values():
        for diameter in {lesion.diameter_px for scene in scenes for lesion in scene.lesions}:
            kept = lesions_kept([scene.target for scene in scenes], scenes, diameter)
            assert kept == pytest.approx((1.0, 1.0))


def test_heavy_blur_takes_small_lesions_and_leaves_large_ones(grounds):
    scenes = grounds.lesions[6.0] + grounds.lesions[3.0]
    blurred = [smooth(scene.target, 5.0) for scene in scenes]
    small, small_contrast = lesions_kept(blurred, scenes, 6)
    large, large_contrast = lesions_kept(blurred, scenes, 30)
    assert small < 0.2
    assert large > 0.8
    assert small_contrast < 0.4
    assert large_contrast > 0.6


def test_chance_tells_nothing_apart_the_better_the_coarser_the_grain(grounds):
    scenes = grounds.lesions[3.0]
    fine, coarse = (
        told_apart(
            [smooth(scene.noisy, sigma) for scene in scenes],
            scenes,
            [smooth(scene.noisy, sigma) for scene in grounds.even],
        )
        for sigma in (1.0, 4.0)
    )
    assert 0.1 < fine["nothing"] < coarse["nothing"]
    assert fine["over chance"] == fine["lesions"] - fine["nothing"] > 0
    everywhere = [scene.target for scene in scenes]
    ideal = told_apart(everywhere, scenes, [np.full_like(everywhere[0], 90)])
    assert ideal["nothing"] == 0
    assert ideal["over chance"] > 0.5


def test_sizes_that_no_scene_holds_are_not_judged(grounds):
    assert all(math.isnan(value) for value in lesions_kept([], [], 10))


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_a_grid_is_caught_at_its_period(grounds, period):
    found = shift_differences(with_grid(period), grounds.shifted)
    assert found[f"grid {period}"] > 0.4
    assert all(found[f"grid {other}"] == 0 for other in (8, 16) if other > period)
    assert found["shift, largest"] == pytest.approx(6)


def test_an_image_too_small_to_be_shifted_is_refused():
    with pytest.raises(ValueError, match="margins"):
        shift_differences(identity, np.zeros((64, 64), np.uint8))


def test_a_structure_that_is_not_there_is_found(grounds):
    scene = grounds.even[0]
    clean = [scene.target.copy()]
    assert appeared(clean, [scene])["10 px, %"] == 0
    invented = scene.target.copy()
    invented[80:90, 80:90] += 3 * GREY_PER_DB
    assert appeared([invented], [scene])["10 px, %"] > 0
    assert appeared([identity(scene.noisy)], [scene])["6 px, dB"] > 1


def test_a_rare_structure_is_found_where_the_95th_percentile_passes_over_it(grounds):
    scene = grounds.even[0]
    invented = scene.target.copy()
    invented[80:90, 80:90] += 3 * GREY_PER_DB
    found = appeared([invented], [scene])
    assert found["10 px, dB"] < 1 < found[f"10 px, {RARELY}"]
    assert appeared([scene.target.copy()], [scene])[f"10 px, {RARELY}"] < 1


def test_clustered_scatterers_are_uneven_about_a_reference_that_is_even(grounds):
    for scene in grounds.clustered:  # of either simulator
        assert scene.target[20:-20, 20:-20].std() < 0.5 * GREY_PER_DB
        still = appeared([scene.target.copy()], [scene])
        seen = appeared([smooth(scene.noisy)], [scene])
        even = appeared([smooth(grounds.even[0].noisy)], [grounds.even[0]])
        assert still["16 px, dB"] < 0.1 < even["16 px, dB"] < seen["16 px, dB"]


def test_a_stroke_that_is_not_there_is_found_in_any_direction(grounds):
    scene = grounds.even[0]
    rows, columns = np.mgrid[: scene.target.shape[0], : scene.target.shape[1]]
    assert appeared([scene.target.copy()], [scene])["stroke, %"] == 0
    for angle in (0.0, 0.6, 1.3):
        across = (rows - 88) * np.cos(angle) - (columns - 88) * np.sin(angle)
        invented = scene.target + 3 * GREY_PER_DB * (np.abs(across) <= 1)
        found = appeared([invented.astype(np.float32)], [scene])
        assert found["stroke, %"] > 1
        assert found["stroke, %"] > found["10 px, %"]


def test_brightness_that_moves_is_told_by_class(grounds):
    dark = [scene.noisy.astype(np.float32) for scene in grounds.blocks]
    for image, scene in zip(dark, grounds.blocks, strict=True):
        image[scene.labels["-12"]] -= 5
    found = brightness_shifts(dark, grounds.blocks)
    assert found["-12 dB"] == pytest.approx(-5)
    assert found["4 dB"] == 0
    assert found["largest"] == pytest.approx(-5)


def test_classes_of_brightness_are_apart_and_pure():
    phantom = brightness_blocks(120)
    assert len(phantom.labels) == 6
    for label, mask in phantom.labels.items():
        assert mask.any()
        assert (phantom.diffuse_db[mask] == float(label)).all()


def test_smoothing_lowers_flicker(grounds):
    cines = grounds.cines
    for frames in cines:
        np.testing.assert_array_equal(frames[0].target, frames[1].target)
    smoothed = [[smooth(frame.noisy) for frame in frames] for frames in cines]
    found = flicker_reductions(smoothed, cines)
    assert 1.5 < found[f"{FLICKER}, least"] < found[FLICKER]
    still = [[frame.target for frame in frames] for frames in cines]
    assert flicker_reductions(still, cines)[FLICKER] == math.inf
    restless = [smoothed[0], [identity(frame.noisy) for frame in cines[1]]]
    assert flicker_reductions(restless, cines)[f"{FLICKER}, least"] == pytest.approx(1)


def test_text_and_lines_that_are_blurred_are_seen(grounds):
    drawn = grounds.drawn
    assert drawn.text.any()
    assert len(drawn.lines) == 12
    found = drawing_changes(smooth(drawn.image, 1.5), drawn)
    assert found["text changed, %"] > 90
    assert found["1 px line, peak kept"] < 0.5
    assert found["1 px line, wider px"] > 1
    assert found["1 px line, peak kept"] < found["3 px line, peak kept"]


def test_a_network_must_return_its_input_at_strength_zero():
    class Honest(nn.Module):
        def forward(self, x, strength=1.0):
            return x - strength * 0.1

    class Careless(nn.Module):
        def forward(self, x, strength=1.0):
            return (x * 3 - strength * 0.1) / 3

    assert identity_at_zero(Contender("a", identity, network=Honest())) == 1
    assert identity_at_zero(Contender("a", identity, network=Careless())) == 0
    assert math.isnan(identity_at_zero(noisy()))


def test_the_images_hold_four_hundred_lesions_of_each_size():
    counts = Counter()
    for index in range(Size().faint):
        phantom = packed_lesions(np.random.default_rng((SEED, 0, index)), 256, 3.0)
        counts.update(lesion.diameter_px for lesion in phantom.lesions)
        inside = np.sum([lesion.mask.astype(int) for lesion in phantom.lesions], axis=0)
        assert inside.max() == 1
        for lesion in phantom.lesions:
            assert (phantom.diffuse_db[lesion.ring] == 0).all()
        signs = [lesion.contrast_db for lesion in phantom.lesions]
        assert abs(sum(signs)) <= 3
    assert set(counts) == set(DIAMETERS_PX)
    assert min(counts.values()) >= 400


def test_the_seed_decides_the_grounds(grounds):
    small = replace(TINY, faint=1, plain=0, even=1, clustered=1, blocks=0, cines=0)
    again = Grounds.make(SEED, small)
    np.testing.assert_array_equal(again.lesions[3.0][0].noisy, grounds.lesions[3.0][0].noisy)
    np.testing.assert_array_equal(again.even[0].noisy, grounds.even[0].noisy)
    np.testing.assert_array_equal(again.clustered[0].noisy, grounds.clustered[0].noisy)
    assert not np.array_equal(Grounds.make(SEED + 1, small).even[0].noisy, again.even[0].noisy)


def test_protocol_writes_tables_a_picture_and_a_plot(tmp_path, grounds):
    contenders = (noisy(), Contender("smooth", smooth, "sigma 3", "a test"))
    calls = []
    written = safety.evaluate(
        contenders,
        grounds=grounds,
        output=tmp_path,
        described={"seed": SEED},
        advance=lambda: calls.append(1),
    )
    assert len(calls) == safety.turns(contenders, grounds)
    assert all(path.is_file() for path in written)
    text = written[0].read_text()
    for word in (
        "Lesions of 3 dB that survive",
        "even speckle",
        "gather in clusters",
        "flicker",
        "Text",
        str(SEED),
    ):
        assert word in text
    with (tmp_path / "safety-contrast-kept-by-lesions-of-3-db.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["smooth"]["6 px"]) < float(rows["smooth"]["30 px"])
    for name in ("safety-pictures.png", "safety-survival.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300


def test_a_run_of_the_protocol_draws_grounds_of_its_seed(tmp_path, grounds, monkeypatch):
    seeds = []

    def make(seed):
        seeds.append(seed)
        return grounds

    monkeypatch.setattr(evaluation.Grounds, "make", make)
    settings = evaluation.Settings(tmp_path, methods=["median"], tuning_scenes=1, seed=SEED)
    outcome = evaluation.evaluate("safety", settings, Progress(disable=True))
    assert seeds == [SEED]
    assert outcome.written[0].name == "safety.md"
    assert "| median |" in outcome.written[0].read_text()

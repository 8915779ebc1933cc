"""A planted lesion adds what it should, where it should, and a teacher's answer gains the same."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from model.training import pool
from model.training.planting import plant, planted_pool
from model.training.pool import STEPS_PER_GREY
from model.training.recipe import Recipe


@pytest.fixture
def speckle():
    rng = np.random.default_rng(5)
    image = np.clip(100 + 25 * rng.standard_normal((96, 96)), 1, 255).astype(np.uint8)
    image[:, :16] = 0  # beyond the sector
    return image


@pytest.fixture
def disc():
    rows, columns = np.mgrid[:96, :96]
    return (np.hypot(rows - 48, columns - 56) < 15).astype(np.float32)


@pytest.mark.parametrize("contrast_db", [3.0, -3.0])
def test_every_grain_of_a_lesion_gains_the_same(speckle, disc, contrast_db):
    planted, expected = plant(speckle, contrast_db * disc, 4.25)
    gained = planted.astype(float) - speckle
    inside = np.hypot(*np.mgrid[-48:48, -56:40]) < 11
    assert gained[inside] == pytest.approx(contrast_db * 4.25, abs=0.6)
    assert expected[inside] == pytest.approx(contrast_db * 4.25, rel=0.03)
    assert not gained[np.hypot(*np.mgrid[-48:48, -56:40]) > 21].any()


@pytest.mark.parametrize("contrast_db", [3.0, -3.0])
def test_on_a_bent_display_bright_grains_gain_more(disc, contrast_db):
    image = np.full((96, 96), 50, np.uint8)
    image[:, 56:] = 150
    flat, bent = (plant(image, contrast_db * disc, 4.25, growth=g)[0] for g in (0.0, 0.75))
    inside = np.hypot(*np.mgrid[-48:48, -56:40]) < 11
    gained = bent.astype(float) - image
    dark, bright = (abs(gained[inside & (image == grey)].mean()) for grey in (50, 150))
    assert bright / dark == pytest.approx(3**0.75, rel=0.15)
    assert dark < abs(flat.astype(float) - image)[inside].mean() < bright


def test_grains_of_a_lesion_on_a_bent_display_keep_the_mean_that_is_expected(speckle, disc):
    planted, expected = plant(speckle, 6 * disc, 4.25, growth=0.75)
    inside = np.hypot(*np.mgrid[-48:48, -56:40]) < 11
    gained = planted.astype(float) - speckle
    assert expected[inside].mean() == pytest.approx(gained[inside].mean(), rel=0.04)
    assert planted[inside].std() > 1.1 * speckle[inside].std()


def test_black_stays_black_and_clipped_grains_lower_what_is_expected(speckle, disc):
    everywhere = np.full(speckle.shape, 4.0, np.float32)
    planted, _ = plant(speckle, everywhere, 4.25)
    assert not planted[:, :16].any()
    dark = np.where(speckle > 0, speckle // 12 + 1, 0).astype(np.uint8)
    shown, expected = plant(dark, -6 * disc, 4.25)
    inside = np.hypot(*np.mgrid[-48:48, -56:40]) < 8
    difference = (shown.astype(float) - dark)[inside].mean()
    assert difference > -12  # of the 25.5 that were asked for
    assert expected[inside].mean() == pytest.approx(difference, abs=1)


def test_a_planted_pool_adds_to_the_answer_what_it_adds_to_the_patch(tmp_path, speckle):
    noisy = np.stack([speckle, speckle[::-1]])
    target = np.stack([image.astype(np.uint16) * np.uint16(STEPS_PER_GREY) for image in noisy])
    np.save(tmp_path / "noisy.npy", noisy)
    np.save(tmp_path / "target.npy", target)
    for flags in ("clustered", "detailed"):
        np.save(tmp_path / f"{flags}.npy", np.zeros(2, bool))
    real = pool.load(tmp_path)
    with pytest.raises(ValueError, match="no teacher"):
        planted_pool(real, copies=4, seed=1)
    taught, other = (_answered(real, grey) for grey in (100, 50))
    planted = planted_pool(taught, copies=4, seed=1, workers=1)
    assert len(planted) == 8
    assert planted.taught is not None
    sources = [_nearest(noisy, patch) for patch in planted.noisy]
    assert set(sources) == {0, 1}
    for source, patch, answer in zip(sources, planted.noisy, planted.taught, strict=True):
        gained = patch.astype(float) - noisy[source]
        said = answer / STEPS_PER_GREY - 100
        lit = noisy[source] > 0
        assert np.abs(gained).max() > 3
        assert np.abs(gained - said)[lit].mean() < 0.25 * np.abs(gained)[lit].mean()
    assert len({patch.tobytes() for patch in planted.noisy}) == 8
    again = planted_pool(taught, copies=4, seed=1, workers=1)
    assert np.array_equal(again.noisy, planted.noisy)
    others = [planted_pool(taught, copies=4, seed=2), planted_pool(other, copies=4, seed=1)]
    assert not np.array_equal(others[0].noisy, planted.noisy)
    assert not np.array_equal(others[1].taught, planted.taught)


def test_details_are_planted_where_they_are_asked_for_alone(tmp_path, speckle):
    np.save(tmp_path / "noisy.npy", speckle[None])
    np.save(tmp_path / "target.npy", speckle[None].astype(np.uint16) * np.uint16(STEPS_PER_GREY))
    for flags in ("clustered", "detailed"):
        np.save(tmp_path / f"{flags}.npy", np.zeros(1, bool))
    taught = _answered(pool.load(tmp_path), 100)
    without, given = (
        planted_pool(taught, copies=16, seed=3, workers=1, details=each) for each in (False, True)
    )
    assert without.folder != given.folder
    plain, detailed = (
        [_fine(patch.astype(float) - speckle) for patch in each.noisy] for each in (without, given)
    )
    assert np.mean(detailed) > 3 * np.mean(plain)
    assert np.quantile(detailed, 0.2) == 0, "not every patch has them"


def _fine(gained):
    """Share of the pixels that gain much more, or less, than what lies about them."""
    about = ndimage.median_filter(gained, 9)
    return float((np.abs(gained - about) > 30).mean())


def _answered(real, grey):
    path = real.folder / f"taught-{grey}.npy"
    np.save(path, np.full_like(real.target, grey * STEPS_PER_GREY))
    return replace(real, taught=np.load(path, mmap_mode="r"))


def _nearest(images, patch):
    return int(np.argmin([np.abs(image.astype(float) - patch).mean() for image in images]))


def test_what_was_planted_has_no_features_of_a_teacher():
    with pytest.raises(ValueError, match="real_planted"):
        Recipe(name="x", distillation={"real_planted": 1, "affinity": 0.1})

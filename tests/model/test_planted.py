"""What survives of lesions planted in real images: none is counted that is not known."""

import numpy as np
import pytest
from scipy import ndimage

from model.evaluation import planted
from model.evaluation.contenders import Contender, identity, noisy


@pytest.fixture(scope="module")
def tissue():
    rng = np.random.default_rng(8)
    grain = ndimage.gaussian_filter(rng.standard_normal((256, 256)), 1.0)
    image = np.clip(100 + 20 * grain / grain.std(), 1, 255).astype(np.uint8)
    image[:, :60] = 0  # beyond the sector
    return image


@pytest.fixture(scope="module")
def grounds(tissue):
    return planted.grounds([tissue], plantings=2)


def shares(found):
    return [found[f"{diameter} px"] for diameter in planted.DIAMETERS_PX]


def contrasts(found):
    return [found[f"{diameter} px, contrast"] for diameter in planted.DIAMETERS_PX]


def test_who_changes_nothing_keeps_every_lesion_and_who_flattens_keeps_none(grounds):
    kept = planted.survival(identity, grounds)
    assert shares(kept) == [1, 1, 1, 1]
    assert contrasts(kept) == pytest.approx([1, 1, 1, 1])
    lost = planted.survival(lambda image: np.full(image.shape, 100, np.float32), grounds)
    assert shares(lost) == [0, 0, 0, 0]
    assert lost["gcnr"] == 0 < kept["gcnr"]


def test_what_a_method_draws_anyhow_is_no_lesion(grounds):
    blobs = np.zeros((256, 256), np.float32)
    blobs[::16] = 40

    def draws(image):
        return 0.4 * image + blobs

    assert contrasts(planted.survival(draws, grounds)) == pytest.approx([0.4] * 4, abs=1e-3)
    assert shares(planted.survival(draws, grounds)) == [0, 0, 0, 0]


def test_less_grain_tells_lesions_apart_better(grounds):
    smooth = planted.survival(lambda image: ndimage.gaussian_filter(image * 1.0, 2.0), grounds)
    assert smooth["gcnr"] > planted.survival(identity, grounds)["gcnr"]


def test_what_tells_places_apart_without_lesions_is_not_gained(grounds):
    def blind(_):
        return ndimage.gaussian_filter(grounds[0].image * 1.0, 2.0)

    found = planted.survival(blind, grounds)
    assert found[planted.WITHOUT] == found["gcnr"] > 0.2
    assert found[planted.GAINED] == 0
    assert planted.survival(identity, grounds)[planted.GAINED] > 0.02


def test_lesions_count_in_tissue_alone(tissue, grounds):
    lesions = [lesion for scene in grounds[0].planted for lesion in scene.lesions]
    assert len(lesions) > 20
    for lesion in lesions:
        assert (tissue[lesion.mask | lesion.ring] == 0).mean() < 0.02
    small = planted.grounds([tissue[:100, 100:200]])
    assert all(lesion.mask.shape == (100, 100) for s in small[0].planted for lesion in s.lesions)
    assert not planted.grounds([np.zeros((256, 256), np.uint8)])[0].planted[0].lesions


def test_table_has_a_row_each_and_says_how_many_lesions_there_were(grounds):
    seen = []
    made = planted.table([noisy(), Contender("same", identity)], grounds, lambda: seen.append(1))
    assert [row["method"] for row in made.rows] == ["noisy", "same"]
    assert len(seen) == 2
    lesions = [lesion for scene in grounds[0].planted for lesion in scene.lesions]
    at_30 = sum(lesion.diameter_px == 30 for lesion in lesions)
    assert f"{at_30} of them by diameter" in made.notes[0]

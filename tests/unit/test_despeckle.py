"""The node's inference: order, batches, precision, strength, refusals."""

import numpy as np
import pytest
import torch

from dicom_node import despeckle
from dicom_node.config import DespeckleSection
from dicom_node.despeckle import Despeckler
from dicom_node.errors import ConfigError, Permanent, Transient
from model import bundle, data
from tests.precision import PRECISIONS, share_within_a_level


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    noisy = data.validation_set(2, side=96)[0].noisy[:90, :75]
    lit = noisy > 0
    return [np.clip(noisy + lit * rng.integers(0, 9), 0, 255).astype(np.uint8) for _ in range(5)]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_frames_keep_their_order_and_size_whatever_the_batch(frames, batch):
    despeckler = Despeckler(bundle.load("quality"), "cpu", "float32", batch)
    reference = bundle.load("quality")
    for source, out in zip(frames, despeckler.frames(frames, 1.0), strict=True):
        difference = np.abs(out.astype(int) - reference.apply(source))
        assert difference.max() <= 1


def test_frames_are_taken_one_batch_at_a_time(frames):
    taken = []

    def source():
        for index, frame in enumerate(frames):
            taken.append(index)
            yield frame

    output = Despeckler(bundle.load("quality"), "cpu", "float32", 2).frames(source(), 1.0)
    next(output)
    assert taken == [0, 1]


def test_threads_are_as_many_as_configured():
    before = torch.get_num_threads()
    try:
        Despeckler.load(DespeckleSection(device="cpu", threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_strength_zero_hands_the_frames_through(frames):
    despeckler = Despeckler.load(DespeckleSection())
    for source, out in zip(frames, despeckler.frames(frames, 0.0), strict=True):
        assert np.array_equal(source, out)


@pytest.fixture(scope="module")
def scenes():
    seed = data.VALIDATION_SEED + 5
    return [scene.noisy for scene in data.validation_set(4, seed=seed, side=160)]


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_agrees_with_float32(precision, strength, scenes):
    assert share_within_a_level("quality", "cpu", precision, scenes, strength) >= 0.999


@pytest.mark.samples
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_agrees_with_float32_on_real_images(precision, real_images):
    images = [image[:320, :320] for image in real_images]
    assert share_within_a_level("quality", "cpu", precision, images) >= 0.999


@pytest.fixture
def coarse_bfloat16(monkeypatch):
    """A machine that prefers bfloat16, and a bundle that passes its self-test in float32 only."""

    def check(output, expected, subject):
        if not subject.endswith("float32"):
            raise bundle.BundleError(f"{subject}: the self-test is off")

    monkeypatch.setattr(despeckle, "fastest", lambda _device: "bfloat16")
    monkeypatch.setattr(bundle, "check_agreement", check)


@pytest.mark.usefixtures("coarse_bfloat16")
def test_auto_takes_float32_where_the_fastest_precision_fails_the_self_test():
    assert Despeckler.load(DespeckleSection(device="cpu")).bundle.runtime.endswith("float32")


@pytest.mark.usefixtures("coarse_bfloat16")
def test_a_configured_precision_that_fails_the_self_test_is_refused():
    with pytest.raises(Permanent, match="self-test"):
        Despeckler.load(DespeckleSection(device="cpu", precision="bfloat16"))


def test_auto_refuses_a_bundle_that_fails_in_float32_as_well(monkeypatch):
    damaged = bundle.load("quality")
    damaged.student.tail.weight.data.zero_()
    monkeypatch.setattr(bundle, "load", lambda _name: damaged)
    with pytest.raises(Permanent, match="self-test"):
        Despeckler.load(DespeckleSection(device="cpu"))


def test_fingerprint_tells_strengths_and_bundles_apart():
    despeckler = Despeckler.load(DespeckleSection())
    assert despeckler.fingerprint(1.0) != despeckler.fingerprint(0.5)
    assert despeckler.bundle.device_uid in despeckler.fingerprint(1.0)


def test_a_bundle_that_computes_something_else_is_refused():
    damaged = bundle.load("quality")
    damaged.student.tail.weight.data.zero_()
    with pytest.raises(Permanent, match="self-test"):
        Despeckler(damaged, "cpu", "float32")


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"bundle": "nonesuch"}, "despeckle.bundle"), ({"device": "cuda"}, "despeckle.device")],
)
def test_an_unusable_setting_is_named(settings, named):
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=named):
        Despeckler.load(DespeckleSection(**settings))


def test_one_width_of_speckle_holds_for_a_whole_cine():
    """The first frame that shows speckle says how coarse it is; fades to black do not matter."""
    loaded = bundle.load("quality")
    assert loaded.student.architecture.halvings
    noisy = data.validation_set(1, side=128)[0].noisy
    coarse = np.kron(noisy, np.ones((3, 3), np.uint8))
    fine = np.tile(noisy, (3, 3))
    dark = np.zeros_like(coarse)
    despeckler = Despeckler(loaded, "cpu", "float32")
    after_coarse = list(despeckler.frames([dark, coarse, fine], 1.0))
    after_fine = list(despeckler.frames([fine, coarse], 1.0))
    assert np.array_equal(after_coarse[0], dark)
    assert np.abs(after_coarse[1].astype(int) - loaded.apply(coarse)).max() <= 1
    assert np.abs(after_fine[0].astype(int) - loaded.apply(fine)).max() <= 1
    assert np.abs(after_coarse[2].astype(int) - after_fine[0]).max() > 1


def test_one_rim_holds_for_a_cine_until_tissue_crosses_it():
    loaded = bundle.load("quality")
    noisy = data.validation_set(1, side=192)[0].noisy.clip(30)
    narrow, wide = (np.where(_fan(noisy.shape, half), noisy, 0) for half in (50, 85))
    despeckler = Despeckler(loaded, "cpu", "float32")
    dark = np.zeros_like(narrow)
    out = list(despeckler.frames([dark, narrow, wide, narrow], 1.0))
    assert loaded.student.architecture.rim_px
    for frame, source in zip(out[:3], (dark, narrow, wide), strict=True):
        alone = next(despeckler.frames([source], 1.0))
        assert np.abs(frame.astype(int) - alone).max() <= 1
        assert not frame[source == 0].any()


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_a_frame_comes_out_the_same_in_whatever_batch(batch):
    """Rims that move, frames without tissue, and the first that shows how coarse speckle is."""
    noisy = data.validation_set(1, side=192)[0].noisy.clip(30)
    fans = [np.where(_fan(noisy.shape, half), noisy, 0) for half in (50, 50, 85, 60, 85, 95)]
    dark = np.zeros_like(noisy)
    spot = dark.copy()
    spot[90:100, 90:100] = 200
    cine = [dark, spot, *fans, dark, *fans[::-1]]
    one, many = (Despeckler(bundle.load("quality"), "cpu", "float32", n) for n in (1, batch))
    for alone, together in zip(one.frames(cine, 1.0), many.frames(cine, 1.0), strict=True):
        assert np.abs(alone.astype(int) - together).max() <= 1


def _fan(shape, half):
    row, column = np.mgrid[: shape[0], : shape[1]]
    return np.abs(column - shape[1] / 2) < half * (0.4 + row / shape[0])


@pytest.fixture
def scarce(monkeypatch):
    """A despeckler on a device that has memory for so many frames, in batches of four."""

    def make(frames):
        despeckler = Despeckler(bundle.load("quality"), "cpu", "float32", 4)
        infer = despeckler._infer

        def limited(batch, strength, cine):
            answer = infer(batch, strength, cine)
            if len(batch) > frames:
                raise torch.OutOfMemoryError("no memory")
            return answer

        monkeypatch.setattr(despeckler, "_infer", limited)
        return despeckler

    return make


def test_lack_of_memory_on_a_cpu_is_known_for_what_it_is(scarce, frames, monkeypatch):
    despeckler = scarce(1)
    more_than_there_are_addresses = 1 << 60
    monkeypatch.setattr(despeckler, "_infer", lambda *_: torch.empty(more_than_there_are_addresses))
    with pytest.raises(MemoryError):
        list(despeckler.frames(frames, 1.0))


def test_a_batch_without_memory_is_taken_frame_by_frame(scarce, frames):
    expected = Despeckler(bundle.load("quality"), "cpu", "float32").frames(frames, 1.0)
    for out, alone in zip(scarce(1).frames(frames, 1.0), expected, strict=True):
        assert np.abs(out.astype(int) - alone).max() <= 1


def test_a_frame_without_memory_is_a_passing_failure(scarce, frames):
    with pytest.raises(Transient, match="memory"):
        list(scarce(0).frames(frames, 1.0))


def test_tissue_that_moves_into_what_was_black_is_despeckled_as_in_a_frame_of_its_own():
    """A chamber, evenly black in the first frame, closes: no ring of speckle is left in it."""
    scene = np.pad(data.validation_set(1, side=256)[0].noisy, ((0, 0), (0, 768)))
    rows, columns = np.ogrid[:256, :1024]
    distance = np.hypot(rows - 128, columns - 128)
    wide, narrow = (np.where(distance < radius, 0, scene) for radius in (36, 20))
    shown = (distance >= 21) & (distance < 35) & (scene > 20)
    despeckler = Despeckler(bundle.load("quality"), "cpu", "float32", 2)
    wide, narrow = wide.astype(np.uint8), narrow.astype(np.uint8)
    _, closing = despeckler.frames([wide, narrow], 1.0)
    (alone,) = despeckler.frames([narrow], 1.0)
    assert (alone != narrow)[shown].mean() > 0.8
    assert np.abs(closing.astype(int) - alone)[shown].max() <= 1
    first, _ = despeckler.frames([wide, narrow], 1.0)
    assert not first[distance < 20].any(), "what is black stays black"


def test_how_coarse_speckle_is_is_seen_in_the_tissue_alone():
    """Fine speckle beside a bright field of coarse grains that is no tissue."""
    noisy = np.maximum(data.validation_set(1, side=256)[0].noisy, 20)
    coarse = np.random.default_rng(1).integers(40, 250, (32, 32)).astype(np.uint8)
    beside = np.repeat(np.repeat(coarse, 8, 0), 8, 1)
    frame = np.concatenate([noisy, beside, beside, beside], axis=1)
    tissue = np.zeros(frame.shape, bool)
    tissue[:, :256] = True
    despeckler = Despeckler(bundle.load("quality"), "cpu", "float32", 1)
    (told,) = despeckler.frames([frame], 1.0, tissue)
    (untold,) = despeckler.frames([frame], 1.0)
    (alone,) = despeckler.frames([noisy], 1.0)
    inner = np.s_[32:-32, 32:200]
    differing, differing_untold = (
        (np.abs(one[inner].astype(int) - alone[inner]) > 1).mean() for one in (told, untold)
    )
    assert differing < 0.01 < differing_untold

"""The node's inference: order, batches, precision, strength, refusals."""

import numpy as np
import pytest

from dicom_node.config import DespeckleSection
from dicom_node.despeckle import Despeckler, fastest
from dicom_node.errors import ConfigError, Permanent
from model import bundle, data


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    noisy = data.validation_set(2, side=96)[0].noisy[:90, :75]
    return [np.clip(noisy + rng.integers(0, 9), 0, 255).astype(np.uint8) for _ in range(5)]


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


def test_strength_zero_hands_the_frames_through(frames):
    despeckler = Despeckler.load(DespeckleSection())
    for source, out in zip(frames, despeckler.frames(frames, 0.0), strict=True):
        assert np.array_equal(source, out)


def test_the_fastest_precision_agrees_with_float32(frames):
    reference = bundle.load("quality")
    despeckler = Despeckler(bundle.load("quality"), "cpu", fastest("cpu"))
    scenes = [scene.noisy for scene in data.validation_set(6, seed=data.VALIDATION_SEED + 5)]
    difference = np.concatenate(
        [
            np.abs(next(despeckler.frames([s], 1.0)).astype(int) - reference.apply(s)).ravel()
            for s in scenes
        ]
    )
    assert (difference <= 1).mean() >= 0.999


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
    import torch

    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=named):
        Despeckler.load(DespeckleSection(**settings))

"""The node's inference on a GPU: what the CPU computes, whatever the batch and the memory."""

import numpy as np
import pytest
import torch

from dicom_node.config import DespeckleSection
from dicom_node.despeckle import Despeckler
from dicom_node.errors import Transient
from model import bundle, data
from tests.precision import PRECISIONS, share_within_a_level

pytestmark = pytest.mark.gpu

BUNDLES = ("quality", "lesions")


def scenes():
    seed = data.VALIDATION_SEED + 5
    return [scene.noisy for scene in data.validation_set(6, seed=seed, side=256)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", BUNDLES)
def test_the_gpu_agrees_with_the_cpu(name, precision):
    assert share_within_a_level(name, "cuda", precision, scenes()) >= 0.999


@pytest.mark.samples
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gpu_agrees_with_the_cpu_on_real_images(precision, real_images):
    assert share_within_a_level("quality", "cuda", precision, real_images) >= 0.999


def test_auto_takes_the_gpu_and_its_fastest_precision():
    loaded = Despeckler.load(DespeckleSection())
    assert torch.cuda.get_device_name() in loaded.bundle.runtime
    assert loaded.bundle.runtime.endswith(("bfloat16", "float16"))


def test_frames_of_a_cine_do_not_depend_on_the_batch():
    cine = [np.roll(scenes()[0], shift, axis=1) for shift in range(7)]
    one, many = (Despeckler(bundle.load("quality"), "cuda", "float32", n) for n in (1, 4))
    for a, b in zip(one.frames(cine, 1.0), many.frames(cine, 1.0), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


@pytest.fixture
def scarce_memory():
    """Lets torch have this many bytes of the GPU more than it has now."""

    def limit(extra_bytes):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + extra_bytes) / total
        )

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_without_memory_is_taken_frame_by_frame(scarce_memory):
    frame = np.tile(scenes()[0], (4, 4))
    cine = [frame] * 24
    despeckler = Despeckler(bundle.load("quality"), "cuda", "float32", len(cine))
    next(Despeckler(bundle.load("quality"), "cuda", "float32").frames([frame], 1.0))
    single = torch.cuda.max_memory_reserved()
    scarce_memory(4 * single)
    got = list(despeckler.frames(cine, 1.0))
    assert len(got) == len(cine)
    expected = bundle.load("quality").apply(frame)
    assert max(np.abs(out.astype(int) - expected).max() for out in got) <= 2


def test_a_frame_without_memory_is_a_passing_failure(scarce_memory):
    despeckler = Despeckler(bundle.load("quality"), "cuda", "float32")
    scarce_memory(4 << 20)
    with pytest.raises(Transient, match="memory"):
        next(despeckler.frames([np.tile(scenes()[0], (8, 8))], 1.0))

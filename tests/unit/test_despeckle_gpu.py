"""The node's inference on a GPU: what the CPU computes, whatever the batch and the memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dicom_node.config import DespeckleSection
from dicom_node.despeckle import Despeckler
from dicom_node.errors import Transient
from model import bundle, data

pytestmark = pytest.mark.gpu

BUNDLES, PRECISIONS = ("quality", "lesions"), ("float32", "bfloat16", "float16")
REAL = Path(__file__).parents[3] / "shared" / "data" / "train"


def scenes():
    seed = data.VALIDATION_SEED + 5
    return [scene.noisy for scene in data.validation_set(6, seed=seed, side=256)]


def agreement(name, precision, images):
    """Share of pixels within one grey level of the bundle in float32 on the CPU."""
    reference, despeckler = bundle.load(name), Despeckler(bundle.load(name), "cuda", precision)
    differences = [
        np.abs(next(despeckler.frames([image], 1.0)).astype(int) - reference.apply(image)).ravel()
        for image in images
    ]
    return (np.concatenate(differences) <= 1).mean()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", BUNDLES)
def test_the_gpu_agrees_with_the_cpu(name, precision):
    assert agreement(name, precision, scenes()) >= 0.999


@pytest.mark.samples
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gpu_agrees_with_the_cpu_on_real_images(precision):
    paths = sorted(REAL.rglob("*.png"))
    if not paths:
        pytest.skip("the folder ../shared/data/train with real B-mode images is absent")
    images = []
    for path in paths[:: max(1, len(paths) // 8)]:
        with Image.open(path) as picture:
            images.append(np.array(picture.convert("L")))
    assert agreement("quality", precision, images) >= 0.999


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

"""Patches that are cut in the device's memory are those that the CPU's processes cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.training import pool
from model.training.pool import STEPS_PER_GREY, Cutting, PatchStream, Pool
from model.training.resident import ResidentPatches, size_bytes

SIDE, CROP, SCENES = 64, 32, 12
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def told_apart(folder, scenes=SCENES, first=0):
    """A pool whose every pixel says where it is from."""
    scene = np.arange(first, first + scenes)[:, None, None]
    line, column = np.arange(SIDE)[:, None], np.arange(SIDE)
    noisy = np.broadcast_to(line + column, (scenes, SIDE, SIDE)).astype(np.uint8)
    target = (scene * 4096 + line * SIDE + column).astype(np.uint16)
    features = target.reshape(scenes, SIDE // 8, 8, SIDE // 8, 8)[:, :, 0, :, 0, None] / 32
    clustered = np.arange(first, first + scenes) % 3 == 0
    return Pool(
        folder, noisy, target, clustered, ~clustered, 65535 - target, features.astype(np.float16)
    )


def whole(levels):
    return (levels * 255 * STEPS_PER_GREY).round().int()


@pytest.mark.parametrize("device", DEVICES)
def test_all_arrays_are_cut_at_the_same_place(tmp_path, device):
    source = told_apart(tmp_path)
    stream = ResidentPatches(Cutting(source, seed=1, batch=64, crop=CROP), device)
    batch = {key: value.cpu() for key, value in next(iter(stream)).items()}
    target = whole(batch["target"])
    line, column = target // SIDE % SIDE, target % SIDE
    assert torch.equal((batch["noisy"] * 255).round().int(), line + column)
    assert torch.equal(whole(batch["taught"]), 65535 - target)
    assert torch.equal(batch["clustered"], target[:, :, :1, :1] // 4096 % 3 == 0)
    assert not batch["real"].any()
    # every cell is that of its pixels, whichever way the patch is mirrored
    corner = torch.stack([target[:, 0, ::8, ::8], target[:, 0, 7::8, 7::8]]).amin(0)
    across = torch.stack([target[:, 0, 7::8, ::8], target[:, 0, ::8, 7::8]]).amin(0)
    least = torch.minimum(corner, across)
    expected = (least / 32).to(torch.float16).float()
    assert torch.equal(batch["features"][..., 0], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_patches_are_as_those_of_the_stream(tmp_path, device):
    source = told_apart(tmp_path, 3)
    cutting = Cutting(source, seed=3, batch=8192, crop=CROP)
    ours = next(iter(ResidentPatches(cutting, device)))
    theirs = next(iter(PatchStream(cutting)))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert (ours[key].shape, ours[key].dtype) == (theirs[key].shape, theirs[key].dtype)
        mean, other = ours[key].float().mean().cpu(), theirs[key].float().mean()
        assert torch.isclose(mean, other, rtol=0.05)
    corners = [set(whole(b["target"][:, 0, 0, 0]).tolist()) for b in (ours, theirs)]
    assert corners[0] == corners[1]  # so many draws find each of 3 x 5 x 5 x 4


@pytest.mark.parametrize("device", DEVICES)
def test_real_images_come_in_their_share_and_say_so(tmp_path, device):
    simulated, real = told_apart(tmp_path), told_apart(tmp_path, 3, first=SCENES)
    stream = ResidentPatches(
        Cutting(simulated, seed=1, batch=400, crop=CROP, real=real, real_share=0.25), device
    )
    batch = next(iter(stream))
    scene = whole(batch["target"])[:, 0, 0, 0] // 4096
    assert torch.equal(scene >= SCENES, batch["real"][:, 0, 0, 0])
    assert 0.15 < float(batch["real"].float().mean()) < 0.35
    assert set(scene.tolist()) == set(range(SCENES + 3))


@pytest.mark.parametrize("device", DEVICES)
def test_black_places_are_passed_over(tmp_path, device):
    source = told_apart(tmp_path)
    noisy = np.zeros_like(source.noisy)
    noisy[:, 24:56, 16:48] = 90
    dark = replace(source, noisy=noisy, taught=None)
    batch = next(iter(ResidentPatches(Cutting(dark, seed=1, batch=256, crop=CROP), device)))
    lit = (batch["noisy"] > 0).float().mean((1, 2, 3))
    assert float((lit > pool.LEAST_LIT).float().mean()) > 0.99  # 16 of 25 places are dark
    black = replace(dark, noisy=np.zeros_like(noisy))
    assert not next(iter(ResidentPatches(Cutting(black, seed=1, batch=4, crop=CROP), device)))[
        "noisy"
    ].any()


def test_the_memory_that_scenes_take_is_known(tmp_path):
    whole = told_apart(tmp_path)
    bare = replace(whole, taught=None, features=None)
    pixels = SCENES * SIDE * SIDE
    assert size_bytes(bare) == 3 * pixels
    assert size_bytes(whole, bare) == 8 * pixels + 2 * pixels // 64

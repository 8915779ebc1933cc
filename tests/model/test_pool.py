"""Pools of training scenes: drawn once, gone on with after a kill, cut into patches."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, get_ident

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from model import cli, data
from model.simulation.scene import Pair
from model.training import pool, prepare
from model.training.pool import STEPS_PER_GREY, Cutting, PatchStream
from model.training.recipe import DataSection, RecipeError, load

ROOT = Path(__file__).parents[2]
SIDE = 64


def ramp(rng):
    """A target that tells its own row and column, and the same image brighter as input."""
    offset = int(rng.integers(100))
    target = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.float32) / 2 + offset
    return Pair((target + 10).astype(np.uint8), target, clustered=offset < 50, detailed=offset > 70)


def drawn(folder, count=40):
    return pool.draw(folder, ramp, count=count, side=SIDE, seed=3, workers=1)


def test_a_scene_depends_on_its_seed_and_index_alone(tmp_path):
    few, many = drawn(tmp_path / "few", 20), drawn(tmp_path / "many", 40)
    assert np.array_equal(few.noisy, many.noisy[:20])
    assert np.array_equal(few.target, many.target[:20])
    assert np.array_equal(few.clustered, few.target[:, 0, 0] < 50 * STEPS_PER_GREY)
    assert 0 < few.clustered.sum() < 20
    assert np.array_equal(few.detailed, few.target[:, 0, 0] > 70 * STEPS_PER_GREY)
    assert 0 < few.detailed.sum() < 20


def test_several_processes_draw_what_one_draws(tmp_path):
    one = drawn(tmp_path / "one")
    two = pool.draw(tmp_path / "two", ramp, count=40, side=SIDE, seed=3, workers=2)
    assert np.array_equal(one.noisy, two.noisy)


def test_a_full_disk_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device; free some.*data\.cache"):
        drawn(tmp_path)
    assert not list(tmp_path.glob("noisy*"))


def test_drawing_goes_on_where_it_was_stopped(tmp_path):
    whole = np.array(drawn(tmp_path).noisy)
    (tmp_path / "done.json").write_text(json.dumps([0, 32]))
    raw = np.load(tmp_path / "noisy.npy", mmap_mode="r+")
    raw[:] = 0
    again = drawn(tmp_path)
    assert not again.noisy[:16].any()
    assert np.array_equal(again.noisy[16:32], whole[16:32])
    assert pool.is_complete(tmp_path, 40)
    assert not pool.is_complete(tmp_path, 80)


def test_of_two_that_ask_at_once_one_draws_and_one_waits(tmp_path):
    drawn_by, both = [], Barrier(2)

    def slow(rng):
        drawn_by.append(get_ident())
        time.sleep(0.001)
        return ramp(rng)

    def ask(_):
        both.wait()
        return pool.draw(tmp_path, slow, count=40, side=SIDE, seed=3, workers=1)

    with ThreadPoolExecutor(2) as runs:
        one, two = runs.map(ask, range(2))
    assert len(drawn_by) == 40
    assert len(set(drawn_by)) == 1
    assert np.array_equal(one.noisy, two.noisy)
    assert pool.is_complete(tmp_path, 40)


def test_only_cores_that_it_is_given_draw(tmp_path, monkeypatch):
    def begins(processes, *_):
        raise KeyboardInterrupt(processes)

    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", begins)
    with pytest.raises(KeyboardInterrupt, match="3"):
        pool.draw(tmp_path, ramp, count=40, side=SIDE, seed=3)


def told(rng):
    """A scene, and the process that drew it."""
    (Path.cwd() / str(os.getpid())).touch()
    time.sleep(0.1)
    return ramp(rng)


DRAWING = """
from pathlib import Path
from model.training import pool
from tests.model.test_pool import told
if __name__ == "__main__":
    pool.draw(Path("pool"), told, count=4000, side=64, seed=3, workers=2)
"""


def test_processes_that_draw_end_with_the_one_that_is_killed(tmp_path):
    (tmp_path / "drawing.py").write_text(DRAWING)
    parent = subprocess.Popen(
        [sys.executable, "drawing.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    try:
        workers = waited_for(lambda: {p.name for p in tmp_path.iterdir() if p.name.isdigit()}, 2)
    finally:
        parent.kill()
        parent.wait()
    left = waited_for(lambda: {pid for pid in workers if running(pid)}, 0, seconds=10)
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left


def running(pid):
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def waited_for(found, count, seconds=60):
    """What is found, once it is so many or the time is up."""
    deadline = time.monotonic() + seconds
    while len(found()) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return found()


def test_patches_keep_input_and_target_together(tmp_path):
    batch = next(iter(PatchStream(Cutting(drawn(tmp_path), seed=1, batch=8, crop=32))))
    assert batch["noisy"].shape == batch["target"].shape == (8, 1, 32, 32)
    difference = 255 * (batch["noisy"] - batch["target"])
    assert float((difference - 10).abs().max()) < 1
    darkest = 255 * batch["target"].amin((1, 2, 3))  # of a crop, up to 32 levels above the corner's
    clustered = batch["clustered"][:, 0, 0, 0]
    assert clustered[darkest < 50].all()
    assert not clustered[darkest > 82].any()


def test_patches_of_real_images_come_in_their_share_and_say_so(tmp_path):
    given = drawn(tmp_path)
    black = np.full_like(given.noisy, 200)
    labelled = replace(given, taught=given.target)
    real = replace(labelled, noisy=black)
    stream = PatchStream(Cutting(labelled, seed=1, batch=200, crop=32, real=real, real_share=0.25))
    batch = next(iter(stream))
    share = batch["real"].float().mean()
    assert 0.15 < float(share) < 0.35
    bright = (batch["noisy"] * 255).round().eq(200).all(dim=(1, 2, 3))
    assert bright.equal(batch["real"][:, 0, 0, 0])


def test_features_are_cut_and_mirrored_with_the_patch(tmp_path):
    given = drawn(tmp_path)
    cells = SIDE // pool.FEATURE_STRIDE
    middle = np.array(given.target, np.float32).reshape(40, cells, 8, cells, 8).mean((2, 4))
    features = (middle / STEPS_PER_GREY)[..., None].astype(np.float16)
    taught = replace(given, taught=given.target, features=features)
    batch = next(iter(PatchStream(Cutting(taught, seed=2, batch=16, crop=32))))
    means = (batch["target"] * 255).reshape(16, 4, 8, 4, 8).mean((2, 4))
    assert float((batch["features"][..., 0] - means).abs().max()) < 0.2


def test_fresh_scenes_replace_old_ones_in_memory_only(tmp_path):
    given = drawn(tmp_path)
    before = np.array(given.noisy)
    white = np.full((SIDE, SIDE), 255, np.uint8)
    stream = iter(
        PatchStream(
            Cutting(given, seed=1, batch=16, crop=32),
            fresh=lambda _: Pair(white, white.astype(np.float32)),
            fresh_per_batch=20,
        )
    )
    for _ in range(20):
        batch = next(stream)
    assert float(batch["noisy"].min()) == pytest.approx(1)
    assert np.array_equal(given.noisy, before)


def test_scenes_of_a_recipe_are_drawn_beforehand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "few.toml"
    recipe.write_text('name = "few"\n[data]\nscenes = 3\nside = 96\nworkers = 1')
    drawn_first = CliRunner().invoke(cli.app, ["draw", str(recipe)])
    assert drawn_first.exit_code == 0, drawn_first.output
    assert "scenes: 3 in runs/cache/physics-" in drawn_first.output.replace("\n", "")
    monkeypatch.setattr(prepare.pool, "draw", None)
    assert len(prepare.drawn(load(recipe).data)) == 3


def test_a_recipe_without_images_to_draw_from_is_named(tmp_path):
    recipe = tmp_path / "none.toml"
    recipe.write_text(f'name = "none"\n[data]\nimages = "{tmp_path}"')
    refused = CliRunner().invoke(cli.app, ["draw", str(recipe)])
    assert refused.exit_code == cli.UNUSABLE
    assert "data.images" in refused.output


# --- from a folder of images ------------------------------------------------------------------


def test_images_too_small_for_a_map_are_left_out():
    def despeckle(grey):
        assert min(grey.shape) >= 50
        return grey

    shapes = [(1, 1), (8, 8), (1, 800), (99, 300), (100, 300)]
    assert len(data.anatomy_maps([np.full(s, 90, np.uint8) for s in shapes], despeckle)) == 1


def test_files_that_were_left_out_count_as_no_images(tmp_path):
    Image.fromarray(np.full((120, 120), 90, np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    given = prepare.material(DataSection(images=str(tmp_path)))
    assert given.files == (tmp_path / "good.png",)
    assert len(given.train) == 1


def test_a_training_begins_with_a_warning_where_folders_of_patients_count_as_sources(
    tmp_path, caplog
):
    for name in ("smith", "jones", "brown"):
        (tmp_path / name).mkdir()
        for view in ("liver", "kidney"):
            Image.fromarray(np.full((20, 20), 90, np.uint8)).save(tmp_path / name / f"{view}.png")
    prepare.material(DataSection(images=str(tmp_path)))
    assert "3 look like one patient's. Move them all into one folder" in caplog.text
    assert "brown" not in caplog.text


def test_scenes_are_drawn_once_whoever_cuts_them_and_wherever_the_images_lie(tmp_path, monkeypatch):
    given = tmp_path / "given"
    given.mkdir()
    Image.fromarray(np.full((120, 120), 90, np.uint8)).save(given / "good.png")
    few = {"scenes": 2, "side": 64, "workers": 1, "cache": str(tmp_path / "cache")}
    first = prepare.drawn(DataSection(images=str(given), **few))
    monkeypatch.setattr(prepare.pool, "draw", None)
    moved = given.rename(tmp_path / "moved")
    again = prepare.drawn(DataSection(images=str(moved), loaders=3, **few))
    assert again.folder == first.folder


def test_names_that_are_no_utf8_are_names(tmp_path):
    for name in (b"l\xe9ber.png", b"niere.png", b"\xe4.png", b"\xf6.png"):
        path = tmp_path / os.fsdecode(name)
        Image.fromarray(np.full((120, 120), 90, np.uint8)).save(path)
    given = prepare.material(DataSection(images=str(tmp_path)))
    assert len(data.data_hash(list(given.files))) == 64


def test_a_missing_smoother_names_its_key(tmp_path):
    section = DataSection(smoothed_by="nothing", cache=str(tmp_path))
    with pytest.raises(RecipeError, match=r"data\.smoothed_by: bundle 'nothing'"):
        prepare.drawn(section)

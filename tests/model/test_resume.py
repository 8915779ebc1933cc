"""A training that is killed goes on where its last checkpoint was, and its log reads as one run."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from model import train
from model.training import logs, resuming, runs
from model.training.checkpoints import AtomicCheckpoints, DivergedError
from model.training.logs import RunLog
from model.training.recipe import Recipe, RecipeError
from model.training.runs import RunError

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "config" / "model" / "smoke.toml"
STEPS, BETWEEN = 40, 10
SECONDS = 60


def start_training(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    command = "from model.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, "train", str(folder / "smoke.toml"), "--output", output],
        stdout=output.with_suffix(".log").open("ab"),
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the file is there or the process has ended."""
    deadline = time.monotonic() + SECONDS
    while not path.exists() and time.monotonic() < deadline:
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    assert path.exists()


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory) -> tuple[Path, list[dict[str, float]]]:
    """Folder of a run that was killed and started again, and the log that the kill left."""
    folder = tmp_path_factory.mktemp("resume")
    recipe = re.sub(r"(?m)^steps = .*", f"steps = {STEPS}", SMOKE.read_text())
    recipe = re.sub(r"(?m)^validation_steps = .*", f"validation_steps = {BETWEEN}", recipe)
    (folder / "smoke.toml").write_text(recipe)
    output = folder / "runs"
    run = output / "smoke"
    first = start_training(folder, output)
    try:
        wait_for(run / "last.ckpt", first)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == -9, "it ended before it could be killed"
    left = logs.read(run / logs.FILE)
    second = start_training(folder, output)
    try:
        second.wait(SECONDS)
    finally:
        second.kill()
    assert second.returncode == 0, output.with_suffix(".log").read_text()
    return run, left


@pytest.mark.slow
def test_a_killed_training_ends_with_all_its_steps(killed_and_resumed):
    checkpoint = torch.load(killed_and_resumed[0] / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == STEPS
    assert checkpoint["spent_seconds"] > 0


@pytest.mark.slow
def test_the_log_of_a_killed_training_reads_as_one_run(killed_and_resumed):
    run, left = killed_and_resumed
    rows = logs.read(run / logs.FILE)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    validated = {row["step"] for row in rows if "val/psnr" in row}
    assert validated == set(range(BETWEEN - 1, STEPS, BETWEEN))
    kept = [row for row in left if row["step"] < BETWEEN]
    assert rows[: len(kept)] == kept


STEERED = """
name = "steered"
threads = 1
validation_scenes = 2
[data]
side = 64
scenes = 4
workers = 1
[optimiser]
steps = 20
batch = 2
crop = 64
[loss]
charbonnier = 1.0
gradient = 0.25
[guidance]
every = 2
targets = {psnr = 99.0, edge_strength = 0.0}
"""


@pytest.mark.slow
def test_a_kill_undoes_no_adjustment_of_the_weights(tmp_path, monkeypatch):
    def killed(self, *given):
        if self.global_step == 2:
            raise RuntimeError("killed here")
        return began(self, *given)

    began = train.Training.on_train_batch_start
    monkeypatch.setattr(train.Training, "on_train_batch_start", killed)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "steered.toml"
    path.write_text(STEERED)
    with pytest.raises(RuntimeError, match="killed here"):
        train.train(path, tmp_path / "runs")
    checkpoint = runs.read_checkpoint(tmp_path / "runs" / "steered" / "last.ckpt")
    (adjusted,) = logs.read(tmp_path / "runs" / "steered" / logs.FILE)
    assert checkpoint["global_step"] == 2
    assert checkpoint["loss_weights"]["charbonnier"] == adjusted["weight/charbonnier"] > 1


# --- the log ----------------------------------------------------------------------------------


def log(folder: Path, steps: range, done: int = 0, **figures: float) -> RunLog:
    run = RunLog(folder, done)
    for step in steps:
        run.log_metrics({"train/loss": 1 / (step + 1), **figures}, step)
    return run


def test_a_step_is_one_row(tmp_path):
    run = log(tmp_path, range(1))
    run.log_metrics({"val/psnr": 30.0}, 0)
    run.finalize("success")
    assert logs.read(tmp_path / logs.FILE) == [{"step": 0, "train/loss": 1.0, "val/psnr": 30.0}]


def test_figures_that_come_later_get_a_column_and_keep_the_rows(tmp_path):
    run = log(tmp_path, range(3))
    run.log_metrics({"weight/gradient": 0.5}, 3)
    run.finalize("success")
    rows = logs.read(tmp_path / logs.FILE)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1] == {"step": 1, "train/loss": 0.5}
    assert rows[3] == {"step": 3, "weight/gradient": 0.5}


def test_a_resumed_log_drops_the_steps_that_are_done_again(tmp_path):
    log(tmp_path, range(9), extra=1.0).finalize("success")
    log(tmp_path, range(5, 8), done=5, other=2.0).finalize("success")
    rows = logs.read(tmp_path / logs.FILE)
    assert [row["step"] for row in rows] == list(range(8))
    assert [set(row) - {"step", "train/loss"} for row in rows] == [{"extra"}] * 5 + [{"other"}] * 3


def test_a_row_that_a_kill_cut_short_is_dropped(tmp_path):
    log(tmp_path, range(4)).finalize("success")
    path = tmp_path / logs.FILE
    path.write_text(path.read_text() + "4,0.1")
    log(tmp_path, range(4, 6), done=4).finalize("success")
    assert [row["step"] for row in logs.read(path)] == list(range(6))


def test_a_fresh_run_starts_its_log_anew(tmp_path):
    log(tmp_path, range(9)).finalize("success")
    log(tmp_path, range(2)).finalize("success")
    assert [row["step"] for row in logs.read(tmp_path / logs.FILE)] == [0, 1]


def test_rows_are_in_the_file_before_the_run_ends(tmp_path):
    log(tmp_path, range(4))
    assert [row["step"] for row in logs.read(tmp_path / logs.FILE)] == [0, 1, 2]


# --- checkpoints ------------------------------------------------------------------------------


class Unwritable:
    """Fails when torch is half through with the file."""

    def __reduce__(self):
        raise RuntimeError("killed here")


def test_a_checkpoint_that_is_not_finished_leaves_the_one_before(tmp_path):
    path = tmp_path / "runs" / "last.ckpt"
    writer = AtomicCheckpoints()
    writer.save_checkpoint({"weights": torch.ones(1000)}, path)
    with pytest.raises(RuntimeError, match="killed here"):
        writer.save_checkpoint({"weights": torch.zeros(1000), "last": Unwritable()}, path)
    assert torch.equal(writer.load_checkpoint(path)["weights"], torch.ones(1000))
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("key", ["state_dict", "current_model_state"])
def test_weights_that_are_no_numbers_leave_the_checkpoint_before(tmp_path, key):
    path = tmp_path / "last.ckpt"
    writer = AtomicCheckpoints()
    good = {"global_step": 7, "state_dict": {"w": torch.ones(2)}}
    writer.save_checkpoint(good, path)
    bad = {**good, "global_step": 9, key: {"w": torch.tensor([1.0, torch.nan])}}
    with pytest.raises(DivergedError, match=r"after 9 steps .*last\.ckpt .*learning_rate"):
        writer.save_checkpoint(bad, path)
    assert torch.load(path)["global_step"] == 7


def test_a_full_disk_is_told_as_such(tmp_path, monkeypatch):
    def full(*_):
        error = RuntimeError("unexpected pos 704 vs 598")  # torch covers the system's own
        error.__context__ = OSError(errno.ENOSPC, "No space left on device")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*last\.ckpt"):
        AtomicCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")


class Wicked:
    """Makes a folder where a pickle of it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    path, folder = tmp_path / "last.ckpt", tmp_path / "made"
    torch.save({"global_step": 1, "spent_seconds": 1.0, "state_dict": Wicked(folder)}, path)
    with pytest.raises(RunError, match=r"last\.ckpt: no checkpoint that can be read"):
        runs.read_checkpoint(path)
    assert not folder.exists()


@pytest.mark.parametrize("left", [0, 100])
def test_a_damaged_checkpoint_is_named(tmp_path, left):
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 1}, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(RunError, match=r"last\.ckpt: no checkpoint that can be read"):
        runs.read_checkpoint(path)


# --- going on ---------------------------------------------------------------------------------


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    twice = pytest.raises(RecipeError, match="another process trains")
    with resuming.alone(tmp_path), twice, resuming.alone(tmp_path):
        pass
    with resuming.alone(tmp_path):
        pass


def test_a_run_remembers_what_its_earlier_steps_were_trained_by(tmp_path, caplog):
    first = Recipe(name="a", loss={"charbonnier": 1.0}, optimiser={"minutes": 1})
    runs.write_description(tmp_path, first, {})
    longer = Recipe(name="a", loss={"charbonnier": 1.0}, optimiser={"minutes": 2}, threads=1)
    assert resuming.earlier(longer, tmp_path, 10) == []
    assert not caplog.messages

    other = Recipe(name="a", loss={"gradient": 1.0}, seed=2)
    was = {"seed": 1, "loss.charbonnier": 1.0, "loss.gradient": 0.0}
    assert resuming.earlier(other, tmp_path, 10) == [{"steps": 10, "recipe": was}]
    assert "after 10 steps with other" in caplog.text
    runs.write_description(tmp_path, other, {"earlier": [{"steps": 10, "recipe": was}]})
    assert resuming.earlier(other, tmp_path, 30) == [{"steps": 10, "recipe": was}]


def test_a_run_remembers_what_images_its_earlier_steps_had(tmp_path, caplog):
    recipe = Recipe(name="a")
    runs.write_description(tmp_path, recipe, {"data_sha256": "one"})
    assert resuming.with_images([], tmp_path, 10, "one") == []
    assert not caplog.messages
    changed = [{"steps": 10, "recipe": {"seed": 1}}]
    entry = {"steps": 10, "recipe": {}, "data_sha256": "one"}
    assert resuming.with_images([], tmp_path, 10, "two") == [entry]
    assert resuming.with_images(changed, tmp_path, 10, "two") == [entry | {"recipe": {"seed": 1}}]
    assert resuming.with_images(changed, tmp_path, 30, "two") == [*changed, entry | {"steps": 30}]
    assert "after 10 steps with other images" in caplog.text


def test_a_run_does_not_go_on_as_another_network(tmp_path):
    runs.write_description(tmp_path, Recipe(name="a"), {})
    other = Recipe(name="a", network={"block": "gated"})
    with pytest.raises(RecipeError, match=r"another network \(network\.block = plain\); .*--fresh"):
        resuming.earlier(other, tmp_path, 10)


@pytest.mark.slow
def test_a_fresh_run_that_is_killed_early_does_not_bring_back_the_one_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    last = tmp_path / "runs" / "smoke" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"of the run before")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_patches", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(SMOKE, tmp_path / "runs", resume=False)
    assert not last.exists()


def test_a_checkpoint_replaces_what_a_kill_left_behind(tmp_path):
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.part").write_bytes(b"half")
    AtomicCheckpoints().save_checkpoint({"global_step": 7}, path)
    assert torch.load(path) == {"global_step": 7}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]

"""A training that is killed goes on where its last checkpoint was, and its log reads as one run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from model.training import logs
from model.training.checkpoints import AtomicCheckpoints
from model.training.logs import RunLog

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
    # The kill may cost the validation that belongs to the checkpoint, and no other.
    validated = {row["step"] for row in rows if "val/psnr" in row}
    expected = set(range(BETWEEN - 1, STEPS, BETWEEN))
    assert validated <= expected
    assert len(expected - validated) <= 1
    kept = [row for row in left if row["step"] < BETWEEN]
    assert rows[: len(kept)] == kept


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


def test_a_checkpoint_replaces_what_a_kill_left_behind(tmp_path):
    path = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.part").write_bytes(b"half")
    AtomicCheckpoints().save_checkpoint({"global_step": 7}, path)
    assert torch.load(path) == {"global_step": 7}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]

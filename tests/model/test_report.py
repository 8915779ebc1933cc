"""A run ends with a document: settings, curves of all that was logged, and pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("lightning")

from model.data import validation_set
from model.training import report
from model.training.logs import RunLog


def brighter(grey):
    assert grey.dtype == np.uint8
    return np.clip(grey.astype(int) + 20, 0, 255).astype(np.uint8)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    log = RunLog(folder)
    for step in range(30):
        log.log_metrics({"train/loss": 1 / (step + 1), "train/rate": 2e-3}, step)
        log.log_metrics({"train/minutes": step / 2, "weight/gradient": 1 + step / 30}, step)
        if step % 10 == 9:
            log.log_metrics({"val/psnr": 20.0 + step, "val/mean_shift": -0.5}, step)
    log.finalize("success")
    (folder / report.DESCRIPTION).write_text(
        json.dumps(
            {
                "recipe": {"name": "mine", "seed": 7, "loss": {"gradient": 0.25}},
                "commit": "0123abc",
                "images": 12,
                "data_sha256": "feed",
                "parameters": 179_000,
                "torch": "2",
            }
        )
    )
    return folder


def pictures_of(document: Path) -> list[Path]:
    return [
        document.parent / name for name in re.findall(r"!\[.*?\]\((.*?)\)", document.read_text())
    ]


def test_the_report_tells_settings_curves_and_pictures(run_folder):
    speckled = np.full((400, 500), 90, np.uint8)
    document = report.write(run_folder, brighter, validation_set(2, side=96), {"heart": speckled})
    text = document.read_text()
    for fact in ("# mine", "seed: 7", "0123abc", "feed", "179,000", "steps: 30", "minutes: 14"):
        assert fact in text
    assert "| `loss.gradient` | `0.25` |" in text
    assert "| val/psnr | 29.000 | 29.000 | 49.000 | 49.000 |" in text
    assert [picture.name for picture in pictures_of(document)] == [
        "curves-train.png",
        "curves-val.png",
        "curves-weight.png",
        "scenes.png",
        "images.png",
    ]
    for picture in pictures_of(document):
        with Image.open(picture) as image:
            assert min(image.size) > 90


def test_every_logged_figure_is_drawn(run_folder, monkeypatch):
    drawn: set[str] = set()
    monkeypatch.setattr(report, "_draw", lambda _rows, plots, _path: drawn.update(*plots))
    report.write(run_folder, brighter)
    assert drawn == {"train/loss", "train/rate", "weight/gradient", "val/psnr", "val/mean_shift"}


def test_pictures_show_before_after_and_removed(run_folder):
    image = np.full((60, 80), 100, np.uint8)
    tiles = report._real("liver", image, brighter)
    assert [tile.caption for tile in tiles] == ["before: liver", "after", "removed"]
    assert [int(tile.picture[0, 0]) for tile in tiles] == [100, 120, 108]


def test_a_run_without_a_log_is_reported_all_the_same(tmp_path):
    document = report.write(tmp_path, brighter)
    assert document.read_text().startswith(f"# {tmp_path.name}")
    assert not pictures_of(document)


def test_a_folder_that_was_moved_keeps_its_pictures(run_folder, tmp_path):
    document = report.write(run_folder, brighter)
    moved = run_folder.rename(tmp_path / "elsewhere") / document.name
    assert all(picture.exists() for picture in pictures_of(moved))

"""Arms of a benchmark: a run goes on only where all of it is by one recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from model.training import recipe as recipes
from model.training import runs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("before", "more", "goes_on"),
    [
        ("", {}, True),
        ("[optimiser]\nsteps = 7\n", {}, False),
        ("[loss]\ncontrast = 2.0\n", {}, False),
        ("", {"earlier": [{"steps": 1, "recipe": {"loss.contrast": 2.0}}]}, False),
        (None, {}, False),
    ],
)
def test_an_arm_goes_on_only_with_a_run_of_its_own_recipe(
    tmp_path, monkeypatch, before, more, goes_on
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import arms

    asked = []

    def train(recipe, output, *, resume=True):
        asked.append(resume)
        return output / "arm" / runs.LAST

    monkeypatch.setattr(arms, "train", train)
    folder, path = tmp_path / "arm", tmp_path / "arm.toml"
    if before is not None:
        folder.mkdir()
        path.write_text(f'name = "arm"\n{before}')
        runs.write_description(folder, recipes.load(path), more)
    monkeypatch.setattr(arms, "_COMMON", "")
    monkeypatch.setattr(arms, "_OPTIMISER", "")
    study = arms.Study("arm", "", {}, lambda run: {"figures": {"run": float(run == folder)}})
    given = argparse.Namespace(output=tmp_path, runs=tmp_path, steps=3)
    assert study._judged("arm", 1, {}, given) == {"figures": {"run": 1.0}}
    assert asked == [goes_on]

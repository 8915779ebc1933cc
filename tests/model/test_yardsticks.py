"""The networks beside the code are what their page says, and what the recipes and tables need."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model import bundle, data, metrics
from model.student import Student, despeckled
from model.teacher import Teacher
from model.training import recipe, runs

ROOT = Path(__file__).parents[2]
YARDSTICKS = ROOT / "model" / "yardsticks"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("teacher", "teacher"), ("dncnn", "dncnn"), ("hedging", "student")],
)
def test_a_yardstick_is_of_its_kind_and_says_how_it_was_trained(name, kind):
    found = runs.load(YARDSTICKS / name)
    assert found.kind == kind
    assert found.steps > 0
    assert found.description["commit"]
    assert found.description["data_sha256"]


@pytest.mark.parametrize(
    ("student", "yardstick", "kind"),
    [
        ("clinical", "teacher", Teacher),
        ("clustered", "hedging", Student),
        ("panel", "hedging", Student),
    ],
)
def test_a_students_recipe_finds_its_teacher(monkeypatch, student, yardstick, kind):
    monkeypatch.chdir(ROOT)
    teacher = recipe.load(ROOT / "config" / "model" / f"{student}.toml").distillation.teacher
    network, digest = runs.start_weights(teacher)
    assert isinstance(network, kind)
    assert digest == bundle.sha256(YARDSTICKS / yardstick / runs.KEPT)


def test_the_teacher_knows_more_than_the_student():
    torch.set_num_threads(1)
    teacher = runs.load(YARDSTICKS / "teacher").network
    student = bundle.load("quality").student
    gains = []
    for scene in data.validation_set(6):
        target = np.clip(scene.target, 0, 255)
        taught, learned = (
            metrics.psnr(despeckled(network, scene.noisy), target, data_range=255)
            for network in (teacher, student)
        )
        gains.append(taught - learned)
    assert np.mean(gains) > 0.2

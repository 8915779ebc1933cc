"""An output is used again only where nothing that it depends on has changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress
from torch import nn

from model import evaluate as evaluation
from model import network
from model.evaluate import Settings
from model.evaluation import remembered as remembering
from model.evaluation.contenders import Contender, identity
from model.evaluation.remembered import remembered, timed
from model.student import Student

IMAGE = np.arange(80, dtype=np.uint8).reshape(8, 10)


class Counted:
    """A method that counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, image):
        self.calls += 1
        return image.astype(np.float32) + 0.25


@pytest.fixture
def counted():
    return Counted()


def test_the_same_method_and_image_are_computed_once(tmp_path, counted):
    contender = Contender("smooth: 3x3", counted, "size 3")
    first, took = timed(remembered(contender, tmp_path).method, IMAGE)
    again, said = timed(remembered(contender, tmp_path).method, IMAGE)
    assert counted.calls == 1
    assert said == took
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(again, IMAGE + 0.25)


@pytest.mark.parametrize(
    "image", [IMAGE + 1, IMAGE.reshape(10, 8), IMAGE[:, ::-1]], ids=["brighter", "shape", "mirror"]
)
def test_another_image_is_computed(tmp_path, counted, image):
    method = remembered(Contender("smooth", counted), tmp_path).method
    method(IMAGE)
    np.testing.assert_array_equal(method(image), image + 0.25)
    assert counted.calls == 2


def test_other_parameters_and_other_weights_are_computed(tmp_path, counted):
    contender = Contender("network", counted, "step 5", network=nn.Linear(2, 2))
    others = [replace(contender, settings="step 6"), replace(contender, network=nn.Linear(2, 2))]
    for each in (contender, *others):
        remembered(each, tmp_path).method(IMAGE)
    assert counted.calls == 3


def test_other_settings_of_one_student_are_computed(tmp_path, counted):
    student = Student()
    contender = Contender("student", counted, network=student)
    remembered(contender, tmp_path).method(IMAGE)
    student.architecture = replace(student.architecture, retain=0.5)
    remembered(contender, tmp_path).method(IMAGE)
    assert counted.calls == 2


@pytest.mark.parametrize(
    ("changed", "computed"), [("_OF_CLASSICAL_METHODS", "smooth"), ("_OF_TRAINING_RUNS", "run")]
)
def test_what_other_code_decides_is_computed_and_nothing_else(
    tmp_path, monkeypatch, changed, computed
):
    asked = {"smooth": Counted(), "run": Counted()}
    each = [
        Contender("smooth", asked["smooth"]),
        Contender("run", asked["run"], network=nn.Linear(2, 2)),
    ]
    for contender in each:
        remembered(contender, tmp_path).method(IMAGE)
    monkeypatch.setattr(f"model.evaluation.remembered.{changed}", ("training/planting",))
    for contender in each:
        remembered(contender, tmp_path).method(IMAGE)
    assert {name for name, method in asked.items() if method.calls == 2} == {computed}


def test_all_that_networks_are_built_of_decides():
    parts = {f"network/{path.stem}" for path in Path(network.__file__).parent.glob("[!_]*.py")}
    assert parts <= set(remembering._OF_TRAINING_RUNS)


def test_bundles_and_means_of_passes_are_never_remembered(tmp_path, counted):
    settings = Settings(tmp_path, self_ensembles=["run"], remember=tmp_path / "kept")
    networks = [
        Contender("run", counted, network=nn.Linear(2, 2)),
        Contender("run x4", counted),
        Contender("student", counted, network=nn.Linear(2, 2), shipped=True),
    ]
    with Progress(disable=True) as progress:
        run = evaluation.Run(settings, [], networks, progress)
        for contender in [*run.contenders, *run.contenders]:
            contender.method(IMAGE)
    assert counted.calls == 1 + 2 + 2
    assert run.contenders[0].method is identity
    assert "earlier run" in str(settings.described()["remembered"])

"""The tables, the pictures, and the way a protocol goes from contenders to files."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

from model import cli, cost
from model import evaluate as evaluation
from model.baselines import BASELINES, Baseline, median
from model.data import Scene
from model.dncnn import DnCNN, FFDNetSized
from model.evaluate import EvaluationError, Settings
from model.evaluation import contenders, figures
from model.evaluation import cost as cost_protocol
from model.evaluation import physics as physics_protocol
from model.evaluation import real as real_protocol
from model.evaluation.contenders import Contender, chosen_baselines, classical, identity, noisy
from model.evaluation.tables import Table, header, mean, write
from model.phantoms import Lesion

torch.set_num_threads(1)


def disc(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def make_scene(seed=0, shape=(96, 96)):
    """Two lesions in even tissue, under grainy noise."""
    rng = np.random.default_rng(seed)
    target = np.full(shape, 110.0)
    lesions = []
    for centre, radius, contrast in (((32, 32), 12, -40.0), ((70, 66), 7, 30.0)):
        target[disc(shape, centre, radius)] += contrast
        mask = disc(shape, centre, radius - 1)
        ring = disc(shape, centre, radius + 6) & ~disc(shape, centre, radius + 1)
        lesions.append(Lesion(mask, ring, contrast / 4.25, 2.0 * radius))
    target = ndimage.gaussian_filter(target, 1.0)
    grain = ndimage.gaussian_filter(rng.normal(size=shape), 0.8)
    image = np.clip(target + 20 * grain / grain.std(), 0, 255).round().astype(np.uint8)
    background = np.ones(shape, bool)
    for lesion in lesions:
        background &= ~(lesion.mask | lesion.ring)
    return Scene(
        image,
        target.astype(np.float32),
        f"made-{seed}",
        {"inside": np.ones(shape, bool), "background": background},
        tuple(lesions),
    )


def smooth(image):
    return ndimage.gaussian_filter(image.astype(np.float32), 1.5)


@pytest.fixture
def few_scenes(monkeypatch):
    def scenes(count, seed=0):
        return [make_scene(seed + index) for index in range(count)]

    monkeypatch.setattr(physics_protocol, "validation_set", scenes)
    monkeypatch.setattr(contenders, "validation_set", scenes)
    monkeypatch.setattr(cost_protocol, "validation_set", scenes)
    return scenes


CONTENDERS = (noisy(), Contender("smooth", smooth, "sigma 1.5", "a test"))


# --- tables -----------------------------------------------------------------------------------


def test_best_value_of_each_column_is_bold_in_the_right_direction():
    rows = [
        {"method": "noisy", "psnr": 99.0, "gmsd": 0.0, "mean_shift": 0.0, "edge_strength": 1.0},
        {"method": "a", "psnr": 30.123, "gmsd": 0.2, "mean_shift": -0.5, "edge_strength": 1.4},
        {"method": "b", "psnr": 31.5, "gmsd": 0.1, "mean_shift": 2.0, "edge_strength": 0.8},
    ]
    columns = ("method", "psnr", "gmsd", "mean_shift", "edge_strength")
    lines = Table("t", columns, rows, unranked=frozenset({"noisy"})).markdown().splitlines()
    assert lines[4] == "| noisy | 99.00 | 0.000 | 0.00 | 1.00 |"
    assert lines[5] == "| a | 30.12 | 0.200 | **-0.50** | 1.40 |"
    assert lines[6] == "| b | **31.50** | **0.100** | 2.00 | **0.80** |"


def test_values_that_are_not_there_print_as_a_dash():
    rows = [{"method": "a", "psnr": math.inf}, {"method": "b", "psnr": math.nan}, {"method": "c"}]
    text = Table("t", ("method", "psnr"), rows).markdown()
    assert text.count("| - |") == 3


def test_every_line_of_a_table_has_as_many_cells_as_the_heading():
    rows = [{"method": "a", "psnr": 1.0, "gain": 2.0}]
    lines = Table("t", ("method", "psnr", "gain"), rows).markdown().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_document_says_where_when_and_with_what_it_was_made(tmp_path):
    head = header("Title", {"scenes": "7, seed 12"})
    document, table_csv = write(
        tmp_path, "x", [Table("t", ("method", "psnr"), [{"method": "a", "psnr": 1 / 3}])], head
    )
    text = document.read_text()
    for word in ("machine", "date", "torch", "numpy", "commit", "7, seed 12"):
        assert word in text
    with table_csv.open() as file:
        assert float(next(csv.DictReader(file))["psnr"]) == pytest.approx(1 / 3)


def test_mean_leaves_out_what_is_not_finite():
    assert mean([1.0, math.nan, math.inf, 3.0]) == 2
    assert math.isnan(mean([]))


# --- contenders -------------------------------------------------------------------------------


def test_unknown_method_is_refused_with_the_list_of_those_that_exist():
    with pytest.raises(ValueError, match=r"'magic'.*median.*BM3D"):
        chosen_baselines(["magic"])
    assert [baseline.name for baseline in chosen_baselines(["LEE", "tv"])] == ["Lee", "TV"]


def test_baseline_without_its_library_is_left_out():
    missing = Baseline("x", "", median, {"size_px": (3,)}, needs="no_such_library")
    assert not missing.available()
    assert all(baseline.name for baseline in BASELINES)


def test_tuned_parameters_are_kept_and_used_only_for_the_same_question(tmp_path, few_scenes):
    calls = []

    def counting(grey, *, size_px):
        calls.append(size_px)
        return median(grey, size_px=size_px)

    cache = tmp_path / "tuned.json"
    baseline = Baseline("m", "", counting, {"size_px": (1, 3, 5)})
    first = classical([baseline], scenes=1, cache=cache)
    assert len(calls) == 3
    again = classical([baseline], scenes=1, cache=cache)
    assert len(calls) == 3
    assert again[0].settings == first[0].settings
    classical([baseline], scenes=2, cache=cache)
    assert len(calls) == 3 + 6
    cache.write_text("{ torn")
    classical([baseline], scenes=1, cache=cache)
    assert len(calls) == 3 + 6 + 3


def test_tuning_scenes_are_not_those_of_the_evaluation():
    assert contenders.TUNING_SEED != evaluation.EVALUATION_SEED
    assert evaluation.VALIDATION_SEED not in (contenders.TUNING_SEED, evaluation.EVALUATION_SEED)


# --- physics ----------------------------------------------------------------------------------


def test_reference_judges_itself_as_perfect():
    scene = make_scene()
    found = physics_protocol.measure(scene.target, scene)
    assert found["psnr"] == math.inf
    assert found["ssim"] == pytest.approx(1)
    assert found["contrast_error"] == 0
    assert found["survival"] == 1
    assert found["false_structures"] == 0
    assert found["mean_shift"] == 0


def test_smoothing_is_seen_for_what_it_does():
    scene = make_scene()
    before = physics_protocol.measure(identity(scene.noisy), scene)
    after = physics_protocol.measure(smooth(scene.noisy), scene)
    blurred = physics_protocol.measure(
        ndimage.gaussian_filter(scene.target, 6.0).astype(np.float32), scene
    )
    assert after["psnr"] > before["psnr"] + 3
    assert after["gcnr"] > before["gcnr"]
    assert blurred["edge_strength"] < 0.6 < after["edge_strength"]
    assert blurred["contrast_error"] > 1.5 * after["contrast_error"]


def test_physics_writes_tables_figures_and_pictures(tmp_path, few_scenes):
    turns = []
    written = physics_protocol.evaluate(
        CONTENDERS,
        count=2,
        seed=5,
        output=tmp_path,
        described={"bundles": "none"},
        pictures=1,
        advance=lambda: turns.append(1),
    )
    assert len(turns) == 4
    assert all(path.is_file() for path in written)
    text = written[0].read_text()
    for word in ("| noisy |", "| smooth |", "| reference |", "sigma 1.5", "seed 5", "gCNR"):
        assert word in text
    with (tmp_path / "physics-fidelity.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["noisy"]["gain"]) == pytest.approx(0)
    assert float(rows["smooth"]["gain"]) > 3
    with (tmp_path / "physics-scenes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 2
    for name in ("physics-gain.png", "physics-pareto.png", "physics-made-5.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 200


# --- real -------------------------------------------------------------------------------------


def real_images(folder):
    for source, count in (("liver", 3), ("muscle", 1)):
        (folder / source).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(make_scene(index).noisy).save(folder / source / f"{index}.png")
    return folder


def test_images_are_taken_from_every_source(tmp_path):
    folder = real_images(tmp_path / "images")
    chosen = [path.relative_to(folder).as_posix() for path in real_protocol.choose(folder, 2)]
    assert chosen == ["liver/0.png", "liver/2.png", "muscle/0.png"]
    assert real_protocol.choose(tmp_path / "absent", 2) == []


def test_real_protocol_writes_tables_by_source_and_pictures(tmp_path):
    folder = real_images(tmp_path / "images")
    written = real_protocol.evaluate(
        (*CONTENDERS, Contender("student", smooth)),
        real_protocol.choose(folder, 1),
        root=folder,
        output=tmp_path / "out",
        described={},
    )
    assert all(path.is_file() for path in written)
    text = written[0].read_text()
    assert "### liver" in text
    assert "### muscle" in text
    assert "No clean image exists" in text
    names = {path.name for path in written if path.suffix == ".png"}
    assert {"real-00-liver-methods.png", "real-00-liver-student.png"} <= names


def test_middle_cuts_without_rescaling():
    image = np.arange(100 * 60, dtype=np.uint32).astype(np.uint8).reshape(100, 60)
    np.testing.assert_array_equal(real_protocol.middle(image, 80), image[10:90])


# --- cost -------------------------------------------------------------------------------------


class TinyStudent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def residual(self, x):
        return 0.01 * self.layer(x)

    def forward(self, x, strength=1.0):
        return x - strength * self.residual(x)


def test_folded_dncnn_computes_what_dncnn_computes():
    torch.manual_seed(0)
    network = DnCNN(depth=4, width=6)
    for norm in network.norms:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.rand(2, 1, 12, 15)
    with torch.inference_mode():
        expected = network.eval()(x)
        folded = network.folded()
        torch.testing.assert_close(folded(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(folded.folded()(x), expected, atol=1e-5, rtol=1e-5)


def test_published_sizes_of_the_networks():
    # 1*64*9 + 64, fifteen times 64*64*9 and a normalisation's 2*64, 64*9 + 1.
    assert cost.parameters(DnCNN()) == 640 + 15 * (36864 + 128) + 577
    x = torch.rand(1, 1, 16, 18)
    assert FFDNetSized(depth=3, width=4)(x).shape == x.shape
    assert torch.equal(DnCNN(depth=3, width=4)(x, strength=0), x)


@pytest.mark.parametrize("precision", list(cost.PRECISIONS))
def test_every_precision_gives_float32_of_the_same_shape_close_to_the_reference(precision):
    torch.manual_seed(1)
    network = TinyStudent()
    x = torch.rand(1, 1, 17, 23)
    result = cost.runner(network, precision)(x)
    assert result.dtype == torch.float32
    assert cost.agreement(result, network(x)) == 1
    assert next(network.parameters()).dtype == torch.float32


def test_agreement_counts_pixels_within_one_grey_level():
    reference = torch.full((1, 1, 2, 2), 100 / 255)
    output = torch.tensor([[[[100, 101], [102, 99]]]]) / 255
    assert cost.agreement(output, reference) == 0.75


def test_contenders_take_turns():
    order = []
    times = cost.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, warm_up=1
    )
    assert order == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


def test_cost_table_holds_networks_in_every_precision(tmp_path, few_scenes, monkeypatch):
    monkeypatch.setattr(cost_protocol, "SIZES", ((32, 48), (40, 40)))
    monkeypatch.setattr(cost_protocol, "DnCNN", lambda: DnCNN(depth=3, width=4))
    monkeypatch.setattr(cost_protocol, "FFDNetSized", lambda: FFDNetSized(depth=3, width=4))
    contestants = (*CONTENDERS, Contender("student", smooth, network=TinyStudent()))
    turns = []
    written = cost_protocol.evaluate(
        contestants, output=tmp_path, described={}, advance=lambda: turns.append(1)
    )
    assert len(turns) == cost_protocol.turns(contestants)
    with (tmp_path / "cost-all-methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["method"] == "student"]) == len(cost.PRECISIONS)
    assert [row["method"] for row in rows if row["precision"] == "float64"] == ["smooth"]
    student = next(row for row in rows if row["method"] == "student")
    assert float(student["kMAC a pixel"]) == pytest.approx(9 / 1000)
    assert written[0].name == "cost.md"


# --- figures ----------------------------------------------------------------------------------


def test_mosaic_shows_every_pixel_as_it_is(tmp_path):
    image = np.arange(60 * 50, dtype=np.uint32).astype(np.uint8).reshape(60, 50)
    path = figures.mosaic(
        [[figures.Tile("a", image), figures.Tile("b", image)]], tmp_path / "m.png"
    )
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    top, left = figures.GAP_PX + figures.CAPTION_PX, figures.GAP_PX
    np.testing.assert_array_equal(pixels[top : top + 60, left : left + 50], image)


def test_removed_part_is_shown_around_middle_grey_without_stretching():
    before, after = np.array([[100, 100, 0]]), np.array([[90, 120, 255]])
    np.testing.assert_array_equal(figures.removed(before, after), [[138, 108, 0]])


def test_pareto_front_rises():
    points = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (3.0, 9.0)}
    assert figures._front(points) == [(1.0, 5.0), (3.0, 9.0)]


# --- run --------------------------------------------------------------------------------------


def test_unknown_protocol_and_method_are_refused(tmp_path):
    with pytest.raises(EvaluationError, match="physics, real, cost"):
        evaluation.evaluate("magic", Settings(tmp_path), Progress(disable=True))
    with pytest.raises(EvaluationError, match="'magic' is unknown"):
        evaluation.evaluate(
            "physics", Settings(tmp_path, methods=["magic"]), Progress(disable=True)
        )
    with pytest.raises(EvaluationError, match="scenes must be at least 1"):
        evaluation.evaluate("physics", Settings(tmp_path, scenes=0), Progress(disable=True))


def test_real_protocol_is_skipped_visibly_without_images(tmp_path):
    settings = Settings(tmp_path / "out", images=tmp_path / "absent")
    outcome = evaluation.evaluate("real", settings, Progress(disable=True))
    assert not outcome.written
    assert "absent" in outcome.skipped
    assert not (tmp_path / "out").exists()


def test_run_goes_from_settings_to_documents(tmp_path, few_scenes):
    settings = Settings(tmp_path, methods=["median"], scenes=1, tuning_scenes=1, pictures=0)
    outcome = evaluation.evaluate("physics", settings, Progress(disable=True))
    assert not outcome.skipped
    text = outcome.written[0].read_text()
    assert "| median | size_px" in text
    assert (tmp_path / evaluation.TUNED_FILE).is_file()


def test_command_names_an_unknown_bundle_and_protocol(tmp_path):
    for option, name in (("--bundle", "no-such-bundle"), ("--protocol", "no-such-protocol")):
        arguments = ["evaluate", "--output", str(tmp_path), option, name]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 2
        assert name in result.output

"""The tables, the pictures, and the way a protocol goes from contenders to files."""

import csv
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

from model import bundle as bundles
from model import cli, cost, figures
from model import evaluate as evaluation
from model.baselines import BASELINES, Baseline, median
from model.evaluate import EvaluationError, Settings
from model.evaluation import contenders, images
from model.evaluation import cost as cost_protocol
from model.evaluation import physics as physics_protocol
from model.evaluation import real as real_protocol
from model.evaluation import scenes as scene_sources
from model.evaluation.contenders import (
    Contender,
    Tuning,
    chosen_baselines,
    classical,
    identity,
    noisy,
    simulated,
    students,
    trained_runs,
)
from model.evaluation.tables import Table, header, mean, write
from model.export import export
from model.network.dncnn import DnCNN, FFDNetSized
from model.simulation.phantoms import Lesion
from model.simulation.scene import Scene

torch.set_num_threads(1)
YARDSTICKS = Path(contenders.__file__).parents[1] / "yardsticks"


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

    monkeypatch.setattr(scene_sources, "validation_set", scenes)
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


def test_a_tuned_value_at_the_end_of_its_grid_is_said_to_be_there(tmp_path, few_scenes):
    kept_as_it_is = Baseline("m", "", median, {"size_px": (1, 3)})
    tuned = classical([kept_as_it_is], on=simulated(1), cache=tmp_path / "t.json")
    assert tuned[0].settings == "size_px 3 (end of the grid)"


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
    first = classical([baseline], on=simulated(1), cache=cache)
    assert len(calls) == 3
    again = classical([baseline], on=simulated(1), cache=cache)
    assert len(calls) == 3
    assert again[0].settings == first[0].settings
    other = Tuning("other", "", {"scenes": 1}, lambda: few_scenes(1))
    classical([baseline], on=other, cache=cache)
    classical([baseline], on=simulated(1), cache=cache)
    assert len(calls) == 3 + 3
    classical([baseline], on=simulated(2), cache=cache)
    assert len(calls) == 3 + 3 + 6
    cache.write_text("{ torn")
    classical([baseline], on=simulated(1), cache=cache)
    assert len(calls) == 3 + 3 + 6 + 3


class Darker(nn.Module):
    """Takes a fifth of every grey level, and more at the left than at the right."""

    def forward(self, x):
        return x * torch.linspace(0.6, 1.0, x.shape[-1])


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """Folder of a run whose network is `Darker`."""
    loaded = SimpleNamespace(network=Darker(), described="darker 0", kind="dncnn", label="x")
    monkeypatch.setitem(sys.modules, "model.training.runs", SimpleNamespace(load=lambda _: loaded))
    return tmp_path / "runs" / "darker"


def test_a_run_competes_under_its_label(run_folder):
    image = np.full((10, 12), 200, np.uint8)
    (found,) = trained_runs([f"DnCNN, same data={run_folder}"])
    assert (found.name, found.settings) == ("DnCNN, same data", "darker 0")
    result = found.method(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[:, 0], 120, atol=0.01)
    (none,) = trained_runs([f"none={run_folder}"], strength=0.0)
    np.testing.assert_allclose(none.method(image), image, atol=1e-3)
    assert "strength 0" in none.settings


def test_self_ensemble_is_a_row_of_its_own_and_mirrors_every_view_back(run_folder):
    single, ensemble = trained_runs([f"teacher={run_folder}"], self_ensembles=["teacher"])
    assert (single.name, ensemble.name) == ("teacher", "teacher x4")
    image = np.full((12, 12), 200, np.uint8)
    image[:3, :4] = 100
    # The factors of a pixel over all views have the mean 0.8 only if each is turned back.
    np.testing.assert_allclose(ensemble.method(image), 0.8 * image, atol=0.01)


@pytest.mark.parametrize(
    ("runs", "ensembles", "said"),
    [
        (["student"], [], "LABEL=FOLDER"),
        (["student=absent"], [], r"absent/run\.json"),
        ([], ["teacher"], "no run has this label"),
    ],
)
def test_runs_that_are_not_there_are_refused(runs, ensembles, said):
    with pytest.raises(ValueError, match=said):
        trained_runs(runs, self_ensembles=ensembles)


def test_a_run_set_as_a_bundle_computes_what_its_export_would(tmp_path):
    kept = YARDSTICKS / "details"
    like = bundles.load("lesions").student.architecture
    exported = export(
        kept,
        tmp_path,
        name="exported",
        version="1",
        retain=like.retain,
        retain_wide=like.retain_wide,
        halvings=like.halvings,
        rim_px=like.rim_px,
    )
    image = make_scene(shape=(128, 128)).noisy
    (plain,) = trained_runs([f"details={kept}"])
    (given,) = trained_runs([f"details={kept}@lesions"])
    assert given.settings == f"{plain.settings}, set as lesions"
    (alone,) = students([str(exported.folder)])
    rounding = given.method(image) - alone.method(image)  # an export's weights are of bfloat16
    assert np.abs(rounding).max() < 1
    assert np.std(given.method(image) - plain.method(image)) > 3 * np.std(rounding)


def test_a_bundle_that_is_exported_again_keeps_what_is_not_given(tmp_path):
    before = bundles.load("lesions").student.architecture
    again = export(Path("lesions"), tmp_path, name="again", version="1", retain=0.3)
    assert again.student.architecture == replace(before, retain=0.3)


def test_a_folder_may_have_the_sign_before_a_bundle_in_its_name(tmp_path):
    kept = tmp_path / "mine@home"
    shutil.copytree(YARDSTICKS / "details", kept)
    (found,) = trained_runs([f"mine={kept}"])
    assert "set as" not in found.settings


def test_only_a_student_is_set_as_a_bundle():
    with pytest.raises(bundles.BundleError, match="holds no student"):
        trained_runs([f"DnCNN={YARDSTICKS / 'dncnn'}@quality"])


def test_two_runs_of_one_label_are_refused(run_folder):
    twice = [f"teacher={run_folder}", f"teacher={run_folder}"]
    with pytest.raises(ValueError, match="two runs are called 'teacher'"):
        trained_runs(twice)


def test_two_rows_of_one_name_are_refused(tmp_path, run_folder):
    settings = Settings(tmp_path, runs=[f"median={run_folder}"], methods=["median"])
    with pytest.raises(EvaluationError, match="two rows are called 'median'"):
        evaluation.evaluate("physics", settings, Progress(disable=True))


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


def test_contrast_below_a_grey_level_is_not_shown_by_a_display():
    scene = make_scene()
    lesion = scene.lesions[0]
    pale = np.where(lesion.mask, np.float32(100.3), np.float32(100))
    found = physics_protocol.measure(pale, replace(scene, lesions=(lesion,)))
    assert found["gcnr"] == 1
    assert found["gcnr_shown"] == 0


def test_physics_writes_tables_figures_and_pictures(tmp_path, few_scenes):
    turns = []
    judged = physics_protocol.judge(
        CONTENDERS,
        few_scenes(2, 5),
        output=tmp_path,
        pictures=1,
        advance=lambda: turns.append(1),
    )
    written = physics_protocol.document(
        judged, {"speckle": CONTENDERS}, output=tmp_path, described={"scenes": "2, seed 5"}
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


def test_one_scene_without_edges_does_not_decide_how_steep_edges_are():
    strengths = [0.7, 0.8, 0.9, 0.8, 40.0]
    scenes = [{"psnr": 30.0, "edge_strength": strength} for strength in strengths]
    row = physics_protocol.summary("a", {"noisy": scenes, "a": scenes})
    assert row["edge_strength"] == 0.8


def test_differences_are_paired_and_say_what_is_chance():
    rng = np.random.default_rng(3)
    scenes = rng.normal(30, 5, 40)
    figures_of = {
        "noisy": [{"psnr": 20.0}] * 40,
        "ours": [{"psnr": value + 1, "gcnr": 0.9} for value in scenes],
        "worse": [{"psnr": value, "gcnr": math.nan} for value in scenes],
        "equal": [{"psnr": value + 1 + rng.normal(0, 0.1), "gcnr": 0.8} for value in scenes],
        "reference": [{"psnr": math.inf}] * 40,
    }
    table = physics_protocol.differences("ours", figures_of)
    rows = {row["less"]: row for row in table.rows}
    assert list(rows) == ["worse", "equal"]
    assert rows["worse"]["PSNR dB"] == "+1.00 ± 0.00"
    assert rows["worse"]["gCNR"] == "-"
    assert rows["equal"]["gCNR"] == "+0.100 ± 0.000"
    difference, interval = (float(part) for part in rows["equal"]["PSNR dB"].split(" ± "))
    assert abs(difference) < 2 * interval < 0.1


def test_a_shipped_student_is_held_against_the_others(tmp_path, few_scenes):
    (student,) = students(["quality"])
    pair = [*CONTENDERS, student]
    judged = physics_protocol.judge(pair, few_scenes(2, 5), output=tmp_path, pictures=0)
    text = physics_protocol.document(judged, {"speckle": pair}, output=tmp_path, described={})[
        0
    ].read_text()
    assert "### student, less each other method" in text
    assert "| smooth | +" in text


def test_thin_lines_are_measured_where_a_scene_is_labelled_with_them(tmp_path):
    scene = make_scene()
    scene.target[:, 48] += 100
    scene.labels["lines"] = np.zeros(scene.target.shape, bool)
    scene.labels["lines"][:, 48] = True
    sharp = physics_protocol.measure(scene.target, scene)
    soft = physics_protocol.measure(smooth(scene.target), scene)
    assert sharp["line_width"] < 2 < soft["line_width"]
    assert "point_width" not in sharp
    judged = physics_protocol.judge(CONTENDERS, [scene], output=tmp_path, pictures=0)
    text = physics_protocol.document(
        judged, {"speckle": CONTENDERS}, output=tmp_path, described={}
    )[0].read_text()
    assert "line width px" in text
    assert "point width px" not in text


def test_several_simulators_are_judged_apart_and_together(tmp_path, few_scenes, monkeypatch):
    sources = {"speckle": few_scenes, "array": lambda count, seed: few_scenes(count, seed + 50)}
    for module in (evaluation, contenders):
        monkeypatch.setattr(module, "SIMULATORS", sources)
    settings = Settings(
        tmp_path,
        methods=["median"],
        simulators=("speckle", "array"),
        scenes=2,
        tuning_scenes=1,
        pictures=1,
    )
    outcome = evaluation.evaluate("physics", settings, Progress(disable=True))
    names = {path.name for path in outcome.written}
    documents = {"physics.md", "physics-array.md", "physics-together.md"}
    assert documents <= names
    scenes = {}
    for stem in ("physics", "physics-array", "physics-together"):
        with (tmp_path / f"{stem}-scenes.csv").open() as file:
            scenes[stem] = [row["psnr"] for row in csv.DictReader(file) if row["method"] == "noisy"]
    assert scenes["physics-together"] == scenes["physics"] + scenes["physics-array"]
    text = (tmp_path / "physics-together.md").read_text()
    assert "Methods and their parameters, array" in text


def test_unknown_simulator_is_refused_with_the_list_of_those_that_exist(tmp_path):
    settings = Settings(tmp_path, simulators=["magic"])
    with pytest.raises(EvaluationError, match=r"'magic'.*speckle, widened, array"):
        evaluation.evaluate("physics", settings, Progress(disable=True))


# --- real -------------------------------------------------------------------------------------


def real_images(folder):
    """Six subjects a source."""
    for number, source in enumerate(("liver", "muscle")):
        (folder / source).mkdir(parents=True)
        for index in range(6):
            path = folder / source / f"patient{index}.png"
            Image.fromarray(make_scene(10 * number + index).noisy).save(path)
    return folder


def small_images(folder):
    files = [folder / "liver" / f"{k}.png" for k in range(3)] + [folder / "muscle" / "0.png"]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        Image.linear_gradient("L").resize((40, 30)).save(path)
    return files


def chosen_of(files, folder):
    return [p.relative_to(folder).as_posix() for p in images.choose(files, folder, 2)]


def test_images_are_taken_evenly_from_every_source(tmp_path):
    files = small_images(tmp_path)
    assert chosen_of(files, tmp_path) == ["liver/0.png", "liver/2.png", "muscle/0.png"]


def test_an_image_that_cannot_be_read_gives_its_place_to_the_next(tmp_path, caplog):
    files = small_images(tmp_path)
    for path in (files[0], files[3]):
        path.write_bytes(b"no image")
    assert chosen_of(files, tmp_path) == ["liver/1.png", "liver/2.png"]
    assert "left out: " in caplog.text


@pytest.mark.parametrize("shown", [Image.new("L", (40, 30)), Image.new("L", (40, 1), 90)])
def test_an_image_that_shows_nothing_gives_its_place_to_the_next(tmp_path, caplog, shown):
    files = small_images(tmp_path)
    shown.save(files[0])
    assert chosen_of(files, tmp_path) == ["liver/1.png", "liver/2.png", "muscle/0.png"]
    assert "shows nothing" in caplog.text


def test_real_protocol_writes_tables_by_source_and_pictures(tmp_path):
    folder = real_images(tmp_path / "images")
    turns = []
    written = real_protocol.evaluate(
        (*CONTENDERS, Contender("student", smooth), Contender("teacher", smooth, network=Darker())),
        [folder / "liver" / "patient0.png", folder / "muscle" / "patient1.png"],
        root=folder,
        output=tmp_path / "out",
        described={},
        advance=lambda: turns.append(1),
    )
    assert len(turns) == real_protocol.TURNS * 4 * 2
    assert all(path.is_file() for path in written)
    text = written[0].read_text()
    assert "### liver" in text
    assert "### muscle" in text
    assert "No clean image exists" in text
    assert "### Lesions of 3 dB planted in these images" in text
    names = {path.name for path in written if path.suffix == ".png"}
    assert {
        "real-00-liver-methods.png",
        "real-00-liver-student.png",
        "real-sheet-student.png",
        "real-sheet-teacher.png",
    } <= names
    with Image.open(tmp_path / "out" / "real-sheet-student.png") as sheet:
        assert sheet.height > 2 * 96  # a band a source
        assert sheet.width > 3 * 96  # before, after, removed


def test_only_subjects_that_nothing_was_trained_on_are_judged(tmp_path):
    folder = real_images(tmp_path / "images")
    settings = Settings(
        tmp_path / "out",
        methods=["median"],
        images=folder,
        images_per_source=9,
        tuning_scenes=1,
    )
    parts = images.parted(folder)
    run = evaluation.Run(settings, [], [], Progress(disable=True))
    run.__dict__["contenders"] = CONTENDERS
    evaluation.real(run)
    with (tmp_path / "out" / "real-images.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "noisy"]
    assert 0 < len(rows) == len(parts.test)
    assert not set(parts.test) & set(parts.train)


def test_middle_cuts_without_rescaling():
    image = np.arange(100 * 60, dtype=np.uint32).astype(np.uint8).reshape(100, 60)
    np.testing.assert_array_equal(images.middle(image, 80), image[10:90])


def test_dark_rows_and_columns_around_a_picture_are_cut_off():
    image = np.zeros((40, 50), np.uint8)
    image[5:30, 10:45] = 90
    image[20, 20] = 0
    image[2, 3] = 255  # a speck is no picture
    assert images.lit(image).shape == (25, 35)
    assert images.lit(np.zeros((4, 5), np.uint8)).shape == (4, 5)


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
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        warm_up=1,
        turn_ms=0,
    )
    assert order == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


def test_a_turn_is_filled_with_repetitions_and_counts_as_their_median(monkeypatch):
    now, durations = [0.0], [0.05, 0.01, 0.01, 9.0]

    def work():
        now[0] += durations.pop(0)

    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    times = cost.interleaved({"a": work}, rounds=1, warm_up=0, turn_ms=65)
    assert times == {"a": pytest.approx(10)}
    assert durations == [9.0]


class SmallDnCNN(DnCNN):
    def __init__(self):
        super().__init__(depth=3, width=4)


def test_cost_table_holds_networks_in_every_precision(tmp_path, few_scenes, monkeypatch):
    monkeypatch.setattr(cost_protocol, "SIZES", ((32, 48), (40, 40)))
    monkeypatch.setattr(cost_protocol, "DnCNN", SmallDnCNN)
    monkeypatch.setattr(cost_protocol, "FFDNetSized", lambda: FFDNetSized(depth=3, width=4))
    contestants = (*CONTENDERS, Contender("student", smooth, network=TinyStudent()))
    turns = []
    written = cost_protocol.evaluate(
        contestants, output=tmp_path, described={}, advance=lambda: turns.append(1)
    )
    assert len(turns) == cost_protocol.turns(contestants)
    assert isinstance(cost_protocol._ready(SmallDnCNN()).norms[0], nn.Identity)
    with (tmp_path / "cost-all-methods.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["method"] == "student"]) == len(cost.computed_here())
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
    with pytest.raises(EvaluationError, match="paper, physics, real, cost"):
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


def test_self_ensemble_is_not_timed(tmp_path, run_folder):
    settings = Settings(tmp_path, runs=[f"a={run_folder}"], self_ensembles=["a"])
    assert [c.name for c in evaluation._networks("cost", settings)] == ["a"]
    assert [c.name for c in evaluation._networks("physics", settings)] == ["a", "a x4"]


def test_command_takes_runs_in_place_of_the_default_bundle(tmp_path, few_scenes, run_folder):
    arguments = ["evaluate", "--output", str(tmp_path / "out"), "--method", "median"]
    arguments += ["--scenes", "1", "--tuning-scenes", "1", "--run", f"ours={run_folder}"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "physics.md").read_text()
    assert "| ours |" in text
    assert "| student |" not in text
    assert f"- runs: ours={run_folder}" in text


def test_command_names_an_unknown_bundle_and_protocol(tmp_path):
    for option, name in (
        ("--bundle", "no-such-bundle"),
        ("--protocol", "no-such-protocol"),
        ("--simulator", "no-such-simulator"),
        ("--run", "no-such-run"),
    ):
        arguments = ["evaluate", "--output", str(tmp_path), option, name]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 2
        assert name in result.output

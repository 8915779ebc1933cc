"""Recipe to bundle: train, resume, export, load; and what is refused on the way."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from model import bundle, data
from model.bundle import BundleError
from model.cli import app
from model.evaluation.safety_grounds import Grounds, Size
from model.evaluation.safety_measures import appeared, lesions_kept
from model.network.reparameterise import merge
from model.student import despeckled
from model.training import recipe, runs
from model.training.recipe import Recipe, RecipeError

RECIPES = Path(__file__).parents[2] / "config" / "model"


def test_every_recipe_in_the_configuration_folder_is_valid():
    names = {recipe.load(path).name for path in RECIPES.glob("*.toml")}
    assert {"smoke", "clinical", "teacher"} <= names


@pytest.mark.parametrize("name", ["clinical", "teacher"])
def test_the_recipes_of_a_release_grow_from_the_shipped_student(name):
    train = pytest.importorskip("model.train")
    found = recipe.load(RECIPES / f"{name}.toml")
    assert found.optimiser.start_from == "quality"
    network = found.network.build().eval()
    train._start_from(network, found)
    x = torch.rand(1, 1, 64, 80)
    shipped = bundle.load("quality").student
    shipped.architecture = replace(
        shipped.architecture, retain=0.0, retain_wide=0.0, halvings=0, rim_px=0
    )
    assert torch.allclose(network(x), shipped(x), atol=1e-4)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('name = "x"\nlearning_rate = 1', "learning_rate"),
        ('name = "x"\n[optimiser]\nbatch = 0', "optimiser.batch"),
        ('name = "x"\n[loss]\nbeauty = 1.0', "beauty"),
        ('name = "x"\n[network]\nwidths = [8]', "network"),
        ('name = "x"\n[network]\nblock = "wavy"', "network.block"),
        ('name = "x"\n[data]\nside = 64\n[optimiser]\ncrop = 96', "crop"),
        ('name = "x"\n[optimiser]\ncrop = 48\n[loss]\nms_ssim = 0.02', "loss.ms_ssim needs 56"),
        (
            'name = "x"\n[data]\nfresh_per_batch = 1.0\n[distillation]\nteacher = "t"',
            "fresh_per_batch",
        ),
        ('name = "x"\n[distillation]\npanel = ["quality"]', "distillation.teacher"),
        ('name = "x"\n[distillation]\nteacher = "t"\noutput = 0\npanel = ["quality"]', "a weight"),
        ("name = ", "syntax"),
        ('extends = "wrong.toml"\nname = "x"', "extends itself"),
        ('extends = "nothing.toml"\nname = "x"', r"nothing\.toml \(extends of .*wrong\.toml\)"),
        ('extends = ["a.toml", "b.toml"]\nname = "x"', "one recipe"),
        ('name = "x"\n[loss]', "loss = .*at least one term"),
        ('name = "x"\n[network]\nwidths = [-4, 8, 8, 8]', r"network\.widths\.0 = -4"),
        (
            'name = "x"\n[network]\nwidths = [8]\nencoder = [1]\ndecoder = []\nselective = true',
            "network: selective: needs 2 widths",
        ),
        ('name = "x"\n[distillation]\nreal_share = 0.2', r"name a distillation\.teacher"),
        ('name = "x"\n[data]\nfaint_share = 0.8', r"data\.detail_share: together at most 1"),
    ],
)
def test_a_wrong_recipe_names_the_key(tmp_path, text, named):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=named):
        recipe.load(path)


TAUGHT = '[distillation]\nteacher = "quality"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('accelerator = "abacus"', "accelerator = 'abacus', devices = 1: .*invalid"),
        ('accelerator = "cuda0"', "accelerator = 'cuda0', devices = 1"),
        ("[guidance]\nevery = 5\ntargets = {pnsr = 30.0}", r"targets: no metric 'pnsr' .* psnr"),
        ("[guidance]\nevery = 5", "the controller needs a target"),
        ('[optimiser]\nstart_from = "nothing"', r"optimiser\.start_from = 'nothing'"),
        ('[optimiser]\nstart_from = "quality"', r"set network\.selective = true"),
        ('[distillation]\nteacher = "nothing"', r"distillation\.teacher = 'nothing'"),
        (TAUGHT + 'panel = ["nothing"]', r"distillation\.panel = 'nothing'"),
        (TAUGHT + "real_share = 0.5", r"distillation\.real_share"),
        ('[data]\nsmoothed_by = "nothing"', r"data\.smoothed_by"),
        ('[data]\nimages = "nothing"', r"data\.images = 'nothing': no such folder"),
        ('[data]\nsource = "paper"', r"data\.images is empty"),
    ],
)
def test_what_cannot_be_had_is_named_before_anything_is_read_or_drawn(
    tmp_path, monkeypatch, text, named
):
    pytest.importorskip("lightning")
    from model import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.prepare, "material", None)
    (tmp_path / "wrong.toml").write_text(f'name = "wrong"\n{text}')
    with pytest.raises(RecipeError, match=named):
        train.train(tmp_path / "wrong.toml", tmp_path / "runs")


def test_keys_that_do_not_agree_are_named_alone(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text('name = "x"\n[data]\nfaint_share = 0.8')
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    assert str(caught.value) == (
        f"{path}: data.faint_share, data.anatomy_share, data.detail_share: together at most 1"
    )


def test_a_recipe_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "x"  # für'.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.toml: not UTF-8"):
        recipe.load(path)


def test_a_recipe_says_only_what_differs_from_the_one_it_extends(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "least.toml").write_text(
        'name = "least"\nseed = 7\n[data]\nscenes = 9\n[loss]\nsurvival = 5.0\ngradient = 0.5'
    )
    (tmp_path / "base.toml").write_text('extends = "least.toml"\n[data]\nside = 128')
    own = folder / "own.toml"
    own.write_text('extends = "../base.toml"\nname = "own"\n[loss]\nsurvival = 0.0')
    found = recipe.load(own)
    assert (found.name, found.seed, found.data.scenes, found.data.side) == ("own", 7, 9, 128)
    assert found.loss == {"survival": 0.0, "gradient": 0.5}


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nothing\.toml"):
        recipe.load(tmp_path / "nothing.toml")


@pytest.mark.slow
def test_training_resumes_and_exports_a_bundle_that_loads(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from model.export import export
    from model.train import train

    monkeypatch.chdir(tmp_path)
    text = (RECIPES / "smoke.toml").read_text()
    short = tmp_path / "smoke.toml"
    short.write_text(text.replace("steps = 20", "steps = 10"))
    first = train(short, tmp_path / "runs")
    short.write_text(text)
    last = train(short, tmp_path / "runs")
    assert first == last

    exported = export(last, tmp_path / "bundles", name="smoke", version="1")
    assert exported.manifest.training["steps"] == 20
    assert exported.manifest.parameters < 300_000
    again = bundle.load(exported.folder)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in exported.folder.iterdir())
    image = data.validation_set(1, side=64)[0].noisy
    assert np.array_equal(again.apply(image), exported.apply(image))
    assert np.array_equal(again.apply(image, 0.0), image)

    second = export(last, tmp_path / "bundles", name="smoke", version="2")
    assert second.manifest.device_uid != exported.manifest.device_uid
    assert second.manifest.weights_sha256 == exported.manifest.weights_sha256

    from model.training import runs

    kept = runs.keep(tmp_path / "runs" / "smoke", tmp_path / "kept")
    assert sorted(path.name for path in kept.iterdir()) == ["run.json", "weights.safetensors"]
    again, run = runs.load(kept), runs.load(tmp_path / "runs" / "smoke")
    assert (again.described, again.kind) == (run.described, run.kind)
    x = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(again.network(x), run.network(x), atol=2e-3, rtol=0)
    assert (
        export(kept, tmp_path / "bundles", name="kept", version="1").manifest.training["steps"]
        == 20
    )
    with pytest.raises(runs.RunError, match="another folder"):
        runs.keep(kept, tmp_path / "runs" / "smoke")
    (kept / runs.KEPT).write_bytes(b"half")
    with pytest.raises(runs.RunError, match="copy it again"):
        runs.load(kept)
    (kept / runs.KEPT).unlink()
    with pytest.raises(runs.RunError, match="missing"):
        runs.load(kept)


BRIEF = """
name = "brief"
threads = 1
validation_scenes = 2
[data]
side = 64
scenes = 2
workers = 1
smoothed_by = "quality"
[optimiser]
steps = 2
batch = 2
crop = 64
"""


def test_each_process_asks_the_teacher_on_its_own_gpu(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from model import train

    def asked(recipe, given, drawn, progress, device):
        raise KeyboardInterrupt(device)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(train, "_on_gpu", lambda _: True)
    monkeypatch.setattr(train.teaching, "taught", asked)
    monkeypatch.setattr(train, "_trainer", lambda *_: None)
    (tmp_path / "brief.toml").write_text(BRIEF.replace('smoothed_by = "quality"', ""))
    with pytest.raises(KeyboardInterrupt, match="cuda:3"):
        train.train(tmp_path / "brief.toml", tmp_path / "runs")


def test_a_run_begins_with_the_same_weights_whatever_the_cache_holds(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from model import train

    begun = []

    def begins(*given):
        begun.append(training(*given).network.state_dict())
        raise KeyboardInterrupt

    training = train.Training
    monkeypatch.setattr(train, "Training", begins)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brief.toml").write_text(BRIEF)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.train(tmp_path / "brief.toml", tmp_path / "runs")
    empty, filled = begun
    assert all(torch.equal(empty[name], filled[name]) for name in empty)


@pytest.mark.slow
def test_a_run_goes_on_without_what_it_began_with(
    tmp_path, monkeypatch, copy_of_the_shipped_bundle
):
    pytest.importorskip("lightning")
    from model.train import train

    monkeypatch.chdir(tmp_path)
    path, text = tmp_path / "brief.toml", BRIEF.replace('smoothed_by = "quality"', "")
    text = f'{text}start_from = "{copy_of_the_shipped_bundle}"\n[network]\nselective = true\n'
    path.write_text(text)
    train(path, tmp_path / "runs")
    shutil.rmtree(copy_of_the_shipped_bundle)
    path.write_text(text.replace("steps = 2", "steps = 4"))
    train(path, tmp_path / "runs")
    assert runs.load(tmp_path / "runs" / "brief").steps == 4


PUPIL = """
name = "pupil"
threads = 1
validation_scenes = 2
[network]
block = "reparameterised"
[data]
images = "images"
side = 64
scenes = 16
workers = 1
[optimiser]
steps = 6
batch = 4
crop = 64
[loss]
charbonnier = 1.0
contrast = 0.1
[distillation]
teacher = "runs/tutor"
affinity = 0.1
real_share = 0.5
[guidance]
every = 3
"""
PLANTED = PUPIL.replace("pupil", "planted").replace(
    "affinity = 0.1", "output = 0.0\nreal_retained = 0.4\nreal_planted = 2"
)
PANEL = PUPIL.replace("pupil", "panel").replace(
    "affinity = 0.1", 'output = 3.0\npanel = ["quality", "runs/tutor"]'
)
TUTOR = """
name = "tutor"
threads = 1
validation_scenes = 2
[network]
kind = "teacher"
residual_blocks = [0, 1, 1, 1]
selective = true
[data]
images = "images"
side = 64
scenes = 16
workers = 1
[optimiser]
steps = 2
batch = 2
crop = 64
start_from = "quality"
"""


@pytest.mark.slow
def test_a_teacher_is_grown_and_a_guided_student_distilled_from_it(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from model.export import export
    from model.train import train
    from model.training import logs, runs

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for index in range(6):
        noisy = data.validation_set(1, seed=data.VALIDATION_SEED + index, side=200)[0].noisy
        Image.fromarray(noisy).save(tmp_path / "images" / f"case{index}_{index}.png")
    for name, text in (("tutor", TUTOR), ("pupil", PUPIL)):
        (tmp_path / f"{name}.toml").write_text(text)
        train(tmp_path / f"{name}.toml", tmp_path / "runs")
    tutor, pupil = (runs.load(tmp_path / "runs" / name) for name in ("tutor", "pupil"))
    assert (tutor.kind, pupil.kind) == ("teacher", "student")

    answered = len(list((tmp_path / "runs" / "cache").rglob("taught-*.npy")))
    (tmp_path / "planted.toml").write_text(PLANTED)
    train(tmp_path / "planted.toml", tmp_path / "runs")
    assert runs.load(tmp_path / "runs" / "planted").kind == "student"
    (planted,) = (tmp_path / "runs" / "cache").rglob("planted-*/noisy.npy")
    patches = np.load(planted.parents[1] / "noisy.npy")
    assert len(np.load(planted)) == 2 * len(patches)
    # the scenes are not asked about, the real images anew, for what is kept of what is wide
    assert len(list((tmp_path / "runs" / "cache").rglob("taught-*.npy"))) == answered + 1

    (tmp_path / "panel.toml").write_text(PANEL)
    train(tmp_path / "panel.toml", tmp_path / "runs")
    (agreed,) = (tmp_path / "runs" / "cache").rglob("agreed-*.npy")
    noisy = np.load(agreed.with_name("noisy.npy"))
    assert np.load(agreed).shape == noisy.shape == (16, 64, 64)
    assert pupil.description["targets"].keys() == {
        "psnr",
        "ms_ssim",
        "edge_strength",
        "contrast_kept",
        "survival",
    }
    rows = logs.read(tmp_path / "runs" / "pupil" / "metrics.csv")
    weights = [row["weight/contrast"] for row in rows if "weight/contrast" in row]
    assert len(weights) == 2
    assert weights[0] != weights[1]
    assert (tmp_path / "runs" / "pupil" / "report.md").exists()

    made = export(tmp_path / "runs" / "pupil", tmp_path / "bundles", name="pupil", version="1")
    assert made.manifest.architecture["block"] == "plain"
    x = torch.rand(1, 1, 64, 64)
    plain = merge(pupil.network)
    assert torch.allclose(plain(x), pupil.network(x), atol=1e-5)
    exported = made.student.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(exported[key], value.bfloat16().float())
    with pytest.raises(BundleError, match="teacher"):
        export(tmp_path / "runs" / "tutor", tmp_path / "bundles", name="tutor", version="1")


@pytest.fixture
def copy_of_the_shipped_bundle(tmp_path):
    return Path(shutil.copytree(bundle.BUNDLES / "quality", tmp_path / "bundle"))


@pytest.mark.parametrize("folder", sorted(bundle.BUNDLES.iterdir()), ids=lambda one: one.name)
def test_a_shipped_bundle_passes_its_self_test_and_has_a_card(folder):
    shipped = bundle.load(folder.name)
    shipped.self_test()
    assert shipped.manifest.name == folder.name
    assert len((folder / bundle.MODEL_CARD).read_text().splitlines()) > 10


def test_the_bundle_for_lesions_trades_speckle_and_strokes_for_faint_lesions():
    grounds = Grounds.make(
        data.VALIDATION_SEED + 18, Size(faint=5, plain=0, even=2, clustered=2, blocks=0, cines=0)
    )
    faint = grounds.lesions[3.0]
    kept, appears, strokes = {}, {}, {}
    for name in ("quality", "lesions"):
        network = bundle.load(name).student
        outputs = [despeckled(network, scene.noisy) for scene in faint]
        kept[name] = lesions_kept(outputs, faint, 10)[1]
        even = [despeckled(network, scene.noisy) for scene in grounds.even]
        appears[name] = appeared(even, grounds.even)["10 px, dB"]
        clustered = [despeckled(network, scene.noisy) for scene in grounds.clustered]
        strokes[name] = appeared(clustered, grounds.clustered)["10 px, dB"]
    assert kept["lesions"] > 1.1 * kept["quality"]
    assert appears["lesions"] > 1.2 * appears["quality"]
    assert strokes["lesions"] > 1.5 * strokes["quality"]


def test_damaged_weights_are_refused(copy_of_the_shipped_bundle):
    weights = copy_of_the_shipped_bundle / bundle.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-5] ^= 0x40
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        bundle.load(copy_of_the_shipped_bundle)


@pytest.mark.parametrize("change", [{"device_uid": "abc"}, {"unknown": 1}, {"parameters": None}])
def test_a_wrong_manifest_is_refused(copy_of_the_shipped_bundle, change):
    path = copy_of_the_shipped_bundle / bundle.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=next(iter(change))):
        bundle.load(copy_of_the_shipped_bundle)


def test_a_missing_bundle_names_those_that_are_there():
    with pytest.raises(BundleError, match="quality"):
        bundle.load("nonesuch")


def test_a_wrong_output_fails_the_self_test():
    output = np.full((20, 20), 100, np.uint8)
    with pytest.raises(BundleError, match="self-test"):
        bundle.check_agreement(output, output + 5, "it")
    bundle.check_agreement(output, output + 1, "it")


def test_validation_scenes_are_the_same_whatever_their_count():
    two, four = data.validation_set(2, side=64), data.validation_set(4, side=64)
    for one, other in zip(two, four, strict=False):
        assert np.array_equal(one.noisy, other.noisy)


def test_the_shipped_student_gains_nine_decibels_on_scenes_it_never_saw():
    shipped = bundle.load("quality")
    gains = []
    for scene in data.validation_set(12, seed=data.VALIDATION_SEED + 17, side=192):
        target = np.clip(scene.target, 0, 255)
        before = ((scene.noisy - target) ** 2).mean()
        after = ((shipped.apply(scene.noisy) - target) ** 2).mean()
        gains.append(10 * np.log10(before / after))
    assert np.mean(gains) > 9


@pytest.mark.parametrize(("computed", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_asks_what_the_processor_computes_in(computed, expected, monkeypatch):
    train = pytest.importorskip("model.train")
    kinds = ["float32", "bfloat16"] if computed else ["float32"]
    monkeypatch.setattr("model.cost.computed_here", lambda: kinds)
    assert train._precision(Recipe(name="any", precision="auto", accelerator="cpu")) == expected
    assert train._precision(Recipe(name="any", precision="16-mixed")) == "16-mixed"


@pytest.mark.parametrize("source", ["quality", str(bundle.BUNDLES / "quality")])
def test_a_bundle_is_exported_again_with_other_shares(tmp_path, source):
    from model.export import export

    made = export(Path(source), tmp_path, name="mine", version="1", retain=0.5, rim_px=8)
    shipped = bundle.load("quality")
    assert made.manifest.weights_sha256 == shipped.manifest.weights_sha256
    assert made.manifest.training == shipped.manifest.training
    assert made.manifest.device_uid != shipped.manifest.device_uid
    assert made.student.architecture.retain == 0.5
    assert made.student.architecture.rim_px == 8


def test_who_lent_images_to_a_bundle_is_named_by_all_that_come_of_it(tmp_path):
    from model.export import export

    shipped = bundle.load("quality").manifest.attribution
    again = export(Path("quality"), tmp_path, name="mine", version="1", attribution=["mine"])
    assert again.manifest.attribution == [*shipped, "mine"]

    run = tmp_path / "kept.v2"  # a folder, though it has a suffix
    run.mkdir()
    grown = Recipe(name="grown", optimiser={"start_from": str(again.folder)})
    runs.write_description(run, grown, {"steps": 1, "minutes": 0})
    bundle.write_tensors(run / runs.KEPT, grown.network.build().state_dict())
    made = export(run, tmp_path, name="grown", version="1")
    assert made.manifest.attribution == [*shipped, "mine"]

    anew = Recipe(name="grown", optimiser={"start_from": str(run)})  # under the name it began with
    runs.write_description(run, anew, {"steps": 1, "minutes": 0})
    assert export(run, tmp_path, name="anew", version="1").manifest.attribution == []


def _keep(run, recipe, **described):
    run.mkdir()
    runs.write_description(run, recipe, {"steps": 1, "minutes": 0, **described})
    bundle.write_tensors(run / runs.KEPT, recipe.network.build().state_dict())


@pytest.mark.parametrize("of", ["teacher", "panel", "smoothed_by"])
def test_who_lent_images_to_a_teacher_is_named_by_its_students(tmp_path, of, caplog):
    from model.export import export

    quality = bundle.load("quality").manifest
    learned = {
        "teacher": {"distillation": {"teacher": "quality"}},
        "panel": {"distillation": {"teacher": "gone", "panel": ["quality"]}},
        "smoothed_by": {"data": {"smoothed_by": "quality"}},
    }[of]
    recipe = Recipe(name="learned", **learned)
    run = tmp_path / "learned-run"
    _keep(run, recipe, images=3, data_sha256=quality.training["data_sha256"])
    made = export(run, tmp_path, name="mine", version="1")
    assert made.manifest.attribution == quality.attribution
    assert "--attribution" not in caplog.text


@pytest.mark.parametrize(
    "key", ["optimiser.start_from", "distillation.teacher", "distillation.panel"]
)
def test_who_lent_images_to_the_earlier_steps_of_a_run_is_named(tmp_path, key, monkeypatch):
    from model.export import export

    monkeypatch.setattr("model.export._figures", lambda _: {})
    named = ["quality"] if key.endswith("panel") else "quality"
    run = tmp_path / "changed-run"
    _keep(run, Recipe(name="changed"), images=0, earlier=[{"steps": 1, "recipe": {key: named}}])
    made = export(run, tmp_path, name="mine", version="1")
    assert made.manifest.attribution == bundle.load("quality").manifest.attribution


@pytest.mark.parametrize(
    "described",
    [
        {"images": 3, "data_sha256": "of one's own"},
        {"images": 0, "earlier": [{"steps": 1, "recipe": {}, "data_sha256": "of one's own"}]},
    ],
)
def test_images_that_the_bundle_it_began_with_has_not_seen_are_warned_of(
    tmp_path, described, caplog, monkeypatch
):
    from model.export import export

    monkeypatch.setattr("model.export._figures", lambda _: {})
    run = tmp_path / "own-run"
    _keep(run, Recipe(name="own", optimiser={"start_from": "quality"}), **described)
    export(run, tmp_path, name="mine", version="1", attribution=["mine"])
    assert "--attribution" not in caplog.text
    export(run, tmp_path, name="mine", version="1")
    assert "--attribution" in caplog.text


def test_a_run_with_images_of_nobody_is_warned_of(tmp_path, caplog):
    from model.export import export

    recipe = Recipe(name="alone", data={"smoothed_by": "", "images": "somewhere"})
    run = tmp_path / "alone-run"
    _keep(run, recipe, images=3)
    export(run, tmp_path, name="mine", version="1")
    assert "--attribution" in caplog.text


def _alter(folder, changed):
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["architecture"] |= changed
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("changed", [{"retain": 7.0}, {"halvings": -2}, {"rim_px": -1}])
def test_an_altered_manifest_is_refused(other_bundle, changed):
    _alter(other_bundle, changed)
    with pytest.raises(bundle.BundleError):
        bundle.load(other_bundle)


def test_apply_refuses_a_bundle_that_computes_otherwise_than_its_release(other_bundle, tmp_path):
    _alter(other_bundle, {"retain": 1.0})
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(image)
    given = [str(image), "--output", str(tmp_path / "out"), "--bundle", str(other_bundle)]
    result = CliRunner().invoke(app, ["apply", *given])
    assert result.exit_code == 2
    assert "self-test" in result.output
    assert not (tmp_path / "out").exists()


def test_a_teacher_whose_answers_nothing_weighs_is_refused():
    weightless = {"teacher": "quality", "supervised": 0, "output": 0, "real_share": 0.5}
    with pytest.raises(ValueError, match=r"distillation\.supervised"):
        Recipe(name="weightless", distillation=weightless)


def test_a_card_is_of_the_last_export_unless_somebody_wrote_it(tmp_path, caplog):
    from model.export import export

    export(Path("quality"), tmp_path, name="mine", version="1")
    second = export(Path("quality"), tmp_path, name="mine", version="2")
    card = second.folder / bundle.MODEL_CARD
    assert second.manifest.device_uid in card.read_text()
    assert not caplog.messages
    card.write_text("# By hand")
    export(Path("quality"), tmp_path, name="mine", version="3")
    assert card.read_text() == "# By hand"
    assert "MODEL_CARD.md: stays as it is" in caplog.text


def test_weights_that_are_no_numbers_make_no_bundle(tmp_path, other_bundle):
    from model.export import export

    run = tmp_path / "run"
    run.mkdir()
    recipe = Recipe(name="diverged")
    runs.write_description(run, recipe, {"steps": 1, "minutes": 0})
    weights = {
        k: torch.full_like(v, torch.nan) for k, v in recipe.network.build().state_dict().items()
    }
    bundle.write_tensors(run / runs.KEPT, weights)
    with pytest.raises(bundle.BundleError, match="no numbers"):
        export(run, tmp_path, name="x", version="1")
    assert not (tmp_path / "x").exists()

    weights = {k: v * torch.inf for k, v in bundle.load(other_bundle).student.state_dict().items()}
    bundle.write_tensors(other_bundle / bundle.WEIGHTS, weights)
    manifest = json.loads((other_bundle / bundle.MANIFEST).read_text())
    manifest["weights_sha256"] = bundle.sha256(other_bundle / bundle.WEIGHTS)
    (other_bundle / bundle.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(bundle.BundleError, match="no numbers"):
        bundle.load(other_bundle)


def test_a_bundle_of_no_name_is_refused_before_anything_is_written(tmp_path):
    from model.export import export

    with pytest.raises(bundle.BundleError, match="name 'My Student': write small letters"):
        export(Path("quality"), tmp_path, name="My Student", version="1")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def other_bundle(tmp_path):
    """A bundle of the shipped network whose weights are twice as large."""
    from model.export import export

    made = export(Path("quality"), tmp_path / "others", name="other", version="1")
    doubled = {key: 2 * value for key, value in made.student.state_dict().items()}
    bundle.write_tensors(made.folder / bundle.WEIGHTS, doubled)
    manifest = made.manifest.model_copy(
        update={"weights_sha256": bundle.sha256(made.folder / bundle.WEIGHTS)}
    )
    (made.folder / bundle.MANIFEST).write_text(manifest.model_dump_json(), "utf-8")
    return made.folder


def test_weights_are_averaged_by_share(tmp_path, other_bundle):
    from model.export import export

    made = export(
        Path("quality"), tmp_path, name="mean", version="1", averaged={other_bundle: 0.25}
    )
    shipped = bundle.load("quality").student.state_dict()
    for key, value in made.student.state_dict().items():
        assert torch.allclose(value, 1.25 * shipped[key], rtol=2**-8)  # rounded to bfloat16
    (described,) = made.manifest.training["averaged"]
    assert described["share"] == 0.25
    assert made.manifest.training["recipe"] == described["recipe"]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_average_leaves_a_share_to_each(tmp_path, other_bundle, share):
    from model.export import export

    with pytest.raises(bundle.BundleError, match="shares above 0"):
        export(Path("quality"), tmp_path, name="x", version="1", averaged={other_bundle: share})


def test_only_networks_of_one_shape_are_averaged(tmp_path):
    from model.export import export

    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    small = Recipe(name="small", network={"widths": (8, 16), "encoder": (0, 1), "decoder": (1,)})
    runs.write_description(run, small, {"steps": 1, "minutes": 0})
    bundle.write_tensors(run / runs.KEPT, small.network.build().state_dict())
    with pytest.raises(bundle.BundleError, match="another shape"):
        export(Path("quality"), tmp_path, name="x", version="1", averaged={run: 0.5})


def test_a_run_of_before_is_of_use_whatever_is_asked_of_recipes_since(tmp_path):
    made = Recipe(name="before")
    runs.write_description(tmp_path, made, {"steps": 20, "minutes": 1})
    bundle.write_tensors(tmp_path / runs.KEPT, made.network.build().state_dict())
    about = json.loads((tmp_path / runs.DESCRIPTION).read_text())
    about["recipe"]["data"]["anatomy_share"] = 1.0  # with the faint scenes more than all
    (tmp_path / runs.DESCRIPTION).write_text(json.dumps(about))
    assert runs.load(tmp_path).label == "before"
    del about["recipe"]["network"]
    (tmp_path / runs.DESCRIPTION).write_text(json.dumps(about))
    with pytest.raises(runs.RunError, match="no network of this release"):
        runs.load(tmp_path)


def test_processes_that_train_together_have_one_rate_whatever_their_clocks(monkeypatch):
    module = pytest.importorskip("model.training.module")
    furthest, rates = 0.5, []
    group = {"lr": 0.0}
    strategy = SimpleNamespace(
        reduce=lambda mine, reduce_op: getattr(mine, reduce_op)().clamp_min(furthest),
        reduce_boolean_decision=lambda decision, **_: decision,
    )
    trainer = SimpleNamespace(
        world_size=2,
        strategy=strategy,
        optimizers=[SimpleNamespace(param_groups=[group])],
    )
    monkeypatch.setattr(module.Training, "trainer", trainer)
    recipe = Recipe(name="together", optimiser={"minutes": 100, "learning_rate": 0.01})
    for minutes in (10, 40):
        training = module.Training(recipe, [], {})
        training.spent_seconds = 60.0 * minutes
        training.on_train_batch_start(None, 0)
        rates.append(group["lr"])
    assert rates == [pytest.approx(0.01 * (0.01 + 0.99 / 2) / 300)] * 2  # of the first step

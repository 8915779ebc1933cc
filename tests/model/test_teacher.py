"""Teachers begin as their student, and what they say is kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.network import scales
from model.network.coarse import wide_part
from model.network.scales import residual_over_scales
from model.student import Architecture, Student, parameters
from model.teacher import Teacher
from model.training import distill
from model.training.growing import grow
from model.training.pool import STEPS_PER_GREY, Pool

SMALL = Architecture((8, 12, 16), (0, 1, 1), (1, 1))
WIDE = Architecture((16, 24, 24), (0, 1, 1), (1, 1))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return Teacher(WIDE, (1, 1, 2)).eval()


def test_a_grown_teacher_computes_what_the_student_computes(teacher):
    student = Student(SMALL).eval()
    x = torch.rand(2, 1, 45, 52)
    assert not torch.allclose(teacher(x), student(x), atol=1e-3)
    grow(student, teacher)
    assert torch.allclose(teacher(x), student(x), atol=1e-5)
    assert parameters(teacher) > 2 * parameters(student)


def test_a_deeper_student_computes_what_the_shallow_one_computes():
    shallow = Student(SMALL).eval()
    deep = Student(Architecture((8, 12, 20), (0, 3, 4), (1, 2))).eval()
    grow(shallow, deep)
    x = torch.rand(1, 1, 40, 56)
    assert torch.allclose(deep(x), shallow(x), atol=1e-5)


def test_branches_are_added_to_a_trained_student_without_a_change():
    plain = Student(SMALL).eval()
    branched = Student(replace(SMALL, block="reparameterised")).eval()
    grow(plain, branched)
    x = torch.rand(1, 1, 40, 56)
    assert torch.allclose(branched(x), plain(x), atol=1e-5)
    assert branched.encoder[1][0].branches[0].weight.abs().sum() > 0


def test_a_network_grows_into_itself_unchanged():
    one, other = Student(SMALL).eval(), Student(SMALL).eval()
    grow(one, other)
    x = torch.rand(1, 1, 40, 56)
    assert torch.equal(one(x), other(x))


def test_every_part_of_a_grown_teacher_learns(teacher):
    grow(Student(SMALL), teacher)
    optimiser = torch.optim.SGD(teacher.parameters(), 0.1)
    for _ in range(3):
        loss = (teacher(torch.rand(2, 1, 32, 32)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    still = [n for n, p in teacher.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_a_student_that_does_not_fit_is_refused(teacher):
    with pytest.raises(ValueError, match="does not fit"):
        grow(Student(Architecture((32, 32, 32), (0, 1, 1), (1, 1))), teacher)


GATED = replace(SMALL, block="gated")


@pytest.mark.parametrize(
    ("small", "large", "remedy"),
    [
        (SMALL, replace(SMALL, unshuffle=4), "set network.unshuffle = 2"),
        (replace(SMALL, selective=True), SMALL, "set network.selective = true"),
        (SMALL, Architecture((8, 12), (0, 1), (1,)), "has 3 levels"),
        (GATED, replace(WIDE, block="gated"), "gated blocks do not grow"),
        (GATED, replace(GATED, encoder=(0, 1, 2)), "gated blocks do not grow"),
        (SMALL, GATED, "set network.block = 'plain'"),
    ],
)
def test_what_would_change_by_growing_is_refused(small, large, remedy):
    with pytest.raises(ValueError, match=remedy):
        grow(Student(small), Student(large))


def test_a_gated_student_begins_where_one_of_its_shape_ended():
    one, other = Student(GATED).eval(), Student(GATED).eval()
    grow(one, other)
    x = torch.rand(1, 1, 40, 56)
    assert torch.equal(one(x), other(x))


def test_blocks_are_given_for_every_level():
    with pytest.raises(ValueError, match="residual_blocks"):
        Teacher(WIDE, (1, 1))


def a_pool(folder, count=6):
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (count, 64, 64), np.uint8)
    no = np.zeros(count, bool)
    return Pool(folder, noisy, noisy.astype(np.uint16) * STEPS_PER_GREY, no, no)


def test_what_a_teacher_says_is_its_self_ensembled_output(tmp_path, teacher):
    taught = distill.teach(a_pool(tmp_path), teacher, "one", features=True)
    x = torch.from_numpy(taught.noisy[4])[None, None].float() / 255
    expected = distill.self_ensemble(teacher, x).clamp(0, 1)[0, 0].numpy()
    assert np.abs(taught.taught[4] / STEPS_PER_GREY / 255 - expected).max() < 1e-4
    assert taught.features.shape == (6, 8, 8, distill.FEATURE_DIMENSIONS)


def test_a_teacher_sees_coarse_speckle_at_half_the_size(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(scales, "speckle_px", lambda _x, _removed: 9.0)
    given = a_pool(tmp_path)
    once = np.array(distill.teach(given, teacher, "one", folds=1).taught)
    taught = distill.teach(given, teacher, "one", folds=1, halvings=2).taught
    x = torch.from_numpy(given.noisy[3])[None, None].float() / 255
    with torch.inference_mode():
        expected = x - residual_over_scales(teacher.residual, x, 9.0, 2)
    said = taught[3] / STEPS_PER_GREY / 255
    assert np.abs(said - expected.clamp(0, 1)[0, 0].numpy()).max() < 1e-4
    assert not np.array_equal(taught, once)


def test_a_share_of_what_is_wide_stays_in_what_a_teacher_says(tmp_path, teacher):
    given = a_pool(tmp_path)
    bare = np.array(distill.teach(given, teacher, "one", folds=1).taught)
    taught = distill.teach(given, teacher, "one", folds=1, retained=0.5).taught
    assert teacher.architecture.retain_wide == 0
    x = torch.from_numpy(given.noisy[2])[None, None].float() / 255
    with torch.inference_mode():
        removed = teacher.residual(x)
        expected = x - removed + wide_part(removed, 0.5)
    said = taught[2] / STEPS_PER_GREY / 255
    assert np.abs(said - expected.clamp(0, 1)[0, 0].numpy()).max() < 1e-3
    assert np.abs(taught.astype(float) - bare).mean() > STEPS_PER_GREY / 10


def test_a_self_ensemble_does_not_care_which_way_the_image_is_mirrored(teacher):
    x = torch.rand(1, 1, 48, 48)
    straight, mirrored = (
        distill.self_ensemble(teacher, x),
        distill.self_ensemble(teacher, x.flip(-1)),
    )
    assert torch.allclose(straight, mirrored.flip(-1), atol=1e-5)


def test_a_teacher_answers_once_and_another_one_for_itself(tmp_path, teacher):
    given = a_pool(tmp_path)
    first = np.array(distill.teach(given, teacher, "one").taught)
    done = []
    with torch.no_grad():
        teacher.tail.weight.add_(0.1)
    again = distill.teach(given, teacher, "one", advance=done.append)
    assert np.array_equal(again.taught, first)
    assert done == [6]
    other = distill.teach(given, teacher, "two")
    assert not np.array_equal(other.taught, first)


def test_what_a_bundle_leaves_in_of_speckle_is_no_answer(tmp_path, teacher):
    given = a_pool(tmp_path)
    bare = np.array(distill.teach(given, teacher, "one", folds=1).taught)
    teacher.architecture = replace(teacher.architecture, retain=0.2, retain_wide=0.4)
    again = distill.teach(given, teacher, "two", folds=1).taught
    assert np.array_equal(again, bare)
    assert teacher.architecture.retain == 0.2


def answered(pool, name, error):
    """A pool with answers that are off by so many grey levels."""
    said = np.lib.format.open_memmap(
        pool.folder / f"taught-{name}.npy", "w+", np.uint16, pool.noisy.shape
    )
    said[:] = np.clip(pool.target + error * STEPS_PER_GREY, 0, 65535).astype(np.uint16)
    return replace(pool, taught=said)


def test_a_panel_counts_by_how_near_each_comes_in_a_scene(tmp_path):
    given = a_pool(tmp_path)
    given = replace(given, target=np.full_like(given.target, 100 * STEPS_PER_GREY))
    scene = np.arange(len(given))[:, None, None]
    one = answered(given, "one", np.where(scene < 3, 2.0, 8.0))
    other = answered(given, "other", np.where(scene < 3, -4.0, -8.0))
    said = distill.agreed([one, other]).taught / STEPS_PER_GREY
    near = (2 * 2.0**-4 - 4 * 4.0**-4) / (2.0**-4 + 4.0**-4)  # inverse squares of squared errors
    assert said[:3] == pytest.approx(100 + near, abs=0.01)
    assert said[3:] == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("known", ["clustered", "detailed"])
def test_of_clusters_and_of_details_the_reference_answers(tmp_path, known):
    given = a_pool(tmp_path)
    even = np.full_like(given.target, 100 * STEPS_PER_GREY)
    given = replace(given, target=even, **{known: np.arange(len(given)) % 2 == 1})
    said = distill.agreed([answered(given, "one", 3.0), answered(given, "other", 3.0)]).taught
    assert np.array_equal(said[1::2], given.target[1::2])
    assert np.array_equal(said[::2], given.target[::2] + 3 * STEPS_PER_GREY)


def test_a_panel_agrees_once_and_another_one_for_itself(tmp_path):
    given = a_pool(tmp_path)
    one, other, third = (answered(given, str(error), error) for error in (2.0, -2.0, 9.0))
    first = np.array(distill.agreed([one, other]).taught)
    one.taught[:] = 0
    assert np.array_equal(distill.agreed([one, other]).taught, first)
    assert not np.array_equal(distill.agreed([one, third]).taught, first)
    assert not list(tmp_path.glob("*.part"))


def test_affinities_do_not_depend_on_the_channels():
    places = torch.randn(2, 4, 4, 6)
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    same = (places @ turn).movedim(-1, 1) * 3
    assert float(distill.affinity_loss(same, places)) == pytest.approx(0, abs=1e-5)
    assert float(distill.affinity_loss(torch.randn(2, 6, 4, 4), places)) > 0.05


def test_projection_keeps_affinities():
    features = torch.randn(1, 48, 8, 8)
    projected = distill._projected(features, 8).float()
    assert float(distill.affinity_loss(features, projected)) < 0.08


def test_real_images_are_cut_into_squares_that_cover_them(tmp_path):
    image = np.arange(150 * 70, dtype=np.uint32).reshape(150, 70) % 251
    patches = distill.real_pool([image.astype(np.uint8)], tmp_path, 64)
    assert patches.noisy.shape[1:] == (64, 64)
    assert set(np.unique(image)) == set(np.unique(patches.noisy))

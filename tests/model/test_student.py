"""The network: shapes, identity at strength 0, size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.network.coarse import coarse_part, halved
from model.network.dncnn import DnCNN
from model.network.folding import folded, unfolded
from model.student import BLOCKS, Architecture, Student, multiply_accumulates, parameters


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return Student().eval()


@given(rows=st.integers(1, 70), columns=st.integers(1, 70))
@settings(max_examples=15, deadline=None)
def test_every_size_comes_out_as_it_went_in(student, rows, columns):
    with torch.inference_mode():
        assert student(torch.rand(2, 1, rows, columns)).shape == (2, 1, rows, columns)


def test_strength_zero_is_the_identity_bit_by_bit(student):
    x = torch.rand(1, 1, 40, 56)
    assert torch.equal(student(x, 0.0), x)
    assert not torch.equal(student(x, 1.0), x)


def test_strength_scales_what_is_removed(student):
    x = torch.rand(1, 1, 40, 56)
    with torch.inference_mode():
        assert torch.allclose(x - student(x, 0.5), (x - student(x, 1.0)) / 2, atol=1e-6)


def test_frames_of_a_batch_do_not_influence_each_other(student):
    x = torch.rand(3, 1, 48, 48)
    with torch.inference_mode():
        alone = torch.cat([student(frame[None]) for frame in x])
        assert torch.allclose(student(x), alone, atol=1e-5)


def test_the_student_is_small(student):
    assert parameters(student) <= 300_000
    assert 100 * multiply_accumulates(student, 96, 96) < multiply_accumulates(DnCNN(), 96, 96)


def test_architecture_survives_its_manifest():
    architecture = Architecture((8, 16), (1, 2), (1,))
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    with pytest.raises(TypeError):
        Architecture.from_dict({"depth": [3]})
    with pytest.raises(ValueError, match="encoder"):
        Architecture((8, 16), (1,), (1,))


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_kind_of_block_starts_near_doing_nothing(block):
    torch.manual_seed(1)
    network = Student(Architecture(block=block))
    x = torch.rand(1, 1, 64, 64)
    assert float((network(x) - x).detach().abs().mean()) < 0.5


@pytest.mark.parametrize(("unshuffle", "stride"), [(2, 16), (4, 32)])
def test_sides_of_any_length_come_back_whatever_the_unshuffle(unshuffle, stride):
    architecture = Architecture(unshuffle=unshuffle)
    assert architecture.stride == stride
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    assert Student(architecture)(torch.rand(1, 1, 37, 50)).shape == (1, 1, 37, 50)


def test_what_is_retained_is_coarse_and_a_share_of_what_would_be_removed():
    torch.manual_seed(2)
    without, retaining = Student(), Student(Architecture(retain=0.5))
    retaining.load_state_dict(without.state_dict())
    x = torch.rand(1, 1, 64, 96)
    removed = without.residual(x)
    back = removed - retaining.residual(x)
    assert torch.allclose(back, 0.5 * _coarse(removed), atol=1e-6)


def test_the_coarse_part_keeps_a_lesion_and_drops_speckle():
    lesion = torch.zeros(1, 1, 96, 96)
    lesion[..., 32:64, 32:64] = 1
    assert float(_coarse(lesion)[0, 0, 48, 48]) == pytest.approx(1)
    assert float(_coarse(torch.full((1, 1, 32, 32), 0.3)).std()) < 1e-6
    speckle = (-1.0) ** torch.arange(96).reshape(1, 1, 1, 96).expand(1, 1, 96, 96)
    assert float(_coarse(speckle)[..., 8:-8, 8:-8].abs().max()) < 1e-6


def test_more_of_wide_structures_is_retained_than_of_narrow_ones():
    both = {"share": 0.2, "wide_share": 0.5}
    even = torch.full((1, 1, 96, 96), 0.3)
    assert torch.allclose(_coarse(even, **both), even * (0.2 + 0.5 * 0.8), atol=1e-6)

    def left(side):
        lesion = torch.zeros(1, 1, 96, 96)
        start = 48 - side // 2
        lesion[..., start : start + side, start : start + side] = 1
        return float(_coarse(lesion, **both)[0, 0, 46:50, 46:50].mean())

    assert left(8) < left(16) - 0.1
    assert left(16) < left(40) - 0.05
    assert left(40) == pytest.approx(0.6, abs=0.01)


def test_a_student_retains_wide_structures_alone_if_told_so():
    torch.manual_seed(2)
    without, retaining = Student(), Student(Architecture(retain_wide=0.5))
    retaining.load_state_dict(without.state_dict())
    x = torch.rand(1, 1, 61, 90)
    back = without.residual(x) - retaining.residual(x)
    padded = torch.nn.functional.pad(x, (0, 6, 0, 3), mode="replicate")
    expected = _coarse(without.residual(padded), share=0.0, wide_share=0.5)
    assert float(expected.detach().abs().max()) > 1e-3
    assert torch.allclose(back, expected[..., :61, :90], atol=1e-6)


@pytest.mark.parametrize("unshuffle", [2, 4])
def test_a_selective_student_keeps_coarse_structures_where_its_gate_is_open(unshuffle):
    plain = Student(Architecture(unshuffle=unshuffle))
    selective = Student(Architecture(unshuffle=unshuffle, selective=True))
    selective.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(1, 1, 64, 96)
    removed = plain.residual(x)
    assert torch.allclose(
        selective.residual(x), removed, atol=0.05 * float(removed.detach().abs().max())
    )
    torch.nn.init.constant_(selective.keep.bias, 100.0)
    assert torch.allclose(selective.residual(x), removed - _coarse(removed), atol=1e-6)


def test_an_unshuffle_that_has_no_cells_is_refused():
    with pytest.raises(ValueError, match="unshuffle: 2 or 4, not 3"):
        Architecture(unshuffle=3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("side", [2, 4])
def test_pixels_become_channels_and_return(side, gradients, kind):
    pixels = torch.rand(2, 1, 8, 24).to(kind)
    with torch.set_grad_enabled(gradients):
        channels = folded(pixels, side)
        assert torch.equal(channels, torch.nn.functional.pixel_unshuffle(pixels, side))
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.equal(unfolded(channels.contiguous(memory_format=layout), side), pixels)
        means = torch.nn.functional.avg_pool2d(pixels.float(), 2)[:, 0]
        assert torch.allclose(halved(channels), means, atol=1e-6)
        crop = torch.rand(2, 1, 8, 25).to(kind)[..., :24]
        assert torch.equal(folded(crop, side), torch.nn.functional.pixel_unshuffle(crop, side))


def test_the_gate_of_a_selective_student_learns():
    student = Student(Architecture(selective=True))
    (student(torch.rand(1, 1, 64, 64)) ** 2).mean().backward()
    assert student.keep.weight.grad.abs().sum() > 0


def test_a_gate_opens_beyond_what_is_retained_everywhere():
    student = Student(Architecture(selective=True, retain=0.4))
    torch.nn.init.constant_(student.keep.bias, -100.0)
    closed = student.residual(torch.full((1, 1, 64, 64), 0.5))
    bare = Student(Architecture())
    bare.load_state_dict({k: v for k, v in student.state_dict().items() if "keep" not in k})
    removed = bare.residual(torch.full((1, 1, 64, 64), 0.5))
    assert torch.allclose(closed, removed - 0.4 * _coarse(removed), atol=1e-6)


def _coarse(removed, **shares):
    return coarse_part(torch.nn.functional.avg_pool2d(removed, 2)[:, 0], **shares)

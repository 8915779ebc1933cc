"""Blocks of several branches: merged they are one plain convolution that computes the same."""

import pytest
import torch
from torch import nn

from model.network.reparameterise import ReparameterisedConv, merge


def trained(width_in, width_out, *, strips):
    """A block whose every branch matters."""
    block = ReparameterisedConv(width_in, width_out, strips=strips)
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3)
    return block


def branch_by_branch(block, x):
    """What the branches compute, each by itself."""
    total = block.square(x)
    for branch in block.branches:
        total = total + branch(x)
    if block.identity is not None:
        total = total + block.identity[:, None, None] * x
    return total


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize(("width_in", "width_out"), [(8, 8), (4, 16), (16, 4)])
def test_the_merged_convolution_computes_the_same(width_in, width_out, strips):
    block = trained(width_in, width_out, strips=strips)
    x = torch.randn(2, width_in, 13, 10)
    with torch.inference_mode():
        expected, merged, trained_as = branch_by_branch(block, x), block.merged()(x), block(x)
    assert merged.shape == expected.shape == (2, width_out, 13, 10)
    assert torch.allclose(merged, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(trained_as, expected, rtol=1e-5, atol=1e-5)


def test_every_branch_learns_as_if_it_were_computed_by_itself():
    block = trained(6, 6, strips=True).double()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    together = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    apart = torch.autograd.grad(branch_by_branch(block, x).square().sum(), list(block.parameters()))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_in_float64_the_merged_convolution_is_exact_to_rounding():
    block = trained(8, 8, strips=True).double()
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    with torch.inference_mode():
        assert (block.merged()(x) - branch_by_branch(block, x)).abs().max() < 1e-13


@pytest.mark.parametrize("name", ["square", "branches.0", "branches.1", "branches.2", "identity"])
def test_every_branch_is_in_the_merged_kernel(name):
    block = trained(6, 6, strips=True)
    before = block.merged().weight.clone()
    with torch.no_grad():
        part = block.get_parameter(name) if name == "identity" else block.get_submodule(name).weight
        part.add_(1)
    assert not torch.equal(block.merged().weight, before)


def test_the_identity_exists_only_where_the_widths_agree():
    assert ReparameterisedConv(8, 8).identity is not None
    assert ReparameterisedConv(8, 9).identity is None


def network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(trained(8, 8, strips=True), nn.ReLU(inplace=True)),
        nn.ModuleDict({"last": trained(8, 1, strips=False)})["last"],
    )


def test_a_merged_network_computes_the_same_and_leaves_the_original():
    original = network().eval()
    x = torch.randn(1, 1, 20, 17)
    with torch.inference_mode():
        expected = original(x)
        plain = merge(original)
        assert torch.allclose(plain(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(original(x), expected)
    assert not plain.training
    assert sum(isinstance(m, ReparameterisedConv) for m in original.modules()) == 2


def test_a_merged_network_has_the_state_dict_of_plain_convolutions():
    plain = merge(network())
    assert not any(isinstance(m, ReparameterisedConv) for m in plain.modules())
    assert set(plain.state_dict()) == {
        f"{layer}.{kind}" for layer in ("0", "2.0", "3") for kind in ("weight", "bias")
    }
    assert plain.state_dict()["2.0.weight"].shape == (8, 8, 3, 3)


def test_all_branches_learn():
    block = ReparameterisedConv(8, 8, strips=True)
    block(torch.randn(1, 8, 9, 9)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in block.parameters())


def test_a_new_block_starts_near_a_plain_convolution():
    block = ReparameterisedConv(32, 32, strips=True)
    plain, merged = block.square.weight.std(), block.merged().weight.std()
    assert merged.item() == pytest.approx(plain.item(), rel=0.05)

"""Convolutions that train with several branches and run as one: the same function, fewer passes.

A sum of convolutions and the identity is itself one 3x3 convolution, whose kernel is the sum of the
branches' kernels, each set into the middle of 3x3. The papers found better weights with more
branches; `merge` replaces every such block by its one convolution before weights are exported.

References
----------
Ding, Zhang, Ma, Han, Ding, Sun, "RepVGG", CVPR 2021; Ding, Guo, Ding, Han, "ACNet", ICCV 2019.
Both normalise each branch; here nothing is normalised, so that a merged network is exact.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

Network = TypeVar("Network", bound=nn.Module)


class ReparameterisedConv(nn.Module):
    """A 3x3 convolution of stride 1 that keeps the size, as a sum of branches.

    Branches: 3x3 (the only one with a bias), 1x1, where asked 1x3 and 3x1, and where the widths
    agree the identity, scaled channel by channel.

    Parameters
    ----------
    width_in, width_out : int
        Channels.
    strips : bool
        Have the branches 1x3 and 3x1 as well.
    """

    def __init__(self, width_in: int, width_out: int, *, strips: bool = False) -> None:
        super().__init__()
        self.square = nn.Conv2d(width_in, width_out, 3, padding=1)
        shapes = [(1, 1), (1, 3), (3, 1)] if strips else [(1, 1)]
        self.branches = nn.ModuleList(
            nn.Conv2d(
                width_in, width_out, shape, padding=(shape[0] // 2, shape[1] // 2), bias=False
            )
            for shape in shapes
        )
        self.identity = nn.Parameter(torch.ones(width_out)) if width_in == width_out else None
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw new weights.

        The square kernel follows Kaiming for rectifiers; the side branches start at a tenth of
        that and the identity at zero, so that a network starts as it would with plain
        convolutions. A network that draws the weights of its convolutions itself calls this for
        its blocks instead.
        """
        nn.init.kaiming_normal_(self.square.weight, nonlinearity="relu")
        if self.square.bias is not None:
            nn.init.zeros_(self.square.bias)
        for branch in self._side_branches():
            nn.init.kaiming_normal_(branch.weight, nonlinearity="relu")
            branch.weight.mul_(0.1)
        if self.identity is not None:
            nn.init.zeros_(self.identity)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of all branches, computed as one convolution of their kernels.

        Nothing is normalised between them, so that the gradient of each branch is that of its part
        of the kernel: training costs little more than a plain convolution.

        Parameters
        ----------
        x : Tensor, (batch, width_in, rows, columns)

        Returns
        -------
        Tensor, (batch, width_out, rows, columns)
        """
        kernel = self.square.weight + self._side_kernel(self.square.weight.dtype)
        return F.conv2d(x, kernel, self.square.bias, padding=1)

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """One 3x3 convolution that computes the same, up to the rounding of its weights.

        The sum is taken in float64 and rounded once.
        """
        convolution = copy.deepcopy(self.square)
        convolution.weight.copy_(self.square.weight.double() + self._side_kernel(torch.float64))
        return convolution

    @torch.no_grad()
    def adopt(self, convolution: nn.Conv2d) -> None:
        """Compute what a 3x3 convolution of the same widths computes; side branches stay."""
        self.square.weight.copy_(convolution.weight.double() - self._side_kernel(torch.float64))
        if self.square.bias is not None and convolution.bias is not None:
            self.square.bias.copy_(convolution.bias)

    def _side_kernel(self, dtype: torch.dtype) -> Tensor:
        """What the branches beside the square one add to its kernel."""
        kernel = torch.zeros_like(self.square.weight, dtype=dtype)
        for branch in self._side_branches():
            rows, columns = branch.kernel_size
            sides = ((3 - columns) // 2,) * 2 + ((3 - rows) // 2,) * 2
            kernel = kernel + F.pad(branch.weight.to(dtype), sides)
        if self.identity is not None:
            middle = torch.diag(self.identity.to(dtype))[:, :, None, None]
            kernel = kernel + F.pad(middle, (1, 1, 1, 1))
        return kernel

    def _side_branches(self) -> list[nn.Conv2d]:
        return [branch for branch in self.branches if isinstance(branch, nn.Conv2d)]


def merge(network: Network) -> Network:
    """Copy a network with every `ReparameterisedConv` inside replaced by its one convolution.

    Parameters
    ----------
    network : nn.Module
        It is not changed, and is not itself such a block: that one has `merged`.

    Returns
    -------
    nn.Module
        Of the same class and mode; its state dict has plain convolutions only, under the names
        that the blocks had.
    """
    plain = copy.deepcopy(network)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ReparameterisedConv):
                setattr(parent, name, child.merged())
    return plain


def adopt(network: nn.Module, plain: nn.Module) -> None:
    """Give a network what a copy of it with merged blocks computes; the inverse of `merge`.

    Parameters
    ----------
    network : nn.Module
        With blocks of several branches, which stay.
    plain : nn.Module
        Made by `merge` of this network, with other weights since.
    """
    known = plain.state_dict()
    blocks = {n: m for n, m in network.named_modules() if isinstance(m, ReparameterisedConv)}
    for name, block in blocks.items():
        block.adopt(plain.get_submodule(name))  # type: ignore[arg-type]
    own = network.state_dict()
    network.load_state_dict(own | {name: known[name] for name in own.keys() & known.keys()})

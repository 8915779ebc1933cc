"""The networks that the student's speed is measured against: DnCNN, and one of FFDNet's size.

Both predict the residual, as the student does, so that all are driven alike.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name
from torch.nn.utils.fusion import fuse_conv_bn_eval


class DnCNN(nn.Module):
    """Plain full-resolution convolutions with batch normalisation.

    Parameters
    ----------
    depth, width : int
        Layers and channels; 17 and 64 in the paper.

    References
    ----------
    Zhang, Zuo, Chen, Meng, Zhang, IEEE Trans. Image Process. 26(7), 2017.
    """

    def __init__(self, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.middle = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(depth - 2)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth - 2))
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def residual(self, x: Tensor) -> Tensor:
        """What the network would remove from x, (batch, 1, rows, columns), 0..1."""
        h = F.relu(self.first(x))
        for convolution, norm in zip(self.middle, self.norms, strict=True):
            h = F.relu(norm(convolution(h)))
        removed: Tensor = self.last(h)
        return removed

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Remove speckle; `strength` 0 returns the input bit by bit."""
        return x if strength == 0 else x - strength * self.residual(x)

    def folded(self) -> DnCNN:
        """A copy for inference with its normalisation folded into the convolutions."""
        network = copy.deepcopy(self).eval()
        pairs = list(zip(network.middle, network.norms, strict=True))
        for index, (convolution, norm) in enumerate(pairs):
            if not isinstance(norm, nn.BatchNorm2d):
                continue  # folded already
            if not isinstance(convolution, nn.Conv2d):
                raise TypeError(f"layer {index} is no convolution")
            network.middle[index] = fuse_conv_bn_eval(convolution, norm)
            network.norms[index] = nn.Identity()
        return network


class FFDNetSized(nn.Module):
    """FFDNet's shape for grey images: 15 layers of 64 channels at half the resolution.

    Its noise map is one constant channel, so that the cost is FFDNet's.

    References
    ----------
    Zhang, Zuo, Zhang, IEEE Trans. Image Process. 27(9), 2018.
    """

    def __init__(self, depth: int = 15, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(5, width, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth - 2))
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def residual(self, x: Tensor) -> Tensor:
        """What the network would remove from x, (batch, 1, rows, columns), 0..1, even sides."""
        h = F.pixel_unshuffle(x, 2)
        h = torch.cat((h, torch.full_like(h[:, :1], 0.1)), dim=1)
        h = F.relu(self.first(h))
        for convolution in self.middle:
            h = F.relu(convolution(h))
        return F.pixel_shuffle(self.last(h), 2)

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Remove speckle; `strength` 0 returns the input bit by bit."""
        return x if strength == 0 else x - strength * self.residual(x)

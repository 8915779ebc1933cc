"""The geometry of a simulated scanner: linear or sector, display pixels and native samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.simulation.acquisition import Acquisition


class Geometry:
    """Geometry of one image: display pixels to native samples and back.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the display.
    setting : Acquisition
    """

    def __init__(self, shape: tuple[int, int], setting: Acquisition) -> None:
        rows, columns = shape
        scale_z, scale_x = setting.native_scale
        self.native = (round(rows * scale_z), round(columns * scale_x))
        z = torch.linspace(-1, 1, rows)[:, None].expand(rows, columns)
        x = torch.linspace(-1, 1, columns)[None, :].expand(rows, columns)
        native_z = torch.linspace(-1, 1, self.native[0])[:, None].expand(*self.native)
        native_x = torch.linspace(-1, 1, self.native[1])[None, :].expand(*self.native)
        if setting.sector_angle:
            half = setting.sector_angle / 2
            face = setting.sector_depth
            aspect = columns / rows
            depth = face * np.cos(half) + (z + 1) / 2 * (1 + face * (1 - np.cos(half)))
            across = x / 2 * aspect
            radius, angle = torch.hypot(depth, across), torch.atan2(across, depth)
            self.to_display = torch.stack(((angle / half), (radius - face) * 2 - 1), -1)
            r = face + (native_z + 1) / 2
            back_z = (r * torch.cos(native_x * half) - face * np.cos(half)) / (
                1 + face * (1 - np.cos(half))
            ) * 2 - 1
            back_x = r * torch.sin(native_x * half) * 2 / aspect
            self.to_native = torch.stack((back_x, back_z), -1)
        else:
            self.to_display = torch.stack((x, z), -1)
            self.to_native = torch.stack((native_x, native_z), -1)
        self.inside = (self.to_display.abs() <= 1).all(-1)

    def sample_native(self, image: Tensor) -> Tensor:
        """Display grid to native grid, bilinear, (rows, columns) float."""
        return _sample(image, self.to_native)

    def convert(self, image: Tensor) -> Tensor:
        """Native grid to display grid, bilinear; 0 outside the insonated area."""
        return _sample(image, self.to_display) * self.inside


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        image[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]

"""The beam of a simulated scanner: its point-spread function, and what it makes of scatterers.

Fields are on the native grid of the scanner.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

from model.simulation.acquisition import Acquisition


class Beam:
    """The point-spread function, blended from near to far with depth.

    Parameters
    ----------
    setting : Acquisition
    shape : (int, int)
        Rows and columns of the native grid.
    """

    def __init__(self, setting: Acquisition, shape: tuple[int, int]) -> None:
        near, far = (
            point_spread(setting, sigma, phase)
            for sigma, phase in zip(setting.lateral_sigma, setting.defocus, strict=True)
        )
        wide = max(near.shape[1], far.shape[1])
        self.shape = shape
        self.near, self.far = (F.pad(p, ((wide - p.shape[1]) // 2,) * 2) for p in (near, far))
        depth = torch.linspace(0, 1, shape[0])[:, None]
        overlap = float((self.near * self.far.conj()).real.sum())
        norm = ((1 - depth) ** 2 + depth**2 + 2 * overlap * depth * (1 - depth)).sqrt()
        self.weight_near, self.weight_far = (1 - depth) / norm, depth / norm
        pulse = near[:, near.shape[1] // 2, None]
        self._band = _transfer(pulse / pulse.abs().pow(2).sum().sqrt(), shape)
        self._near, self._far = _transfer(self.near, shape), _transfer(self.far, shape)

    def received(self, noise: Tensor) -> Tensor:
        """White electronic noise in the band of the receiver, (rows, columns)."""
        return _convolved(noise, self._band)[0]

    def image(self, scatterers: Tensor) -> Tensor:
        """Complex echo of complex scatterers, (rows, columns)."""
        near, far = _convolved(scatterers, self._near, self._far)
        return self.weight_near * near + self.weight_far * far

    def mean_power(self, power: Tensor) -> Tensor:
        """Mean of ``|image|^2`` over scatterers of this power: exact, the blend included."""
        kernels = self.near.abs() ** 2, self.far.abs() ** 2, (self.near * self.far.conj()).real
        parts = _convolved(power, *(_transfer(kernel, self.shape) for kernel in kernels))
        near, far, both = (part.real for part in parts)
        blend = self.weight_near**2 * near + self.weight_far**2 * far
        return (blend + 2 * self.weight_near * self.weight_far * both).clamp_min(1e-12)

    def reflected(self, reflector: Tensor) -> Tensor:
        """Amplitude of coherent reflectors, (rows, columns).

        An interface follows the wavefront, so that its echoes add in phase along it.
        """
        kernels = (self.near.abs() / self.near.abs().sum(), self.far.abs() / self.far.abs().sum())
        parts = _convolved(reflector, *(_transfer(kernel, self.shape) for kernel in kernels))
        near, far = (part.real for part in parts)
        return 3.0 * (self.weight_near * near + self.weight_far * far).clamp_min(0)


def point_spread(
    setting: Acquisition, lateral_sigma: float, defocus: float | None = None
) -> Tensor:
    """Complex point-spread function, (rows, columns), unit energy, odd size.

    Parameters
    ----------
    setting : Acquisition
        Pulse and beam.
    lateral_sigma : float
        Standard deviation of the amplitude profile; that of the Gaussian with as wide a spectrum
        where the beam comes from an aperture.
    defocus : float, optional
        Quadratic phase; the near one of the setting where none is given.
    """
    phase = setting.defocus[0] if defocus is None else defocus
    beam = _aperture_beam if setting.aperture_sine else _gaussian_beam
    psf = beam(setting, lateral_sigma, phase)
    return psf / psf.abs().pow(2).sum().sqrt()


def _gaussian_beam(setting: Acquisition, lateral_sigma: float, defocus: float) -> Tensor:
    """Gaussian pulse times Gaussian beam, with a pedestal of side lobes."""
    half_z = max(3, int(np.ceil(3.2 * setting.axial_sigma)))
    half_x = max(4, int(np.ceil(3.2 * lateral_sigma * (2.0 if setting.side_lobes else 1.0))))
    z = torch.arange(-half_z, half_z + 1, dtype=torch.float32)[:, None]
    x = torch.arange(-half_x, half_x + 1, dtype=torch.float32)[None, :]
    lateral = torch.exp(-0.5 * (x / lateral_sigma) ** 2)
    if setting.side_lobes:
        lobe = torch.cos(np.pi * x / (1.5 * lateral_sigma))
        lateral = lateral + setting.side_lobes * lobe * torch.exp(
            -0.5 * (x / (2.4 * lateral_sigma)) ** 2
        )
    phase = 2 * np.pi * setting.carrier * z + defocus * (x / lateral_sigma) ** 2
    return torch.exp(-0.5 * (z / setting.axial_sigma) ** 2) * lateral * torch.exp(1j * phase)


def _aperture_beam(setting: Acquisition, lateral_sigma: float, defocus: float) -> Tensor:
    """Beam of an unapodised array, from its support in spatial frequency (Walker and Trahey 1998).

    The pulse fixes the radius, the two-way aperture (transmit convolved with receive) the angle.
    Side lobes, the curved wavefront and, with a defocus, the X of an array come with it.
    """
    half_z = max(6, int(np.ceil(5 * setting.axial_sigma)))
    half_x = max(8, int(np.ceil(6 * lateral_sigma)))
    fz = torch.fft.fftfreq(4 * half_z + 1)[:, None] + setting.carrier
    fx = torch.fft.fftfreq(4 * half_x + 1)[None, :]
    edge = np.sqrt(6.0) / (2 * np.pi * lateral_sigma)  # of a triangle as wide as the Gaussian
    stretched = fx * setting.aperture_sine * setting.carrier / edge
    radius = torch.sqrt(fz**2 + stretched**2)
    sine = stretched / radius.clamp_min(1e-6) / setting.aperture_sine
    receive, transmit = (
        2 / (1 + setting.transmit_share),
        2 * setting.transmit_share / (1 + setting.transmit_share),
    )
    overlap = torch.minimum(
        torch.full_like(sine, min(receive, transmit)), (receive + transmit) / 2 - sine.abs()
    )
    aperture = overlap.clamp_min(0) * (fz > 0)
    pulse = torch.exp(-0.5 * (2 * np.pi * setting.axial_sigma * (radius - setting.carrier)) ** 2)
    spectrum = aperture * pulse * torch.exp(1j * 3.0 * defocus * sine**2)
    psf = torch.fft.fftshift(torch.fft.ifft2(spectrum))
    z = torch.arange(-2 * half_z, 2 * half_z + 1)[:, None]
    modulated: Tensor = psf * torch.exp(2j * np.pi * setting.carrier * z)
    return modulated[half_z : 3 * half_z + 1, half_x : 3 * half_x + 1]


def _transfer(kernel: Tensor, shape: tuple[int, int]) -> Tensor:
    """Transfer function of a complex or real kernel of odd size, for fields of (rows, columns)."""
    over_z, over_x = (max(0, k - n + 1) // 2 for k, n in zip(kernel.shape, shape, strict=True))
    kernel = kernel[over_z : kernel.shape[0] - over_z, over_x : kernel.shape[1] - over_x]
    kz, kx = kernel.shape
    padded = torch.zeros(shape, dtype=kernel.dtype)
    padded[:kz, :kx] = kernel
    padded = torch.roll(padded, (-(kz // 2), -(kx // 2)), (0, 1))
    transfer: Tensor = torch.fft.fft2(padded)
    return transfer


def _convolved(field: Tensor, *transfers: Tensor) -> list[Tensor]:
    """Circular convolutions of one field, (rows, columns) complex each."""
    spectrum = torch.fft.fft2(field)
    return [torch.fft.ifft2(spectrum * transfer) for transfer in transfers]

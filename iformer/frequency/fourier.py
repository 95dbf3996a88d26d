"""Frequencies in feature maps: the quantities of Figs. 1(a), 1(b) and 4 of the paper.

A map with sides of S pixels holds the frequencies 2 pi k / S, k = 0 ... S / 2, in each direction. The highest (Nyquist)
frequency is pi, a change of sign at every pixel. The functions take maps ``(N, C, H, W)`` and treat every image and
channel separately. :class:`Frequencies` averages over any number of batches without keeping them.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Amplitudes are accurate to about this share of a map's largest one, because features are in single precision.
RESOLUTION = torch.finfo(torch.float32).eps


def amplitude(maps: Tensor) -> Tensor:
    """Return the amplitudes of the 2-D Fourier transform of maps ``(N, C, H, W)``, in the same shape.

    Frequency 0 is at ``[H // 2, W // 2]``.

    Raises:
        ValueError: ``maps`` does not have four dimensions.
    """
    if maps.ndim != 4:
        raise ValueError(f"feature maps of shape {tuple(maps.shape)}, expected (N, C, H, W)")
    return torch.fft.fftshift(torch.fft.fft2(maps.detach().double()).abs(), dim=(-2, -1))


def spectrum(amplitudes: Tensor) -> Tensor:
    """Return the Fourier spectrum of each image, as in Figs. 1(a) and 4: log(1 + amplitude), averaged over channels.

    Amplitudes ``(N, C, H, W)`` give spectra ``(N, H, W)``.
    """
    return amplitudes.log1p().mean(1)


def diagonal_frequencies(height: int, width: int) -> Tensor:
    """Return the frequencies of :func:`half_diagonal` in units of pi: from 0 to 1, or to just below 1 for odd sides."""
    side = min(height, width)
    return torch.arange(side // 2 + 1, dtype=torch.double) * 2 / side


def half_diagonal(amplitudes: Tensor) -> Tensor:
    """Return the values from the centre, where both frequencies are 0, to the corner, where both are pi.

    Amplitudes ``(..., H, W)`` give values ``(..., min(H, W) // 2 + 1)`` at the :func:`diagonal_frequencies`. If the
    sides differ, values are interpolated along the longer one.
    """
    height, width = amplitudes.shape[-2:]
    side = min(height, width)
    steps = torch.arange(side // 2 + 1, device=amplitudes.device)

    # From the centre towards index 0: with even sides, the shifted spectrum has the frequency pi only there.
    rows, columns = height // 2 - steps * height / side, width // 2 - steps * width / side
    before = amplitudes[..., rows.floor().long(), columns.floor().long()]
    after = amplitudes[..., rows.ceil().long(), columns.ceil().long()]
    return before.lerp(after, (rows.frac().abs() + columns.frac().abs()).to(amplitudes))


def log_amplitude(amplitudes: Tensor) -> Tensor:
    """Return the natural logarithm of amplitudes ``(..., H, W)``, raised to the smallest that can be resolved.

    Each map has its own floor, :data:`RESOLUTION` times its largest amplitude, so that scaling a map shifts all of its
    values alike. A map of zeros gives NaN everywhere, because it has no relative amplitudes.
    """
    largest = amplitudes.amax((-2, -1), keepdim=True)
    logarithm = amplitudes.maximum(RESOLUTION * largest).log()
    return torch.where(largest > 0, logarithm, math.nan)


def high_frequency_share(amplitudes: Tensor) -> Tensor:
    """Return the share of each image's energy at high frequencies.

    Amplitudes ``(N, C, H, W)`` give shares ``(N,)`` from 0 to 1. A frequency is high if it exceeds pi / 2 in at least
    one direction, so that a map of half the size cannot hold it. Energies (squared amplitudes) are summed over
    channels. The mean of a map (frequency 0) is left out, because a bias can change it to any value. The share is NaN
    for an image whose maps are constant.
    """
    height, width = amplitudes.shape[-2:]
    rows = (torch.arange(height, device=amplitudes.device) - height // 2).abs() * 4 > height
    columns = (torch.arange(width, device=amplitudes.device) - width // 2).abs() * 4 > width
    energy = amplitudes.square().sum(1)
    # Energies below the resolution of single precision are numerical noise.
    energy = energy.where(energy > RESOLUTION**2 * energy.amax((1, 2), keepdim=True), 0.0)
    energy[:, height // 2, width // 2] = 0
    return energy[:, rows[:, None] | columns].sum(1) / energy.sum((1, 2))


def can_be_low(height: int, width: int) -> bool:
    """Return whether a map of this size holds a low frequency besides its mean; otherwise its share is always 1."""
    return max(height, width) >= 4


def radii(height: int, width: int) -> Tensor:
    """Return the radius of each frequency ``(H, W)`` in units of pi, with frequency 0 at ``[H // 2, W // 2]``.

    It is 1 at the highest frequency of each direction, and the square root of 2 at the corners.
    """
    rows = (torch.arange(height, dtype=torch.double) - height // 2) * 2 / height
    columns = (torch.arange(width, dtype=torch.double) - width // 2) * 2 / width
    return torch.hypot(rows[:, None], columns)


def low_pass(images: Tensor, cut_off: float) -> Tensor:
    """Return images ``(N, C, H, W)`` with the frequencies up to a radius only, which is given in units of pi.

    The filter is ideal: a disk in the centred discrete Fourier transform, with its edge. The image minus the result is
    the image with the frequencies above the radius only.
    """
    kept = torch.fft.ifftshift(radii(*images.shape[2:]) <= cut_off * (1 + 1e-9)).to(images.device)
    return torch.fft.ifft2(torch.fft.fft2(images) * kept).real


def basis_vector(height: int, width: int, row: int, column: int) -> Tensor:
    """Return the real Fourier basis vector ``(H, W)`` of a frequency, whose L2 norm is 1.

    Its discrete Fourier transform is positive at the frequency and at the opposite one, and 0 elsewhere.

    Args:
        height: The number of rows of the image.
        width: The number of columns of the image.
        row: The number of periods from top to bottom.
        column: The number of periods from left to right.
    """
    rows = torch.arange(height, dtype=torch.double) * row / height
    columns = torch.arange(width, dtype=torch.double) * column / width
    wave = torch.cos(2 * math.pi * (rows[:, None] + columns))
    return wave / wave.norm()


@dataclass
class Frequencies:
    """The three quantities of the maps of one layer, accumulated over batches of any size.

    Attributes:
        size: The height and width of the maps, or () before the first batch.
        channels: The number of channels of the maps.
        shares: The :func:`high_frequency_share` of every image, one tensor for each batch.
    """

    size: tuple[int, ...] = ()
    channels: int = 0
    shares: list[Tensor] = field(default_factory=list)
    _images: int = field(default=0, init=False)
    _spectrum: Tensor | float = field(default=0.0, init=False)
    _diagonal: Tensor | float = field(default=0.0, init=False)
    _maps: Tensor | int = field(default=0, init=False)  # the number of maps that are not all zeros

    def update(self, maps: Tensor) -> None:
        """Add the maps ``(N, C, H, W)`` of a batch.

        Raises:
            ValueError: The maps differ in size from those of earlier batches.
        """
        amplitudes = amplitude(maps)
        channels, *size = maps.shape[1:]
        if self.size and (self.channels, *self.size) != (channels, *size):
            before = (self.channels, *self.size)
            raise ValueError(f"feature maps of {(channels, *size)} channels, rows and columns after {before}")
        self.channels, self.size = channels, tuple(size)

        self._images += len(maps)
        self._spectrum = self._spectrum + spectrum(amplitudes).sum(0)
        diagonal = half_diagonal(log_amplitude(amplitudes))
        self._maps = self._maps + diagonal[..., 0].isfinite().sum()
        self._diagonal = self._diagonal + diagonal.nansum((0, 1))
        self.shares.append(high_frequency_share(amplitudes))

    @property
    def spectrum(self) -> Tensor:
        """The Fourier spectrum averaged over images, ``(H, W)``, with frequency 0 at ``[H // 2, W // 2]``."""
        return torch.as_tensor(self._spectrum / self._images)

    @property
    def frequencies(self) -> Tensor:
        """The frequencies of the values of :attr:`relative_log_amplitude`, ``(K,)``, in units of pi."""
        return diagonal_frequencies(*self.size)

    @property
    def relative_log_amplitude(self) -> Tensor:
        """The log amplitude along the half diagonal minus its value at frequency 0, ``(K,)``, as in Fig. 1(b).

        Log amplitudes are averaged over images and channels, without maps of zeros, before the value at frequency 0 is
        subtracted. The definition follows "How do vision transformers work?" (Park and Kim, ICLR 2022).
        """
        average = torch.as_tensor(self._diagonal / self._maps)
        return average - average[0]

    @property
    def high_frequency_shares(self) -> Tensor:
        """The :func:`high_frequency_share` of every image, ``(images,)``."""
        return torch.cat(self.shares)

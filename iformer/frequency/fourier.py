"""Frequencies in feature maps: the quantities of the paper's Figs. 1(a), 1(b) and 4.

A map of S pixels a side holds the frequencies 2 pi k / S, k = 0 ... S / 2, in each direction; pi, a change of sign at
every pixel, is the highest (Nyquist). Functions take maps ``(N, C, H, W)`` and treat every image and channel by itself.
:class:`Frequencies` averages over any number of batches and keeps none of them.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Amplitudes are known to about this share of a map's largest one: features are computed in single precision.
RESOLUTION = torch.finfo(torch.float32).eps


def amplitude(maps: Tensor) -> Tensor:
    """Amplitudes of the 2-D Fourier transform, ``(N, C, H, W)`` -> the same, frequency 0 at ``[H // 2, W // 2]``.

    Raises:
        ValueError: ``maps`` has not four dimensions.
    """
    if maps.ndim != 4:
        raise ValueError(f"feature maps of shape {tuple(maps.shape)}, expected (N, C, H, W)")
    return torch.fft.fftshift(torch.fft.fft2(maps.detach().double()).abs(), dim=(-2, -1))


def spectrum(amplitudes: Tensor) -> Tensor:
    """Fourier spectrum of each image, as in Figs. 1(a) and 4: log(1 + amplitude), averaged over channels.

    ``(N, C, H, W)`` amplitudes -> ``(N, H, W)``.
    """
    return amplitudes.log1p().mean(1)


def diagonal_frequencies(height: int, width: int) -> Tensor:
    """The frequencies of :func:`half_diagonal`, in units of pi: from 0 to 1, or just below 1 if the sides are odd."""
    side = min(height, width)
    return torch.arange(side // 2 + 1, dtype=torch.double) * 2 / side


def half_diagonal(amplitudes: Tensor) -> Tensor:
    """Values from the centre, where both frequencies are 0, to the corner, where both are pi.

    ``(..., H, W)`` -> ``(..., min(H, W) // 2 + 1)``, at :func:`diagonal_frequencies`. Where the sides differ, the
    longer one is interpolated.
    """
    height, width = amplitudes.shape[-2:]
    side = min(height, width)
    steps = torch.arange(side // 2 + 1, device=amplitudes.device)

    # From the centre towards index 0: where sides are even, only there the shifted spectrum has the frequency pi.
    rows, columns = height // 2 - steps * height / side, width // 2 - steps * width / side
    before = amplitudes[..., rows.floor().long(), columns.floor().long()]
    after = amplitudes[..., rows.ceil().long(), columns.ceil().long()]
    return before.lerp(after, (rows.frac().abs() + columns.frac().abs()).to(amplitudes))


def log_amplitude(amplitudes: Tensor) -> Tensor:
    """Natural logarithm of amplitudes ``(..., H, W)``, those too small to be known raised to what can be resolved.

    Each map has its own floor, :data:`RESOLUTION` times its largest amplitude, so that scaling a map moves all of its
    values alike. A map of zeros gives NaN throughout: it has no relative amplitudes.
    """
    largest = amplitudes.amax((-2, -1), keepdim=True)
    logarithm = amplitudes.maximum(RESOLUTION * largest).log()
    return torch.where(largest > 0, logarithm, math.nan)


def high_frequency_share(amplitudes: Tensor) -> Tensor:
    """Share of each image's energy at high frequencies, ``(N, C, H, W)`` amplitudes -> ``(N,)`` from 0 to 1.

    High are the frequencies above pi / 2 in at least one direction: those that a map of half the size cannot hold.
    Energies (squared amplitudes) are summed over channels. The mean of a map (frequency 0) is no part of it: a bias
    changes it at will. NaN for an image without any energy but in the means.
    """
    height, width = amplitudes.shape[-2:]
    rows = (torch.arange(height, device=amplitudes.device) - height // 2).abs() * 4 > height
    columns = (torch.arange(width, device=amplitudes.device) - width // 2).abs() * 4 > width
    energy = amplitudes.square().sum(1)
    # What single precision does not resolve is noise of the computation.
    energy = energy.where(energy > RESOLUTION**2 * energy.amax((1, 2), keepdim=True), 0.0)
    energy[:, height // 2, width // 2] = 0
    return energy[:, rows[:, None] | columns].sum(1) / energy.sum((1, 2))


def can_be_low(height: int, width: int) -> bool:
    """Whether a map of this size holds a low frequency besides its mean, without which its share is 1 by definition."""
    return max(height, width) >= 4


@dataclass
class Frequencies:
    """The three quantities of the maps of one layer, accumulated over batches of any size.

    Attributes:
        size: Height and width of the maps; () before the first.
        channels: Of the maps.
        shares: :func:`high_frequency_share` of every image, in order, batch by batch.
    """

    size: tuple[int, ...] = ()
    channels: int = 0
    shares: list[Tensor] = field(default_factory=list)
    _images: int = field(default=0, init=False)
    _spectrum: Tensor | float = field(default=0.0, init=False)
    _diagonal: Tensor | float = field(default=0.0, init=False)
    _maps: Tensor | int = field(default=0, init=False)  # that are not all zeros

    def update(self, maps: Tensor) -> None:
        """Take in the maps ``(N, C, H, W)`` of a batch.

        Raises:
            ValueError: They differ in size from those before.
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
        """Fourier spectrum averaged over images, ``(H, W)``, frequency 0 at ``[H // 2, W // 2]``."""
        return torch.as_tensor(self._spectrum / self._images)

    @property
    def frequencies(self) -> Tensor:
        """Where :attr:`relative_log_amplitude` stands, in units of pi."""
        return diagonal_frequencies(*self.size)

    @property
    def relative_log_amplitude(self) -> Tensor:
        """Log amplitude along the half diagonal less its value at frequency 0, as in Fig. 1(b): ``(K,)``.

        Averaged over images and channels, maps of zeros left out, before the value at 0 is subtracted. After "How do
        vision transformers work?" (Park and Kim, ICLR 2022).
        """
        average = torch.as_tensor(self._diagonal / self._maps)
        return average - average[0]

    @property
    def high_frequency_shares(self) -> Tensor:
        """:func:`high_frequency_share` of every image, ``(images,)``."""
        return torch.cat(self.shares)

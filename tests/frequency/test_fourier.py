"""Frequencies of maps whose spectrum is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from iformer.frequency import fourier
from iformer.frequency.fourier import Frequencies


def measured(*batches: Tensor) -> Frequencies:
    frequencies = Frequencies()
    for batch in batches:
        frequencies.update(batch)
    return frequencies


def share(maps: Tensor) -> list[float]:
    return fourier.high_frequency_share(fourier.amplitude(maps)).tolist()


def sinusoid(side: int, row_periods: int, column_periods: int) -> Tensor:
    position = 2 * math.pi * torch.arange(side) / side
    return torch.cos(row_periods * position[:, None] + column_periods * position)[None, None]


def checkerboard(side: int) -> Tensor:
    return 1.0 - 2 * ((torch.arange(side)[:, None] + torch.arange(side)) % 2)[None, None]


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 10)])
def test_a_constant_map_has_all_its_energy_at_the_centre(size: tuple[int, int]) -> None:
    frequencies = measured(torch.full((1, 1, *size), 3.0))
    expected = torch.zeros(size, dtype=torch.double)
    expected[size[0] // 2, size[1] // 2] = math.log1p(3 * size[0] * size[1])
    torch.testing.assert_close(frequencies.spectrum, expected)
    curve = frequencies.relative_log_amplitude
    assert curve[0] == 0
    torch.testing.assert_close(curve[1:], torch.full_like(curve[1:], math.log(fourier.RESOLUTION)))
    assert math.isnan(frequencies.high_frequency_shares.item())  # no energy but in the mean


def test_a_checkerboard_has_all_its_energy_at_the_corner() -> None:
    frequencies = measured(checkerboard(8))
    expected = torch.zeros(8, 8, dtype=torch.double)
    expected[0, 0] = math.log1p(64)
    torch.testing.assert_close(frequencies.spectrum, expected)
    assert frequencies.frequencies[-1] == 1
    assert frequencies.relative_log_amplitude.argmax() == 4
    torch.testing.assert_close(frequencies.relative_log_amplitude[4].item(), -math.log(fourier.RESOLUTION))
    assert frequencies.high_frequency_shares.tolist() == [1]


@pytest.mark.parametrize(("periods", "high"), [((1, 0), 0), ((4, 0), 0), ((5, 0), 1), ((2, 5), 1), ((4, 4), 0)])
def test_a_sinusoid_is_at_its_frequency(periods: tuple[int, int], high: int) -> None:
    amplitudes = fourier.amplitude(sinusoid(16, *periods))[0, 0]
    expected = torch.zeros(16, 16, dtype=torch.double)
    expected[8 + periods[0], 8 + periods[1]] = expected[8 - periods[0], 8 - periods[1]] = 128
    torch.testing.assert_close(amplitudes, expected, atol=1e-4, rtol=0)
    assert share(sinusoid(16, *periods)) == [pytest.approx(high, abs=1e-6)]


def test_half_and_half() -> None:
    maps = 7 + sinusoid(16, 2, 0) + sinusoid(16, 0, 6)
    assert share(maps) == [pytest.approx(0.5)]
    assert share(torch.cat([maps, maps, torch.ones_like(maps)], 1)) == [pytest.approx(0.5)]


def test_white_noise_is_flat() -> None:
    torch.manual_seed(0)
    frequencies = measured(torch.randn(64, 32, 16, 16))
    assert frequencies.spectrum.std() < 0.02 * frequencies.spectrum.mean()
    curve = frequencies.relative_log_amplitude
    # Real frequencies, 0 and pi, have another distribution than complex ones: E log |X| differs by log(2) / 2.
    torch.testing.assert_close(curve[1:-1], torch.full_like(curve[1:-1], math.log(2) / 2), atol=0.05, rtol=0)
    assert abs(curve[-1]) < 0.05
    # Of the 255 frequencies but the mean, 80 are at most pi / 2 in both directions.
    assert frequencies.high_frequency_shares.mean().item() == pytest.approx(175 / 255, abs=0.002)


@pytest.mark.parametrize("size", [(12, 12), (9, 9), (8, 12), (11, 6)])
def test_relative_log_amplitude_begins_at_zero_and_ignores_scale(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(3, 4, *size) + 1
    curve = measured(maps).relative_log_amplitude
    assert curve[0] == 0
    assert len(curve) == min(size) // 2 + 1
    torch.testing.assert_close(measured(maps * 1e-9).relative_log_amplitude, curve)
    torch.testing.assert_close(measured(maps.mT).relative_log_amplitude, curve)


def test_half_diagonal_of_unequal_sides_is_interpolated() -> None:
    plane = 100 - torch.arange(16).sub(8)[:, None].abs() - 2 * torch.arange(8).sub(4).abs()
    frequencies = fourier.diagonal_frequencies(16, 8)
    torch.testing.assert_close(fourier.half_diagonal(plane.double()), 100 - (8 + 2 * 4) * frequencies)
    wide = torch.arange(10).sub(5).abs().expand(8, 10).double()
    torch.testing.assert_close(fourier.half_diagonal(wide), 5 * fourier.diagonal_frequencies(8, 10))


def test_channels_of_zeros_are_left_out() -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 8, 8)
    with_zeros = torch.cat([maps, torch.zeros(2, 1, 8, 8)], 1)
    torch.testing.assert_close(measured(with_zeros).relative_log_amplitude, measured(maps).relative_log_amplitude)
    torch.testing.assert_close(measured(with_zeros).high_frequency_shares, measured(maps).high_frequency_shares)


def test_batches_change_nothing() -> None:
    torch.manual_seed(0)
    maps = torch.randn(11, 5, 9, 6)
    whole, parts = measured(maps), measured(*maps.split([1, 4, 6]))
    torch.testing.assert_close(parts.spectrum, whole.spectrum, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.relative_log_amplitude, whole.relative_log_amplitude, rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.high_frequency_shares, whole.high_frequency_shares)


@pytest.mark.parametrize(("size", "possible"), [((2, 2), False), ((3, 3), False), ((4, 4), True), ((2, 5), True)])
def test_which_maps_can_hold_low_frequencies(size: tuple[int, int], possible: bool) -> None:
    torch.manual_seed(0)
    assert fourier.can_be_low(*size) is possible
    assert (share(torch.randn(1, 1, *size))[0] < 1) is possible


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), expected \(N, C, H, W\)"):
        fourier.amplitude(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(3, 8, 9\).* after \(3, 8, 8\)"):
        measured(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))

"""Which frequencies classifiers use, against closed forms: one that sees the mean only, one that sees edges only."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.frequency.fourier import basis_vector, low_pass, radii
from iformer.frequency.inputs import ImageFiles
from iformer.frequency.sensitivity import (
    CUT_OFFS,
    HeatMap,
    LabelledImages,
    Share,
    canonical,
    count_hits,
    measure_heat_map,
    spread,
)
from iformer.models.saved import Model


class SeesTheMean(nn.Module):
    """Says 1 for images whose mean is above 0."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([torch.full_like(mean, 1e-4), mean], 1)


class SeesEdges(nn.Module):
    """Says 1 for images whose horizontal differences have an L2 norm above a threshold, over the edges' wrap too."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        energy = (images - images.roll(1, -1)).flatten(1).norm(dim=1)
        return torch.stack([torch.full_like(energy, self.threshold), energy], 1)


def stripes(side: int, periods: int) -> Tensor:
    return torch.cos(2 * math.pi * periods * torch.arange(side) / side).expand(1, 1, side, side)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 10)])
def test_filters_sum_to_the_image_and_share_no_frequency(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    for cut_off in CUT_OFFS:
        low = low_pass(images, cut_off)
        high = images - low
        assert (low * high).sum().item() == pytest.approx(0, abs=1e-3)
        torch.testing.assert_close(low_pass(low, cut_off), low, atol=1e-5, rtol=0)
        torch.testing.assert_close(low_pass(high, cut_off), torch.zeros_like(high), atol=1e-5, rtol=0)
    torch.testing.assert_close(low_pass(images, CUT_OFFS[-1]), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(low_pass(images, 0), images.mean((2, 3), keepdim=True).expand_as(images))


def test_a_filter_is_a_disk_that_keeps_its_edge() -> None:
    inside = stripes(16, 4)
    torch.testing.assert_close(low_pass(inside, 1 / 2), inside)
    torch.testing.assert_close(low_pass(inside, 0.49), torch.zeros_like(inside), atol=1e-6, rtol=0)
    diagonal = inside * inside.mT  # four periods in both directions
    assert low_pass(diagonal, 0.70).abs().max() < 1e-6
    torch.testing.assert_close(low_pass(diagonal, math.sqrt(0.5)), diagonal)
    assert radii(16, 12).max().item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 9)])
def test_basis_vectors_have_norm_one_and_two_opposite_frequencies(size: tuple[int, int]) -> None:
    height, width = size
    for row, column in itertools.product(spread(height, height), spread(width, width)):
        vector = basis_vector(height, width, row, column)
        assert vector.norm().item() == pytest.approx(1)
        torch.testing.assert_close(vector, basis_vector(height, width, -row, -column))
        transformed = torch.fft.fft2(vector)
        assert transformed.imag.abs().max() < 1e-9
        places = {(int(y), int(x)) for y, x in (transformed.real.abs() > 1e-9).nonzero()}
        assert places == {(row % height, column % width), (-row % height, -column % width)}
        assert transformed.real.min() > -1e-9
    different = {canonical(each, size) for each in itertools.product(range(height), range(width))}
    vectors = torch.stack([basis_vector(*size, *each).flatten() for each in different])
    torch.testing.assert_close(vectors @ vectors.mT, torch.eye(len(vectors), dtype=torch.double))
    alone = (1 + (height % 2 == 0)) * (1 + (width % 2 == 0))  # frequencies that are their own opposite
    assert len(different) == (height * width + alone) / 2


def test_one_that_sees_the_mean_only_needs_no_other_frequency() -> None:
    means = torch.tensor([-1.0, 1.0]).repeat(8)
    images = torch.randn(16, 3, 8, 8)
    images = images - images.mean((1, 2, 3), keepdim=True) + means.view(-1, 1, 1, 1)
    labels = (means > 0).long()
    low, high, total = count_hits(SeesTheMean(), zip(images.split(5), labels.split(5), strict=True))
    assert total == 16
    assert low == [16] * len(CUT_OFFS)
    assert high == [8] * len(CUT_OFFS)  # everything looks like class 0
    found = measure_heat_map(SeesTheMean(), images, labels, 30.0, (1.0,) * 3)
    errors = found.errors
    # All three channels or two of them move the mean by 30 / 8 or a third of that, beyond 1: half of the time wrongly.
    assert 0.1 < errors[4, 4] < 0.9
    errors[4, 4] = 0
    assert not errors.any()
    assert not found.unperturbed.any()


def test_one_that_sees_edges_is_disturbed_by_the_frequencies_that_have_them() -> None:
    images = torch.cat([torch.zeros(4, 1, 16, 16), stripes(16, 6).expand(4, 1, 16, 16)])
    labels = torch.tensor([0] * 4 + [1] * 4)
    network = SeesEdges(threshold=2.0)
    low, high, _ = count_hits(network, [(images, labels)])
    assert low == [8 if cut_off >= 6 / 8 else 4 for cut_off in CUT_OFFS]
    assert high == [8 if cut_off < 6 / 8 else 4 for cut_off in CUT_OFFS]

    # Differences scale a wave of c periods in 16 columns by 2 |sin(pi c / 16)|, whatever its rows.
    norm, std = 3.0, 0.5
    found = measure_heat_map(network, images[:4], labels[:4], norm, (std,))
    expected = [float(norm / std * 2 * abs(math.sin(math.pi * column / 16)) > 2) for column in range(-8, 8)]
    assert 0 < sum(expected) < 16
    assert found.errors.tolist() == [expected] * 16
    assert found.columns == tuple(range(-8, 8))


def test_opposite_frequencies_share_a_value_and_channels_have_signs_of_their_own() -> None:
    seen: list[Tensor] = []

    def network(images: Tensor) -> Tensor:
        seen.append(images.double())
        return torch.stack([images[:, 0, 0, 0], images[:, 1, 0, 0]], 1)

    images = torch.zeros(32, 2, 5, 6)
    found = measure_heat_map(network, images, torch.zeros(32, dtype=torch.long), 2.0, (1.0, 0.5), batch_size=40)
    errors = found.errors
    assert torch.equal(errors[:, 1:], errors.flip(0, 1).roll(1, 1)[:, 1:])  # -pi has no opposite in the map
    assert len(seen) == len(found.wrong) + 1
    for added in seen[:-1]:
        norms = added.flatten(2).norm(dim=2)
        torch.testing.assert_close(norms, torch.tensor([2.0, 4.0], dtype=torch.double).expand(32, 2))
        signs = {tuple(row) for row in added[:, :, 0, 0].sign().tolist()}
        assert len(signs) == 4
    again = measure_heat_map(network, images, torch.zeros(32, dtype=torch.long), 2.0, (1.0, 0.5), batch_size=7)
    assert torch.equal(again.errors, errors)


def test_a_coarser_map_is_spread_over_all_frequencies() -> None:
    assert spread(32, 32) == tuple(range(-16, 16))
    assert spread(9, 32) == tuple(range(-4, 5))
    assert spread(224, 8) == (-112, -84, -56, -28, 0, 28, 56, 84)
    found = measure_heat_map(
        SeesEdges(2.0), torch.zeros(2, 1, 33, 40), torch.zeros(2, dtype=torch.long), 9.0, (1.0,), 8
    )
    assert found.errors.shape == (8, 8)
    assert found.errors[:, 4].tolist() == [0] * 8


def test_bands_hold_every_frequency_once() -> None:
    distinct = {canonical(each, (16, 16)) for each in itertools.product(range(16), repeat=2)}
    wrong = {each: torch.zeros(3, dtype=torch.bool) for each in distinct}
    wrong[0, 0] = torch.tensor([True, True, False])
    wrong[-8, -8] = torch.tensor([True, True, True])
    found = HeatMap((16, 16), 1.0, (), (), wrong, torch.zeros(3)).bands()
    assert sum(band.frequencies for band in found) == len(wrong)
    assert (found[0].frequencies, found[0].error.value) == (1, pytest.approx(2 / 3))
    assert found[1].frequencies == 2  # one period in 16 pixels, across and down
    assert [band.error.value for band in found[1:-1]] == [0] * 8
    assert found[-1].error.value > 0


def test_intervals() -> None:
    share = Share.counted(50, 100)
    assert (share.value, share.low, share.high) == (
        0.5,
        pytest.approx(0.4038, abs=1e-4),
        pytest.approx(0.5962, abs=1e-4),
    )
    assert Share.counted(0, 10).high == pytest.approx(0.2775, abs=1e-4)  # certain of nothing after ten images
    mean = Share.averaged(torch.tensor([0.25, 0.75] * 50))
    assert mean.value == 0.5
    assert mean.low == pytest.approx(0.45, abs=0.01)
    assert Share.averaged(torch.tensor([0.0, 1.0] * 50)) == share
    assert Share.averaged(torch.zeros(10)).high == pytest.approx(0.2775, abs=1e-4)
    assert math.isnan(Share.averaged(torch.tensor([1.0])).low)


def test_labelled_images_of_a_folder(tmp_path: Path) -> None:
    for name, value in (("dark", 60), ("bright", 200)):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(np.full((8, 8, 3), value + number, np.uint8)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "dark/cut.png").write_bytes((tmp_path / "dark/0.png").read_bytes()[:50])
    config = {
        "input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear",
        "crop_pct": 1.0, "crop_mode": "center",
    }  # fmt: skip
    model = Model("mean", "classification", SeesTheMean(), ("dark", "bright"), config, "")
    files = ImageFiles(sorted(tmp_path.glob("*/*.png")), batch_size=2)
    found = LabelledImages(tmp_path, files).measure(model)
    assert (found.images, found.accuracy.value) == (6, 1)
    assert list(files.unreadable) == [tmp_path / "dark/cut.png"]
    assert found.heat_map.norm == 1  # an eighth of the range at each of 8x8 pixels
    assert found.high_pass[0].value == 0.5
    assert found.heat_map.errors.shape == (8, 8)

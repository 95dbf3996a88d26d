"""One pass over images: batches, means and verdicts."""

import math

import pytest
import torch

from iformer.frequency.measurement import Mean, measure
from tests.networks import images_for, small


def test_batches_change_nothing() -> None:
    model, images = small("iformer_nano"), images_for("iformer_nano", 7)
    whole, parts = measure(model, [images]), measure(model, images.split([2, 1, 4]))
    assert whole.images == parts.images == 7
    assert whole.image_size == (32, 32)
    for one, other in zip(whole.blocks.values(), parts.blocks.values(), strict=True):
        torch.testing.assert_close(one.spectrum, other.spectrum, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.relative_log_amplitude, other.relative_log_amplitude, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.high_frequency_shares, other.high_frequency_shares, rtol=1e-4, atol=1e-5)
    for one, other in zip(whole.stages(), parts.stages(), strict=True):
        assert (one.stage, one.branch, one.verdict) == (other.stage, other.branch, other.verdict)
        assert one.change.value == pytest.approx(other.change.value, abs=1e-4, nan_ok=True)
    for distance, same in zip(whole.distances.values(), parts.distances.values(), strict=True):
        torch.testing.assert_close(distance.pixels, same.pixels, rtol=1e-4, atol=1e-4)


def test_a_branch_that_smooths_lowers_and_one_that_differentiates_raises() -> None:
    model, images = small("iformer_nano"), images_for("iformer_nano", 8)
    branch = model.stages[0].blocks[0].mixer.conv_branch
    verdicts = []
    for kernel in ([1.0, 1.0, 1.0], [1.0, -2.0, 1.0]):
        branch.conv.weight.data[:] = torch.outer(torch.tensor(kernel), torch.tensor(kernel))
        verdicts.append({(each.stage, each.branch): each for each in measure(model, [images]).stages()})
    low, high = (verdict[1, "convolution"] for verdict in verdicts)
    assert (low.verdict, high.verdict) == ("lowers", "raises")
    assert low.shares["input"] == high.shares["input"]
    assert low.change.value == pytest.approx(low.shares["output"].value - low.shares["input"].value)
    assert low.highest["input"] == high.highest["input"]
    assert low.highest["output"] < high.highest["output"]
    assert verdicts[0][4, "attention"].verdict == "map too small"  # 2x2
    assert [*verdicts[0]] == [
        (stage, branch) for stage in range(1, 5) for branch in ("max-pooling", "convolution", "attention")
    ]


def test_stages_average_their_blocks() -> None:
    measurement = measure(small("iformer_nano"), [images_for("iformer_nano", 4)])
    outputs = [
        each.high_frequency_shares.mean().item()
        for layer, each in measurement.branches.items()
        if (layer.stage, layer.branch, layer.point) == (3, "convolution", "output")
    ]
    stage = next(each for each in measurement.stages() if (each.stage, each.branch) == (3, "convolution"))
    assert len(outputs) == 2
    assert stage.shares["output"].value == pytest.approx(sum(outputs) / 2)


def test_means_leave_out_what_is_not_defined() -> None:
    assert Mean.of(torch.tensor([1.0, math.nan, 3.0])) == Mean(2.0, pytest.approx(1.96))
    assert math.isnan(Mean.of(torch.tensor([1.0])).margin)
    assert math.isnan(Mean.of(torch.tensor([math.nan])).value)


def test_one_image_gives_no_verdict() -> None:
    stages = measure(small("iformer_nano"), [images_for("iformer_nano", 1)]).stages()
    assert {each.verdict for each in stages} == {"one image", "map too small"}


def test_no_image() -> None:
    with pytest.raises(ValueError, match="there are no images"):
        measure(small("iformer_nano"), [])

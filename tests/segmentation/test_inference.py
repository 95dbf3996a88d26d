"""Inference on whole images: windows, flips, and the labels of resized logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iformer.segmentation import inference
from iformer.segmentation.model import semantic_fpn


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return semantic_fpn("iformer_nano", 5, neck_channels=16, head_channels=8).eval()


@torch.inference_mode()
def test_a_window_that_covers_the_image_changes_nothing(network: nn.Module) -> None:
    images = torch.randn(2, 3, 50, 70)
    whole = inference.logits(network, images)
    assert torch.equal(inference.logits(network, images, (50, 70)), whole)
    assert torch.equal(inference.logits(network, images, (64, 128)), whole)


@torch.inference_mode()
def test_windows_of_a_network_without_context_change_nothing() -> None:
    pointwise = nn.Conv2d(3, 4, 1)
    images = torch.randn(1, 3, 37, 53)
    for window in ((16, 16), (10, 60), (37, 9), (1, 1)):
        torch.testing.assert_close(inference.logits(pointwise, images, window), pointwise(images))


@torch.inference_mode()
def test_windows_never_reach_over_the_end() -> None:
    seen = set()

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(images.shape[-2:]))
        return images

    inference.logits(network, torch.randn(1, 3, 100, 45), (32, 48))
    assert seen == {(32, 45)}


@torch.inference_mode()
def test_flip_test_does_not_care_for_the_side(network: nn.Module) -> None:
    images = torch.randn(1, 3, 48, 64)
    found = inference.logits(network, images, flip=True)
    mirrored = inference.logits(network, images.flip(-1), flip=True).flip(-1)
    torch.testing.assert_close(found, mirrored)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(1, 48, 64))
    assert not torch.equal(found.argmax(1), network(images).argmax(1))


def test_labels_are_those_of_all_classes_at_once() -> None:
    logits = torch.randn(2, 37, 9, 11)
    expected = F.interpolate(logits, (31, 40), mode="bilinear").argmax(1)
    assert torch.equal(inference.labels(logits, (31, 40)), expected)
    assert torch.equal(inference.labels(logits, (9, 11)), logits.argmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flip_test_of_a_sure_network_stays_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 150.0, 0.0], dtype=dtype)[None, :, None, None].expand(1, 3, 4, 6)
    found = inference.logits(lambda images: logits, torch.zeros(1, 3, 4, 6), flip=True)
    assert F.interpolate(found, (9, 13), mode="bilinear").isfinite().all()
    assert (inference.labels(found, (9, 13)) == 1).all()

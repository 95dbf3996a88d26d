"""Grad-CAM, beside the formula written out."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iformer.detection.model import build
from iformer.frequency import layers
from iformer.frequency.grad_cam import class_layer, grad_cam
from iformer.frequency.layers import Layer
from iformer.segmentation.model import semantic_fpn
from tests.networks import FAMILIES, images_for, small


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_formula_in_every_layout(name: str) -> None:
    model, images = small(name), images_for(name, 3)
    layer = class_layer(model, images)
    targets = torch.tensor([0, 3, 3])
    kept = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    with layer.module.register_forward_hook(keep):
        scores = model(images.clone().requires_grad_())
    scores[torch.arange(3), targets].sum().backward()
    features = layer.maps(kept[0].detach(), images.shape[2:])
    gradients = layer.maps(kept[0].grad, images.shape[2:])
    assert gradients.abs().sum() > 0
    expected = F.relu((gradients.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True))
    expected = F.interpolate(expected, images.shape[2:], mode="bilinear")[:, 0]
    largest = expected.amax((1, 2), keepdim=True)
    expected = torch.where(largest > 0, expected / largest, 0)

    found = grad_cam(model, layer, images, targets)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    one = grad_cam(model, layer, images[1:2], 3)
    torch.testing.assert_close(one, found[1:2], rtol=1e-3, atol=1e-3)


def test_evidence_is_found_where_it_is() -> None:
    """A classifier that counts bright pixels, with a bright square in a corner."""
    model = nn.Sequential(nn.Conv2d(3, 1, 4, stride=4, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.ones_(model[0].weight)
    images = torch.zeros(2, 3, 32, 32)
    images[0, :, 4:12, 20:28] = 1
    maps = grad_cam(model, Layer("relu", model[1]), images, 0)
    assert maps[0, 4:12, 20:28].min() > 0.3
    assert maps[0, 16:].max() == 0
    assert maps[0].max() == 1
    assert maps[1].abs().max() == 0  # no evidence, and no division by it


def test_the_layer_has_a_where() -> None:
    model = small("iformer_nano")
    assert class_layer(model, torch.randn(1, 3, 32, 32)).label == "stage 3, block 2"  # the last stage is 2x2
    assert class_layer(model, torch.randn(1, 3, 64, 64)).label == "stage 4, block 1"
    assert class_layer(small("vit_tiny_patch16_224"), images_for("vit_tiny_patch16_224")).name == "blocks.2.norm1"
    parallel = timm.create_model("vit_small_patch16_18x2_224", depth=2, img_size=64, embed_dim=24, num_heads=3).eval()
    assert class_layer(parallel, torch.randn(1, 3, 64, 64)).name == "blocks.0"  # its last block has no norm1


def test_a_segmenters_backbone_through_a_score() -> None:
    torch.manual_seed(0)
    model = semantic_fpn("iformer_nano", num_classes=4, backbone_args={"img_size": 64}).eval()
    images = torch.randn(2, 3, 64, 48)
    layer = layers.blocks(model.backbone)[-1]
    assert layer.label == "stage 4, block 1"
    maps = grad_cam(lambda x: model(x)[:, 2].mean((1, 2)), layer, images)
    assert maps.shape == (2, 64, 48)
    assert maps.amax((1, 2)).tolist() == [1, 1]
    # The score of one class for all positions is that class of a classifier that averages them.
    same = grad_cam(lambda x: model(x).mean((2, 3)), layer, images, 2)
    torch.testing.assert_close(maps, same)
    assert not torch.allclose(maps, grad_cam(lambda x: model(x).mean((2, 3)), layer, images, 1))


def test_a_detectors_backbone_through_its_boxes() -> None:
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 96}
    model = build("mask_rcnn", "iformer_nano", num_classes=3, channels=16, box_score_thresh=0.0, **sizes).eval()
    images = torch.rand(2, 3, 64, 96)

    def score(batch: Tensor, label: int) -> Tensor:
        return torch.stack([found["scores"][found["labels"] == label].sum() for found in model(list(batch))])

    layer = layers.blocks(model.backbone.features.model)[-1]
    assert layer.label == "stage 4, block 1"
    maps = [grad_cam(lambda x, label=label: score(x, label), layer, images) for label in (1, 2)]
    assert maps[0].shape == (2, 64, 96)
    assert all(each.isfinite().all() and each.amax() == 1 for each in maps)
    assert not torch.allclose(*maps)
    assert all(parameter.grad is None for parameter in model.parameters())

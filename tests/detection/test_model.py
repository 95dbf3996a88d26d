from typing import Any

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads

from iformer.detection.model import build

SMALL: dict[str, Any] = {"num_classes": 3, "channels": 16, "min_size": 64, "max_size": 96}


@pytest.mark.parametrize(
    ("backbone", "arguments"),
    [
        ("iformer_nano", {}),
        ("resnet18", {}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)}),
        ("pvt_v2_b0", {}),
    ],
)
def test_backbones_train_and_detect_in_images_of_any_size(backbone: str, arguments: dict) -> None:
    torch.manual_seed(0)
    model = build("mask_rcnn", backbone, backbone_args=arguments, box_score_thresh=0.0, **SMALL)
    images = [torch.rand(3, 50, 70), torch.rand(3, 61, 40)]
    targets = []
    for image in images:
        mask = torch.zeros(1, *image.shape[1:], dtype=torch.uint8)
        mask[:, 5:25, 8:30] = 1
        targets.append({"boxes": torch.tensor([[8.0, 5.0, 30.0, 25.0]]), "labels": torch.tensor([2]), "masks": mask})
    losses = model(images, targets)
    assert len(losses) == 5
    sum(losses.values()).backward()
    # All of them, as DDP expects.
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    model.eval()
    with torch.no_grad():
        found = model(images)
    for image, objects in zip(images, found, strict=True):
        assert 0 < len(objects["boxes"]) <= 100
        assert objects["masks"].shape[1:] == (1, *image.shape[1:])
        assert objects["boxes"][:, 2].max() <= image.shape[2]
        assert set(objects["labels"].tolist()) <= {1, 2, 3}


def objects(count: int) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[8.0, 5.0, 30.0, 25.0], [35.0, 20.0, 60.0, 50.0]])[:count]
    masks = torch.zeros(count, 64, 64, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return {"boxes": boxes, "labels": torch.tensor([2, 1])[:count], "masks": masks}


def losses(model: torch.nn.Module, targets: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return model([torch.full((3, 64, 64), 0.5)] * len(targets), targets)


def test_without_masks_it_trains_and_finds_the_boxes_of_mask_rcnn() -> None:
    masks = build("mask_rcnn", "iformer_nano", box_score_thresh=0.0, **SMALL)
    boxes = build("faster_rcnn", "iformer_nano", box_score_thresh=0.0, **SMALL)
    boxes.load_state_dict({name: value for name, value in masks.state_dict().items() if "mask" not in name})
    target = objects(2)
    expected = losses(masks, [target])
    found = losses(boxes, [{"boxes": target["boxes"], "labels": target["labels"]}])
    assert set(expected) - set(found) == {"loss_mask"}
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], msg=name)
    with torch.no_grad():
        for paste in (True, False):
            (alone,) = boxes.eval()([torch.rand(3, 50, 70)], paste=paste)
            assert set(alone) == {"boxes", "labels", "scores"}


def test_the_losses_are_torchvisions_where_all_objects_have_masks() -> None:
    model = build("mask_rcnn", "iformer_nano", **SMALL)
    targets = [objects(2), objects(0), objects(1)]
    ours = losses(model, targets)
    model.roi_heads.__class__ = RoIHeads
    theirs = losses(model, targets)
    assert ours.keys() == theirs.keys()
    for name, loss in ours.items():
        torch.testing.assert_close(loss, theirs[name], msg=name)


def test_objects_without_a_mask_teach_boxes_and_classes_only() -> None:
    model = build("mask_rcnn", "iformer_nano", **SMALL)
    whole = objects(2)
    expected = losses(model, [whole])
    damaged = {**whole, "masks": whole["masks"].clone(), "masked": torch.tensor([True, False])}
    partial = losses(model, [damaged])
    damaged["masks"][1] = 1 - damaged["masks"][1]
    assert torch.equal(losses(model, [damaged])["loss_mask"], partial["loss_mask"])
    assert not torch.equal(partial["loss_mask"], expected["loss_mask"])
    for name in expected.keys() - {"loss_mask"}:
        torch.testing.assert_close(partial[name], expected[name], msg=name)
    none = losses(
        model, [{**whole, "masked": torch.tensor([False, False])}, {**objects(0), "masked": torch.ones(0).bool()}]
    )
    sum(none.values()).backward()
    assert none["loss_mask"] == 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_there_are_two_architectures() -> None:
    with pytest.raises(ValueError, match="architecture is 'ssd', expected mask_rcnn or faster_rcnn"):
        build("ssd", "iformer_nano", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Faster R-CNN has no argument mask_head"):
        build("faster_rcnn", "iformer_nano", **SMALL, mask_head=None)


def test_pyramid_has_five_levels_and_a_norm_on_each_map() -> None:
    with torch.device("meta"):
        model = build("mask_rcnn", "iformer_small")
        levels = model.backbone(torch.zeros(1, 3, 128, 192))
    assert [tuple(level.shape) for level in levels.values()] == [
        (1, 256, 32, 48), (1, 256, 16, 24), (1, 256, 8, 12), (1, 256, 4, 6), (1, 256, 2, 3)
    ]  # fmt: skip
    assert sum(parameter.numel() for parameter in model.backbone.norms.parameters()) == 1984
    sizes = [size for (size,) in model.rpn.anchor_generator.sizes]
    assert sizes == [32, 64, 128, 256, 512]


def test_coordinates_stay_in_32_bits_under_autocast() -> None:
    torch.manual_seed(0)
    model = build("mask_rcnn", "iformer_nano", box_score_thresh=0.0, **SMALL).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model([torch.rand(3, 64, 90)])
        levels = model.backbone(torch.rand(1, 3, 64, 96))
    assert {level.dtype for level in levels.values()} == {torch.float32}
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_frozen_batch_norms_do_not_learn() -> None:
    model = build("mask_rcnn", "iformer_nano", freeze_batch_norm=True, **SMALL)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train().backbone(torch.rand(1, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert any("running_mean" in name for name in before)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = build("mask_rcnn", "iformer_nano", **SMALL)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        sum(level.square().mean() for level in model.backbone(torch.ones(1, 3, 64, 64)).values()).backward()
        gradients.append(model.backbone.features.model.stem.conv1.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        ("vit_tiny_patch16_224", r"has maps of strides \[16, 16, 16, 16\], expected four, each twice"),
        ("gcvit_xxtiny", "takes images of certain sizes only"),
    ],
)
def test_backbones_that_do_not_fit_are_named_in_one_line(backbone: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"{backbone} {told}") as error:
        build("mask_rcnn", backbone, **SMALL)
    assert "\n" not in str(error.value)


def test_gradient_checkpointing_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(enable: bool) -> None:
        assert not enable, "as timm's models say it"

    model = build("mask_rcnn", "iformer_nano", **SMALL)
    monkeypatch.setattr(model.backbone.features.model, "set_grad_checkpointing", without)
    model.set_grad_checkpointing(False)
    with pytest.raises(ValueError, match="InceptionTransformer does not support it"):
        model.set_grad_checkpointing()


@pytest.mark.parametrize("name", ["image_mean", "box_head", "kwargs"])
def test_what_is_made_here_is_no_setting(name: str) -> None:
    with pytest.raises(ValueError, match=f"Mask R-CNN has no argument {name}"):
        build("mask_rcnn", "iformer_nano", **SMALL, **{name: None})

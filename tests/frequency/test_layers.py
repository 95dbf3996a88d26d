"""Where models are looked at: layouts, tokens, depths, branches."""

import pytest
import timm
import torch
from torch import Tensor, nn

from iformer.frequency import layers
from iformer.frequency.layers import Layer, watched
from iformer.frequency.measurement import measure
from tests.networks import FAMILIES, images_for, small


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_blocks_maps_are_those_of_timm(name: str) -> None:
    model, images = small(name), images_for(name)
    seen: dict[Layer, Tensor] = {}
    with (
        torch.inference_mode(),
        watched(layers.blocks(model), lambda layer, x: seen.update({layer: layer.maps(x, (1, 1))})),
    ):
        model(images)
        expected = model.forward_intermediates(images, intermediates_only=True, norm=False)
    last = layers.last(seen)
    for layer, maps in zip(reversed(last), reversed(expected), strict=False):
        torch.testing.assert_close(seen[layer], maps)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (
            "iformer_nano",
            ["stage 1, block 1", "stage 2, block 1", "stage 3, block 1", "stage 3, block 2", "stage 4, block 1"],
        ),
        ("vit_tiny_patch16_224", ["block 1", "block 2", "block 3"]),
        ("swin_tiny_patch4_window7_224", ["stage 1, block 1", "stage 2, block 1", "stage 2, block 2"]),
        ("resnet10t", ["act1", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_depths_have_names(name: str, labels: list[str]) -> None:
    assert [layer.label for layer in layers.blocks(small(name))][: len(labels)] == labels


def test_token_grids_have_the_proportions_of_the_image() -> None:
    layer = Layer("x", nn.Identity(), prefix_tokens=1)
    tokens = torch.arange(2 * 13 * 3).view(2, 13, 3)
    maps = layer.maps(tokens, (30, 40))
    assert maps.shape == (2, 3, 3, 4)
    assert torch.equal(maps[0, :, 1, 2], tokens[0, 1 + 4 + 2])
    assert torch.equal(layer.restore(maps, tokens, (30, 40)), tokens)
    without = layer.maps(tokens[:, 1:], (30, 40))  # the class token comes later, as in CaiT
    assert torch.equal(without, maps)
    assert torch.equal(layer.restore(without, tokens[:, 1:], (30, 40)), tokens[:, 1:])
    with pytest.raises(ValueError, match=r"layer x returns \(2, 11, 3\)"):
        layer.maps(tokens[:, :11], (40, 40))
    with pytest.raises(ValueError, match="layer x returns tuple"):
        layer.maps((tokens,), (40, 40))


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("image_size", [(64, 64), (33, 65), (66, 31)])
def test_the_shape_of_maps_overrules_a_wrong_layout(declared: bool, image_size: tuple[int, int]) -> None:
    layer = Layer("x", nn.Identity(), channels_last=declared)
    height, width = (-(-side // 8) for side in image_size)
    maps = torch.randn(2, 40, height, width)
    for features in (maps, maps.permute(0, 2, 3, 1)):
        assert torch.equal(layer.maps(features, image_size), maps)
        assert torch.equal(layer.restore(maps, features, image_size), features)


def test_blocks_in_another_layout_than_their_stages() -> None:
    model = timm.create_model("gcvit_xxtiny", img_size=64, num_classes=5).eval()
    sizes = {layer.stage: each.size for layer, each in measure(model, [torch.randn(1, 3, 64, 64)]).blocks.items()}
    assert sizes == {1: (16, 16), 2: (8, 8), 3: (4, 4), 4: (2, 2)}


def test_the_last_layer_of_each_stage() -> None:
    ends = [layer.label for layer in layers.last(layers.blocks(small("iformer_nano")))]
    assert ends == ["stage 1, block 1", "stage 2, block 1", "stage 3, block 2", "stage 4, block 1"]
    assert len(layers.last(layers.blocks(small("resnet10t")))) == 5  # stages, whose blocks have other names


def test_branches_are_found_at_three_points() -> None:
    model = small("iformer_nano")
    found = layers.branches(model)
    assert len(found) == 5 * 3 * 3
    seen: dict[tuple[int, str, str], Tensor] = {}

    def see(layer: Layer, features: Tensor) -> None:
        seen[layer.stage, layer.branch, layer.point] = layer.maps(features, (32, 32))

    with torch.inference_mode(), watched(found, see):
        model(images_for("iformer_nano"))
    mixer = model.stages[0].blocks[0].mixer
    conv, pool, attn = mixer.split_dims
    widths = {branch: seen[1, branch, "input"].shape[1] for branch in layers.BRANCHES}
    assert widths == {"max-pooling": pool, "convolution": conv, "attention": attn}
    assert seen[1, "convolution", "output"].shape == (2, 2 * conv, 16, 16)
    torch.testing.assert_close(
        seen[1, "max-pooling", "operator"], mixer.pool_branch.pool(seen[1, "max-pooling", "input"])
    )
    activated = nn.functional.gelu(seen[1, "convolution", "operator"])
    torch.testing.assert_close(seen[1, "convolution", "output"], activated)
    assert torch.equal(seen[1, "attention", "operator"], seen[1, "attention", "output"])


def test_ablations_have_the_branches_that_they_have() -> None:
    model = timm.create_model("iformer_nano", attention_heads=(2, 0, 4, 6, 5), conv_ratio=0.0)
    found = {(layer.stage, layer.block, layer.branch) for layer in layers.branches(model)}
    expected = {(1, 1, "attention"), (2, 1, "max-pooling"), (3, 1, "attention"), (3, 1, "max-pooling")}
    assert found == expected | {(3, 2, "attention"), (4, 1, "attention"), (4, 1, "max-pooling")}
    assert {each.stage for each in measure(model.eval(), [torch.randn(1, 3, 32, 32)]).stages()} == {1, 2, 3, 4}
    assert layers.branches(small("resnet10t")) == []


def test_models_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no blocks"):
        layers.blocks(nn.Linear(1, 1))


def test_hooks_do_not_stay() -> None:
    model = small("iformer_nano")
    measure(model, [images_for("iformer_nano")])
    with pytest.raises(RuntimeError), watched(layers.blocks(model), lambda layer, features: None):
        raise RuntimeError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

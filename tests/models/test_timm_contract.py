"""What timm promises of every model: the checks that it applies to its own, and the options of its interfaces."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config, resolve_input_data_config
from timm.models import (
    FeatureInfo,
    get_model_args,
    get_model_input_config,
    get_model_traits,
    group_parameters,
    resolve_model_input_args,
    save_for_hf,
)
from timm.models._features import FeatureGetterNet
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from iformer.models.inception_transformer import InceptionTransformer
from tests.networks import plain_and_fused

Tiny = Callable[..., InceptionTransformer]

DIMS = [16, 32, 48, 64]
REDUCTIONS = [4, 8, 16, 32]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)


# Classifier and pooling


@pytest.mark.parametrize("global_pool", ["avg", "max", "avgmax", "catavgmax"])
def test_head(tiny: Tiny, images: Tensor, global_pool: str) -> None:
    model = tiny(global_pool=global_pool)
    features = model.forward_features(images)
    assert features.shape == (2, 64, 2, 2)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size) == (2, 128 if global_pool == "catavgmax" else 64)
    torch.testing.assert_close(model(images), model.get_classifier()(pooled), rtol=0, atol=0)
    if global_pool == "avg":
        torch.testing.assert_close(pooled, features.mean((2, 3)))
    # The final normalisation stands in front of the pooling.
    last = model.forward_intermediates(images, indices=[3], intermediates_only=True)[0].permute(0, 2, 3, 1)
    torch.testing.assert_close(features.permute(0, 2, 3, 1), model.norm(last), rtol=0, atol=0)


def test_reset_classifier(tiny: Tiny, images: Tensor) -> None:
    model = tiny()
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)

    model.reset_classifier(0)
    assert model.num_classes == 0
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(images), pooled, rtol=0, atol=0)

    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), model.forward_features(images), rtol=0, atol=0)

    model.reset_classifier(5, "catavgmax")
    assert model.get_classifier().weight.shape == (5, 128)
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (5, 64, 128)
    assert model(images).shape == (2, 5)

    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    assert model.global_pool == "catavgmax"


def test_reset_classifier_keeps_type_and_mode(tiny: Tiny) -> None:
    model = tiny().to(torch.bfloat16).eval()
    model.reset_classifier(0)
    model.reset_classifier(3)
    assert model.get_classifier().weight.dtype == torch.bfloat16
    assert not model.get_classifier().training


@pytest.mark.parametrize(("global_pool", "shape"), [("avg", (2, 64)), ("", (2, 64, 2, 2))])
def test_made_without_classifier(tiny: Tiny, images: Tensor, global_pool: str, shape: tuple[int, ...]) -> None:
    model = tiny(num_classes=0, global_pool=global_pool)
    assert model(images).shape == shape
    assert not any(key.startswith("head.") for key in model.state_dict())


def test_device_and_type() -> None:
    model = timm.create_model("iformer_large_384", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    with torch.device("meta"):
        assert all(p.is_meta for p in timm.create_model("iformer_small").parameters())


@plain_and_fused
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_runs_in_other_types(tiny: Tiny, images: Tensor, dtype: torch.dtype) -> None:
    model = tiny()
    expected = model(images)
    y = model.to(dtype)(images.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.3 if dtype == torch.bfloat16 else 1e-4)


# Feature maps


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx", "getter"])
@pytest.mark.parametrize("out_indices", [None, (0, 1, 2, 3), (1, 3), (2,), (-1,), (0, -2), 2])
def test_features_only(tiny: Tiny, images: Tensor, feature_cls: str, out_indices: tuple[int, ...] | int | None) -> None:
    options: dict[str, Any] = {} if out_indices is None else {"out_indices": out_indices}
    expected = tiny()
    model = tiny(
        features_only=True,
        feature_cls=feature_cls,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": expected.state_dict()},
        **options,
    )
    if out_indices is None:
        out_indices = (0, 1, 2, 3)
    taken = range(4)[-out_indices:] if isinstance(out_indices, int) else [range(4)[i] for i in out_indices]

    maps = model(images)
    if isinstance(maps, dict):
        maps = list(maps.values())
    assert model.feature_info.channels() == [DIMS[i] for i in taken]
    assert model.feature_info.reduction() == [REDUCTIONS[i] for i in taken]
    for result, map_ in zip(
        maps, expected.forward_intermediates(images, list(taken), intermediates_only=True), strict=True
    ):
        torch.testing.assert_close(result, map_, rtol=0, atol=0)


def test_features_only_keeps_what_timm_knows(tiny: Tiny) -> None:
    model = tiny(features_only=True, in_chans=4)
    assert model.in_chans == 4
    traits = get_model_traits(model)
    assert (traits["in_chans"], traits["first_conv"]) == (4, "stem.conv1")
    assert "num_classes" not in traits
    assert get_model_input_config(model)["input_size"] == (4, 64, 64)
    assert "classifier" not in model.pretrained_cfg


def test_features_only_with_checkpointing(tiny: Tiny, images: Tensor) -> None:
    model = tiny(features_only=True)
    expected = model(images)
    model.set_grad_checkpointing()
    for one, other in zip(model(images), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@plain_and_fused
def test_normalised_feature_maps(tiny: Tiny, images: Tensor) -> None:
    model = tiny()
    features = model.forward_features(images)
    getter = FeatureGetterNet(model, out_indices=(2, 3), norm=True)
    torch.testing.assert_close(getter(images)[-1], features, rtol=0, atol=0)


@plain_and_fused
def test_forward_intermediates(tiny: Tiny, images: Tensor) -> None:
    model = tiny()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert (info.channels(), info.reduction()) == (DIMS, REDUCTIONS)

    features, maps = model.forward_intermediates(images)
    torch.testing.assert_close(features, model.forward_features(images), rtol=0, atol=0)
    assert [tuple(map_.shape) for map_ in maps] == [
        (2, dim, 64 // reduction, 64 // reduction) for dim, reduction in zip(DIMS, REDUCTIONS, strict=True)
    ]
    x = model.stem(images)
    for stage, map_ in zip(model.stages, maps, strict=True):
        x = stage(x)
        torch.testing.assert_close(map_, x, rtol=0, atol=0)

    only = model.forward_intermediates(images, intermediates_only=True)
    assert isinstance(only, list)
    for one, other in zip(only, maps, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(images)[0], features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ([1, -2], [1, 2])]
)
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NHWC"])
def test_options_of_forward_intermediates(
    tiny: Tiny,
    images: Tensor,
    indices: int | list[int] | None,
    taken: list[int],
    stop_early: bool,
    norm: bool,
    output_fmt: str,
) -> None:
    model = tiny()
    maps = model.forward_intermediates(images, intermediates_only=True)
    if norm:
        maps[3] = model.forward_features(images)
    ran = []
    for stage in model.stages:
        stage.register_forward_hook(lambda *_: ran.append(True))
    features, result = model.forward_intermediates(
        images, indices, norm=norm, stop_early=stop_early, output_fmt=output_fmt
    )
    assert len(result) == len(taken)
    for map_, index in zip(result, taken, strict=True):
        expected = maps[index].permute(0, 2, 3, 1) if output_fmt == "NHWC" else maps[index]
        torch.testing.assert_close(map_, expected, rtol=0, atol=0)
    last = max(taken) if stop_early else 3
    assert len(ran) == last + 1
    expected = model.forward_features(images) if last == 3 else maps[last]
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_wrong_options_of_forward_intermediates(tiny: Tiny, images: Tensor) -> None:
    model = tiny()
    for indices in ([4], [-5], 5, 0):
        with pytest.raises(AssertionError, match="out of range"):
            model.forward_intermediates(images, indices)
    with pytest.raises(AssertionError, match="Output format"):
        model.forward_intermediates(images, output_fmt="NLC")


@pytest.mark.parametrize(("indices", "taken"), [(1, [3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-3], [1]), ([0], [0])])
@pytest.mark.parametrize("prune_norm", [False, True])
@pytest.mark.parametrize("prune_head", [False, True])
def test_prune_intermediate_layers(
    tiny: Tiny, images: Tensor, indices: int | list[int], taken: list[int], prune_norm: bool, prune_head: bool
) -> None:
    model = tiny()
    logits = model(images)
    expected = model.forward_intermediates(images, taken, intermediates_only=True)
    assert model.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head) == taken
    last = max(taken)
    for map_, other in zip(model.forward_intermediates(images, taken, intermediates_only=True), expected, strict=True):
        torch.testing.assert_close(map_, other, rtol=0, atol=0)
    assert len(model.stages) == last + 1
    assert repr(model).count("InceptionStage") == last + 1
    assert isinstance(model.norm, nn.Identity) == (prune_norm or last < 3)
    assert model.num_features == DIMS[last]
    if prune_head or last < 3:
        assert not any(key.startswith("head.") for key in model.state_dict())
        assert model.num_classes == 0
        assert model(images).shape == (2, DIMS[last], 64 // REDUCTIONS[last], 64 // REDUCTIONS[last])
    elif not prune_norm:
        torch.testing.assert_close(model(images), logits, rtol=0, atol=0)


# Training


def test_checkpointing_computes_blocks_again(tiny: Tiny, images: Tensor) -> None:
    model = tiny(drop_path_rate=0.1).train()
    gradients, runs = [], []
    for enable in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(enable)
        ran: list[bool] = []
        for stage in twin.stages:
            for block in stage.blocks:
                block.register_forward_pre_hook(lambda *_, ran=ran: ran.append(True))
        torch.manual_seed(1)
        twin(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
        runs.append(len(ran))
    assert runs == [5, 10]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    twin.set_grad_checkpointing(False)
    ran.clear()
    twin(images).sum().backward()
    assert len(ran) == 5


def test_layer_groups(tiny: Tiny) -> None:
    model = tiny()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for prefix, group in {
        "stem.": 0,
        "stages.0.": 1,
        "stages.1.": 2,
        "stages.2.pos_embed": 3,
        "stages.2.downsample.": 3,
        "stages.2.blocks.0.": 3,
        "stages.2.blocks.1.": 4,
        "stages.3.": 5,
        "norm.": 5,  # in the last block's group
        "head.": 6,
    }.items():
        found = {group for name, group in groups.items() if name.startswith(prefix)}
        assert found == {group}, prefix

    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert {name.split(".blocks")[0]: group for name, group in coarse.items() if ".blocks." in name} == {
        f"stages.{i}": i + 1 for i in range(4)
    }
    assert coarse["stem.conv1.weight"] == 0
    assert coarse["stages.2.pos_embed"] == coarse["stages.2.downsample.conv.weight"] == 3
    assert coarse["norm.weight"] == coarse["head.fc.weight"] == 5


@pytest.mark.parametrize("name", ["iformer_small", "iformer_nano"])
def test_layer_decay(name: str) -> None:
    model = timm.create_model(name, device="meta")
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(scale) == sum(len(group["params"]) for group in groups) == len(named)
    blocks = [block for stage in model.stages for block in stage.blocks]
    by_depth = [scale[id(block.mlp.fc1.weight)] for block in blocks]
    assert by_depth == [0.5 ** (len(blocks) - i) for i in range(len(blocks))]
    assert scale[id(named["stem.conv1.weight"])] == 0.5 ** (len(blocks) + 1)
    assert scale[id(named["head.fc.weight"])] == 1.0
    for key, parameter in named.items():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 and "pos_embed" not in key else 0.0), key


def test_weight_decay(tiny: Tiny) -> None:
    model = tiny()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    none, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    assert (none["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    kinds = {names[id(parameter)].split(".")[-1] for parameter in decayed["params"]}
    assert kinds == {"weight"}
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert {f"stages.{i}.pos_embed" for i in range(4)} <= {names[id(parameter)] for parameter in none["params"]}


def test_optimizer(tiny: Tiny, images: Tensor) -> None:
    model = tiny().train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    before = copy.deepcopy(model.state_dict())
    model(images).square().mean().backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, _ in model.named_parameters()}


# Input size and channels


def test_set_input_size(tiny: Tiny) -> None:
    model = tiny()
    model.stages[0].pos_embed.requires_grad_(False)
    images = torch.randn(1, 3, 96, 160)
    expected = model(images)
    model.set_input_size((96, 160))
    assert [tuple(stage.pos_embed.shape) for stage in model.stages] == [
        (24, 40, 16),
        (12, 20, 32),
        (6, 10, 48),
        (3, 5, 64),
    ]
    assert [stage.pos_embed.requires_grad for stage in model.stages] == [False, True, True, True]
    assert all(stage.pos_embed.is_contiguous() for stage in model.stages)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    assert get_model_traits(model)["img_size"] == get_model_args(model)["img_size"] == (96, 160)
    assert get_model_input_config(model)["input_size"] == (3, 96, 160)
    model.set_input_size(img_size=65)
    assert [tuple(stage.pos_embed.shape[:2]) for stage in model.stages] == [(17, 17), (9, 9), (5, 5), (3, 3)]


def test_traits(tiny: Tiny) -> None:
    model, other = tiny(in_chans=4), tiny()
    before = get_model_traits(other)
    traits = get_model_traits(model)
    assert traits == {
        "img_size": (64, 64),
        "fixed_input_size": False,
        "first_conv": "stem.conv1",
        "in_chans": 4,
        "num_classes": 7,
    }
    model.set_input_size((48, 80))
    model.reset_classifier(5)
    assert get_model_traits(model) == traits | {"img_size": (48, 80), "num_classes": 5}
    assert (get_model_args(model)["img_size"], get_model_args(model)["num_classes"]) == ((48, 80), 5)
    assert get_model_traits(other) == before


def test_arguments_of_scripts() -> None:
    """timm's train and validate scripts ask this way for channels and size."""
    arguments = {"in_chans": 4, "img_size": 96, "mean": (0.25,), "std": (0.5,)}
    model = timm.create_model(**resolve_model_input_args("iformer_small", arguments), device="meta")
    assert model.in_chans == 4
    config = resolve_input_data_config(model, arguments)
    assert config["input_size"] == (4, 96, 96)
    assert (config["mean"], config["std"]) == ((0.25,) * 4, (0.5,) * 4)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert resolve_data_config(model=model)["input_size"] == (3, 224, 224)
    with pytest.raises(ValueError, match="Conflicting input"):
        resolve_model_input_args("iformer_small", {"in_chans": 4, "input_size": (3, 96, 96)})


def test_data_config() -> None:
    """Preprocessing of the released models: ImageNet normalisation, bicubic, crop 0.9 at 224 and 1.0 at 384."""
    for name, size, crop in (("iformer_base", 224, 0.9), ("iformer_base_384", 384, 1.0)):
        config = resolve_input_data_config(timm.create_model(name, device="meta"))
        assert config["input_size"] == (3, size, size)
        assert (config["crop_pct"], config["interpolation"]) == (crop, "bicubic")


# The Hugging Face Hub's folder layout


@pytest.mark.parametrize("safe", [True, False, "both"])
def test_folder_roundtrip(tiny: Tiny, tmp_path: Path, safe: bool | str) -> None:
    model = tiny(in_chans=4, num_classes=11)
    source_cfg = copy.deepcopy(model.pretrained_cfg)
    model.set_input_size((48, 80))
    model.reset_classifier(3, "max")
    draw = torch.randn(1, 4, 48, 80)
    data_config = {"input_size": (4, 48, 80), "mean": (0.1, 0.2, 0.3, 0.4), "std": (0.5,) * 4, "crop_pct": 1.0}
    labels = ["cat", "dog", "hen"]
    save_for_hf(model, tmp_path, {"label_names": labels}, data_config=data_config, safe_serialization=safe)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architecture"] == "iformer_small"
    assert written["num_classes"] == 3
    assert written["pretrained_cfg"]["mean"] == list(data_config["mean"])
    assert model.pretrained_cfg == source_cfg

    restored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_same_weights(restored, model)
    torch.testing.assert_close(restored(draw), model(draw), rtol=0, atol=0)
    assert (restored.in_chans, restored.num_classes, restored.global_pool) == (4, 3, "max")
    assert list(restored.pretrained_cfg["label_names"]) == labels
    assert resolve_input_data_config(restored)["input_size"] == (4, 48, 80)
    assert repr(restored) == repr(model)


def test_folder_adapts(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(in_chans=4)
    save_for_hf(model, tmp_path, safe_serialization=True)
    folder = f"local-dir:{tmp_path}"

    other = timm.create_model(folder, pretrained=True, num_classes=5).eval()
    assert other.get_classifier().weight.shape == (5, 64)
    images = torch.randn(1, 4, 64, 64)
    torch.testing.assert_close(other.forward_features(images), model.forward_features(images), rtol=0, atol=0)

    wide = timm.create_model(folder, pretrained=True, in_chans=8)
    torch.testing.assert_close(wide.stem.conv1.weight, model.stem.conv1.weight.repeat(1, 2, 1, 1) / 2)

    maps = timm.create_model(folder, pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    for one, two in zip(
        maps(images), model.forward_intermediates(images, [1, 3], intermediates_only=True), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)

    scripted = timm.create_model(**resolve_model_input_args(folder, {"in_chans": 8, "img_size": 96}), pretrained=True)
    assert scripted.in_chans == 8
    assert scripted.stages[0].pos_embed.shape[:2] == (24, 24)

    large = timm.create_model(folder, pretrained=True, img_size=(96, 160))
    model.set_input_size((96, 160))
    assert_same_weights(large, model)


def test_folder_contradicts(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="disagrees with the current model"):
        save_for_hf(tiny(in_chans=4), tmp_path, model_args={"in_chans": 3})


@pytest.fixture
def unfused(tiny: Tiny) -> Iterator[tuple[Any, Any]]:
    """A network built after ``set_fused_attn(False)``, and an ordinary one with its weights."""
    fused = tiny()
    timm.layers.set_fused_attn(False)
    try:
        model = tiny()
    finally:
        timm.layers.set_fused_attn(True)
    model.load_state_dict(fused.state_dict())
    return model, fused


def test_attention_that_is_not_fused_is_the_same(unfused: tuple[Any, Any]) -> None:
    model, fused = unfused
    images = torch.randn(2, 3, 65, 90)
    torch.testing.assert_close(model(images), fused(images), rtol=1e-4, atol=1e-5)
    torch.jit.script(model)


@pytest.mark.parametrize("arguments", [{"method": "hook"}, {"method": "fx", "names": ["*softmax"]}])
def test_attention_maps_are_extracted(arguments: dict[str, Any], unfused: tuple[Any, Any]) -> None:
    model, _ = unfused
    maps = list(timm.utils.AttentionExtract(model, **arguments)(torch.randn(2, 3, 64, 64)).values())
    assert [tuple(each.shape) for each in maps] == [
        (2, heads, positions, positions) for heads, positions in ((1, 64), (2, 16), (2, 16), (3, 16), (4, 4))
    ]
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]))


def test_attention_that_is_not_fused_has_higher_derivatives(unfused: tuple[Any, Any]) -> None:
    model = unfused[0].double()
    images, direction = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)
    step = 1e-6

    def loss(x: Tensor) -> Tensor:
        return model(x).square().sum()

    _, forward = torch.func.jvp(loss, (images,), (direction,))
    difference = (loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
    torch.testing.assert_close(forward, difference, rtol=1e-3, atol=1e-6)

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x, create_graph=True)[0]

    x = images.clone().requires_grad_()
    first = torch.autograd.grad(loss(x), x, create_graph=True)[0]
    (second,) = torch.autograd.grad((first * direction).sum(), x)
    change = (gradient(images + step * direction) - gradient(images - step * direction)).detach() / (2 * step)
    torch.testing.assert_close(second, change, rtol=1e-2, atol=1e-3 * float(change.abs().max()))

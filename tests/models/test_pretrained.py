"""Weights: the released files through every way into timm, their adaptation, and files that are something else."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.models.backbone import create
from iformer.models.inception_transformer import InceptionTransformer
from iformer.models.released import convert, convert_official, load, rename

Tiny = Callable[..., InceptionTransformer]


def from_file(path: Path, name: str = "iformer_small", **kwargs: Any) -> InceptionTransformer:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)


def assert_weights(model: nn.Module, expected: dict[str, Tensor]) -> None:
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, msg=key)


@pytest.fixture(scope="session")
def converted(released: dict[str, Tensor]) -> dict[str, Tensor]:
    return convert(released)


@pytest.fixture(scope="session")
def converted_file(released_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "iformer_small.safetensors"
    assert convert_official(released_file, path)[0] == "iformer_small.sail_in1k"
    return path


# Ways in


def test_conversion_loses_nothing(released: dict[str, Tensor], converted: dict[str, Tensor]) -> None:
    assert len(converted) == len(released)
    for key, value in released.items():
        ours = converted[rename(key)]
        torch.testing.assert_close(ours.flatten(), value.flatten(), rtol=0, atol=0)
    shapes = {key: value.shape for key, value in timm.create_model("iformer_small", device="meta").state_dict().items()}
    assert {key: value.shape for key, value in converted.items()} == shapes


def test_file_in_released_format(released_file: Path, converted: dict[str, Tensor]) -> None:
    assert_weights(from_file(released_file), converted)


def test_converted_file(converted_file: Path, converted: dict[str, Tensor]) -> None:
    assert_weights(from_file(converted_file), converted)


def test_address_of_the_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, released_file: Path, converted: dict[str, Tensor]
) -> None:
    asked = []

    def download(url: str, target: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        shutil.copy(released_file, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time it is there
        model = timm.create_model("iformer_small", pretrained=True, cache_dir=tmp_path)
        assert_weights(model, converted)
    assert asked == ["https://huggingface.co/sail/dl2/resolve/main/iformer/iformer_small.pth"]


def test_other_address(tmp_path: Path, released_file: Path, converted: dict[str, Tensor]) -> None:
    overlay = {"url": released_file.as_uri()}
    model = timm.create_model("iformer_small", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path)
    assert_weights(model, converted)


def test_state_dict_in_memory(released: dict[str, Tensor], converted: dict[str, Tensor]) -> None:
    model = timm.create_model("iformer_small", pretrained=True, pretrained_cfg_overlay={"state_dict": dict(released)})
    assert_weights(model, converted)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict_ema": state, "state_dict": {}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {
            "state_dict": {f"model.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(3)},
            "pytorch-lightning_version": "2.6.0",
            "hyper_parameters": {"lr": 1e-3},
        },
    ],
    ids=["state_dict", "model", "ema", "DistributedDataParallel", "Lightning"],
)
def test_wrapped_files(tiny: Tiny, tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
    model = tiny()
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(model.state_dict()), path)
    assert load(path).keys() == model.state_dict().keys()
    overlay = {"file": str(path), "num_classes": 7}
    assert_weights(tiny(pretrained=True, pretrained_cfg_overlay=overlay), model.state_dict())


# Adaptation


def test_other_classes(released_file: Path, converted: dict[str, Tensor]) -> None:
    model = from_file(released_file, num_classes=10)
    weights = model.state_dict()
    head = {key: weights.pop(key) for key in ("head.fc.weight", "head.fc.bias")}
    assert head["head.fc.weight"].shape == (10, 384)
    assert head["head.fc.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not head["head.fc.bias"].any()
    for key, value in weights.items():
        torch.testing.assert_close(value, converted[key], rtol=0, atol=0)

    bare = from_file(released_file, num_classes=0)
    assert_weights(bare, {key: value for key, value in converted.items() if not key.startswith("head.")})


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_channels(converted_file: Path, converted: dict[str, Tensor], channels: int) -> None:
    weight = converted["stem.conv1.weight"]
    if channels == 1:
        expected = weight.sum(1, keepdim=True)
    else:
        expected = weight.repeat(1, 2, 1, 1)[:, :channels] * (3 / channels)
    model = from_file(converted_file, in_chans=channels)
    assert_weights(model, converted | {"stem.conv1.weight": expected})


@pytest.mark.parametrize(
    ("name", "arguments", "maps"),
    [
        ("iformer_small_384", {}, [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ("iformer_small_384", {"img_size": 384}, [(96, 96), (48, 48), (24, 24), (12, 12)]),
        ("iformer_small", {"img_size": (97, 160)}, [(25, 40), (13, 20), (7, 10), (4, 5)]),
    ],
)
def test_other_image_size(
    released_file: Path, converted: dict[str, Tensor], name: str, arguments: dict[str, Any], maps: list[tuple[int, int]]
) -> None:
    resized = {}
    for i, size in enumerate(maps):
        source = converted[f"stages.{i}.pos_embed"].permute(2, 0, 1)[None]
        target = F.interpolate(source, size, mode="bilinear", align_corners=False)
        resized[f"stages.{i}.pos_embed"] = target[0].permute(1, 2, 0)
    assert_weights(from_file(released_file, name, **arguments), converted | resized)


def test_image_size_does_not_change_the_result(released_file: Path) -> None:
    """Resized when it is made or when it runs: the same network."""
    images = torch.randn(1, 3, 96, 65)
    made, runs = from_file(released_file, img_size=(96, 65)).eval(), from_file(released_file).eval()
    with torch.no_grad():
        torch.testing.assert_close(made(images), runs(images), rtol=1e-4, atol=1e-4)


def test_feature_maps_of_the_release(converted_file: Path) -> None:
    images = torch.randn(1, 3, 64, 64)
    features, model = from_file(converted_file, features_only=True).eval(), from_file(converted_file).eval()
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)
        for one, other in zip(features(images), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


# Files of other kinds


def write(path: Path, state_dict: dict[str, Tensor]) -> Path:
    torch.save(state_dict, path)
    return path


@pytest.mark.parametrize("num_classes", [7, 5])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"depths": (1, 1, 1, 1), "attention_heads": (1, 2, 2, 4)},
            "it lacks 19 of the model's tensors, such as stages.2.blocks.1.norm1.weight",
        ),
        (
            {"depths": (1, 1, 3, 1), "attention_heads": (1, 2, 2, 3, 3, 4)},
            "it has 19 tensors that the model lacks, such as stages.2.blocks.2.norm1.weight",
        ),
        ({"dims": (16, 32, 64, 64)}, r"its stages.2.pos_embed has shape \(4, 4, 64\), expected \(4, 4, 48\)"),
        ({"attention_heads": (1, 2, 3, 3, 4)}, "its stages.2.blocks.0.mixer.conv_branch.fc.weight has shape"),
        ({"layer_scales": (None,) * 4}, "it lacks 6 of the model's tensors, such as stages.2.blocks.0.layer_scale1"),
    ],
)
def test_weights_of_another_size(
    tiny: Tiny, tmp_path: Path, num_classes: int, change: dict[str, Any], message: str
) -> None:
    """Refused whether or not the classifier is replaced (where timm would take what fits)."""
    path = write(tmp_path / "other.pth", tiny(**change).state_dict())
    overlay = {"file": str(path), "num_classes": 7}
    with pytest.raises(ValueError, match=f"not a checkpoint of this model: {message}"):
        tiny(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes)


def test_weights_of_another_preset(released_file: Path) -> None:
    with pytest.raises(ValueError, match="not a checkpoint of this model: it lacks 220 of the model's tensors"):
        from_file(released_file, "iformer_base")
    with pytest.raises(ValueError, match="not a checkpoint of this model"):
        from_file(released_file, "iformer_nano", num_classes=10)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = write(tmp_path / "resnet.pth", timm.create_model("test_resnet").state_dict())
    with pytest.raises(ValueError, match=r"it lacks 371 of the model's tensors, such as stem.conv1.weight"):
        from_file(path)
    with pytest.raises(ValueError, match=rf"^{path}: not a checkpoint of iformer_small: it lacks 371 of the model's"):
        create("iformer_small", str(path))
    with pytest.raises(ValueError, match="not a checkpoint of the iFormer release"):
        convert_official(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))  # the one that torch.save writes


@pytest.mark.parametrize("save", [save_zip, save_old, save_pickle])
def test_hostile_pickle(tmp_path: Path, tiny: Tiny, save: Callable[[Any, Path], None]) -> None:
    trap, path = tmp_path / "trap", tmp_path / "hostile.pth"
    save({"state_dict": tiny().state_dict(), "extra": RunsCode(trap)}, path)
    with pytest.raises(ValueError, match=r"hostile.pth: refused, it is not a plain file of tensors"):
        load(path)
    with pytest.raises(RuntimeError, match="weights_only=True blocked"):
        from_file(path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        timm.create_model(
            "iformer_small",
            pretrained=True,
            pretrained_cfg_overlay={"url": path.as_uri()},
            cache_dir=tmp_path / "cache",
        )
    assert not trap.exists()
    torch.load(path, weights_only=False) if save is not save_pickle else pickle.loads(path.read_bytes())
    assert trap.exists()  # it was armed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a readable checkpoint"),
        (3, "not a readable checkpoint"),
        ({"state_dict": None}, "not a readable checkpoint"),
        ({}, "it is empty"),
        ({"epoch": 3}, "'epoch' is of type int, expected a tensor"),
        ({"state_dict": {"stem": {"conv1": torch.ones(1)}}}, "'stem' is of type dict, expected a tensor"),
        (nn.Linear(2, 2), "refused"),
    ],
)
def test_file_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=f"other.pth: .*{message}"):
        load(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file(tiny: Tiny, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(tiny().state_dict(), path)
    else:
        save_file(tiny().state_dict(), path)
    for share in (0, 0.1, 0.5, 0.99):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ValueError, match=f"cut{suffix}: not a readable checkpoint"):
            load(cut)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), suffix=st.sampled_from([".pth", ".safetensors"]))
def test_any_bytes(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"bytes{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bytes{suffix}: "):
        load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.pth: no such file"):
        load(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError):
        from_file(tmp_path / "none.pth")

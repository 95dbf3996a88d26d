"""The project's own checkpoints, and the conversion of released ones."""

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from iformer.models import saved


def nano(**kwargs: Any) -> torch.nn.Module:
    return timm.create_model("iformer_nano", num_classes=3, **kwargs).eval()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = nano(in_chans=1, img_size=28).to(memory_format=torch.channels_last)
    saved.save(model, tmp_path / "a" / "b", ["x", "y", "z"], input_size=(1, 28, 28), mean=(0.3,), std=(0.4,))
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == {"config.json", "model.safetensors"}
    images = torch.randn(2, 1, 28, 28)
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "model.safetensors"):
        loaded = saved.load(path)
        assert not loaded.training
        assert loaded.pretrained_cfg["label_names"] == ["x", "y", "z"]
        assert loaded.pretrained_cfg["mean"] == [0.3]
        torch.testing.assert_close(loaded(images), model(images))


def test_a_failed_save_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nano()
    saved.save(model, tmp_path, ["x", "y", "z"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def half(model: Any, folder: str, **kwargs: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "save_for_hf", half)
    with pytest.raises(OSError, match="No space left"):
        saved.save(model, tmp_path, ["x", "y", "z"])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        saved.load(tmp_path / "nowhere")
    saved.save(nano(), tmp_path / "a", ["x", "y", "z"])
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        saved.load(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        saved.load(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"architecture": "no_such_model"}))
    with pytest.raises(ValueError, match="no_such_model"):
        saved.load(tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        saved.load(tmp_path / "a")


def test_conversion(released_file: Path, released: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "new" / "small.safetensors"
    assert saved.convert_official(released_file, target) == "iformer_small.sail_in1k"
    with safe_open(target, "pt") as file:
        assert file.metadata()["architecture"] == "iformer_small.sail_in1k"
    model = timm.create_model("iformer_small", pretrained=True, pretrained_cfg_overlay={"file": str(target)})
    torch.testing.assert_close(model.head.fc.weight.detach(), released["head.weight"])


def test_refused_conversions(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth: not a checkpoint of the iFormer release"):
        saved.convert_official(tmp_path / "resnet.pth", tmp_path / "a.safetensors")
    incomplete = {key: value for key, value in released.items() if not key.startswith("blocks4.2")}
    torch.save(incomplete, tmp_path / "incomplete.pth")
    with pytest.raises(ValueError, match="fit none of the models"):
        saved.convert_official(tmp_path / "incomplete.pth", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        saved.convert_official(tmp_path / "incomplete.pth", tmp_path / "a.pth")
    assert not (tmp_path / "a.safetensors").exists()


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(OSError, match=r"iformer_small: its weights could not be fetched \(no route\); give the path"):
        saved.create("iformer_small", pretrained=True)


def test_a_file_without_the_models_weights_is_refused(tmp_path: Path) -> None:
    """timm loads a part of them, or none, without a word where the classifier is another."""
    weights = timm.create_model("resnet18", num_classes=3).state_dict()
    prefixed = {f"backbone.{key}": value for key, value in weights.items()}
    incomplete = {key: value for key, value in weights.items() if "layer4.1.conv2" not in key}
    file = tmp_path / "a.safetensors"
    for state_dict, told in ((prefixed, r"\d+ of its tensors, conv1\.weight first"), (incomplete, "1 of its tensors")):
        save_file(state_dict, file)
        for arguments in ({"features_only": True}, {"num_classes": 5}):
            with pytest.raises(ValueError, match=f"^{file}: not a checkpoint of resnet18: it lacks {told}") as error:
                saved.create("resnet18", str(file), **arguments)
            assert "\n" not in str(error.value)
    headless = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    model = saved.create("resnet18", str(tmp_path / "headless.safetensors"), features_only=True)
    assert torch.equal(model.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


def test_a_segmenters_run_is_no_classifier_to_begin_from(tmp_path: Path) -> None:
    saved.save_assembled(nano(), tmp_path, "segmentation", {"class_names": ["a", "b"]})
    with pytest.raises(ValueError, match=rf"^{tmp_path}: a checkpoint for segmentation, expected a classifier's$"):
        saved.create("iformer_nano", str(tmp_path))


@pytest.mark.parametrize("name", ["levit_128s", "pit_ti_224"])
def test_a_model_without_four_feature_maps_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} with .*out_indices.*out of range") as error:
        saved.create(name, features_only=True, out_indices=(-4, -3, -2, -1))
    assert "\n" not in str(error.value)

"""The project's own checkpoints, and the conversion of released ones."""

import json
import re
import urllib.error
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from iformer.models import locations, saved
from iformer.models.backbone import create
from iformer.models.released import convert_official

SEGMENTER: dict[str, Any] = {
    "network": {"architecture": "semantic_fpn", "backbone": "iformer_nano", "num_classes": 2,
                "backbone_args": {"drop_path_rate": 0.1}},
    "class_names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "mean": [0, 0.5, 0.5], "std": [1, 1, 1],
    "resize": [32, 64], "crop": None, "window": None, "flip_test": False,
}  # fmt: skip
DETECTOR: dict[str, Any] = {
    "network": {"architecture": "mask_rcnn", "backbone": "iformer_nano", "num_classes": 2, "box_score_thresh": 0.1,
                "backbone_args": {"img_size": 32}},
    "class_names": ["a", "b"], "category_ids": [1, 5],
}  # fmt: skip


def nano(**kwargs: Any) -> torch.nn.Module:
    return timm.create_model("iformer_nano", num_classes=3, **kwargs).eval()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = nano(in_chans=1, img_size=28).to(memory_format=torch.channels_last)
    saved.save(model, tmp_path / "a" / "b", ["x", "y", "z"], input_size=(1, 28, 28), mean=(0.3,), std=(0.4,))
    assert {file.name for file in (tmp_path / "a" / "b").iterdir()} == {"config.json", "model.safetensors"}
    images = torch.randn(2, 1, 28, 28)
    for path in (tmp_path / "a" / "b", tmp_path / "a" / "b" / "model.safetensors"):
        loaded = saved.resolve(path).network
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
        saved.resolve(tmp_path / "nowhere")
    saved.save(nano(), tmp_path / "a", ["x", "y", "z"])
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "a" / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        saved.resolve(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        saved.resolve(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"architecture": "no_such_model"}))
    with pytest.raises(ValueError, match="no_such_model"):
        saved.resolve(tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        saved.resolve(tmp_path / "a")


def test_conversion(released_file: Path, released: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "new" / "small.safetensors"
    assert convert_official(released_file, target)[0] == "iformer_small.sail_in1k"
    with safe_open(target, "pt") as file:
        assert file.metadata()["architecture"] == "iformer_small.sail_in1k"
    model = timm.create_model("iformer_small", pretrained=True, pretrained_cfg_overlay={"file": str(target)})
    torch.testing.assert_close(model.head.fc.weight.detach(), released["head.weight"])


def test_refused_conversions(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth: not a checkpoint of the iFormer release"):
        convert_official(tmp_path / "resnet.pth", tmp_path / "a.safetensors")
    incomplete = {key: value for key, value in released.items() if not key.startswith("blocks4.2")}
    torch.save(incomplete, tmp_path / "incomplete.pth")
    with pytest.raises(ValueError, match="fit none of the models"):
        convert_official(tmp_path / "incomplete.pth", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        convert_official(tmp_path / "incomplete.pth", tmp_path / "a.pth")
    assert not (tmp_path / "a.safetensors").exists()


def test_without_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(
        OSError,
        match=r"iformer_small: its weights could not be fetched \(no route\); give a local copy: --weights FILE",
    ):
        create("iformer_small", pretrained=True)


def test_a_file_without_the_models_weights_is_refused(tmp_path: Path) -> None:
    """timm loads a part of them, or none, without a word where the classifier is another."""
    weights = timm.create_model("resnet18", num_classes=3).state_dict()
    prefixed = {f"backbone.{key}": value for key, value in weights.items()}
    incomplete = {key: value for key, value in weights.items() if "layer4.1.conv2" not in key}
    file = tmp_path / "a.safetensors"
    lacking = r"\d+ of the model's tensors, such as conv1\.weight", "1 of the model's tensors"
    for state_dict, told in zip((prefixed, incomplete), lacking, strict=True):
        save_file(state_dict, file)
        for arguments in ({"features_only": True}, {"num_classes": 5}, {"num_classes": 3}):
            with pytest.raises(ValueError, match=f"^{file}: not a checkpoint of resnet18: it lacks {told}") as error:
                create("resnet18", str(file), **arguments)
            assert "\n" not in str(error.value)
    headless = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    model = create("resnet18", str(tmp_path / "headless.safetensors"), features_only=True)
    assert torch.equal(model.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


@pytest.mark.parametrize("name", ["iformer_small", "resnet18", "iformer_small.sail_in1k"])
def test_a_saved_model_of_another_network_is_named(name: str, tmp_path: Path) -> None:
    saved.save(timm.create_model("iformer_nano", num_classes=2, img_size=32), tmp_path / "run", ["a", "b"])
    told = f"^{tmp_path / 'run'}: a saved iformer_nano, expected one of {name}$"
    attempts: list[Callable[[], Any]] = [
        partial(create, name, str(tmp_path / "run"), num_classes=classes) for classes in (2, 3)
    ]
    for attempt in (*attempts, lambda: saved.resolve(name, tmp_path / "run")):
        with pytest.raises(ValueError, match=told):
            attempt()


def test_a_segmenters_run_is_no_classifiers_weights(tmp_path: Path) -> None:
    saved.save_assembled(nano(), tmp_path, "segmentation", SEGMENTER)
    for attempt in (create, saved.resolve):
        with pytest.raises(ValueError, match=rf"^{tmp_path}: a model for segmentation, expected a classifier$"):
            attempt("iformer_nano", str(tmp_path))  # type: ignore[operator]


def test_where_arguments_are_wrong_the_weights_are_not_blamed(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^test_resnet with .*no_such_argument"):
        create("test_resnet", str(tmp_path / "a.safetensors"), no_such_argument=1)


@pytest.mark.parametrize("name", ["levit_128s", "pit_ti_224"])
def test_a_model_without_four_feature_maps_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} with .*out_indices.*out of range") as error:
        create(name, features_only=True, out_indices=(-4, -3, -2, -1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [7, 10])  # 10 is what the registered configuration of iformer_nano says
def test_the_classifier_of_a_file_is_kept_where_its_classes_are_those_asked_for(tmp_path: Path, classes: int) -> None:
    model = timm.create_model("iformer_nano", num_classes=classes)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    saved.save(model, tmp_path / "run", [f"class {i}" for i in range(classes)])
    for source in ("run", "run/model.safetensors", "mine.pth"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            begun = create("iformer_nano", str(tmp_path / source), num_classes=classes)
        assert all(torch.equal(value, begun.state_dict()[key]) for key, value in model.state_dict().items())
        told = f"has a classifier of {classes} classes; the classifier of 3 classes is newly initialised"
        with pytest.warns(UserWarning, match=told):
            begun = create("iformer_nano", str(tmp_path / source), num_classes=3)
        assert torch.equal(begun.stem.conv1.weight, model.stem.conv1.weight)


def test_the_file_does_not_change_how_the_rest_begins(tmp_path: Path) -> None:
    torch.save(timm.create_model("iformer_nano", num_classes=7).state_dict(), tmp_path / "mine.pth")
    heads = []
    for pretrained in (str(tmp_path / "mine.pth"), False):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            heads.append(create("iformer_nano", pretrained, num_classes=3).head.fc.weight)
    assert torch.equal(*heads)


def test_a_folder_claims_nothing_of_the_release(tmp_path: Path) -> None:
    saved.save(timm.create_model("iformer_small", num_classes=2), tmp_path, ["a", "b"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"license", "origin_url", "tag", "url", "file", "hf_hub_id"} & set(config["pretrained_cfg"])
    assert (config["num_classes"], "num_classes" in config["model_args"]) == (2, False)


@pytest.mark.parametrize(
    ("name", "model", "preset", "reason"),
    [
        (
            "iformer_small.pth",
            "",
            "iformer_small",
            r"the file is called iformer_small\.pth; its tensors fit iformer_small",
        ),
        ("iformer_small_384.pth", "", "iformer_small_384", "the file is called iformer_small_384"),
        ("best_at_384.pth", "", "iformer_small_384", "best_at_384"),
        ("weights.pth", "iformer_small_384", "iformer_small_384", "asked for"),
        ("iformer_small_384.pth", "iformer_small", "iformer_small", "asked for"),
    ],
)
def test_name_or_model_decides_between_224_and_384(
    released_file: Path, tmp_path: Path, name: str, model: str, preset: str, reason: str
) -> None:
    (tmp_path / name).symlink_to(released_file)
    found, why = convert_official(tmp_path / name, tmp_path / "out.safetensors", model)
    assert found == f"{preset}.sail_in1k"
    assert re.search(reason, why)


def test_a_conversion_that_could_be_either_asks(released_file: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").symlink_to(released_file)
    with pytest.raises(ValueError, match=r"fit both iformer_small and iformer_small_384, .* --model"):
        convert_official(tmp_path / "weights.pth", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="fit iformer_small and iformer_small_384, not iformer_base"):
        convert_official(tmp_path / "weights.pth", tmp_path / "out.safetensors", "iformer_base")


def test_files_of_either_grid_load_into_either_model(released: dict[str, Tensor], tmp_path: Path) -> None:
    """The authors' code makes embeddings of the grid of 384 pixels, their file for 384 holds those of 224."""
    larger = dict(released)
    for number, side in enumerate((96, 48, 24, 12), 1):
        embedding = released[f"pos_embed{number}"].permute(0, 3, 1, 2)
        larger[f"pos_embed{number}"] = F.interpolate(embedding, (side, side)).permute(0, 2, 3, 1)
    torch.save(larger, tmp_path / "mine.pth")
    preset, why = convert_official(tmp_path / "mine.pth", tmp_path / "out.safetensors")
    assert (preset, "96x96" in why) == ("iformer_small_384.sail_in1k", True)
    for arguments, side in ({"img_size": 384}, 96), ({}, 56):
        for name in ("iformer_small", "iformer_small_384"):
            model = create(name, str(tmp_path / "out.safetensors"), **arguments)
            assert model.stages[0].pos_embed.shape == (side, side, 96)


HOSTILE = [
    ({"network": {"pretrained_backbone": True}}, "pretrained_backbone"),
    ({"network": {"cache_dir": "/tmp"}}, "cache_dir"),
    ({"network": {"pretrained_cfg_overlay": {"url": "http://example.org/a.pth"}}}, "pretrained_cfg_overlay"),
    ({"network": {"checkpoint_path": "a.pth"}}, "checkpoint_path"),
    ({"network": {"backbone": "hf-hub:stranger/model"}}, "timm has no model"),
    ({"network": {"backbone": "local-dir:/tmp/a"}}, "timm has no model"),
    ({"network": {"neck_channels": 10**9}}, "neck_channels"),
    ({"network": {"depths": [10**9]}}, "depths"),
    ({"network": {"num_classes": "2"}}, "num_classes"),
    ({"resize": [10**9, 10**9]}, "resize"),
    ({"mean": [float("nan"), 0, 0]}, "mean"),
    ({"palette": [[1, 2, 300]]}, "palette"),
    ({"class_names": "abc"}, "class_names"),
    ({"surprise": 1}, "surprise"),
    ({"task": "conquest"}, "task is 'conquest'"),
    ({"task": 3}, "task is 3"),
]


@pytest.mark.parametrize(("change", "named"), HOSTILE)
def test_a_strangers_segmenter(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    config = {"task": "segmentation", **SEGMENTER}
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert locations.find(tmp_path)[1] == config
    for key, value in change.items():
        config[key] = {**config[key], **value} if key == "network" else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.json: .*{named}") as error:
        locations.find(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pretrained_backbone": "http://example.org/a.pth"}, "pretrained_backbone"),
        ({"backbone_args": {"cache_dir": "/tmp"}}, "cache_dir"),
        ({"backbone_args": {"pretrained": True}}, "pretrained"),
        ({"max_size": 10**7}, "max_size"),
        ({"num_classes": 3}, "differ in number"),
        ({"box_score_thresh": float("inf")}, "box_score_thresh"),
    ],
)
def test_a_strangers_detector(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"task": "detection", **DETECTOR}))
    assert locations.find(tmp_path)[1]["category_ids"] == [1, 5]
    config = {"task": "detection", **DETECTOR, "network": {**DETECTOR["network"], **change}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        locations.find(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "hf-hub:stranger/model"},
        {"model_args": {"pretrained": True}},
        {"model_args": {"checkpoint_path": "a.pth"}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "a.pth"}}},
        {"num_classes": 10**9},
        {"label_names": [1, 2, 3]},
    ],
)
def test_a_strangers_classifier(change: dict[str, Any], tmp_path: Path) -> None:
    saved.save(nano(), tmp_path, ["a", "b", "c"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.json: {next(iter(change))}"):
        saved.resolve(tmp_path)


def test_nothing_is_fetched_for_a_saved_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's configuration may say where weights are; a saved folder's are beside it."""
    saved.save(nano(), tmp_path, ["a", "b", "c"])
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"url": "http://example.org/a.pth", "file": "b.pth", "hf_hub_id": "stranger/model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = saved.resolve(tmp_path).network
    assert not {"url", "file", "hf_hub_id"} & {key for key, value in model.pretrained_cfg.items() if value}


def test_a_folder_of_a_model_at_384_as_earlier_versions_wrote_it(tmp_path: Path) -> None:
    model = timm.create_model("iformer_nano", img_size=48, num_classes=2).eval()
    saved.save(model, tmp_path, ["a", "b"])
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]["img_size"]  # it was the preset's
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(saved.resolve(tmp_path).network(images), model(images))

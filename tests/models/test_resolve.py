"""What may stand for a model, and what it is then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from iformer.detection.model import build as build_detector
from iformer.models import saved
from iformer.models.backbone import create
from iformer.models.released import convert_official
from iformer.models.saved import resolve
from iformer.segmentation.model import build as build_segmenter
from tests.networks import NARROW

SEGMENTER: dict[str, Any] = {"architecture": "semantic_fpn", "backbone": "iformer_small", "num_classes": 2,
                             "neck_channels": 8, "head_channels": 8, "backbone_args": NARROW}  # fmt: skip
DETECTOR: dict[str, Any] = {"architecture": "mask_rcnn", "backbone": "iformer_small", "num_classes": 2, "channels": 8,
                            "backbone_args": NARROW, "min_size": 64, "max_size": 96}  # fmt: skip
SCENES: dict[str, Any] = {"class_names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "mean": [0.5, 0.5, 0.5],
                          "std": [1, 1, 1]}  # fmt: skip
OBJECTS: dict[str, Any] = {"class_names": ["cat", "dog"], "category_ids": [1, 5]}


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    saved.save(timm.create_model("iformer_nano", num_classes=3), tmp_path / "run", ["x", "y", "z"], mean=(0.3,) * 3)
    return tmp_path / "run"


def test_a_folder_of_each_task(classifier: Path, tmp_path: Path) -> None:
    saved.save_assembled(build_segmenter(**SEGMENTER), tmp_path / "s", "segmentation", {"network": SEGMENTER, **SCENES})
    saved.save_assembled(build_detector(**DETECTOR), tmp_path / "d", "detection", {"network": DETECTOR, **OBJECTS})
    found = [resolve(folder) for folder in (classifier, tmp_path / "s", tmp_path / "d" / "config.json")]
    assert [model.name for model in found] == ["iformer_nano", "semantic_fpn_iformer_small", "mask_rcnn_iformer_small"]
    assert [model.task for model in found] == ["classification", "segmentation", "detection"]
    assert [model.class_names for model in found] == [("x", "y", "z"), ("road", "sky"), ("cat", "dog")]
    assert found[0].config["mean"] == (0.3,) * 3
    assert not any(model.network.training for model in found)
    assert found[1].network(torch.zeros(1, 3, 40, 50)).shape == (1, 2, 40, 50)


def test_a_folder_goes_before_a_model_of_its_name_and_others_do_not(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("iformer_nano").mkdir()  # where an export was written, say
    assert resolve("iformer_nano", "random").weights == "fresh, seed 0"
    shutil.copytree(classifier, "iformer_nano", dirs_exist_ok=True)
    assert resolve("iformer_nano").class_names == ("x", "y", "z")


def test_weights_of_a_named_model(classifier: Path, tmp_path: Path) -> None:
    own = resolve(classifier).network.head.fc.weight
    assert torch.equal(resolve("iformer_nano", classifier).network.head.fc.weight, own)
    torch.save(timm.create_model("iformer_nano").state_dict(), tmp_path / "ten.pth")
    assert resolve("iformer_nano", tmp_path / "ten.pth").weights == str(tmp_path / "ten.pth")
    with pytest.raises(ValueError, match="a saved iformer_nano, expected one of resnet18"):
        resolve("resnet18", classifier)
    with pytest.raises(ValueError, match="has weights of its own"):
        resolve(classifier, tmp_path / "ten.pth")
    with pytest.raises(ValueError, match="iformer_nano: no released weights for this model"):
        resolve("iformer_nano")


def test_fresh_weights_are_the_seeds(classifier: Path) -> None:
    weights = [resolve(classifier, "random", seed).network.head.fc.weight for seed in (0, 0, 1)]
    assert torch.equal(*weights[:2])
    assert not torch.equal(*weights[1:])


def test_files_of_the_release_tell_whose_they_are(
    released_file: Path, released: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "iformer_small.pth").symlink_to(released_file)
    convert_official(tmp_path / "iformer_small.pth", tmp_path / "mine.safetensors")
    for name in ("iformer_small.pth", "mine.safetensors"):
        model = resolve(tmp_path / name)
        assert (model.name, len(model.class_names)) == ("iformer_small", 1000)
        assert model.class_names[285] == "Egyptian cat"
        assert torch.equal(model.network.head.fc.weight, released["head.weight"])
    assert resolve(tmp_path / "iformer_small.pth", "random").weights == "fresh, seed 0"
    torch.save(timm.create_model("iformer_nano").state_dict(), tmp_path / "nano.pth")
    with pytest.raises(ValueError, match=r"nano\.pth: does not say which model it belongs to; give the model's name"):
        resolve(tmp_path / "nano.pth")


@pytest.fixture
def hub(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository in the Hub's cache, laid out as huggingface_hub does."""
    repository = tmp_path / "cache" / "models--someone--birds"
    shutil.copytree(classifier, repository / "snapshots" / "0a1b2c")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0a1b2c")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return "hf-hub:someone/birds"


def test_a_repository_of_the_hub(hub: str, classifier: Path) -> None:
    assert resolve(hub).class_names == ("x", "y", "z")
    begun = create("iformer_nano", hub, num_classes=3)
    assert torch.equal(begun.head.fc.weight, resolve(classifier).network.head.fc.weight)


def test_what_the_hub_has_not(hub: str) -> None:
    with pytest.raises(OSError, match=r"^hf-hub:someone/fish: could not be fetched \(") as error:
        resolve("hf-hub:someone/fish")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^hf-hub:a/b/c: expected hf-hub:USER/NAME or hf-hub:USER/NAME@REVISION$"):
        resolve("hf-hub:a/b/c")


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("iformer_smal", "iformer_smal: no such file or folder, and no model of timm, did you mean iformer_small?"),
        ("no/such/folder", "no/such/folder: no such file or folder"),
    ],
)
def test_mistakes(reference: str, told: str) -> None:
    with pytest.raises(FileNotFoundError, match=told):
        resolve(reference)


def test_folders_that_earlier_versions_wrote(tmp_path: Path) -> None:
    """A detector's network was called ``model``, and a segmenter's backbone had no arguments of its own."""
    for task, network, others in (("segmentation", SEGMENTER, SCENES), ("detection", DETECTOR, OBJECTS)):
        folder = tmp_path / task
        build = build_segmenter if task == "segmentation" else build_detector
        saved.save_assembled(build(**network), folder, task, {"network": network, **others})
        today = resolve(folder)
        config = json.loads((folder / "config.json").read_text())
        if task == "segmentation":
            config["network"] |= config["network"].pop("backbone_args")
        else:
            config["model"] = config.pop("network")
            del config["model"]["architecture"]
        (folder / "config.json").write_text(json.dumps(config))
        before = resolve(folder)
        assert before.config["network"] == today.config["network"]
        assert before.network.state_dict().keys() == today.network.state_dict().keys()

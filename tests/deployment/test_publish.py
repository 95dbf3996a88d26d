"""Models on the Hugging Face Hub: published, and fetched again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from iformer.detection.model import build as build_detector
from iformer.models import saved
from iformer.models.saved import resolve
from iformer.segmentation.model import build as build_segmenter
from tests.conftest import Command
from tests.deployment.hub import READER, WRITER, Hub
from tests.networks import NARROW, SCENES, SEGMENTERS

DETECTOR: dict[str, Any] = {"architecture": "mask_rcnn", "backbone": "iformer_small", "num_classes": 2, "channels": 8,
                            "backbone_args": NARROW, "min_size": 64, "max_size": 96}  # fmt: skip
OBJECTS: dict[str, Any] = {"class_names": ["cat", "dog"], "category_ids": [1, 5]}

TAGS = {
    "classification": ("image-classification", "timm"),
    "segmentation": ("image-segmentation", "iformer"),
    "detection": ("object-detection", "iformer"),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, an empty cache, and a token that may write; HF_ENDPOINT and others are read at import, into constants."""
    started = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", started.url)
    template = started.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    yield started
    started.close()


def classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    saved.save(timm.create_model("iformer_nano", num_classes=3, **NARROW), folder, ["x", "y", "z"], mean=(0.3,) * 3)
    return folder


def folders(place: Path) -> dict[str, Path]:
    segmenter = {"network": SEGMENTERS["semantic_fpn"], **SCENES}
    saved.save_assembled(build_segmenter(**segmenter["network"]), place / "s", "segmentation", segmenter)
    saved.save_assembled(build_detector(**DETECTOR), place / "d", "detection", {"network": DETECTOR, **OBJECTS})
    return {"classification": classifier(place / "c"), "segmentation": place / "s", "detection": place / "d"}


def test_a_model_of_each_task_goes_to_the_hub_and_comes_back(hub: Hub, iformer: Command, tmp_path: Path) -> None:
    Image.effect_noise((70, 60), 80).convert("RGB").save(tmp_path / "a.png")
    for task, folder in folders(tmp_path).items():
        status, out, err = iformer("publish", folder, f"someone/{task}", "--license", "apache-2.0")
        assert status == 0, err
        assert f"{hub.url}/someone/{task} (commit" in out
        assert f"iformer predict IMAGE... --model hf-hub:someone/{task}\n" in out
        content = hub.content(f"someone/{task}")
        assert set(content) == {"README.md", "config.json", "model.safetensors"}
        card = ModelCard(content["README.md"].decode())
        assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == ("apache-2.0", *TAGS[task])
        assert f"--model hf-hub:someone/{task}" in card.text
        assert content["README.md"] == (folder / "README.md").read_bytes()
        ours, theirs = resolve(folder), resolve(f"hf-hub:someone/{task}")
        assert (theirs.task, theirs.class_names, theirs.config) == (task, ours.class_names, ours.config)
        state_dict = theirs.network.state_dict()
        assert all(torch.equal(value, state_dict[key]) for key, value in ours.network.state_dict().items())
        status, out, err = iformer("predict", tmp_path / "a.png", "--model", f"hf-hub:someone/{task}", "--json",
                                   "--output", tmp_path / "pictures")  # fmt: skip
        assert status == 0, err
        json.loads(out)
    assert set(hub.fetched) == {"config.json", "model.safetensors"}


def test_timm_takes_a_published_classifier(hub: Hub, iformer: Command, tmp_path: Path) -> None:
    assert iformer("publish", classifier(tmp_path / "c"), "someone/birds")[0] == 0
    model = timm.create_model("hf-hub:someone/birds", pretrained=True).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), resolve(tmp_path / "c").network(images))
    assert model.pretrained_cfg["mean"] == [0.3] * 3


def test_branches_and_commits(hub: Hub, iformer: Command, tmp_path: Path) -> None:
    first = classifier(tmp_path / "first")
    saved.save(timm.create_model("iformer_nano", num_classes=2, **NARROW), tmp_path / "second", ["a", "b"])
    published = json.loads(iformer("publish", first, "someone/birds", "--json")[1])
    assert (published["repository"], published["revision"], published["private"]) == ("someone/birds", "main", False)
    commit = published["commit"]
    assert commit == hub.repositories["someone/birds"]["branches"]["main"]
    status, out, _ = iformer(
        "publish", tmp_path / "second", "hf-hub:someone/birds", "--revision", "new", "--message", "Two classes"
    )
    assert (status, "--model hf-hub:someone/birds@new\n" in out) == (0, True)
    assert hub.messages == ["Publish first", "Two classes"]
    for reference, names in (("", ("x", "y", "z")), ("@new", ("a", "b")), (f"@{commit}", ("x", "y", "z"))):
        assert resolve(f"hf-hub:someone/birds{reference}").class_names == names
    with pytest.raises(OSError, match=r"^hf-hub:someone/birds@old: could not be fetched \(.*old"):
        resolve("hf-hub:someone/birds@old")


def test_a_private_repository(hub: Hub, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = classifier(tmp_path / "c")
    status, out, _ = iformer("publish", folder, "someone/secret", "--private")
    assert (status, hub.repositories["someone/secret"]["private"], "(private, commit" in out) == (0, True, True)
    assert resolve("hf-hub:someone/secret").class_names == ("x", "y", "z")
    hub.create("someone/open")
    status, _, err = iformer("publish", folder, "someone/open", "--private")
    assert (status, "someone/open: exists and is public" in err) == (2, True)
    assert not hub.content("someone/open")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another"))
    with pytest.raises(OSError, match="hf-hub:someone/secret: could not be fetched"):
        resolve("hf-hub:someone/secret")


def test_a_dry_run_writes_and_sends_nothing(
    hub: Hub, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    folder = classifier(tmp_path / "run")
    (folder / "checkpoints").mkdir()
    for name in ("checkpoints/step-000000001.ckpt", "recipe.yaml", "pictures.png", "per_class.csv", "events.out.1"):
        (folder / name).touch()
    status, out, err = iformer("publish", folder, "someone/birds", "--dry-run", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    sizes = {file["name"]: file["bytes"] for file in found["files"]}
    assert set(sizes) == {"README.md", "config.json", "model.safetensors", "per_class.csv"}
    assert sizes["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert (found["commit"], found["dry_run"], found["licence"]) == (None, True, "")
    assert (hub.repositories, (folder / "README.md").exists()) == ({}, False)
    told = iformer("publish", folder, "someone/birds", "--dry-run")[1]
    assert "states no licence" in told
    assert f"Nothing was uploaded; without --dry-run this goes to {hub.url}/someone/birds." in told


def test_mistakes_are_told_in_a_line(
    hub: Hub, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = classifier(tmp_path / "c")

    def told(*arguments: object) -> str:
        status, out, err = iformer("publish", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    (tmp_path / "empty").mkdir()
    assert "nowhere: no such folder" in told(tmp_path / "nowhere", "someone/birds")
    assert "empty/config.json: no such file" in told(tmp_path / "empty", "someone/birds")
    for name in ("a/b/c", "someone/bi rds", "birds", "", "someone/birds@new"):
        assert f"{name}: no name for a repository; expected USER/NAME" in told(folder, name, "--dry-run")
    assert "another/birds: the access token does not permit writing there (You don't have the rights" in told(
        folder, "another/birds"
    )
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "someone/birds: the access token does not permit writing there" in told(folder, "someone/birds")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the Hugging Face Hub does not accept the access token (Invalid" in told(folder, "someone/birds")
    monkeypatch.delenv("HF_TOKEN")
    assert "no access token for the Hugging Face Hub; log in with `hf auth login`" in told(folder, "someone/birds")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert "README.md: its metadata are not valid" in told(folder, "someone/birds")
    (folder / "README.md").unlink()
    hub.close()
    assert f"{hub.url}: could not be reached" in told(folder, "someone/birds")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    assert "model.safetensors: damaged" in told(folder, "someone/birds")
    assert not hub.repositories


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config.json": b'{"task": "segmentation", "surprise": 1}'}, "config.json: network: Field required"),
        ({"config.json": b'{"architecture": "iformer_nano", "num_classes": 2, "pretrained_cfg": {"mean": [0], "std": '
                         b'[1]}, "model_args": {"checkpoint_path": "a.pth"}}'}, "checkpoint_path is not an argument"),
        ({"pytorch_model.bin": b"a pickle"}, "config.json: no such file"),
    ],
)  # fmt: skip
def test_a_strangers_repository_is_read_as_a_strangers_folder(files: dict[str, bytes], told: str, hub: Hub) -> None:
    hub.create("stranger/model")
    content = {"model.safetensors": b"", "train.py": b"raise SystemExit", **files}
    hub.repositories["stranger/model"]["branches"]["main"] = hub.commit(content)
    with pytest.raises((ValueError, OSError), match=told):
        resolve("hf-hub:stranger/model")
    assert set(hub.fetched) <= {"config.json", "model.safetensors"}

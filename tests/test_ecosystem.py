"""The programs of docs/ecosystem.md, where their libraries are installed: what these do with the models."""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from markdown_it import MarkdownIt
from PIL import Image
from torch import Tensor

from iformer.deployment import fuse
from iformer.frequency.grad_cam import grad_cam
from iformer.frequency.layers import Layer
from iformer.models import saved
from iformer.models.backbone import create
from iformer.models.saved import resolve
from tests.networks import NARROW, draw

ROOT = Path(__file__).parents[1]
NAMES = ["bee", "fly", "wasp"]
SMALL = '"iformer_small"'
FEW_BLOCKS = "depths=(1, 1, 5, 1), attention_heads=(1, 3, 7, 7, 7, 7, 7, 11)"


def blocks(heading: str, kind: str) -> list[str]:
    """The blocks of a section of the page."""
    tokens = MarkdownIt().parse((ROOT / "docs/ecosystem.md").read_text())
    section, found = "", []
    for token, following in itertools.pairwise(tokens):
        if token.type == "heading_open":
            section = following.content
        elif token.type == "fence" and section == heading and token.info == kind:
            found.append(token.content)
    assert found, heading
    return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Run the programs of a section where a trained classifier and a photo are, with fewer blocks than iFormer-S."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network = draw(timm.create_model("iformer_small", num_classes=3, img_size=64, **NARROW))
    saved.save(network, tmp_path / "runs/photos", NAMES, input_size=(3, 64, 64), mean=(0.3,) * 3)
    Image.effect_noise((70, 60), 80).convert("RGB").save("photo.jpg")

    def execute(heading: str) -> dict[str, Any]:
        names: dict[str, Any] = {"torch": torch}
        for text in blocks(heading, "python"):
            exec(compile(text.replace(f"{SMALL})", f"{SMALL}, {FEW_BLOCKS})"), heading, "exec"), names)
        return names

    return execute


def maps(images: Tensor) -> list[Tensor]:
    return resolve("runs/photos").network.forward_intermediates(images, intermediates_only=True)


def test_transformers(run: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    names = run("transformers")
    ours = resolve("runs/photos")
    prepared = ours.prepare(Image.open("photo.jpg").convert("RGB"))[None]
    assert torch.equal(names["pixels"], prepared)
    with torch.no_grad():
        assert torch.equal(names["logits"], ours.network(prepared))
    assert names["name"] == NAMES[names["logits"].argmax()]
    assert names["backbone"].channels == [8] * 4
    torch.testing.assert_close(list(names["maps"]), maps(prepared), rtol=1e-4, atol=1e-4)
    names["backbone"].unfreeze_batch_norm_2d()
    torch.testing.assert_close(list(names["backbone"].eval()(prepared).feature_maps), maps(prepared), rtol=0, atol=0)
    whole = transformers.TimmWrapperModel.from_pretrained("runs/photos").eval()
    found = whole(prepared, output_hidden_states=True).hidden_states
    torch.testing.assert_close(list(found), maps(prepared), rtol=0, atol=0)
    names["classifier"].save_pretrained(tmp_path / "again")
    assert resolve(tmp_path / "again").class_names == tuple(NAMES)
    other = transformers.TimmWrapperForImageClassification.from_pretrained(
        "runs/photos", num_labels=5, ignore_mismatched_sizes=True
    )
    other.gradient_checkpointing_enable()
    loss = other.train()(prepared, labels=torch.tensor([4])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_segmentation_models_pytorch(run: Callable[[str], dict[str, Any]]) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    assert run("segmentation_models_pytorch")["labels"].shape == (1, 64, 96)
    for decoder in ("FPN", "Segformer"):
        model = getattr(smp, decoder)("tu-iformer_small", encoder_weights=None, classes=2, **NARROW)
        logits = model(torch.randn(2, 3, 64, 96))
        assert logits.shape == (2, 2, 64, 96)
        logits.mean().backward()
        assert model.encoder.model.stem.conv1.weight.grad is not None


def test_torchvision(run: Callable[[str], dict[str, Any]]) -> None:
    names = run("torchvision")
    images = torch.zeros(1, 3, 64, 96)
    fine = names["model"].forward_intermediates(images, indices=[1], intermediates_only=True)
    torch.testing.assert_close(names["found"]["fine"], fine[0], rtol=0, atol=0)
    assert names["found"]["fine"].shape == (1, 192, 8, 12)
    assert names["found"]["attention"].shape == (1, 4, 6, 7 * 32)
    assert names["found"]["features"].shape == (1, 2, 3, 384)


def test_peft(run: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip("peft")
    names = run("peft")
    assert resolve("runs/lora").class_names == tuple(NAMES)
    network = timm.create_model("iformer_nano", num_classes=3).eval()
    adapted = names["get_peft_model"](
        network, names["LoraConfig"](r=2, target_modules="all-linear", modules_to_save=["head.fc"])
    )
    images = torch.randn(2, 3, 32, 32)
    adapted(images).square().sum().backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "head.fc.modules_to_save" in name for name in trained)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} >= {"qkv", "proj", "fc", "fc1", "fc2"}
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = adapted(images)
    with pytest.raises(ValueError, match="merge_and_unload"):
        fuse(adapted.base_model.model)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fuse(merged)(images), expected, rtol=1e-3, atol=1e-4)


def photographs(place: Path) -> Path:
    for split in ("train", "val"):
        for name in NAMES:
            (place / split / name).mkdir(parents=True)
            Image.effect_noise((40, 40), 80).convert("RGB").save(place / split / name / "a.png")
    return place


def commands(script: str, *others: str) -> list[str]:
    """A command of the page for one of timm's scripts, for a network that is quick to train."""
    (line,) = [line for line in blocks("timm's scripts", "sh")[0].splitlines() if f"import iformer, {script};" in line]
    words = shlex.split(line.replace("iformer_small", "iformer_nano"))
    return [sys.executable, *words[1:], *others]


def execute(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_timms_scripts_do(tmp_path: Path) -> None:
    photographs(tmp_path / "photos")
    shutil.copy(ROOT / "tests/timm_script.py", tmp_path / "train.py")
    assert execute(commands("train", "--img-size", "40"), tmp_path).startswith("iformer_nano 3 ")
    trained = torch.load(tmp_path / "model_best.pth.tar", weights_only=False)["state_dict_ema"]
    model = create("iformer_nano", str(tmp_path / "model_best.pth.tar"), num_classes=3)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())


@pytest.mark.skipif("TIMM_SCRIPTS" not in os.environ, reason="TIMM_SCRIPTS does not name a clone of timm")
@pytest.mark.parametrize("script", ["train", "validate", "inference", "benchmark"])
def test_timms_scripts(script: str, run: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    photographs(tmp_path / "photos")
    shutil.copy(Path(os.environ["TIMM_SCRIPTS"], f"{script}.py"), tmp_path)
    torch.save(timm.create_model("iformer_nano", num_classes=3).state_dict(), tmp_path / "model_best.pth.tar")
    options = {
        "train": ["--epochs", "1", "--cooldown-epochs", "0", "--workers", "0"],
        "validate": ["--workers", "0"],
        "inference": ["--workers", "1"],
        "benchmark": ["--batch-size", "2", "--num-bench-iter", "5", "--bench", "both"],
    }[script]
    assert execute(commands(script, "--device", "cpu", *options), tmp_path) is not None


def test_torchao(run: Callable[[str], dict[str, Any]]) -> None:
    torchao = pytest.importorskip("torchao")
    names = run("torchao")
    assert names["answer"].shape == (1, 1000)
    kinds = {type(module.weight).__module__.split(".")[0] for module in names["quantised"].modules()
             if isinstance(module, torch.nn.Linear)}  # fmt: skip
    assert kinds == {torchao.__name__}
    model = draw(timm.create_model("iformer_nano", num_classes=3)).eval()
    images = torch.randn(4, 3, 32, 32)
    expected = model(images)
    names["quantize_"](model, names["Int8DynamicActivationInt8WeightConfig"]())
    assert (model(images) - expected).abs().max() < 0.15 * expected.abs().max()


def test_pytorch_grad_cam(run: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip("pytorch_grad_cam")
    names = run("pytorch-grad-cam")
    assert names["evidence"].shape == (1, 64, 64)
    model = draw(timm.create_model("iformer_nano", num_classes=3)).eval()
    images = torch.randn(2, 3, 64, 64)
    with names["GradCAM"](model=model, target_layers=[model.stages[1]]) as cam:
        theirs = cam(input_tensor=images, targets=[names["ClassifierOutputTarget"](1)] * 2)
    ours = grad_cam(model, Layer("stages.1", model.stages[1]), images, 1).numpy()
    for one, other in zip(theirs, ours, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99

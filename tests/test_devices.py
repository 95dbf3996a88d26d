"""Everything is on the device of the model: on a GPU where there is one, and on a stand-in for one anywhere.

A tensor that is made on the wrong device fails on both.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from iformer.classification.task import ClassificationTask
from iformer.common.images import find_images
from iformer.detection.model import build as build_detector
from iformer.detection.task import DetectionTask
from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor
from iformer.segmentation.model import build as build_segmenter
from iformer.segmentation.task import SegmentationTask
from iformer.training.launcher import run
from tests.detection.conftest import CONFIG as DETECTOR
from tests.detection.conftest import MODEL as DETECTOR_MODEL
from tests.fake_cuda import fake_cuda
from tests.networks import NARROW, SCENES, SEGMENTERS, draw, plain_and_fused
from tests.training.tiny import recipe

real = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=["stand-in", pytest.param("real", marks=[pytest.mark.gpu, real])])
def cuda(request: pytest.FixtureRequest) -> Iterator[str]:
    with fake_cuda() if request.param == "stand-in" else contextlib.nullcontext():
        yield "cuda"


def test_the_stand_in_refuses_two_devices() -> None:
    model = timm.create_model("iformer_nano")
    with fake_cuda():
        model.to("cuda")
        with pytest.raises(RuntimeError, match="tensors on cuda and on the CPU"):
            model(torch.randn(1, 3, 32, 32))
        with pytest.raises(RuntimeError, match="tensors on cuda and on the CPU"):
            torch.ones(3, device="cuda") + torch.ones(3)
        assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).tolist() == [2, 2, 2]


@plain_and_fused
@pytest.mark.parametrize("size", [(64, 64), (70, 100)])
def test_forward_passes(size: tuple[int, int], tiny: Any, cuda: str) -> None:
    model = tiny()
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        expected = model(images)
        found = model.to(cuda)(images.to(cuda))
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def scenes(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, 3, (2, 64, 64))
    labels[:, :5] = 255
    return torch.randn(2, 3, 64, 64).to(device), labels.to(torch.uint8).to(device)


def objects(device: str) -> Any:
    boxes = torch.tensor([[5.0, 6, 30, 40], [20, 10, 50, 60]])
    masks = torch.zeros(2, 60, 70, dtype=torch.uint8)
    masks[0, 6:40, 5:30] = masks[1, 10:60, 20:50] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}
    nothing = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.long), "masks": masks[:0]}
    images = [torch.rand(3, 60, 70).to(device) for _ in range(2)]
    return images, [{name: value.to(device) for name, value in each.items()} for each in (target, nothing)]


def batch_of(task: str, device: str) -> Any:
    torch.manual_seed(0)
    if task == "segmentation":
        return scenes(device)
    if task == "detection":
        return objects(device)
    return torch.randn(4, 3, 32, 32).to(device), torch.tensor([0, 1, 2, 1]).to(device)


TASKS: dict[str, Any] = {
    "classification": lambda: ClassificationTask("iformer_nano", 3, model_args=NARROW),
    "mixup": lambda: ClassificationTask("iformer_nano", 3, model_args=NARROW, mixup=0.8, cutmix=1.0),
    "segmentation": lambda: SegmentationTask(
        backbone="iformer_small", num_classes=3,
        model_args={"backbone_args": NARROW, "neck_channels": 8, "head_channels": 8},
    ),
    "detection": lambda: DetectionTask(backbone="iformer_nano", num_classes=3, model_args=DETECTOR_MODEL),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(TASKS))
def test_losses(kind: str, cuda: str) -> None:
    task = TASKS[kind]()
    if kind != "detection":  # whose losses are of samples that are drawn on the device
        with torch.no_grad():
            torch.manual_seed(0)
            np.random.seed(0)
            expected = task.training_step(batch_of(kind, "cpu"), 0)
    task.to(cuda)
    batch = batch_of(kind, cuda)
    torch.manual_seed(0)
    np.random.seed(0)
    loss = task.training_step(batch, 0)
    assert loss.device.type == "cuda"
    assert torch.isfinite(loss)
    if kind != "detection":
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-3)
    if torch.cuda.is_available():
        loss.backward()
        assert all(parameter.grad.is_cuda for parameter in task.parameters() if parameter.grad is not None)


def models() -> dict[str, saved.Model]:
    torch.manual_seed(0)
    classifier = draw(timm.create_model("iformer_nano", num_classes=3, **NARROW))
    segmenter = build_segmenter(**SEGMENTERS["upernet"])
    detector = build_detector(**DETECTOR["network"])
    detector.roi_heads.score_thresh = 0.2
    window = {**SCENES, "window": [48, 48], "flip_test": True}
    return {
        "classification": saved.of_classifier(classifier),
        "segmentation": saved.Model("s", "segmentation", segmenter.eval(), ("a", "b", "c"), window, ""),
        "detection": saved.Model("d", "detection", detector.eval(), tuple(DETECTOR["class_names"]), DETECTOR, ""),
    }


def numbers(value: Any) -> list[float]:
    """All numbers of a result, but those of an object's place: equal scores may come in another order."""
    if isinstance(value, dict):
        return [each for name, inner in value.items() if name not in PLACE for each in numbers(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in numbers(inner)]
    return [value] if isinstance(value, float | int) else []


PLACE = ("category_id", "bbox", "area", "segmentation")


@pytest.mark.parametrize(
    ("task", "features"),
    [("classification", ""), ("classification", "pooled"), ("segmentation", ""), ("detection", "")],
)
def test_predictions(task: str, features: str, cuda: str, tmp_path: Path) -> None:
    for number in range(3):
        Image.effect_noise((70 + 8 * number, 60), 80).convert("RGB").save(tmp_path / f"{number}.png")
    found = {}
    for device in ("cpu", cuda):
        model = models()[task]
        made = predictor(model, Options(output=None, device=device, features=features, workers=2))
        assert model.device.type == device
        found[device] = list(predictions(model, made, find_images([tmp_path])))
    assert not any("error" in result for result in found["cpu"])
    assert numbers(found["cpu"])
    assert numbers(found[cuda]) == pytest.approx(numbers(found["cpu"]), rel=0.02, abs=0.02)


@pytest.mark.gpu
@real
def test_training_ends_with_a_model(tmp_path: Path) -> None:
    run("fit", ["--config", str(recipe(tmp_path)), "--trainer.accelerator", "gpu", "--trainer.devices", "1"])
    assert saved.resolve(tmp_path / "run").network.num_classes == 4

"""Everything is on the device of the model: on a GPU where there is one, and on a stand-in for one anywhere.

A tensor that is made on the wrong device fails on both.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from iformer.classification.multilabel import MultiLabelTask
from iformer.classification.shared_ramps import SharedRampsTask
from iformer.classification.task import ClassificationTask
from iformer.common.images import find_images
from iformer.deployment import engines, formats
from iformer.detection.model import build as build_detector
from iformer.detection.task import DetectionTask
from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor
from iformer.segmentation.model import build as build_segmenter
from iformer.segmentation.task import SegmentationTask
from iformer.training.launcher import run
from tests.detection.conftest import CONFIG as DETECTOR
from tests.detection.conftest import MODEL as DETECTOR_MODEL
from tests.fake_cuda import OnCuda, backward, fake_cuda
from tests.gpu.conditions import deterministic, full_precision, real
from tests.networks import NARROW, SCENES, SEGMENTERS, draw, plain_and_fused
from tests.training.tiny import recipe


@pytest.fixture(params=["stand-in", pytest.param("real", marks=[pytest.mark.gpu, real])])
def cuda(request: pytest.FixtureRequest) -> Iterator[str]:
    with fake_cuda() if request.param == "stand-in" else full_precision():
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
    if task == "multilabel":
        return torch.randn(4, 3, 32, 32).to(device), torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]).to(
            device
        )
    return torch.randn(4, 3, 32, 32).to(device), torch.tensor([0, 1, 2, 1]).to(device)


TASKS: dict[str, Any] = {
    "classification": lambda: ClassificationTask("iformer_nano", 3, model_args=NARROW),
    "mixup": lambda: ClassificationTask("iformer_nano", 3, model_args=NARROW, mixup=0.8, cutmix=1.0),
    "multilabel": lambda: MultiLabelTask("iformer_nano", 3, model_args=NARROW, loss="asymmetric"),
    "ramps": lambda: SharedRampsTask("iformer_nano", 3, model_args=NARROW),
    "segmentation": lambda: SegmentationTask(
        backbone="iformer_small", num_classes=3,
        model_args={"backbone_args": NARROW, "neck_channels": 8, "head_channels": 8},
    ),
    "detection": lambda: DetectionTask(backbone="iformer_nano", num_classes=3, model_args=DETECTOR_MODEL),
}  # fmt: skip


def loss_of(kind: str, task: Any, device: str) -> torch.Tensor:
    """A training step's loss, whose draws on the CPU are always the same."""
    batch = batch_of(kind, device)
    torch.manual_seed(0)
    np.random.seed(0)
    if kind == "ramps":  # which a trainer would say
        task.drawn = [[1, 2, 0, 1], [1, 0, 2, 1]]
        return task._training_loss(*batch)
    return task.training_step(batch, 0)


def differentiate(loss: torch.Tensor) -> None:
    backward(loss) if isinstance(loss, OnCuda) else loss.backward()


def gradients(task: Any) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in task.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("kind", list(TASKS))
def test_losses_and_gradients(kind: str, cuda: str) -> None:
    task = TASKS[kind]()
    drawn = kind == "detection"  # whose losses are of samples that are drawn on the device
    if not drawn:
        expected = loss_of(kind, task, "cpu")
        expected.backward()
        wanted = gradients(task)
        task.zero_grad(set_to_none=True)
    task.to(cuda)
    loss = loss_of(kind, task, cuda)
    assert loss.device.type == "cuda"
    assert torch.isfinite(loss)
    differentiate(loss)
    found = gradients(task)
    assert all(gradient.device.type == "cuda" for gradient in found.values())
    assert not drawn or len(found) == len(list(task.parameters()))
    if not drawn:
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
        assert found.keys() == wanted.keys()
        largest = max(float(gradient.norm()) for gradient in wanted.values())
        for name, gradient in wanted.items():
            assert float((found[name].detach().cpu() - gradient).norm()) < 1e-3 * largest, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
def test_losses_in_16_bits(kind: str, dtype: torch.dtype, cuda: str) -> None:
    task = TASKS[kind]().to(cuda)
    with torch.no_grad():
        expected = float(loss_of(kind, task, cuda))
        with torch.autocast("cuda", dtype):
            seen = task.model.get_submodule({"segmentation": "decoder", "detection": "backbone"}.get(kind, ""))
            dtypes: set[torch.dtype] = set()
            hook = seen.register_forward_hook(lambda *call: dtypes.update(_dtypes(call[-1])))
            loss = loss_of(kind, task, cuda)
            hook.remove()
    # A detector's maps are float32 for its boxes; its losses are those of other samples on a real GPU.
    assert dtypes == ({torch.float32} if kind == "detection" else {dtype})
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=0.3 if kind == "detection" else 0.03)


def _dtypes(value: Any) -> set[torch.dtype]:
    if isinstance(value, torch.Tensor):
        return {value.dtype}
    return {each.dtype for each in (value.values() if isinstance(value, dict) else value)}


class Operations(TorchDispatchMode):
    """Notes the names of all operations, and of the reductions of losses over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        self.names.add(f"{name} of all" if name == "nll_loss2d_forward" and args[3] else name)
        return func(*args, **(kwargs or {}))


# Operations of networks for images that have no deterministic kernel on a GPU, from the documentation of
# torch.use_deterministic_algorithms (torch 2.14); torch raises an error for them.
WITHOUT_DETERMINISTIC_KERNEL = {
    "nll_loss2d_forward of all", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward",
    "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward",
    "_upsample_bicubic2d_aa_backward", "reflection_pad2d_backward", "grid_sampler_2d_backward", "median", "histc",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "without"), [("mixup", set()), ("segmentation", set()), ("upernet", {"_adaptive_avg_pool2d_backward"})]
)
def test_training_has_deterministic_kernels(kind: str, without: set[str]) -> None:
    """All but UPerNet's, which pools to a grid; docs/gpu.md says so."""
    upernet = {"backbone_args": NARROW, "channels": 8}
    task = TASKS.get(kind, lambda: SegmentationTask("iformer_small", 3, "upernet", model_args=upernet))()
    with deterministic(), fake_cuda(), Operations() as operations:
        task.to("cuda")
        differentiate(loss_of("segmentation" if kind == "upernet" else kind, task, "cuda"))
    assert "convolution_backward" in operations.names
    assert operations.names & WITHOUT_DETERMINISTIC_KERNEL == without


def test_a_model_on_a_gpu_is_exported_from_the_cpu(tmp_path: Path, cuda: str) -> None:
    classifier = models()["classification"]
    images = torch.randn(2, *classifier.config["input_size"])
    with torch.no_grad():
        expected = classifier.network(images)
    classifier.network.to(cuda)
    formats.write(classifier, tmp_path / "model.pt2", "torch-export", "fp32", images)
    assert classifier.device.type == "cuda"
    run = engines.open_file(tmp_path / "model.pt2")
    torch.testing.assert_close(torch.cat([run(image) for image in images.split(1)]), expected, rtol=1e-3, atol=1e-4)


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

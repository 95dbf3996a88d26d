"""Models of every task are measured, alone and from files to results."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

from iformer.benchmark import detectors
from iformer.benchmark.configurations import combinations, runner
from iformer.benchmark.rounds import multiply_adds
from iformer.detection.model import build as build_detector
from iformer.models import saved
from iformer.segmentation.model import build as build_segmenter
from tests.conftest import Command
from tests.detection.conftest import CONFIG as DETECTOR
from tests.networks import SCENES, SEGMENTERS


def tiny_mask_rcnn() -> MaskRCNN:
    """torchvision's, which has an object wherever it looks if its weights are random."""
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96, num_classes=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each task."""
    root = tmp_path_factory.mktemp("models")
    found = {task: root / task for task in ("classification", "segmentation", "detection")}
    nano: Any = timm.create_model("iformer_nano", num_classes=3)
    saved.save(nano, found["classification"], ["a", "b", "c"], input_size=(3, 32, 32))
    network = SEGMENTERS["semantic_fpn"]
    settings = {**SCENES, "network": network, "crop": [48, 64]}
    saved.save_assembled(build_segmenter(**network), found["segmentation"], "segmentation", settings)
    saved.save_assembled(build_detector(**DETECTOR["network"]), found["detection"], "detection", DETECTOR)
    return found


def test_the_size_is_the_models_own(folders: dict[str, Path]) -> None:
    chosen = combinations([str(folder) for folder in folders.values()], ["eager"], ["fp32"])
    sizes = {Path(each.model).name: (each.height, each.width) for each in chosen}
    shorter = DETECTOR["network"]["min_size"]
    longer = min(shorter * 4 // 3, DETECTOR["network"]["max_size"])
    assert sizes == {"classification": (32, 32), "segmentation": (48, 64), "detection": (shorter, longer)}
    (given,) = combinations([str(folders["detection"])], ["eager"], ["fp32"], size=(64, 96))
    assert (given.height, given.width) == (64, 96)


@pytest.mark.parametrize("build", [tiny_mask_rcnn, partial(build_detector, **DETECTOR["network"])])
def test_every_detector_is_as_busy(build: Callable[[], Any]) -> None:
    detector = build().eval()
    detectors.occupy(detector, 64, 96)
    (image,) = detectors.images_for(1, 64, 96)
    inputs, _ = detector.transform([image])
    assert inputs.image_sizes == [(64, 96)]
    (found,) = detectors.WithoutPasting(detector)([image])
    assert len(found["scores"]) > 20
    assert found["masks"].shape[1:] == (1, 28, 28)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("eager", "fp32"), ("eager", "bf16"), ("fused", "fp32"), ("onnxruntime", "fp32"), ("openvino", "int8")],
)
def test_a_detector_in_its_engines(engine: str, precision: str, folders: dict[str, Path]) -> None:
    """What the files of other precisions compute is seen in tests/detection."""
    for configuration in combinations([str(folders["detection"])], [engine], [precision], size=(64, 96)):
        (found,) = runner(configuration, 1)()  # type: ignore[misc]
        boxes, _, scores, masks = found.values() if isinstance(found, dict) else found
        assert len(boxes) == len(scores) == len(masks) > 5


def test_multiply_adds_grow_with_the_image() -> None:
    small, large = (
        multiply_adds(combinations(["resnet10t"], ["eager"], ["fp32"], size=size, task="segmentation")[0])
        for size in ((64, 64), (64, 128))
    )
    assert large == 2 * small


def test_what_a_task_builds() -> None:
    (configuration,) = combinations(["resnet10t"], ["eager"], ["fp32"], size=(64, 64), task="segmentation")
    assert configuration.label == "semantic_fpn resnet10t, eager fp32, batch 1"
    assert runner(configuration, 1)().shape == (1, 150, 64, 64)  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_from_files_to_results(task: str, folders: dict[str, Path], tmp_path: Path, iformer: Command) -> None:
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / f"{number}.png")
    options = ("--model", folders[task], "--engines", "eager", "--size", "64", "96", "--batch", "2", "--rounds", "1")
    status, out, _ = iformer("benchmark", *options, "--images", tmp_path, "--workers", "1", "--json")
    assert status == 0
    document = json.loads(out)
    (row,) = document["end_to_end"]
    assert (row["images"], row["workers"], row["batch"]) == (3, 1, 2)
    assert row["share_of_network"] == pytest.approx(
        row["images_per_second"] / row["network_images_per_second"], abs=2e-3
    )
    assert (document["variants"][0]["height"], document["variants"][0]["width"]) == (64, 96)

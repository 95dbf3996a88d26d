"""Detectors as configurations: how many boxes they work on, and how their engines take images.

The cost of a detector depends on what it finds. With random weights it would find nothing, or something everywhere, and
on random images a trained one does not find what it was trained for. :func:`occupy` therefore gives all of them the
same work.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from iformer.deployment import detectors as exports
from iformer.deployment import engines
from iformer.deployment.fuse import fuse
from iformer.deployment.quantize import quantize_onnx
from iformer.detection.model import Detector
from iformer.models.prediction import TYPES

if TYPE_CHECKING:
    from iformer.benchmark.configurations import Configuration

ENGINES: dict[str, tuple[str, ...]] = {
    "eager": ("fp32", "bf16"),
    "fused": ("fp32", "bf16"),
    "onnxruntime": exports.OFFERED["onnx"],
    "openvino": exports.OFFERED["openvino"],
}
"""The engines that run detectors, each with its precisions. In PyTorch, bfloat16 is autocast's: boxes stay float32."""

CALIBRATION = 4
"""The number of random images to calibrate int8 on, which is enough to measure speed."""

BOXES = 1000
"""The number of boxes, one for each class that a region may show, whose score passes the lowest one."""


def is_detector(network: nn.Module) -> bool:
    """Return whether a network is a detector of torchvision's kind, as ours are."""
    return isinstance(network, GeneralizedRCNN | WithoutPasting)


class WithoutPasting(nn.Module):
    """A detector whose masks are relative to their boxes, as those of exported files and of prediction are.

    Pasting masks into images is left to whoever needs it, and so is no part of the detector's time.

    Args:
        detector: A detector of torchvision's kind.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    @property
    def finds_masks(self) -> bool:
        """Whether the detector finds masks, and not only boxes."""
        return self.detector.roi_heads.has_mask()

    def forward(self, images: list[Tensor], paste: bool = False) -> Any:
        """Return the objects in images ``(3, H, W)``."""
        return Detector.forward(self.detector, images, paste=False)


def own_size(detector: Any) -> tuple[int, int]:
    """Return the height and width in pixels of a photograph of 3:4 that a detector does not resize."""
    height = detector.transform.min_size[-1]
    return height, min(height * 4 // 3, detector.transform.max_size)


@torch.inference_mode()
def occupy(detector: Any, height: int, width: int) -> None:
    """Let a detector take images of one size as they are, and find as many objects in them as it returns at most.

    The lowest score is set so that :data:`BOXES` boxes of a random image pass it. Suppression leaves enough of them for
    the mask head to be busy with the 100 objects that detectors return at most.

    Args:
        detector: The detector, which is changed.
        height: The height of the images in pixels.
        width: The width of the images in pixels.
    """
    take_whole(detector, height, width)
    logits: list[Tensor] = []
    hook = detector.roi_heads.box_predictor.register_forward_hook(lambda *call: logits.append(call[-1][0]))
    detector(images_for(1, height, width))
    hook.remove()
    scores = logits[0].softmax(1)[:, 1:].flatten()  # without the background
    detector.roi_heads.score_thresh = float(scores.topk(min(BOXES, len(scores))).values[-1])


def take_whole(detector: Any, height: int, width: int) -> None:
    """Let a detector take images of one size as they are, and not resize them."""
    detector.transform.min_size, detector.transform.max_size = (min(height, width),), max(height, width)


def images_for(count: int, height: int, width: int) -> list[Tensor]:
    """Return random images ``(3, H, W)`` from 0 to 1, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, height, width, generator=generator) for _ in range(count)]


def runner(detector: nn.Module, configuration: "Configuration", threads: int | None) -> Callable[[], object]:
    """Prepare a detector for a configuration, and return a function that runs it on random images."""
    if configuration.engine in ("onnxruntime", "openvino"):
        return _exported(detector, configuration, threads)
    dtype, device = TYPES[configuration.precision], configuration.device
    images = [image.to(device) for image in images_for(configuration.batch, configuration.height, configuration.width)]
    if configuration.engine == "fused":
        detector = fuse(detector).to(memory_format=torch.channels_last)
    detector.to(device)

    def run() -> object:
        with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            found = detector(images)
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return run


def _exported(detector: Any, configuration: "Configuration", threads: int | None) -> Callable[[], object]:
    """Return a function that runs an exported detector, which takes one image at a time."""
    precision, size = configuration.precision, (configuration.height, configuration.width)
    images, some = images_for(configuration.batch, *size), images_for(CALIBRATION, *size)
    with tempfile.TemporaryDirectory() as folder, engines.quiet():
        if configuration.engine == "openvino":
            graph = exports.to_openvino(detector, precision, some, Path(folder))
            run = engines.compile_openvino(graph, precision, threads)
        else:
            file = Path(folder) / "detector.onnx"
            exports.to_onnx(detector, file)
            if precision == "int8":
                quantize_onnx(file, some)
            run = engines.open_engine(file, precision, threads).run
    return lambda: [run(image) for image in images]

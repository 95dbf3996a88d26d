"""Export of detectors to ONNX and OpenVINO files that run without this package.

A file takes one image ``(3, H, W)`` of any size, of float32 from 0 to 1, which it resizes and normalises itself. Its
outputs are ``boxes`` ``(n, 4)`` as corners in the image's pixels, ``labels`` ``(n,)`` counted from 1, ``scores``
``(n,)``, and ``masks`` ``(n, 1, 28, 28)``, which are probabilities inside the boxes: a hundred masks of the size of a
photograph would take gigabytes. Its metadata holds ``task``, ``model`` and ``precision``, and as JSON ``dynamic`` (it
takes any size), ``class_names`` and ``category_ids``.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.files import written
from iformer.deployment import engines, formats
from iformer.deployment.channels_first import channels_first
from iformer.deployment.exported import DETECTIONS, ExportedDetector
from iformer.deployment.fuse import fuse
from iformer.deployment.quantize import quantize_onnx, quantize_openvino
from iformer.detection.model import Detector
from iformer.models.saved import Model

OFFERED = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "int8")}
"""The formats of detectors, and their precisions. OpenVINO in bfloat16 would decode boxes in it too, which costs a
fifth of the AP of a small detector, measured on the images that it was trained on."""


def prepare(image: Image.Image) -> Tensor:
    """Return the input of a detector for an image: ``(3, H, W)`` of float32 from 0 to 1."""
    return pil_to_tensor(image) / 255


def require_offered(kind: str, precision: str) -> None:
    """Raise ValueError if detectors are not exported to a format in a precision."""
    if precision not in OFFERED.get(kind, ()):
        offered = "; ".join(f"--format {kind} in {', '.join(each)}" for kind, each in OFFERED.items())
        raise ValueError(f"a detector is not exported with --format {kind} and --precision {precision}, but {offered}")


def write(model: Model, file: Path, kind: str, precision: str, images: Sequence[Tensor]) -> dict[str, Any]:
    """Write the fused detector into a file for images of any size, and check the file.

    The file appears, or is replaced, only after it is complete and has been checked.

    Args:
        model: The detector, on any device.
        file: The file to write, with the suffix of its format.
        kind: The format, onnx or openvino.
        precision: The precision, see :data:`OFFERED`.
        images: The images ``(3, H, W)`` for the check and for the calibration of int8, which should show objects that
            the model detects.

    Returns:
        The number of ``images`` in the check, and the results of :func:`compare`.

    Raises:
        ValueError: Detectors are not exported so, ``file`` has another suffix, or the file in float32 finds different
            objects.
        OSError: The file could not be written.
    """
    require_offered(kind, precision)
    formats.require_suffix(file, kind)
    for package in ("onnx", engines.PACKAGES[kind]):
        engines.require(package)
    model = model.on_cpu()
    about = formats.metadata(model, precision, dynamic=True)
    with written(file) as temporary:
        writer = {"onnx": _write_onnx, "openvino": _write_openvino}[kind]
        with engines.quiet():
            writer(model.network, about, temporary, precision, images)
        result = compare(
            model.network,
            ExportedDetector(engines.open_engine(temporary), model.network.finds_masks),
            images,
            precision,
        )
        missing = round((1 - result["same_objects"]) * result["objects"])
        # A few may differ because rounding decides which of two equal boxes is removed.
        if precision == "fp32" and missing > result["objects"] / 50:
            raise ValueError(
                f"{file}: not written, {missing} of the {result['objects']} objects in {len(images)} images differ "
                "from those that the original finds"
            )
    return {"images": len(images), **result}


class _Traced(nn.Module):
    """A detector as a function of one image, which returns a tuple."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector([image], paste=False)
        return tuple(found[name] for name in DETECTIONS if name in found)


def to_onnx(detector: Detector, file: Path) -> None:
    """Write the fused detector into an ONNX file in float32, without metadata."""
    # The size of the example is none that a position embedding could have, so that the graph resizes them.
    torch.onnx.export(
        _Traced(channels_first(fuse(detector))),
        (torch.rand(3, 83, 111),),
        str(file),
        input_names=["image"],
        output_names=list(DETECTIONS if detector.finds_masks else DETECTIONS[:-1]),
        dynamic_axes={"image": {1: "height", 2: "width"}},
        opset_version=17,
        dynamo=False,  # torch.export cannot trace a number of boxes that depends on the image
    )


def to_openvino(detector: Detector, precision: str, images: Sequence[Tensor], folder: Path) -> Any:
    """Return the fused detector as an OpenVINO model, with temporary files in ``folder``."""
    openvino = engines.require("openvino")
    to_onnx(detector, folder / "detector.onnx")
    graph = openvino.convert_model(folder / "detector.onnx")
    if precision != "int8":
        return graph
    # The graph as it was converted has operations that lead nowhere, over which NNCF stumbles; a file has none.
    openvino.save_model(graph, folder / "detector.xml", compress_to_fp16=False)
    return quantize_openvino(openvino.Core().read_model(folder / "detector.xml"), images)


def _write_onnx(
    detector: Detector, about: formats.Metadata, file: Path, precision: str, images: Sequence[Tensor]
) -> None:
    to_onnx(detector, file)
    if precision == "int8":
        quantize_onnx(file, images)
    formats.describe_onnx(file, about)


def _write_openvino(
    detector: Detector, about: formats.Metadata, file: Path, precision: str, images: Sequence[Tensor]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        graph = to_openvino(detector, precision, images, Path(folder))
        formats.save_openvino(graph, about, file, precision)


@torch.inference_mode()
def compare(
    detector: Detector, exported: ExportedDetector, images: Sequence[Tensor], precision: str = "fp32"
) -> dict[str, Any]:
    """Compare the objects that an exported file finds with those that the original finds.

    An object is the same if its label is, and its box, score and mask nearly are: in float32 to 1% of the box's area,
    0.001 and 2% of the mask, and to 10% in other precisions.

    Args:
        detector: The original.
        exported: The exported file.
        images: The images ``(3, H, W)`` of float32 from 0 to 1.
        precision: The precision of the file.

    Returns:
        The number of ``objects`` that either finds; the share of the ``same_objects``, 1 if there are none; and the
        ``largest_difference`` of their scores.
    """
    overlap, closeness, mask = (0.99, 1e-3, 0.02) if precision == "fp32" else (0.9, 0.1, 0.1)
    same: list[float] = []
    objects = 0
    for image in images:
        (expected,), (found,) = detector([image], paste=False), exported([image])
        differences = _differences(expected, found, overlap, mask)
        same += [difference for difference in differences if difference <= closeness]
        objects += max(len(differences), len(found["scores"]))
    return {
        "objects": objects,
        "same_objects": len(same) / objects if objects else 1.0,
        "largest_difference": max(same, default=0.0),
    }


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor], overlap: float, mask: float) -> list[float]:
    """Return the difference of each expected object's score from that found for it, or 1 if it was not found."""
    differences = []
    for i, box in enumerate(expected["boxes"]):
        same = found["labels"] == expected["labels"][i]
        same &= box_iou(box[None], found["boxes"])[0] > overlap
        scores = (found["scores"][same] - expected["scores"][i]).abs()
        if "masks" in expected:
            masks = (found["masks"][same, 0] > 0.5) ^ (expected["masks"][i, 0] > 0.5)
            scores[masks.flatten(1).float().mean(1) > mask] = 1.0
        differences.append(float(scores.min()) if len(scores) else 1.0)
    return differences

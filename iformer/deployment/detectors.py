"""A detector as an ONNX file that runs without this package."""

import contextlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.files import written
from iformer.deployment import engines
from iformer.detection.model import Detector
from iformer.models.saved import Model

OUTPUTS = ("boxes", "labels", "scores", "masks")


def prepare(image: Image.Image) -> Tensor:
    """Return what a detector takes: ``(3, H, W)`` float32 from 0 to 1."""
    return pil_to_tensor(image) / 255


def write(model: Model, file: Path, images: Sequence[Tensor]) -> dict[str, Any]:
    """Write a detector as an ONNX model for images of any size, and check it against the original.

    Its input is ``image``, ``(3, H, W)`` of float32 from 0 to 1; it resizes and normalises by itself. Its outputs are
    ``boxes`` ``(n, 4)`` as corners in the image's pixels, ``labels`` ``(n,)`` from 1, ``scores`` ``(n,)`` and ``masks``
    ``(n, 1, H, W)``, probabilities. ``class_names`` and ``category_ids`` are in its metadata, as JSON.

    The file appears, or is replaced, once it is complete and has been checked.

    Args:
        model: The detector.
        file: The ``.onnx`` file to write.
        images: Images to check it with, which should show what it detects.

    Returns:
        ``images`` and ``objects`` that it was checked with, and the ``largest_difference`` between a score and the
        original's.

    Raises:
        ValueError: ``file`` has another ending, or the exported model finds something else.
        OSError: The file could not be written.
    """
    if file.suffix != ".onnx":
        raise ValueError(f"{file}: the file to write must end in .onnx")
    for package in ("onnx", "onnxruntime"):
        engines.require(package)
    with written(file) as temporary:
        _write(model.network, temporary, images[0])
        _describe(temporary, model.config)
        objects, largest = check(model.network, temporary, images)
    return {"images": len(images), "objects": objects, "largest_difference": largest}


def _write(model: Detector, file: Path, image: Tensor) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            ([image],),
            str(file),
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_axes={"image": {1: "height", 2: "width"}},
            opset_version=17,
            dynamo=False,  # how many boxes there are depends on the image, which torch.export cannot follow here
        )


def _describe(file: Path, config: dict[str, Any]) -> None:
    import onnx

    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, {key: json.dumps(config[key]) for key in ("class_names", "category_ids")})
    onnx.save(graph, file)


@torch.inference_mode()
def check(model: Detector, file: Path, images: Sequence[Tensor]) -> tuple[int, float]:
    """Compare what an exported model finds in ``images``, ``(3, H, W)`` from 0 to 1, with what ``model`` does.

    Returns:
        How many objects ``model`` finds, and the largest difference between a score and the original's.

    Raises:
        ValueError: An object is missing, or elsewhere, or surer. One in fifty may be: rounding decides which of two
            equal boxes is left out.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    objects, largest = 0, 0.0
    for image in images:
        (expected,) = model([image])
        arrays = session.run(list(OUTPUTS), {"image": image.numpy()})
        found = {name: torch.from_numpy(array) for name, array in zip(OUTPUTS, arrays, strict=True)}
        differences = _differences(expected, found)
        missing = sum(difference > 1e-3 for difference in differences)
        if missing > len(differences) / 50 or abs(len(found["boxes"]) - len(differences)) > len(differences) / 50:
            raise ValueError(
                f"{file.name}: not written, {missing} of {len(differences)} objects in an image of "
                f"{tuple(image.shape[1:])} pixels are not what the original finds"
            )
        objects += len(differences)
        largest = max([largest, *(difference for difference in differences if difference <= 1e-3)])
    return objects, largest


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[float]:
    """For each expected object how much the score differs from the same one's; 1 where that is not found."""
    differences = []
    for i, box in enumerate(expected["boxes"]):
        same = found["labels"] == expected["labels"][i]
        same &= box_iou(box[None], found["boxes"])[0] > 0.99
        masks = (found["masks"][same, 0] > 0.5) ^ (expected["masks"][i, 0] > 0.5)
        scores = (found["scores"][same] - expected["scores"][i]).abs()
        scores[masks.flatten(1).float().mean(1) > 0.01] = 1.0  # elsewhere within the box
        differences.append(float(scores.min()) if len(scores) else 1.0)
    return differences

"""Export of detectors to ONNX files that run without this package."""

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

OUTPUTS = ("boxes", "labels", "scores", "masks")  # without the last if the detector finds boxes only


def prepare(image: Image.Image) -> Tensor:
    """Return the input of a detector for an image: ``(3, H, W)`` of float32 from 0 to 1."""
    return pil_to_tensor(image) / 255


def write(model: Model, file: Path, images: Sequence[Tensor]) -> dict[str, Any]:
    """Write a detector as an ONNX model for images of any size, and check it against the original.

    The input of the model is ``image``, ``(3, H, W)`` of float32 from 0 to 1, which the model itself resizes and
    normalises. Its outputs are ``boxes`` ``(n, 4)`` as corners in the image's pixels, ``labels`` ``(n,)`` counted from
    1, ``scores`` ``(n,)``, and, if the detector finds masks, ``masks`` ``(n, 1, H, W)``, which are probabilities. Its
    metadata holds ``class_names`` and ``category_ids`` as JSON.

    The file appears, or is replaced, only after it is complete and has been checked.

    Args:
        model: The detector.
        file: The ``.onnx`` file to write.
        images: The images ``(3, H, W)`` for the check, which should show objects that the model detects.

    Returns:
        The numbers of ``images`` and ``objects`` in the check, and the ``largest_difference`` of a score from the
        original's.

    Raises:
        ValueError: ``file`` has another suffix, or the exported model finds different objects.
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
            output_names=_outputs(model),
            dynamic_axes={"image": {1: "height", 2: "width"}},
            opset_version=17,
            dynamo=False,  # torch.export cannot trace a number of boxes that depends on the image
        )


def _outputs(model: Detector) -> list[str]:
    return [name for name in OUTPUTS if name != "masks" or model.roi_heads.has_mask()]


def _describe(file: Path, config: dict[str, Any]) -> None:
    import onnx

    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, {key: json.dumps(config[key]) for key in ("class_names", "category_ids")})
    onnx.save(graph, file)


@torch.inference_mode()
def check(model: Detector, file: Path, images: Sequence[Tensor]) -> tuple[int, float]:
    """Compare the objects that an exported model finds with those that the original finds.

    Args:
        model: The original detector.
        file: The exported model.
        images: The images ``(3, H, W)`` of float32 from 0 to 1.

    Returns:
        The number of objects that ``model`` finds, and the largest difference of a score from the original's.

    Raises:
        ValueError: More than one in fifty objects is missing, or differs in its place or score. A few may differ
            because rounding decides which of two equal boxes is removed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    objects, largest = 0, 0.0
    for image in images:
        (expected,) = model([image])
        names = _outputs(model)
        arrays = session.run(names, {"image": image.numpy()})
        found = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        differences = _differences(expected, found)
        missing = sum(difference > 1e-3 for difference in differences)
        if missing > len(differences) / 50 or abs(len(found["boxes"]) - len(differences)) > len(differences) / 50:
            raise ValueError(
                f"{file.name}: not written, {missing} of {len(differences)} objects in an image of "
                f"{tuple(image.shape[1:])} pixels differ from those that the original finds"
            )
        objects += len(differences)
        largest = max([largest, *(difference for difference in differences if difference <= 1e-3)])
    return objects, largest


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[float]:
    """Return the difference of each expected object's score from that found for it, or 1 if it was not found."""
    differences = []
    for i, box in enumerate(expected["boxes"]):
        same = found["labels"] == expected["labels"][i]
        same &= box_iou(box[None], found["boxes"])[0] > 0.99
        scores = (found["scores"][same] - expected["scores"][i]).abs()
        if "masks" in expected:
            masks = (found["masks"][same, 0] > 0.5) ^ (expected["masks"][i, 0] > 0.5)
            scores[masks.flatten(1).float().mean(1) > 0.01] = 1.0  # the mask differs
        differences.append(float(scores.min()) if len(scores) else 1.0)
    return differences

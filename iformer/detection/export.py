"""Export of a trained detector for programs without this package."""

import contextlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.cbook import get_sample_data
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.files import replaced
from iformer.common.images import read_image
from iformer.detection.model import Detector
from iformer.detection.predict import load
from iformer_command.terminal import ITEM_ERRORS, item_error

OUTPUTS = ("boxes", "labels", "scores", "masks")


def export_onnx(folder: Path, config: dict[str, Any], file: Path, images: Sequence[Path] = ()) -> dict[str, Any]:
    """Write the detector in ``folder`` as an ONNX model for images of any size, and check it against the original.

    Its input is ``image``, ``(3, H, W)`` of float32 from 0 to 1; it resizes and normalises by itself. Its outputs are
    ``boxes`` ``(n, 4)`` as corners in the image's pixels, ``labels`` ``(n,)`` from 1, ``scores`` ``(n,)`` and ``masks``
    ``(n, 1, H, W)``, probabilities. ``class_names`` and ``category_ids`` are in its metadata, as JSON.

    The file appears, or is replaced, once it is complete and has been checked.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.
        file: To write, ``.onnx``.
        images: Files to check it with, which should show what it detects; a photograph if there are none.

    Returns:
        ``file``, ``images`` and ``objects`` that it was checked with, ``unreadable``, a line for each image that could
        not be read, and ``largest_difference`` between a score and the original's.

    Raises:
        ValueError: The checkpoint is damaged, ``file`` ends otherwise, no image can be read, or the exported model
            finds something else.
        OSError: The file could not be written.
    """
    if file.suffix != ".onnx":
        raise ValueError(f"{file}: the file to write must end in .onnx")
    model = load(folder, config)
    paths = images or [Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))]
    pictures, unreadable = [], []
    for path in paths:
        try:
            pictures.append(pil_to_tensor(read_image(path)) / 255)
        except ITEM_ERRORS as error:
            unreadable.append(item_error(path, error))
    if not pictures:
        raise ValueError(unreadable[0])
    with replaced(file.parent, named=file) as temporary:
        written = temporary / file.name
        _write(model, written, pictures[0])
        _describe(written, config)
        objects, largest = check(model, written, pictures)
    counts = {"images": len(pictures), "objects": objects, "unreadable": unreadable}
    return {"file": str(file), **counts, "largest_difference": largest}


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

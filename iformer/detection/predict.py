"""Detection in image files: what is there, and a picture of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.images import UnreadableImageError, read_image
from iformer.detection.model import Detector, mask_rcnn
from iformer.detection.pictures import draw
from iformer.models import saved


def load(folder: Path, config: dict[str, Any]) -> Detector:
    """The detector that a training run has exported into ``folder``, in evaluation mode.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.

    Raises:
        ValueError: The checkpoint is damaged, or names another number of classes than its weights have.
    """
    try:
        classes = config["model"]["num_classes"], len(config["class_names"]), len(config["category_ids"])
        if len(set(classes)) > 1:
            raise ValueError("num_classes, class_names and category_ids differ in number")
        model = mask_rcnn(**config["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: not a detector's ({error})") from error
    saved.load_assembled(model, folder)
    return model


@torch.inference_mode()
def detect(
    folder: Path, config: dict[str, Any], paths: Sequence[Path], output: Path, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Detect objects in image files, and write a picture ``NAME.jpg`` of each into ``output``.

    Coordinates are pixels of the upright image. Shows its progress on standard error where there is more than one.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.
        paths: Image files.
        output: Folder, made if it is not there.
        threshold: Least score of the objects that are drawn; the results hold all.

    Returns:
        For each file ``image``, ``picture``, ``height``, ``width`` and ``objects``, best first, each as COCO describes
        it (``category_id``, ``bbox`` as left, top, width and height, ``segmentation`` in run lengths, ``area``) with
        its ``name`` and ``score``; or ``{"image": path, "error": message}`` for a file that could not be read.

    Raises:
        ValueError: The checkpoint is damaged.
        OSError: A picture could not be written.
    """
    model = load(folder, config)
    output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    taken: set[str] = set()
    for path in track(paths, "Detecting", console=Console(stderr=True), disable=len(paths) < 2):
        try:
            image = pil_to_tensor(read_image(path))
        except (OSError, UnreadableImageError) as error:
            results.append({"image": str(path), "error": str(error)})
            continue
        (found,) = model([image / 255])
        masks = found["masks"][:, 0] > 0.5
        picture = output / f"{_distinct(path.stem, taken)}.jpg"
        seen = found["scores"] >= threshold
        names = [config["class_names"][label - 1] for label in found["labels"].tolist()]
        draw(image, found["boxes"][seen], masks[seen], found["labels"][seen], found["scores"][seen], names, picture)
        height, width = image.shape[1:]
        size = {"height": height, "width": width}
        results.append(
            {"image": str(path), "picture": str(picture), **size, "objects": objects(found, masks, names, config)}
        )
    return results


def objects(found: dict[str, Tensor], masks: Tensor, names: Sequence[str], config: dict[str, Any]) -> list[dict]:
    """The detector's outputs for an image, as COCO describes objects.

    Args:
        found: ``boxes`` as corners, ``labels`` from 1, ``scores``.
        masks: ``(n, H, W)`` of bool.
        names: Of the objects.
        config: With ``category_ids``.
    """
    described = []
    for i, (left, top, right, bottom) in enumerate(found["boxes"].tolist()):
        encoded = rle.encode(np.asfortranarray(masks[i].numpy().astype(np.uint8)))
        counts = encoded["counts"]
        described.append(
            {
                "name": names[i],
                "score": round(float(found["scores"][i]), 4),
                "category_id": config["category_ids"][int(found["labels"][i]) - 1],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "area": int(masks[i].sum()),
                "segmentation": {
                    "size": list(encoded["size"]),
                    "counts": counts.decode() if isinstance(counts, bytes) else counts,
                },
            }
        )
    return described


def coco_document(results: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """What :func:`detect` has found, in COCO's format: images, annotations with a score, categories.

    Images that could not be read are under ``errors``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for result in results:
        if "error" in result:
            continue
        number = len(images) + 1
        names = ("height", "width", "picture")
        images.append({"id": number, "file_name": result["image"], **{name: result[name] for name in names}})
        for item in result["objects"]:
            place = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            annotations.append({**place, **{name: value for name, value in item.items() if name != "name"}})
    categories = zip(config["category_ids"], config["class_names"], strict=True)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
        "errors": [result for result in results if "error" in result],
    }


def _distinct(name: str, taken: set[str]) -> str:
    """``name``, with a number where images of several folders share it."""
    number, distinct = 2, name
    while distinct in taken:
        distinct, number = f"{name}_{number}", number + 1
    taken.add(distinct)
    return distinct

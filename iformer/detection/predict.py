"""Detection in image files: what is there, and a picture of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.files import distinct_stems
from iformer.common.images import read_image
from iformer.detection.masks import from_run_lengths, pasted, run_lengths
from iformer.detection.model import Detector, mask_rcnn
from iformer.detection.pictures import draw
from iformer.models import saved
from iformer_command.terminal import ITEM_ERRORS, item_error


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


def detect(
    folder: Path, config: dict[str, Any], paths: Sequence[Path], output: Path, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Return :func:`detections` in all files."""
    return list(detections(folder, config, paths, output, threshold))


@torch.inference_mode()
def detections(
    folder: Path, config: dict[str, Any], paths: Sequence[Path], output: Path, threshold: float = 0.5
) -> Iterator[dict[str, Any]]:
    """Detect objects in image files, and write a picture ``NAME.jpg`` of each into ``output``.

    Coordinates are pixels of the upright image. Shows its progress on standard error where there is more than one.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.
        paths: Image files.
        output: Folder, made if it is not there.
        threshold: Least score of the objects that are drawn; the results hold all.

    Yields:
        For each file ``image``, ``picture``, ``height``, ``width`` and ``objects``, best first, each as COCO describes
        it (``category_id``, ``bbox`` as left, top, width and height, ``segmentation`` in run lengths, ``area``) with
        its ``name`` and ``score``; or ``{"image": path, "error": message}`` for a file that could not be read or that
        the detector cannot take, or whose picture could not be written.

    Raises:
        ValueError: The checkpoint is damaged.
        OSError: ``output`` could not be made.
    """
    model = load(folder, config)
    output.mkdir(parents=True, exist_ok=True)
    pairs = zip(paths, distinct_stems(paths), strict=True)
    for path, name in track(pairs, "Detecting", len(paths), console=Console(stderr=True), disable=len(paths) < 2):
        picture = output / f"{name}.jpg"
        try:
            image = pil_to_tensor(read_image(path))
            height, width = image.shape[1:]
            (found,) = model([image / 255], paste=False)
            described = objects(found, (height, width), config)
            seen = found["scores"] >= threshold
            masks = (from_run_lengths(described[i]["segmentation"]) for i in seen.nonzero()[:, 0].tolist())
            names = [item["name"] for item, drawn in zip(described, seen.tolist(), strict=True) if drawn]
            draw(image, found["boxes"][seen], masks, found["labels"][seen], found["scores"][seen], names, picture)
        except ITEM_ERRORS as error:
            yield {"image": str(path), "error": item_error(path, error)}
            continue
        size = {"height": height, "width": width}
        yield {"image": str(path), "picture": str(picture), **size, "objects": described}


def objects(found: dict[str, Tensor], size: tuple[int, int], config: dict[str, Any]) -> list[dict]:
    """The detector's outputs for an image, as COCO describes objects.

    Args:
        found: ``boxes`` as corners, ``labels`` from 1, ``scores``, ``masks`` in the boxes.
        size: Height and width of the image.
        config: With ``category_ids`` and ``class_names``.
    """
    described = []
    for i, (mask, box) in enumerate(zip(pasted(found, size), found["boxes"].tolist(), strict=True)):
        left, top, right, bottom = box
        encoded, label = run_lengths(mask), int(found["labels"][i])
        counts = encoded["counts"]
        described.append(
            {
                "name": config["class_names"][label - 1],
                "score": round(float(found["scores"][i]), 4),
                "category_id": config["category_ids"][label - 1],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "area": int(mask.sum()),
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

"""Prediction with a detector: objects in images, and pictures of them."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.files import DistinctStems
from iformer.detection.masks import from_run_lengths, pasted, run_lengths
from iformer.detection.pictures import draw
from iformer.models.prediction import Options
from iformer.models.saved import Model

ON_ACCELERATOR = 4
"""The number of images in a batch on a GPU, unless the options say another."""


def backbone_input(model: Model, image: Image.Image) -> Tensor:
    """Return an image as the input ``(3, H, W)`` of the detector's backbone, resized and normalised.

    Where the detector pads an image to multiples of 32 pixels, the image is cut to the multiples below instead: the
    padding's edge is none of the image.

    Raises:
        ValueError: The image is so long that fewer than 32 pixels are left of a side.
    """
    resized, _ = model.network.transform([pil_to_tensor(image) / 255])
    ((height, width),) = resized.image_sizes
    if min(height, width) < 32:
        raise ValueError(
            f"an image of {image.width} × {image.height} pixels is resized to {width} × {height}; "
            "expected at least 32 of each side"
        )
    return resized.tensors[0, :, : height // 32 * 32, : width // 32 * 32]


class Predictor:
    """A predictor that detects objects and draws them; see :class:`iformer.models.prediction.Predictor`.

    For each image it writes a picture ``NAME.jpg`` with the objects whose score is at least the threshold.

    The result for an image has ``picture``, ``height``, ``width`` and all ``objects``, the best first. Each object is
    described as in COCO (``category_id``, ``bbox`` as left, top, width and height, ``area``, and ``segmentation`` as
    run lengths if the detector finds masks) together with its ``name`` and ``score``. Coordinates are pixels of the
    upright image.

    Args:
        model: The detector.
        options: The options of the prediction.

    Raises:
        OSError: The output folder could not be created.
    """

    doing = "Detecting"

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options, self.names = model, options, DistinctStems()
        on_accelerator = model.device.type != "cpu"  # a processor is busy with one image
        self.batch_size = 1 if model.exported else options.batch_size or (ON_ACCELERATOR if on_accelerator else 1)
        box = {"name": str, "score": float, "category_id": int, "bbox": [float], "area": int}
        mask = {"segmentation": {"size": [int], "counts": str}} if model.network.finds_masks else {}
        self.schema: dict[str, Any] = {"height": int, "width": int, "picture": str, "objects": [{**box, **mask}]}
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image's pixels, ``(3, H, W)`` of uint8."""
        return pil_to_tensor(image)

    def predict(self, paths: Sequence[Path], images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Detect the objects in the images, draw them, and return the result for each image.

        The network takes the images of one size together; of several sizes, all would be padded to the largest.
        """
        of_size: dict[torch.Size, list[int]] = {}
        for place, image in enumerate(images):
            of_size.setdefault(image.shape, []).append(place)
        found: dict[int, dict[str, Tensor]] = {}
        for places in of_size.values():
            outputs = self.model.network([images[place].to(self.model.device) / 255 for place in places], paste=False)
            found.update(zip(places, outputs, strict=True))
        return [self._result(path, images[place], found[place]) for place, path in enumerate(paths)]

    def _result(self, path: Path, image: Tensor, found: dict[str, Tensor]) -> dict[str, Any]:
        height, width = image.shape[1:]
        found = {name: value.cpu() for name, value in found.items()}
        described = objects(found, (height, width), self.model.config)
        size = {"height": height, "width": width, "objects": described}
        if self.options.output is None:
            return size
        picture = self.options.output / f"{self.names.name(path)}.jpg"
        drawn = picture_of(image, described, self.options.threshold, self.model.config)
        drawn.save(picture, quality=92)
        return {"picture": str(picture), **size}

    def document(self, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the results in COCO's format: ``images``, ``annotations`` with scores, and ``categories``.

        Images that could not be read are listed under ``errors``.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for result in results:
            if "error" in result:
                continue
            number = len(images) + 1
            about: dict[str, Any] = {name: result[name] for name in ("height", "width", "picture") if name in result}
            images.append({"id": number, "file_name": result["image"], **about})
            for item in result["objects"]:
                place = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
                annotations.append({**place, **{name: value for name, value in item.items() if name != "name"}})
        categories = zip(self.model.config["category_ids"], self.model.class_names, strict=True)
        return {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in categories],
            "errors": [result for result in results if "error" in result],
        }

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield a line for each object whose score is at least the threshold, and one that names the picture."""
        for entry in result["objects"]:
            if entry["score"] >= self.options.threshold:
                left, upper, width, height = entry["bbox"]
                yield f"{entry['score']:7.2%}  {entry['name']}, {width:.0f}x{height:.0f} at {left:.0f}, {upper:.0f}"
        if "picture" in result:
            yield f"picture: {result['picture']}"


def objects(found: dict[str, Tensor], size: tuple[int, int], config: dict[str, Any]) -> list[dict]:
    """Return the objects that a detector found in an image, described as in COCO.

    Args:
        found: The detector's outputs: ``boxes`` as corners, ``labels`` counted from 1, ``scores``, and, if it finds
            masks, ``masks`` relative to their boxes.
        size: The height and width of the image in pixels.
        config: The model's configuration, with ``category_ids`` and ``class_names``.
    """
    described = []
    masks = pasted(found, size) if "masks" in found else itertools.repeat(None)
    for i, (box, mask) in enumerate(zip(found["boxes"].tolist(), masks, strict=False)):
        left, top, right, bottom = box
        label = int(found["labels"][i])
        described.append(
            {
                "name": config["class_names"][label - 1],
                "score": round(float(found["scores"][i]), 4),
                "category_id": config["category_ids"][label - 1],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                **({"area": round((right - left) * (bottom - top))} if mask is None else _described(mask)),
            }
        )
    return described


def picture_of(
    image: Tensor, described: Sequence[dict[str, Any]], threshold: float, config: dict[str, Any]
) -> Image.Image:
    """Return an image with the objects in it whose score is at least a threshold.

    Args:
        image: The image ``(3, H, W)`` of uint8.
        described: The objects as :func:`objects` returns them, the best first.
        threshold: The threshold.
        config: The model's configuration, with ``category_ids``.
    """
    drawn = [item for item in described if item["score"] >= threshold]
    corners = [(left, top, left + width, top + height) for left, top, width, height in (o["bbox"] for o in drawn)]
    return draw(
        image,
        torch.tensor(corners).reshape(-1, 4),
        (from_run_lengths(item["segmentation"]) for item in drawn if "segmentation" in item),
        torch.tensor([config["category_ids"].index(item["category_id"]) + 1 for item in drawn]),
        torch.tensor([item["score"] for item in drawn]),
        [item["name"] for item in drawn],
    )


def _described(mask: Tensor) -> dict[str, Any]:
    """Return a mask's ``area`` and its ``segmentation`` as run lengths in text."""
    encoded = run_lengths(mask)
    counts = encoded["counts"]
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"area": int(mask.sum()), "segmentation": {"size": list(encoded["size"]), "counts": text}}

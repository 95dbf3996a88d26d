"""COCO annotation files: images, boxes and masks, and the classes' names."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor


@dataclass(frozen=True)
class Annotations:
    """An annotation file in COCO's format.

    Attributes:
        path: The file.
        images: Its images, in its order: ``id``, ``file_name``, ``height``, ``width``...
        objects: Annotations of each image, by its ``id``.
        category_ids: Of the classes, ascending; label k of a detector, counted from 1, is ``category_ids[k - 1]``.
        class_names: Of the classes, in the same order.
    """

    path: Path
    images: list[dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]


def read(path: Path, limit: int | None = None) -> Annotations:
    """Read an annotation file, or only what is about its first ``limit`` images.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not in COCO's format, or contradicts itself; says where.
    """
    try:
        content = json.loads(path.read_bytes())
        images, annotations = content["images"], content["annotations"]
        names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        sizes = [(image["file_name"], image["width"], image["height"]) for image in images]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (annotations in COCO's format)") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not annotations in COCO's format ({error})") from error
    except KeyError as error:
        raise ValueError(f"{path}: not annotations in COCO's format (no key {error})") from error
    if not names or not images:
        raise ValueError(f"{path}: {len(images)} images and {len(names)} categories, expected one or more of each")
    if len(objects) < len(images):
        raise ValueError(f"{path}: {len(images)} images, but only {len(objects)} ids, expected one of each image's own")
    for name, *size in sizes:
        if not all(isinstance(side, (int, float)) and side > 0 for side in size):
            raise ValueError(f"{path}: {name} has width and height {size}, expected two numbers above 0")
    for annotation in annotations:
        _check(annotation, names, objects, path)
        objects[annotation["image_id"]].append(annotation)
    ids = tuple(sorted(names))
    return Annotations(path, images[:limit], objects, ids, tuple(names[i] for i in ids))


def _check(annotation: Any, names: dict[int, str], objects: dict[int, Any], path: Path) -> None:
    """Raise ValueError where an annotation cannot be used."""
    if not isinstance(annotation, dict):
        raise ValueError(f"{path}: an annotation is {str(annotation)[:40]}, expected keys and values")
    name = f"{path}: annotation {annotation.get('id')}"
    if annotation.get("category_id") not in names:
        raise ValueError(f"{name} has category_id {annotation.get('category_id')}, which is not among the categories")
    if annotation.get("image_id") not in objects:
        raise ValueError(f"{name} has image_id {annotation.get('image_id')}, which is not among the images")
    box = annotation.get("bbox")
    if not isinstance(box, list) or [type(value) in (int, float) for value in box] != [True] * 4:
        raise ValueError(f"{name} has no bbox of four numbers")
    if not annotation.get("segmentation"):
        raise ValueError(f"{name} has no segmentation, which Mask R-CNN learns from")


def targets(objects: Sequence[dict[str, Any]], category_ids: Sequence[int], size: tuple[int, int]) -> dict[str, Tensor]:
    """What an image of ``size`` (height, width) shows, n objects.

    Returns:
        ``boxes`` ``(n, 4)`` as corners, ``labels`` ``(n,)`` from 1, ``masks`` ``(n, H, W)`` of 0 and 1, and ``iscrowd``
        and ``area`` ``(n,)``, which evaluation asks for.

    Raises:
        ValueError: A segmentation is none; names the annotation.
    """
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    boxes = torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [_mask(item, size) for item in objects]
    return {
        "boxes": boxes,
        "labels": torch.tensor([labels[item["category_id"]] for item in objects], dtype=torch.int64),
        "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), np.uint8)),
        "iscrowd": torch.tensor([item.get("iscrowd", 0) for item in objects], dtype=torch.int64),
        "area": torch.tensor([item.get("area", 0) for item in objects], dtype=torch.float32),
    }


def _mask(annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    try:
        return decode(annotation["segmentation"], size)
    except Exception as error:  # the decoder raises whatever it stumbles over
        raise ValueError(f"annotation {annotation.get('id')} has a segmentation that is none ({error})") from error


def decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """A mask ``(H, W)`` of 0 and 1 from polygons, or from run lengths, compressed or not.

    Raises:
        ValueError: The run lengths are those of an image of another size.
    """
    height, width = size
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths of {segmentation['size']} pixels, expected {[height, width]}")
        compressed = not isinstance(segmentation["counts"], list)
        encoded = segmentation if compressed else rle.frPyObjects(segmentation, height, width)
    else:
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]  # fewer points enclose nothing
        if not polygons:
            return np.zeros(size, np.uint8)
        encoded = rle.merge(rle.frPyObjects(polygons, height, width))
    mask: np.ndarray = rle.decode(encoded)
    return np.ascontiguousarray(mask)

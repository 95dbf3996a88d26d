"""Reading of COCO annotation files: images, boxes, masks and the names of the classes."""

import json
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEYS = ("images", "annotations", "categories")
FLAGS: dict[Any, int] = {None: 0, 0: 0, 1: 1, "": 0, "0": 0, "1": 1, "false": 0, "true": 1}  # 0 matches False too


@dataclass(frozen=True)
class Annotations:
    """An annotation file in COCO's format.

    Attributes:
        path: The path of the file.
        images: The file's images in their order, each with ``id``, ``file_name``, ``height``, ``width`` and so on.
        objects: The annotations of each image, by the image's ``id``, as cleaned by :func:`read`. ``segmentation`` is
            None where there is no mask.
        category_ids: The category ids in ascending order; a detector's label k, counted from 1, stands for
            ``category_ids[k - 1]``.
        class_names: The names of the classes, in the order of ``category_ids``.
    """

    path: Path
    images: list[dict[str, Any]]
    objects: dict[int | str, list[dict[str, Any]]]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def masked(self) -> list[bool]:
        """Whether each annotation that is no crowd has a mask."""
        items = (item for items in self.objects.values() for item in items)
        return [item["segmentation"] is not None for item in items if not item["iscrowd"]]

    @property
    def total(self) -> int:
        """The number of annotations."""
        return sum(map(len, self.objects.values()))

    def unlearnable(self) -> Counter[str]:
        """Count the annotations that training cannot learn from, by reason, as far as the file itself shows."""
        reasons = (_unlearnable(item, image) for image in self.images for item in self.objects[image["id"]])
        return Counter(reason for reason in reasons if reason)


def read(path: Path, limit: int | None = None, masks: bool = True) -> Annotations:
    """Read an annotation file, or only the part about its first ``limit`` images.

    Common deviations from the format are accepted: ids may be strings; ``iscrowd`` may be a string, a boolean or null,
    and ``area`` may be null, where null means the same as an absent key; a polygon may be a list of points, and a
    single polygon need not stand in a list.

    Args:
        path: The path of the annotation file.
        limit: The number of images to keep; None keeps all of them.
        masks: Whether to read the masks. An annotation need not have one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not in COCO's format, or contradicts itself. The message says where.
    """
    content = _parse(path)
    names = _names(content["categories"], path)
    images = _images(content["images"], path)
    if not names or not images:
        raise ValueError(f"{path}: {len(images)} images and {len(names)} categories, expected one or more of each")
    if len(images) < len(content["images"]):
        raise ValueError(
            f"{path}: {len(content['images'])} images share {len(images)} ids, expected a different id for each image"
        )
    objects: dict[int | str, list[dict[str, Any]]] = {number: [] for number in images}
    boxes_in_pixels = polygons_in_pixels = False
    for place, annotation in enumerate(content["annotations"]):
        content["annotations"][place] = None  # frees the lists of a million polygons while their arrays are made
        try:
            item = _clean(annotation, names, images, masks)
        except ValueError as error:
            number = annotation.get("id") if isinstance(annotation, dict) else None
            name = f"annotations[{place}]" if number is None else f"annotation {number}"
            raise ValueError(f"{path}: {name} {error}") from None
        objects[item["image_id"]].append(item)
        outlines = item["segmentation"] or []
        boxes_in_pixels = boxes_in_pixels or max(item["bbox"]) > 1
        polygons_in_pixels = polygons_in_pixels or isinstance(outlines, dict) or any(max(part) > 1 for part in outlines)
    given = [item for items in objects.values() for item in items]
    if not boxes_in_pixels and any(value % 1 for item in given for value in item["bbox"]):
        raise ValueError(f"{path}: every bbox lies between 0 and 1, like shares of the image's sides; expected pixels")
    polygons = (part for item in given for part in item["segmentation"] or ())
    if not polygons_in_pixels and any(value % 1 for part in polygons for value in part):
        raise ValueError(f"{path}: every polygon lies between 0 and 1, like shares of the sides; expected pixels")
    ids, kept = tuple(sorted(names)), list(images.values())[:limit]
    return Annotations(
        path, kept, {image["id"]: objects[image["id"]] for image in kept}, ids, tuple(names[i] for i in ids)
    )


def _parse(path: Path) -> dict[str, list[Any]]:
    """Return the lists of images, annotations and categories in an annotation file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file does not hold these lists.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait forever
        raise ValueError(f"{path}: not a file, expected annotations in COCO's format")
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (annotations in COCO's format)") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not annotations in COCO's format ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not annotations in COCO's format (not an object with the keys {', '.join(KEYS)})")
    for key in KEYS:
        if key not in content:
            raise ValueError(f"{path}: not annotations in COCO's format (no key '{key}')")
        if not isinstance(content[key], list):
            shown = json.dumps(content[key])[:40]
            raise ValueError(f"{path}: not annotations in COCO's format ({key} is {shown}, expected a list)")
    return content


def _names(categories: list[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories:
        entry = _entry(category, ("id", "name"), "category", path)
        number, name = _id(entry["id"]), entry["name"]
        if not isinstance(number, int) or not isinstance(name, str):
            raise ValueError(f"{path}: a category has id {entry['id']!r} and name {name!r}, expected a number and text")
        if names.setdefault(number, name) != name:
            raise ValueError(f"{path}: category {number} has two names, {names[number]} and {name}, expected one")
    return names


def _images(entries: list[Any], path: Path) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    for entry in entries:
        image = _entry(entry, ("id", "file_name", "width", "height"), "image", path)
        number, name, size = _id(image["id"]), image["file_name"], [image["width"], image["height"]]
        if number is None or not isinstance(name, str):
            raise ValueError(f"{path}: an image has id {image['id']!r} and file_name {name!r}, expected an id and text")
        if not all(type(side) in (int, float) and 0 < side < math.inf for side in size):
            raise ValueError(f"{path}: {name} has width and height {size}, expected two numbers above 0")
        image["id"] = number
        images[number] = image
    return images


def _entry(entry: Any, keys: Sequence[str], kind: str, path: Path) -> dict[str, Any]:
    """Return ``entry`` if it is a dictionary with the given keys, and raise ValueError otherwise."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: not annotations in COCO's format ({kind} {str(entry)[:40]}, expected an object)")
    for key in keys:
        if key not in entry:
            name = entry.get("file_name", entry.get("name", entry.get("id")))
            raise ValueError(f"{path}: not annotations in COCO's format (no key '{key}' in {kind} {name})")
    return entry


def _id(value: Any) -> int | str | None:
    """Return an id in the form in which ids are compared.

    A whole number becomes an int, even if it is written as text; other text is returned as it is, and None is returned
    for a value that is no id.
    """
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 20 else value
    return None


def _clean(
    annotation: Any, names: dict[int, str], images: dict[int | str, dict[str, Any]], masks: bool
) -> dict[str, Any]:
    """Return the used entries of an annotation, each converted to a single type.

    Raises:
        ValueError: The annotation cannot be used. The message says why.
    """
    if not isinstance(annotation, dict):
        raise ValueError(f"is {str(annotation)[:40]}, expected an object with keys and values")
    category, number = _id(annotation.get("category_id")), _id(annotation.get("image_id"))
    if category not in names:
        raise ValueError(f"has category_id {annotation.get('category_id')}, which is not among the categories")
    if number not in images:
        raise ValueError(f"has image_id {annotation.get('image_id')}, which is not among the images")
    box = annotation.get("bbox")
    if not isinstance(box, list) or [type(value) in (int, float) for value in box] != [True] * 4:
        raise ValueError("has no bbox of four numbers")
    if not math.isfinite(sum(box)) or box[2] < 0 or box[3] < 0:
        raise ValueError(f"has bbox {box}, expected left, top, and a width and height of 0 or more")
    crowd, area = annotation.get("iscrowd"), annotation.get("area")
    flag = crowd.lower() if isinstance(crowd, str) else crowd
    if isinstance(flag, (list, dict)) or flag not in FLAGS:
        raise ValueError(f"has iscrowd {str(crowd)[:40]}, expected 0 or 1")
    if area is not None and (type(area) not in (int, float) or not 0 <= area < math.inf):
        raise ValueError(f"has area {str(area)[:40]}, expected a number of pixels, or null")
    image = images[number]
    segmentation = annotation.get("segmentation") if masks else None
    try:
        outlines = _outlines(segmentation, [image["height"], image["width"]]) if segmentation else None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"has an unreadable segmentation ({error})") from None
    return {
        "id": annotation.get("id"),
        "image_id": number,
        "category_id": category,
        "bbox": box,
        "iscrowd": FLAGS[flag],
        "area": area or 0,  # where it is 0, evaluation counts the pixels of the mask, or of the box
        "segmentation": outlines,
    }


def _outlines(segmentation: Any, size: list[int]) -> Any:
    """Return run lengths unchanged, or polygons as arrays x, y, x, y... without those of fewer than three points.

    Raises:
        TypeError, ValueError, OverflowError: The segmentation is neither of the two.
    """
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if list(segmentation.get("size", ())) != size:
            raise ValueError(f"run lengths for {segmentation.get('size')} pixels, expected {size}")
        if isinstance(counts, list) and (min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]):
            raise ValueError(f"run lengths add up to {sum(counts)}, expected {size[0] * size[1]} and none negative")
        if not isinstance(counts, (list, str)):
            raise ValueError("run lengths have no counts")
        return segmentation
    if not isinstance(segmentation, list):
        raise ValueError("expected polygons or run lengths")
    if not isinstance(segmentation[0], list) or all(_is_point(part) for part in segmentation):
        segmentation = [segmentation]  # a single polygon that does not stand in a list
    outlines = []
    for polygon in segmentation:
        points = isinstance(polygon, list) and bool(polygon) and isinstance(polygon[0], list)
        if points and not all(_is_point(part) for part in polygon):
            raise ValueError("expected points of two numbers")
        numbers = array("d", [value for point in polygon for value in point] if points else polygon)
        if len(numbers) % 2 or not math.isfinite(sum(numbers)):
            raise ValueError("expected polygons of finite numbers x, y, x, y...")
        if len(numbers) >= 6:  # fewer points enclose nothing
            outlines.append(numbers)
    return outlines


def _is_point(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and not isinstance(part[0], list)


def _unlearnable(item: dict[str, Any], image: dict[str, Any]) -> str | None:
    """Return the reason why training cannot learn from an annotation, or None if it can."""
    if item["iscrowd"]:
        return "crowd regions (iscrowd 1)"
    left, top, width, height = item["bbox"]
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    if right - max(left, 0) < 1 or bottom - max(top, 0) < 1:
        return "boxes of less than a pixel in the image"
    if item["segmentation"] == []:
        return "polygons of fewer than three points"
    return None


def targets(
    objects: Sequence[dict[str, Any]], category_ids: Sequence[int], size: tuple[int, int], masks: bool = True
) -> dict[str, Tensor]:
    """Return the n objects of an image as a detector's target.

    Args:
        objects: The annotations of the image, as cleaned by :func:`read`.
        category_ids: The category ids in ascending order, from which the labels are counted.
        size: The height and width of the image in pixels.
        masks: Whether the detector finds masks.

    Returns:
        ``boxes`` ``(n, 4)`` as corners in pixels, ``labels`` ``(n,)`` counted from 1, and ``iscrowd`` and ``area``
        ``(n,)``, which evaluation needs. For a detector of masks also ``masks`` ``(n, H, W)`` of 0 and 1, and
        ``masked`` ``(n,)`` of bool: whether the object has a mask. If it has none, its mask is its box.

    Raises:
        ValueError: A segmentation cannot be decoded. The message names the annotation.
    """
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    boxes = torch.tensor([item["bbox"] for item in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    target = {
        "boxes": boxes,
        "labels": torch.tensor([labels[item["category_id"]] for item in objects], dtype=torch.int64),
        "iscrowd": torch.tensor([item.get("iscrowd", 0) for item in objects], dtype=torch.int64),
        "area": torch.tensor([item.get("area", 0) for item in objects], dtype=torch.float32),
    }
    if masks:
        decoded = [_mask(item, size) for item in objects]
        target["masks"] = torch.from_numpy(np.stack(decoded) if decoded else np.zeros((0, *size), np.uint8))
        target["masked"] = torch.tensor([item["segmentation"] is not None for item in objects], dtype=torch.bool)
    return target


def _mask(annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    if annotation["segmentation"] is None:
        return _rectangle(annotation["bbox"], size)
    try:
        return decode(annotation["segmentation"], size)
    except Exception as error:  # the decoder raises exceptions of many kinds
        raise ValueError(f"annotation {annotation.get('id')} has an unreadable segmentation ({error})") from error


def _rectangle(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = box
    mask = np.zeros(size, np.uint8)
    mask[max(round(top), 0) : max(round(top + height), 0), max(round(left), 0) : max(round(left + width), 0)] = 1
    return mask


def decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask ``(H, W)`` of 0 and 1 that polygons or run lengths, compressed or not, describe.

    Args:
        segmentation: The polygons or run lengths, in COCO's format.
        size: The height and width of the image in pixels.

    Raises:
        ValueError: The run lengths belong to an image of another size.
    """
    from faster_coco_eval.core import mask as rle  # here, because fit looks for annotations in folders of any kind

    height, width = size
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths for {segmentation['size']} pixels, expected {[height, width]}")
        compressed = not isinstance(segmentation["counts"], list)
        encoded = segmentation if compressed else rle.frPyObjects(segmentation, height, width)
    else:
        if not segmentation:
            return np.zeros(size, np.uint8)
        encoded = rle.merge(rle.frPyObjects([list(polygon) for polygon in segmentation], height, width))
    mask: np.ndarray = rle.decode(encoded)
    return np.ascontiguousarray(mask)

"""Small data sets, in the layout of each task, of all that is difficult for augmentation and losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.detection.conftest import annotation, rectangle, uncompressed


def odd_pixels(random: np.random.Generator) -> np.ndarray:
    """8 to 40 pixels high and wide: noise, greys, a constant colour, black, white or a gradient."""
    height, width = random.integers(8, 41, 2)
    match random.integers(7):
        case 0:
            return np.zeros((height, width, 3), np.uint8)
        case 1:
            return np.full((height, width, 3), 255, np.uint8)
        case 2:
            return np.broadcast_to(random.integers(0, 256, 3, np.uint8), (height, width, 3)).copy()
        case 3:
            return random.integers(0, 256, (height, width), np.uint8)  # greyscale
        case 4:
            return np.tile(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, 1, 3))
        case _:
            return random.integers(0, 256, (height, width, 3), np.uint8)


def write_classes(root: Path, count: int, classes: int = 2) -> None:
    """Folders ``train``, ``val`` and ``test`` with a folder for each class."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(count if split == "train" else 2 * classes):
            folder = root / split / f"class_{number % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(odd_pixels(random)).save(folder / f"{number}.png")


def write_scenes(root: Path, data: dict[str, Any], classes: int, count: int) -> None:
    """Images and label maps where the recipe's ``data`` looks for them."""
    random = np.random.default_rng(0)
    first, (ignored, *_) = data.get("first_label", 0), data["ignore_labels"]
    for split in ("train", "val"):
        images, maps = (root / data[f"{split}_{kind}"] for kind in ("images", "labels"))
        images.mkdir(parents=True)
        maps.mkdir(parents=True)
        for number in range(count if split == "train" else 4):
            pixels = odd_pixels(random)
            labels = random.integers(first, first + classes, pixels.shape[:2])
            match number % 5:
                case 0:
                    labels[:] = ignored
                case 1:
                    labels[:] = labels[0, 0]
                case 2:
                    labels[random.random(labels.shape) < 0.9] = ignored
                case 3:
                    labels[: len(labels) // 2] = first
            Image.fromarray(pixels).save(images / f"{number}.png")
            Image.fromarray(labels.astype(np.uint8)).save(maps / f"{number}.png")


def write_coco(root: Path, classes: int, count: int) -> None:
    """Folder ``images`` and ``annotations.json``: images with no object, with one, with many; tiny and huge ones."""
    random = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for image in range(count):
        pixels = odd_pixels(random)
        height, width = size = pixels.shape[:2]
        Image.fromarray(pixels).save(root / "images" / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "height": height, "width": width})
        for _ in range(random.choice([0, 1, 1, 3, 40])):
            left, top = random.uniform(0, width - 1), random.uniform(0, height - 1)
            right, bottom = random.uniform(left, width), random.uniform(top, height)
            match random.integers(5):
                case 0:
                    left, top, right, bottom = 0, 0, width, height
                case 1:
                    right, bottom = left + random.choice([0, 0.5, 1]), top + 1
            box = tuple(round(float(value), 2) for value in (left, top, right - left, bottom - top))
            whole = tuple(round(value) for value in box)
            segmentation = uncompressed(rectangle(size, whole)) if random.random() < 0.3 else None
            category, crowd = int(random.integers(1, classes + 1)), int(random.random() < 0.05)
            annotations.append(annotation(len(annotations) + 1, image, category, box, segmentation, iscrowd=crowd))
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (root / "annotations.json").write_text(json.dumps(content))

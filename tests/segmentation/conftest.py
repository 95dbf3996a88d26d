"""Scenes to segment: a folder of images, and one of label maps, in which colours tell the classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)  # of classes 0, 1, 2
NAMES = ["red", "green", "blue"]


def scene(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image ``(H, W, 3)`` of two coloured areas on a third, and its label map ``(H, W)`` with a rim of 9."""
    random = np.random.default_rng(seed)
    labels = np.full((height, width), random.integers(3), np.uint8)
    for label in random.permutation(3)[:2]:
        top, left = random.integers(height // 2), random.integers(width // 2)
        labels[top : top + height // 2, left : left + width // 2] = label
    image = COLOURS[labels] + random.integers(0, 30, (height, width, 3), np.uint8)
    labels[:2] = 9
    return image, labels


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Folders ``images/{train,val}`` and ``labels/{train,val}``; eight and three images, of different sizes."""
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "labels"):
            (tmp_path / "scenes" / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels = scene(60 + 5 * i, 70 + 3 * i, i)
            Image.fromarray(image).save(tmp_path / "scenes/images" / split / f"{i}.png")
            Image.fromarray(labels).save(tmp_path / "scenes/labels" / split / f"{i}.png")
    return tmp_path / "scenes"

"""Scenes to segment: a folder of images, and one of label maps, in which colours tell the classes."""

from pathlib import Path
from typing import Any

import numpy as np

from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)  # of classes 0, 1, 2
NAMES = ["red", "green", "blue"]
FOLDERS = {
    "train_images": "images/train",
    "train_labels": "labels/train",
    "val_images": "images/val",
    "val_labels": "labels/val",
}


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


def segment(folder: Path, paths: list[Path], output: Path) -> list[dict[str, Any]]:
    """The results of predicting with a saved segmenter."""
    model = saved.resolve(folder)
    return list(predictions(model, predictor(model, Options(output=output)), paths))

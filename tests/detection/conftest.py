"""A small data set in COCO's format, with all that makes such files difficult."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle
from PIL import Image

# iFormer with one narrow block a stage, and narrow heads.
BACKBONE = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "num_heads": [2, 2, 2, 2], "attention_heads": [1, 1, 1, 1]}
MODEL = {
    "backbone_args": {**BACKBONE, "img_size": 64},
    "channels": 16,
    "anchor_scale": 4,
    "min_size": 64,
    "max_size": 96,
    "box_batch_size_per_image": 32,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 50,
}
CONFIG = {
    "network": {
        "architecture": "mask_rcnn",
        "backbone": "iformer_nano",
        "num_classes": 3,
        **MODEL,
        "box_score_thresh": 0.3,
    },
    "class_names": ["car", "train", "zebra"],
    "category_ids": [3, 7, 90],
}
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}]  # sorted by nobody


def compressed(mask: np.ndarray) -> dict:
    encoded = rle.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    x, y, width, height = box
    mask = np.zeros(size, np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def annotation(number: int, image: int, category: int, box: tuple[int, int, int, int], segmentation, **extra) -> dict:
    x, y, width, height = box
    polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0}
    return {**entry, "area": width * height, "segmentation": segmentation or polygon, **extra}


def annotations() -> dict:
    """Six images: wide, high, with a crowd, with a box of no size, without annotations, wide."""
    sizes = {11: (48, 64), 12: (64, 48), 13: (48, 64), 14: (48, 64), 15: (48, 64), 16: (40, 60)}  # height, width
    box, other = (8, 10, 20, 16), (30, 20, 18, 20)
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i, (height, width) in sizes.items()
        ],
        "categories": copy.deepcopy(CATEGORIES),
        "annotations": [
            annotation(1, 11, 3, box, None),
            annotation(2, 11, 90, other, compressed(rectangle(sizes[11], other))),
            annotation(3, 12, 7, box, uncompressed(rectangle(sizes[12], box))),
            annotation(4, 13, 3, (0, 0, 60, 40), uncompressed(rectangle(sizes[13], (0, 0, 60, 40))), iscrowd=1),
            annotation(5, 13, 90, other, None),
            annotation(6, 14, 7, (5, 5, 0, 12), [[5, 5, 5, 17, 5, 10]]),
            annotation(7, 14, 7, box, None),
            annotation(8, 16, 3, (2, 2, 30, 30), None),
        ],
    }


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``images`` and ``annotations.json``."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    content = annotations()
    for entry in content["images"]:
        noise = np.random.default_rng(entry["id"]).integers(0, 60, (entry["height"], entry["width"], 3), np.uint8)
        for item in content["annotations"]:
            if item["image_id"] == entry["id"]:
                x, y, width, height = item["bbox"]
                noise[y : y + height, x : x + width, item["category_id"] % 3] += 180
        Image.fromarray(noise).save(folder / "images" / entry["file_name"])
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def boxes_only(coco: Path) -> str:
    """Name of an annotation file in the folder with the same boxes and no masks."""
    content = annotations()
    for item in content["annotations"]:
        del item["segmentation"]
    (coco / "boxes.json").write_text(json.dumps(content))
    return "boxes.json"


@pytest.fixture
def data_arguments(coco: Path) -> dict:
    """Arguments of CocoData for the folder, as training and validation data."""
    return {
        "root": str(coco),
        "train_images": "images",
        "train_annotations": "annotations.json",
        "val_images": "images",
        "val_annotations": "annotations.json",
        "num_workers": 0,
        "pin_memory": False,
    }

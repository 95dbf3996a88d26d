"""Every recipe on small and odd data: what of it is replaced, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from iformer.training import recipes
from tests.soak.odd_data import write_classes, write_coco, write_scenes

NAMES = recipes.names()


def settings(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = recipes.read(recipes.find(name))
    return loaded


def task(name: str) -> str:
    """classification, detection or segmentation; fashion_mnist, which brings its own data."""
    return name if name == "fashion_mnist" else str(settings(name)["model"]["class_path"].split(".")[1])


def alike(key: Callable[[str], Any]) -> list[Any]:
    """Parameters of a test: the recipes, one for all to which ``key`` gives the same, named for all of them."""
    groups: dict[str, list[str]] = {}
    for name in NAMES:
        groups.setdefault(yaml.safe_dump(key(name)), []).append(name)
    return [pytest.param(names[0], id=" ".join(names)) for names in groups.values()]


def data_changes(name: str, root: Path, fashion_mnist: Path, count: int, workers: int) -> dict[str, Any]:
    """Write data for a recipe into ``root``; the arguments of its datamodule that must change for it."""
    recipe = settings(name)
    classes, data = recipe["model"]["init_args"]["num_classes"], recipe["data"]["init_args"]
    match task(name):
        case "fashion_mnist":
            return {"data_dir": str(fashion_mnist)}
        case "classification":
            write_classes(root, count)
        case "detection":
            write_coco(root, classes, count)
        case _:
            write_scenes(root, data, classes, count)
    return {"root": str(root), "num_workers": workers, **smaller(name)}


def smaller(name: str) -> dict[str, Any]:
    """The arguments of a recipe's datamodule that stand for small images.

    Images shrink from 224, 384 and 512 pixels to 32, so that twenty thousand take seconds: what is drawn, and by what,
    remains the recipe's.
    """
    data = settings(name)["data"]["init_args"]
    match task(name):
        case "fashion_mnist":
            return {}
        case "classification":
            return {"image_size": 32}
        case "detection":
            folders = {f"{split}_images": "images" for split in ("train", "val")}
            files = {f"{split}_annotations": "annotations.json" for split in ("train", "val")}
            return {"limit": None, **folders, **files}
        case _:
            within = data["resize"] and [side // 16 for side in data["resize"]]
            crop = [32 * side // max(data["crop"]) for side in data["crop"]]
            return {"resize": within, "crop": crop}

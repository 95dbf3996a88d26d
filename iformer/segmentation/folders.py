"""Folders of images and label maps: recognising them, surveying them, and the recipe for them.

See :mod:`iformer.training.folders`.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iformer.common.images import UnreadableImageError, image_files
from iformer.common.ranges import require
from iformer.models.backbone import pretrained
from iformer.segmentation.data import MapValue, SegmentationData, pairs, read_values
from iformer.training.folders import SPLITS, Options
from iformer.training.survey import Survey, look_at, spread

DATA = SegmentationData
IMAGES = "images"
LABELS = ("labels", "annotations", "masks")
NAMES = "classes.txt"  # beside the folders: the name of a class in each line
NO_CLASS = 255  # the value that stands for no class by custom
CROP = 512  # the side of the crops in pixels, unless images are smaller
SMALL = 64  # the side below which iformer_nano takes the place of iformer_small


def recognise(folder: Path) -> dict[str, Any] | None:
    """Return the arguments of :class:`SegmentationData` for a folder with images and label maps.

    They stand in ``images/train`` and ``labels/train``, or in ``train/images`` and ``train/labels``; instead of
    ``labels``, the folder may be called ``annotations`` or ``masks``.

    Raises:
        ValueError: There are no training or no validation images.
    """
    found: dict[str, tuple[str, str]] = {}
    for split, names in SPLITS.items():
        for images, labels in _places(names):
            if (folder / images).is_dir() and _has_images(folder / labels):
                found.setdefault(split, (images, labels))
    if not found:
        _refuse_undivided(folder)
        return None
    for split in ("train", "val"):
        if split not in found:
            raise ValueError(f"{folder}: no {split} images, expected {IMAGES}/{split} and {LABELS[0]}/{split}")
    data: dict[str, Any] = {"root": str(folder)}
    for split, (images, labels) in found.items():
        data |= {f"{split}_images": images, f"{split}_labels": labels}
    images, labels = found["train"]
    return {**data, "label_suffix": _suffix(folder / images, folder / labels)}


def _places(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, labels in itertools.product(names, LABELS):
        yield f"{IMAGES}/{name}", f"{labels}/{name}"
        yield f"{name}/{IMAGES}", f"{name}/{labels}"


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and next(image_files(folder), None) is not None


def _refuse_undivided(folder: Path) -> None:
    """Raise ValueError if images and label maps stand in two folders without splits."""
    labels = next((name for name in LABELS if _has_images(folder / name)), None)
    if labels and _has_images(folder / IMAGES):
        raise ValueError(
            f"{folder}: images and label maps without a split, expected {IMAGES}/train, {labels}/train, {IMAGES}/val "
            f"and {labels}/val; put about one in ten images and its label map into the latter two"
        )


def _suffix(images: Path, labels: Path) -> str:
    """Return the end of the label maps' names that takes the place of the images' extension."""
    image = next(image_files(images), None)
    if image is None:
        return ".png"
    inside = labels / image.relative_to(images).parent
    names = (file.name for file in sorted(inside.glob("*")) if file.name.startswith(image.stem))
    return next(iter(sorted(names, key=len)), f"{image.stem}.png").removeprefix(image.stem)


def survey(data: Mapping[str, Any]) -> Survey:
    """Read the label maps, at most ``LOOKED_AT`` of a split, count those of each class, and open the images.

    The names of the classes are the lines of ``classes.txt`` in the folder, or "class 0" and so on; the value 255
    stands for no class, unless ``ignore_labels`` says otherwise.

    Raises:
        FileNotFoundError: An image has no label map.
        ValueError: The label maps' values are no classes.
    """
    root, suffixes = Path(data["root"]), (data.get("image_suffix", ""), data["label_suffix"])
    found = {
        kind: pairs(root / data[f"{kind}_images"], root / data[f"{kind}_labels"], *suffixes)
        for kind in ("train", "val")
    }
    files = {kind: [image for image, _ in both] for kind, both in found.items()}
    images = look_at(files)
    maps = {kind: _read(both, images.sizes[kind]) for kind, both in found.items()}
    wrong = [line for _, lines in maps.values() for line in lines]
    values = maps["train"][0] + maps["val"][0]
    if not values:
        raise ValueError(wrong[0] if wrong else f"{root}: no label map can be read")
    settings = _classes(root, data, values)
    first, names = settings["first_label"], settings["class_names"]
    counts = {kind: [counted[first + label] for label in range(len(names))] for kind, (counted, _) in maps.items()}
    notes = []
    if ignored := [value for value in settings["ignore_labels"] if values[value]]:
        notes.append(f"the value {', '.join(map(str, ignored))} in label maps stands for no class")
    if not data.get("class_names") and not (root / NAMES).is_file():
        notes.append(f"the classes have no names; give them in {root / NAMES}, one in a line")
    both = {"data": {"init_args": settings}, "model": {"init_args": {"num_classes": len(names)}}}
    return Survey(
        "images with label maps",
        "label maps",
        names,
        counts,
        files,
        images,
        notes,
        wrong,
        settings=both,
        has_test=bool(data.get("test_images")),
    )


def _read(both: Sequence[tuple[Path, Path]], sizes: Mapping[Path, tuple[int, int]]) -> tuple[Counter[int], list[str]]:
    """Return how many label maps have each value, and a line about each that cannot be used."""
    counted: Counter[int] = Counter()
    wrong: list[str] = []
    for image, file in spread(both):
        try:
            values = read_values(file)
        except UnreadableImageError as error:
            wrong.append(str(error))
            continue
        height, width = values.shape
        if (size := sizes.get(image, (width, height))) not in ((width, height), (height, width)):
            wrong.append(f"{file}: {width} x {height} pixels, but its image {image} has {size[0]} x {size[1]}")
        counted.update(np.unique(values).tolist())
    return counted, wrong


def _classes(root: Path, data: Mapping[str, Any], values: Counter[int]) -> dict[str, Any]:
    """Return the arguments of the datamodule that say which values stand for which classes.

    Raises:
        ValueError: The values do not fit the names, or are too few or too many.
    """
    first, ignored = data.get("first_label", 0), data.get("ignore_labels", [NO_CLASS])
    require("data.init_args.first_label", first, MapValue)
    require("data.init_args.ignore_labels", ignored, list[MapValue])
    labels = sorted(set(values) - set(ignored))
    shown = ", ".join(map(str, labels[:12])) + (", ..." if len(labels) > 12 else "")
    given = data.get("class_names") or (str(root / NAMES) if (root / NAMES).is_file() else None)
    if not labels or (labels[-1] - first < 1 and given is None):
        raise ValueError(
            f"{root}: the label maps hold {shown or 'nothing'} besides {', '.join(map(str, ignored))}, which stands "
            "for no class; expected a value for each class from 0 up (in an object's mask 1, not 255)"
        )
    if labels[-1] - first >= NO_CLASS - 1:
        raise ValueError(f"{root}: the label maps hold {shown}; expected at most {NO_CLASS - 2} classes, from 0 up")
    names = given or [f"class {label}" for label in range(labels[-1] - first + 1)]
    names = list(SegmentationData(str(root), names).class_names)
    odd = [label for label in labels if not first <= label < first + len(names)]
    if odd:
        raise ValueError(
            f"{root}: the label maps hold {shown}, but there are {len(names)} classes from {first} up; say what "
            f"{odd[0]} is: --data.init_args.ignore_labels '[{odd[0]}]' if no class, or --data.init_args.first_label 1"
        )
    return {"class_names": names, "first_label": first, "ignore_labels": ignored}


def recipe(survey: Survey, options: Options) -> dict[str, Any]:
    """Return a recipe: Semantic FPN, on crops that are no larger than the images.

    Raises:
        ValueError: There is no such model, or it has no such weights.
    """
    short = survey.sides[0]
    side = options.image_size or min(CROP, max(32, short // 32 * 32))
    name = options.model or ("iformer_nano" if side < SMALL else "iformer_small")
    weights = pretrained(name, options.weights)
    task: dict[str, Any] = {"backbone": name, "pretrained": weights}
    if not weights:  # from scratch, as on CamVid
        task["optimization"] = {"lr": 1e-3, "min_lr": 1e-5, "warmup_lr": 1e-5, "base_batch": None}
    if name == "iformer_nano" and side >= SMALL:
        task["model_args"] = {"backbone_args": {"stem_stride": 4}}  # as in the larger models
    data = {"crop": [side, side], "resize": [side, 4 * side]}
    return {"base": "segmentation_folder", "model": {"init_args": task}, "data": {"init_args": data}}

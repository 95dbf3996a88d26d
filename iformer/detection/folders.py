"""Images with annotations in COCO's format: recognising them, surveying them, and the recipe for them.

See :mod:`iformer.training.folders`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iformer.common.images import EXTENSIONS, is_hidden
from iformer.detection.annotations import KEYS, Annotations, read
from iformer.detection.data import CocoData, left_out, require_same_classes
from iformer.models.backbone import pretrained
from iformer.training.folders import SPLITS, Options
from iformer.training.survey import Survey, look_at

DATA = CocoData
NAMED = 50  # the number of an annotation file's images that are looked for
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
SIDE = 800  # the short side of the images in the recipe
EPOCHS, DROPS = 36, (27, 33)  # the recipe's epochs, and those after which its rate falls
WARMUP = 500  # the recipe's steps of warm-up


def recognise(folder: Path) -> dict[str, Any] | None:
    """Return the arguments of :class:`CocoData` for a folder with annotations in COCO's format.

    Annotation files have the name of their split in their own name or in that of their folder, such as
    ``annotations/instances_train2017.json`` or ``train/_annotations.coco.json``.

    Raises:
        ValueError: There is no annotation file for training or for validation, there are several, their images are
            nowhere in the folder, or the annotations have another format.
    """
    files = [file for file in _json_files(folder) if _is_coco(file)]
    if not files:
        _refuse_other_formats(folder)
        return None
    data: dict[str, Any] = {"root": str(folder)}
    for split in ("train", "val"):
        file = _annotations(folder, files, split)
        data |= {
            f"{split}_annotations": str(file.relative_to(folder)),
            f"{split}_images": str(_images(folder, file, split).relative_to(folder)),
        }
    return data


def _refuse_other_formats(folder: Path) -> None:
    """Raise ValueError if boxes stand in YOLO's text files or Pascal VOC's XML, where label maps would be."""
    splits = [name for names in SPLITS.values() for name in names]
    places = ("labels", "Annotations", *(f"{name}/labels" for name in splits), *(f"labels/{name}" for name in splits))
    for place in (folder / place for place in places):
        found = {path.suffix.lower() for path in place.glob("*")}
        if found & {".txt", ".xml"} and not found & set(EXTENSIONS):
            raise ValueError(
                f"{place}: not annotations in COCO's format; supervision converts YOLO's and Pascal VOC's "
                "(docs/detection.md)"
            )


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)]


def _json_files(folder: Path) -> Iterator[Path]:
    named = [
        path for path in _folders(folder) if path.name == "annotations" or any(_is_of(path.name, s) for s in SPLITS)
    ]
    for place in (folder, *named):
        yield from (path for path in sorted(place.glob("*.json")) if not is_hidden(path.name))


def _is_coco(file: Path) -> bool:
    content = file.read_bytes()
    return all(f'"{key}"'.encode() in content for key in KEYS)


def _is_of(name: str, split: str) -> bool:
    """Return whether a name, such as ``instances_train2017``, has the name of a split among its words."""
    return bool(set(SPLITS[split]) & set(re.findall("[a-z]+", name.lower())))


def _annotations(folder: Path, files: Sequence[Path], split: str) -> Path:
    found = [
        file
        for file in files
        if _is_of(file.stem, split) or (file.parent != folder and _is_of(file.parent.name, split))
    ]
    chosen = [file for file in found if file.stem.startswith("instances")] or found
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(str(file.relative_to(folder)) for file in chosen or files)
    raise ValueError(
        f"{folder}: {len(chosen) or 'no'} annotation files of the split {split}, expected one, such as "
        f"annotations/instances_{split}.json; there is {there}"
    )


def _images(folder: Path, file: Path, split: str) -> Path:
    """Return the folder of the images that an annotation file names."""
    named = [json.loads(text) for text in FILE_NAME.findall(file.read_bytes())[:NAMED]]
    of_split = [path for path in _folders(folder) if _is_of(path.name, split)]
    inner = [
        path
        for path in (_folders(folder / "images") if (folder / "images").is_dir() else [])
        if _is_of(path.name, split)
    ]
    places = [*of_split, *(path / "images" for path in of_split), *inner, folder / "images", file.parent, folder]
    for place in places:
        if any((place / name).is_file() for name in named):
            return place
    tried = ", ".join(str(place) for place in dict.fromkeys(places) if place.is_dir())
    raise ValueError(f"{file}: none of its images, such as {named[0] if named else '?'}, is in {tried}")


def survey(data: Mapping[str, Any]) -> Survey:
    """Read the annotations, count the objects of each class, and open the images.

    Raises:
        ValueError: A file is not in COCO's format, or the splits have different classes.
    """
    CocoData(**data)  # checks the arguments
    root = Path(data["root"])
    found = {kind: read(root / data[f"{kind}_annotations"], data.get("limit")) for kind in ("train", "val")}
    train = found["train"]
    require_same_classes(train, found["val"])
    told = left_out(train)
    named = {
        kind: {root / data[f"{kind}_images"] / image["file_name"]: image for image in annotations.images}
        for kind, annotations in found.items()
    }
    files = {kind: [file for file in entries if file.is_file()] for kind, entries in named.items()}
    images = look_at(files)
    wrong = [line for kind in found for line in _wrong(named[kind], images.sizes[kind], found[kind].path)]
    counts = {kind: _counts(annotations) for kind, annotations in found.items()}
    notes = [
        f"{sum(counts['train']):,} training and {sum(counts['val']):,} validation objects",
        _of_masks(train.masked),
        *([told] if told else []),
    ]
    if empty := sum(not objects for objects in train.objects.values()):
        notes.append(f"{empty} training images without objects: they teach what is background")
    architecture = "mask_rcnn" if any(train.masked) else "faster_rcnn"
    task = {"num_classes": len(train.class_names), "architecture": architecture}
    return Survey(
        "images with annotations in COCO's format",
        "objects",
        train.class_names,
        counts,
        files,
        images,
        notes,
        wrong,
        settings={"model": {"init_args": task}},
    )


def _wrong(named: Mapping[Path, Mapping[str, Any]], sizes: Mapping[Path, tuple[int, int]], path: Path) -> Iterator[str]:
    """Yield a line about each image that is missing, or not of the size that its annotations say."""
    for file, entry in named.items():
        size = (entry["width"], entry["height"])
        width, height = sizes.get(file, size)
        if not file.is_file():
            yield f"{file}: no such file, though {path} names it"
        elif size not in ((width, height), (height, width)):  # it may have been annotated as it is stored
            yield f"{file}: {width}x{height} pixels, but {size[0]}x{size[1]} in {path}"


def _of_masks(masked: Sequence[bool]) -> str:
    if not any(masked):
        return "the objects have boxes and no masks: Faster R-CNN"
    if all(masked):
        return "the objects have boxes and masks: Mask R-CNN"
    return (
        f"{sum(masked)} of {len(masked)} training objects have a mask: Mask R-CNN, the others teach boxes and classes"
    )


def _counts(annotations: Annotations) -> list[int]:
    objects = (item for items in annotations.objects.values() for item in items if not item["iscrowd"])
    counted = Counter(item["category_id"] for item in objects)
    return [counted[number] for number in annotations.category_ids]


def recipe(survey: Survey, options: Options) -> dict[str, Any]:
    """Return a recipe: Mask R-CNN or Faster R-CNN, and as long a schedule as is asked for.

    Raises:
        ValueError: There is no such model, or it has no such weights.
    """
    short = survey.sides[0]
    side = options.image_size or min(SIDE, 2 * max(32, short))  # more than twice as large shows nothing more
    name = options.model or "iformer_small"
    weights = pretrained(name, options.weights)
    network: dict[str, Any] = {} if side == SIDE else {"min_size": side, "max_size": round(side * 5 / 3)}
    if name == "iformer_nano":
        network["backbone_args"] = {"stem_stride": 4}  # as in the larger models
    if side < SIDE / 2:
        network["anchor_scale"] = 4  # such images hold smaller objects
    epochs = options.epochs or EPOCHS
    steps = len(survey.files["train"]) // (options.batch_size or 2)
    drops = sorted({max(1, epochs * drop // EPOCHS) for drop in DROPS})
    schedule: dict[str, Any] = {"drops": drops, "warmup_steps": min(WARMUP, max(1, steps))}
    if not weights:  # from scratch
        schedule |= {"lr": 1e-3, "base_batch": None}
    task = {"backbone": name, "pretrained": weights, "model_args": network, "optimization": schedule}
    trainer = {"gradient_clip_val": 10.0}
    return {"base": "coco/mask_rcnn_iformer_small_3x", "model": {"init_args": task}, "trainer": trainer}

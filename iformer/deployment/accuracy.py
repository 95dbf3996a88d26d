"""The accuracy of models of any task on labelled images, which is measured before and after an export."""

from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import tv_tensors

from iformer.common.batches import batches
from iformer.common.images import ImageFile, UnreadableImageError
from iformer.models.class_folders import class_labels
from iformer.models.saved import Model

SCORES = {"top1": "Top-1", "miou": "mIoU", "box_ap": "Box AP", "mask_ap": "Mask AP"}
"""The scores of the tasks, and how people call them."""

Unreadable = dict[ImageFile, str]


@torch.inference_mode()
def measure(model: Model, folder: Path, unreadable: Unreadable) -> tuple[int, dict[str, float]]:
    """Measure a model on a folder of labelled images.

    Args:
        model: The model.
        folder: The images: of a classifier in class folders, which are named like its classes, or like those of
            ImageNet (n01440764 and so on); of a segmenter in a folder within one called ``images``, with their label
            maps in the same folder within ``annotations`` or ``labels`` beside it; of a detector with their
            annotations in ``annotations/instances_NAME.json`` beside the folder NAME.
        unreadable: The files that cannot be read, each with a line that says why. They are left out, and further ones
            are added.

    Returns:
        The number of images measured, and the scores, from 0 to 1: ``top1``, ``miou``, or ``box_ap`` and ``mask_ap``.

    Raises:
        ValueError: The folder is not as described, or no image in it can be read.
        OSError: A file is missing.
    """
    measures: dict[str, Callable[[Model, Path, Unreadable], tuple[int, dict[str, float]]]] = {
        "classification": _top1,
        "segmentation": _miou,
        "detection": _average_precision,
    }
    count, found = measures[model.task](model, folder, unreadable)
    if not count:
        raise ValueError(f"no image can be read: {next(iter(unreadable.values()))}")
    return count, found


def _top1(model: Model, folder: Path, unreadable: Unreadable) -> tuple[int, dict[str, float]]:
    if "thresholds" in model.config:
        raise ValueError(f"{folder}: the model gives images several labels, which class folders do not; leave it out")
    labels: dict[ImageFile, int] = dict(class_labels(model, folder))
    hits = total = 0
    paths = [path for path in labels if path not in unreadable]
    for batch in batches(paths, model.prepare, model.channels, 64, "Measuring the accuracy"):
        unreadable |= {sample.path: sample.error for sample in batch if sample.error}
        readable = [sample for sample in batch if not sample.error]
        if readable:
            found = model.network(torch.stack([sample.image for sample in readable])).argmax(1)
            hits += sum(int(label) == labels[sample.path] for label, sample in zip(found, readable, strict=True))
            total += len(readable)
    return total, {"top1": hits / max(total, 1)}


def _miou(model: Model, folder: Path, unreadable: Unreadable) -> tuple[int, dict[str, float]]:
    from iformer.segmentation import inference  # these need the extra train, and the others only deploy
    from iformer.segmentation.data import labelled_scenes, pairs
    from iformer.segmentation.metrics import scores
    from iformer.segmentation.transforms import IGNORE

    how = model.config.get("label_maps") or {}
    names = {key: how[key] for key in ("image_suffix", "label_suffix") if key in how}
    values = {key: how[key] for key in ("first_label", "ignore_labels") if key in how}
    scenes = labelled_scenes(pairs(folder, _label_maps(folder), **names), len(model.class_names), _untouched, **values)
    count, classes = 0, len(model.class_names)
    confusion = torch.zeros(classes**2, dtype=torch.int64)
    for index, (path, _) in enumerate(scenes.pairs):
        if path in unreadable:
            continue
        try:
            image, labels = scenes[index]
        except UnreadableImageError as error:
            unreadable[path] = str(error)
            continue
        known = labels != IGNORE
        found = inference.classes(model, image)[known]
        confusion += torch.bincount(labels[known].long() * classes + found, minlength=classes**2)
        count += 1
    return count, {"miou": scores(confusion.view(classes, classes))["miou"]}


def _average_precision(model: Model, folder: Path, unreadable: Unreadable) -> tuple[int, dict[str, float]]:
    from iformer.detection.annotations import read as read_annotations
    from iformer.detection.data import CocoImages
    from iformer.detection.masks import pasted
    from iformer.detection.metrics import AveragePrecision

    file = folder.parent / "annotations" / f"instances_{folder.name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, which should hold the annotations of the images in {folder}")
    masks = model.network.finds_masks
    annotations = read_annotations(file, masks=masks)
    if list(annotations.category_ids) != list(model.config["category_ids"]):
        raise ValueError(f"{file}: its categories are not those of the model")
    images = CocoImages(folder, annotations, training=False, hflip=0.0, masks=masks)
    precision, count = AveragePrecision(masks), 0
    for index, entry in enumerate(annotations.images):
        path = folder / entry["file_name"]
        if path in unreadable:
            continue
        try:
            image, target = images[index]
        except UnreadableImageError as error:
            unreadable[path] = str(error)
            continue
        (found,) = model.network([image], paste=False)
        if masks:
            found["masks"] = pasted(dict(found), (image.shape[1], image.shape[2]))
        precision.update([found], [target])
        count += 1
    summary = precision.summary() if count else {}
    return count, {key: summary.get(key, 0.0) for key in ("box_ap", "mask_ap") if masks or key == "box_ap"}


def _label_maps(folder: Path) -> Path:
    """Return the folder of the label maps that belong to a folder of images.

    Raises:
        ValueError: There is none.
    """
    parts = folder.resolve().parts
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        for name in ("annotations", "labels"):
            if (found := Path(*parts[:place], name, *parts[place + 1 :])).is_dir():
                return found
    raise ValueError(
        f"{folder}: has no label maps; expected a folder like images/val, with its label maps in annotations/val"
    )


def _untouched(image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[torch.Tensor, torch.Tensor]:
    return image.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)

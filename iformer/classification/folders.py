"""Class folders: recognising them, surveying them, and the recipe for them; see :mod:`iformer.training.folders`."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg

from iformer.classification.data import ImageData
from iformer.common.images import image_files, is_hidden
from iformer.models.backbone import pretrained
from iformer.models.presets import PRESETS
from iformer.training.folders import Options
from iformer.training.survey import Survey, look_at

DATA = ImageData
SMALL = (28, 64)  # the sides in pixels of the images that iformer_nano is for


def recognise(folder: Path) -> dict[str, Any] | None:
    """Return the arguments of :class:`ImageData` for a folder of folders with images; None for any other folder."""
    inner = (path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name))
    if not any(next(image_files(path), None) for path in inner):
        return None
    # Null takes the splits that are there, whatever the recipe calls them.
    splits = {"train_split": None, "val_split": None, "test_split": None}
    return {"root": str(folder), **splits, "on_error": "skip"}


def survey(data: Mapping[str, Any]) -> Survey:
    """Count the images of each class, and open them.

    Raises:
        ValueError: There are fewer than two classes, or the splits contradict each other.
    """
    module = ImageData(**data)
    module.setup("fit")
    samples = {kind: module.samples(kind) for kind in ("train", "val")}
    labels = {kind: Counter(label for _, label in found) for kind, found in samples.items()}
    counts = {kind: [found[label] for label in range(module.num_classes)] for kind, found in labels.items()}
    files = {kind: [file for file, _ in found] for kind, found in samples.items()}
    notes = []
    if module.divided:
        share = f"{module.settings.val_share:.0%} of each class's images"
        notes.append(f"no folder of validation images: {share} are kept apart for it, always the same ones")
    return Survey(
        "images in class folders",
        "images",
        module.class_names,
        counts,
        files,
        look_at(files),
        notes,
        tolerated=module.settings.max_error_share if module.settings.on_error == "skip" else 0.0,
        has_test=bool(module.has_test),
        settings={"model": {"init_args": {"num_classes": module.num_classes}}},
    )


def recipe(survey: Survey, options: Options) -> dict[str, Any]:
    """Return a recipe: fine-tuning at the size that the weights are for, or for small images a small model at theirs.

    Raises:
        ValueError: There is no such model, or it has no such weights.
    """
    side = options.image_size or survey.sides[1]
    name = options.model or ("iformer_nano" if 0 < side < SMALL[1] else "iformer_small")
    weights = pretrained(name, options.weights)
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    usual = config.input_size[-1]
    size = options.image_size or (usual if usual > SMALL[1] else min(max(side, SMALL[0]), SMALL[1]))
    task: dict[str, Any] = {"model": name, "pretrained": weights}
    if size != usual and (config.fixed_input_size or name in PRESETS):
        task["model_args"] = {"img_size": size}
    if not weights and size > SMALL[1]:
        task["optimization"] = {"layer_decay": None}  # from scratch, the first layers have as much to learn
    data = {
        "image_size": size,
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "crop_pct": config.crop_pct if size > SMALL[1] else 1.0,
    }
    base = "finetune" if weights or size > SMALL[1] else "cifar10"
    return {"base": base, "model": {"init_args": task}, "data": {"init_args": data}}

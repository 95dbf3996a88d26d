"""Prediction for image files: the overlay, the label map, and each class's share of the pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torchvision import tv_tensors

from iformer.common.images import UnreadableImageError, read_image
from iformer.models import saved
from iformer.segmentation import inference, pictures
from iformer.segmentation.model import Segmenter, build
from iformer.segmentation.transforms import EvaluationTransform

KEYS = ("network", "resize", "mean", "std", "class_names", "palette", "window", "flip_test")


def load(folder: Path, config: dict[str, Any]) -> tuple[Segmenter, EvaluationTransform]:
    """The segmenter that a training run has exported into ``folder``, in evaluation mode, and what prepares its images.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    try:
        network, resize, mean, std, *_ = (config[key] for key in KEYS)
        model, transform = build(**network), EvaluationTransform(resize, mean, std)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: not a segmenter's ({error})") from error
    saved.load_assembled(model, folder)
    return model, transform


@torch.inference_mode()
def segment(folder: Path, config: dict[str, Any], paths: Sequence[Path], output: Path) -> list[dict[str, Any]]:
    """Segment image files, and write ``NAME_overlay.png`` and ``NAME_labels.png`` of each into ``output``.

    The label map is a palette image of the file's size, upright, whose values are the classes in the order of
    ``class_names``. Shows its progress on standard error where there is more than one image.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.
        paths: Image files.
        output: Folder, made if it is not there.

    Returns:
        For each file ``{"image": ..., "overlay": ..., "labels": ..., "classes": [{"name": ..., "share": ...}, ...]}``
        with the shares of the pixels, largest first; or ``{"image": path, "error": message}`` for a file that could not
        be read.

    Raises:
        ValueError: The checkpoint is damaged.
        OSError: A picture could not be written.
    """
    model, transform = load(folder, config)
    output.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    names = _distinct_names(paths)
    pairs = zip(paths, names, strict=True)
    for path, name in track(pairs, "Segmenting", len(paths), console=Console(stderr=True), disable=len(paths) < 2):
        try:
            image = np.asarray(read_image(path))
        except (OSError, UnreadableImageError) as error:
            results.append({"image": str(path), "error": str(error)})
            continue
        pixels, _ = transform(tv_tensors.Image(torch.from_numpy(image.transpose(2, 0, 1).copy())))
        logits = inference.logits(model, pixels[None], config["window"], config["flip_test"])
        labels = inference.labels(logits, image.shape[:2])[0].numpy().astype(np.uint8)
        files = {"overlay": output / f"{name}_overlay.png", "labels": output / f"{name}_labels.png"}
        pictures.draw_overlay(image, labels, config, files["overlay"])
        write_labels(labels, config["palette"], files["labels"])
        written = {kind: str(file) for kind, file in files.items()}
        results.append({"image": str(path), **written, "classes": _shares(labels, config["class_names"])})
    return results


def write_labels(labels: np.ndarray, palette: Sequence[Sequence[int]], file: Path) -> None:
    """Write ``(H, W)`` classes as a palette image."""
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette for channel in colour])  # makes it one of mode P
    image.save(file)


def _shares(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    counts = np.bincount(labels.flatten(), minlength=len(names))
    return [
        {"name": names[label], "share": round(float(counts[label] / labels.size), 4)}
        for label in np.argsort(-counts, kind="stable")
        if counts[label]
    ]


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """The files' names without extension; with a number where images of several folders share one."""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}_{number}", number + 1
        names.append(name)
    return names

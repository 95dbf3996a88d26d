"""Prediction for image files: the overlay, the label map, and each class's share of the pixels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torchvision import tv_tensors

from iformer.common.files import distinct_stems
from iformer.common.images import read_image
from iformer.models import saved
from iformer.segmentation import inference, pictures
from iformer.segmentation.model import Segmenter, build
from iformer.segmentation.transforms import EvaluationTransform
from iformer_command.terminal import ITEM_ERRORS, item_error


def load(folder: Path, config: dict[str, Any]) -> tuple[Segmenter, EvaluationTransform]:
    """The segmenter that a training run has exported into ``folder``, in evaluation mode, and what prepares its images.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    model = build(**config["network"])
    saved.load_assembled(model, folder)
    return model, EvaluationTransform(config.get("resize"), config["mean"], config["std"])


def segment(folder: Path, config: dict[str, Any], paths: Sequence[Path], output: Path) -> list[dict[str, Any]]:
    """Return :func:`predictions` for all files."""
    return list(predictions(folder, config, paths, output))


@torch.inference_mode()
def predictions(folder: Path, config: dict[str, Any], paths: Sequence[Path], output: Path) -> Iterator[dict[str, Any]]:
    """Segment image files, and write ``NAME_overlay.png`` and ``NAME_labels.png`` of each into ``output``.

    The label map is a palette image of the file's size, upright, whose values are the classes in the order of
    ``class_names``. Shows its progress on standard error where there is more than one image.

    Args:
        folder: Of the checkpoint.
        config: Its ``config.json``, see :func:`iformer.models.saved.find`.
        paths: Image files.
        output: Folder, made if it is not there.

    Yields:
        For each file ``{"image": ..., "overlay": ..., "labels": ..., "classes": [{"name": ..., "share": ...}, ...]}``
        with the shares of the pixels, largest first; or ``{"image": path, "error": message}`` for a file that could not
        be read or segmented, or whose pictures could not be written.

    Raises:
        ValueError: The checkpoint is damaged.
        OSError: ``output`` could not be made.
    """
    model, transform = load(folder, config)
    output.mkdir(parents=True, exist_ok=True)
    names = distinct_stems(paths)
    pairs = zip(paths, names, strict=True)
    for path, name in track(pairs, "Segmenting", len(paths), console=Console(stderr=True), disable=len(paths) < 2):
        files = {"overlay": output / f"{name}_overlay.png", "labels": output / f"{name}_labels.png"}
        try:
            image = np.asarray(read_image(path))
            pixels, _ = transform(tv_tensors.Image(torch.from_numpy(image.transpose(2, 0, 1).copy())))
            logits = inference.logits(model, pixels[None], config.get("window"), config.get("flip_test", False))
            labels = inference.labels(logits, image.shape[:2])[0].numpy().astype(np.uint8)
            pictures.draw_overlay(image, labels, config, files["overlay"])
            write_labels(labels, config["palette"], files["labels"])
        except ITEM_ERRORS as error:
            yield {"image": str(path), "error": item_error(path, error)}
            continue
        written = {kind: str(file) for kind, file in files.items()}
        yield {"image": str(path), **written, "classes": _shares(labels, config["class_names"])}


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

"""Exported files as models: what ``predict`` does with a model, it does with the file that was exported from it."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iformer.deployment import engines
from iformer.models.saved import Model

NEEDED = {
    "classification": ("model", "precision", "dynamic", "class_names", "preprocessing"),
    "segmentation": ("model", "precision", "dynamic", "class_names", "preprocessing", "palette"),
    "detection": ("model", "precision", "class_names", "category_ids"),
}
"""The keys of the metadata that a file of each task must have."""

DETECTIONS = ("boxes", "labels", "scores", "masks")
"""The outputs of a detector's file, in their order; there is no last one if it finds boxes only."""


class ExportedNetwork(nn.Module):
    """The engine of a classifier's or segmenter's file, from images ``(N, C, H, W)`` to logits as of the original.

    Args:
        engine: The engine.
        batches: Whether the file takes batches; otherwise it is given one image at a time.
    """

    def __init__(self, engine: engines.Engine, batches: bool) -> None:
        super().__init__()
        self.engine, self.batches = engine, batches

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        parts = [images] if self.batches else images.split(1)
        return torch.cat([self.engine.run(part.contiguous())[0] for part in parts])


class ExportedDetector(nn.Module):
    """The engine of a detector's file, from a list of images ``(3, H, W)`` to the objects in them.

    Args:
        engine: The engine.
        finds_masks: Whether the file has masks among its outputs.
    """

    def __init__(self, engine: engines.Engine, finds_masks: bool = True) -> None:
        super().__init__()
        self.engine, self.finds_masks = engine, finds_masks

    def forward(self, images: list[Tensor], paste: Literal[False] = False) -> list[dict[str, Tensor]]:
        """Return what :meth:`iformer.detection.model.Detector.forward` does, with masks relative to their boxes."""
        found = (self.engine.run(image.contiguous()) for image in images)
        names = DETECTIONS if self.finds_masks else DETECTIONS[:-1]
        return [dict(zip(names, outputs, strict=True)) for outputs in found]


def read(file: Path) -> Model:
    """Return an exported file as a model, whose network is run by the file's engine with torch's number of threads.

    Raises:
        ValueError: The engine is not installed, or the file is damaged or was not written by ``iformer export``.
        FileNotFoundError: The file, or the one with its weights, does not exist.
    """
    engine = engines.open_engine(file, threads=torch.get_num_threads())
    about = _metadata(engine, file)
    task, names = about["task"], tuple(about["class_names"])
    network: nn.Module
    if task == "detection":
        network = ExportedDetector(engine, about.get("finds_masks", True))
        config = {"category_ids": about["category_ids"], "class_names": names}
    else:
        network, config = ExportedNetwork(engine, about["dynamic"]), _config(about)
    return Model(about["model"], task, network.eval(), names, config, str(file), about["precision"])


def _metadata(engine: engines.Engine, file: Path) -> dict[str, Any]:
    """Return the values of a file's metadata.

    Raises:
        ValueError: The metadata is not such as ``iformer export`` writes.
    """
    found = engine.metadata
    needed = ("task", *NEEDED.get(found.get("task", ""), ()))
    lacking = [key for key in needed if key not in found]
    if lacking or len(needed) == 1:
        what = f"no {lacking[0]}" if lacking else f"the task {found['task']!r}"
        raise ValueError(f"{file}: has {what} in its metadata; expected a file that iformer export has written")
    text = ("task", "model", "precision")
    try:
        return {key: value if key in text else json.loads(value) for key, value in found.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: damaged metadata ({error})") from error


def _config(about: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a classifier or segmenter, see :class:`iformer.models.saved.Model`."""
    how = {key: tuple(value) if isinstance(value, list) else value for key, value in about["preprocessing"].items()}
    if about["task"] == "classification":
        return how if "thresholds" not in about else {**how, "thresholds": tuple(about["thresholds"])}
    own = {key: about.get(key) for key in ("class_names", "palette", "resize", "window", "flip_test")}
    if about["dynamic"]:
        return {**own, "mean": how["mean"], "std": how["std"]}
    return {**own, **how, "window": None}  # images are resized to the file's size as a whole

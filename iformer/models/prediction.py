"""Prediction for image files with a model of any task."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from iformer.common.batches import Sample, batches
from iformer.models.saved import Model
from iformer_command.terminal import ITEM_ERRORS, item_error


@dataclass(frozen=True)
class Options:
    """The options of a prediction, of which each task uses those that concern it.

    Attributes:
        top: The number of classes that a classifier names.
        batch_size: The number of images in a classifier's batch.
        threshold: The lowest score of the objects that are drawn and printed.
        output: The folder for pictures of objects and label maps; it is created if it does not exist.
    """

    top: int = 5
    batch_size: int = 32
    threshold: float = 0.5
    output: Path = Path("predictions")


class Predictor(Protocol):
    """The part of a prediction that depends on the task: the interface of ``Predictor`` in each ``predict`` module."""

    doing: str
    """The text beside the progress bar."""

    batch_size: int
    """The number of images in a batch."""

    def __init__(self, model: Model, options: Options) -> None: ...

    def prepare(self, image: Image.Image) -> Any:
        """Return an image as the network's input."""

    def predict(self, paths: Sequence[Path], images: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the results of prepared images, a dictionary for each."""

    def document(self, results: Sequence[dict[str, Any]]) -> Any:
        """Return the results of :func:`predictions` as one JSON document."""

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield the lines of text that describe a result."""


def predictor(model: Model, options: Options | None = None) -> Predictor:
    """Return the predictor of the model's task.

    Raises:
        OSError: The output folder could not be created.
    """
    return import_module(f"iformer.{model.task}.predict").Predictor(model, options or Options())


def predictions(model: Model, predictor: Predictor, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Predict the contents of image files, in the order in which they are given.

    The progress is shown on standard error where there is more than one batch.

    Args:
        model: The model.
        predictor: The predictor that :func:`predictor` returned for the model.
        paths: The image files.

    Yields:
        For each file ``{"image": path, ...}`` with the results of the task's predictor; or
        ``{"image": path, "error": message}`` if the file could not be read or the model does not accept the image.
    """
    for batch in batches(paths, predictor.prepare, model.channels, predictor.batch_size, predictor.doing):
        readable = [sample for sample in batch if not sample.error]
        found = iter(_predicted(predictor, readable))
        for sample in batch:
            yield {"image": str(sample.path), **({"error": sample.error} if sample.error else next(found))}


@torch.inference_mode()
def _predicted(predictor: Predictor, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the results of samples; if a batch fails, its samples are predicted one at a time."""
    if len(samples) != 1:
        with contextlib.suppress(*ITEM_ERRORS):
            return predictor.predict([sample.path for sample in samples], [sample.image for sample in samples])
        return [result for sample in samples for result in _predicted(predictor, [sample])]
    try:
        return predictor.predict([samples[0].path], [samples[0].image])
    except ITEM_ERRORS as error:
        return [{"error": item_error(samples[0].path, error)}]

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
    """What may be asked of a prediction; each task takes what concerns it.

    Attributes:
        top: How many classes to name.
        batch_size: Images that a classifier takes at a time.
        threshold: The least score of the objects that are drawn and printed.
        output: The folder for pictures of objects and label maps; it is made if it is not there.
    """

    top: int = 5
    batch_size: int = 32
    threshold: float = 0.5
    output: Path = Path("predictions")


class Predictor(Protocol):
    """What each wing's ``predict`` module offers under this name: the part of a prediction that depends on the task."""

    doing: str
    """What it does, for the progress bar."""

    batch_size: int
    """Images at a time."""

    def __init__(self, model: Model, options: Options) -> None: ...

    def prepare(self, image: Image.Image) -> Any:
        """Return what the network needs of an image."""

    def predict(self, paths: Sequence[Path], images: Sequence[Any]) -> list[dict[str, Any]]:
        """Return what is in prepared images, a dictionary for each."""

    def document(self, results: Sequence[dict[str, Any]]) -> Any:
        """Return the results of :func:`predictions` as one JSON document."""

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield the lines that tell a reader of a result."""


def predictor(model: Model, options: Options | None = None) -> Predictor:
    """Return what predicts with ``model``.

    Raises:
        OSError: The output's folder could not be made.
    """
    return import_module(f"iformer.{model.task}.predict").Predictor(model, options or Options())


def predictions(model: Model, predictor: Predictor, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Predict what is in image files, in their order.

    Shows its progress on standard error where there is more than one batch.

    Args:
        model: The model.
        predictor: What :func:`predictor` made of it.
        paths: Image files.

    Yields:
        For each file ``{"image": path, ...}`` with what the task's predictor found; or
        ``{"image": path, "error": message}`` where the file could not be read or the model could not take the image.
    """
    for batch in batches(paths, predictor.prepare, model.channels, predictor.batch_size, predictor.doing):
        readable = [sample for sample in batch if not sample.error]
        found = iter(_predicted(predictor, readable))
        for sample in batch:
            yield {"image": str(sample.path), **({"error": sample.error} if sample.error else next(found))}


@torch.inference_mode()
def _predicted(predictor: Predictor, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the results of samples; one at a time where one spoils the batch."""
    if len(samples) != 1:
        with contextlib.suppress(*ITEM_ERRORS):
            return predictor.predict([sample.path for sample in samples], [sample.image for sample in samples])
        return [result for sample in samples for result in _predicted(predictor, [sample])]
    try:
        return predictor.predict([samples[0].path], [samples[0].image])
    except ITEM_ERRORS as error:
        return [{"error": item_error(samples[0].path, error)}]

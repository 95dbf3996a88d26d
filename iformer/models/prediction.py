"""Prediction for image files with a model of any task."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from iformer.common.batches import Sample, batches
from iformer.common.images import ImageFile, stream_images
from iformer.common.provenance import provenance
from iformer.common.results import open_results
from iformer.models.saved import Model
from iformer_command.terminal import ITEM_ERRORS, is_out_of_memory, item_error

TYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions in which PyTorch computes."""

BATCH, PIXELS = 32, 8 * 224 * 224
"""The most images in a classifier's batch, and on a processor the most pixels, unless the options say another number.

Each layer allocates the memory of its maps anew. Where these are large, the system clears every page of it, again and
again, which costs more than a larger batch gains: iformer_small is a quarter slower in batches of 32 than of 8.
"""


@dataclass(frozen=True)
class Options:
    """The options of a prediction, of which each task uses those that concern it.

    Attributes:
        top: The number of classes that a classifier names.
        batch_size: The number of images in a batch; None for what is usual for the task and the device. Detectors put
            images of one size into a batch. Segmenters take one image at a time.
        threshold: The lowest score of the objects that are drawn and printed.
        output: The folder for pictures of objects and label maps, which is created if it does not exist; None draws
            none.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; or ``auto`` for an accelerator where there is one.
        precision: ``fp32``, ``bf16`` or ``fp16``: what PyTorch computes matrix products and convolutions in.
        workers: The number of threads that read images ahead of the network.
        features: ``pooled`` or ``map`` for a classifier's features instead of classes.
    """

    top: int = 5
    batch_size: int | None = None
    threshold: float = 0.5
    output: Path | None = Path("predictions")
    device: str = "auto"
    precision: str = "fp32"
    workers: int = 0
    features: str = ""


class Predictor(Protocol):
    """The part of a prediction that depends on the task: the interface of ``Predictor`` in each ``predict`` module."""

    doing: str
    """The text beside the progress bar."""

    options: Options
    """The options that it was made with."""

    batch_size: int
    """The number of images that it is given at a time."""

    schema: dict[str, Any]
    """What a result holds besides ``image`` and ``error``."""

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
    """Return the predictor of the model's task, with the network on the device that the options name.

    Raises:
        OSError: The output folder could not be created.
        ValueError: There is no such device or precision, or an exported file does not run there or so.
    """
    options = options or Options()
    if options.precision not in TYPES:
        raise ValueError(f"precision is {options.precision}, expected one of {', '.join(TYPES)}")
    device = find_device(options.device)
    if model.exported:
        _require_exported(model, options, device)
    model.network.to(device)
    module = "iformer.models.features" if options.features else f"iformer.{model.task}.predict"
    return import_module(module).Predictor(model, options)


def usual_batch(model: Model) -> int:
    """Return the number of images in a classifier's batch, unless the options say another."""
    _, height, width = model.config["input_size"]
    return max(1, min(BATCH, PIXELS // (height * width))) if model.device.type == "cpu" else BATCH


def backbone_input(model: Model) -> Callable[[Image.Image], torch.Tensor]:
    """Return the function that turns a whole image into the input ``(C, H, W)`` of a model's backbone.

    The input has the size and the values that the backbone sees when a detector or segmenter takes the image at once.

    Args:
        model: The detector or segmenter.
    """
    return partial(import_module(f"iformer.{model.task}.predict").backbone_input, model)


def part_of_process() -> tuple[int, int]:
    """Return the number of this process and how many there are, as ``torchrun`` says; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _require_exported(model: Model, options: Options, device: torch.device) -> None:
    """Raise ValueError if options ask an exported file for what was decided when it was exported."""
    if device.type != "cpu" and options.device != "auto":
        raise ValueError(f"device is {options.device}, but {model.weights} runs on the CPU; expected cpu or auto")
    if options.precision not in ("fp32", model.exported):
        raise ValueError(
            f"precision is {options.precision}, but {model.weights} was exported in {model.exported}; "
            f"export it with --precision {options.precision}"
        )
    if options.features:
        raise ValueError(f"features: {model.weights} gives results only; give the model that it was exported from")


def find_device(name: str) -> torch.device:
    """Return the device of a name, see :class:`Options`.

    Raises:
        ValueError: There is no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        if accelerator is None:
            return torch.device("cpu")
        number = int(os.environ.get("LOCAL_RANK", 0))  # of torchrun's processes on this machine
        return torch.device(accelerator.type, number % torch.accelerator.device_count())
    with contextlib.suppress(RuntimeError):  # of a name that is none
        device = torch.device(name)
        here = accelerator is not None and device.type == accelerator.type
        if device.type == "cpu" or (here and (device.index or 0) < torch.accelerator.device_count()):
            return device
    there = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
    raise ValueError(f"device is {name}, expected {', '.join(there[:-1])} or {there[-1]}")


def predictions(
    model: Model, predictor: Predictor, files: Iterable[ImageFile], total: int | None = None
) -> Iterator[dict[str, Any]]:
    """Predict the contents of image files, in the order in which they are given.

    The progress is shown on standard error where there is more than one batch.

    Args:
        model: The model.
        predictor: The predictor that :func:`predictor` returned for the model.
        files: The image files, see :func:`iformer.common.images.stream_images`; they are taken as they are needed.
        total: The number of files, if it is known and ``files`` has no length.

    Yields:
        For each file ``{"image": path, ...}`` with the results of the task's predictor; or
        ``{"image": path, "error": message}`` if the file could not be read or the model does not accept the image.
    """
    options = predictor.options
    dtype, device = TYPES[options.precision], model.device.type
    for batch in batches(
        files, predictor.prepare, model.channels, predictor.batch_size, predictor.doing, total, options.workers
    ):
        readable = [sample for sample in batch if not sample.error]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            found = iter(_predicted(predictor, readable))
        for sample in batch:
            yield {"image": str(sample.path), **({"error": sample.error} if sample.error else next(found))}


def write_predictions(
    file: Path,
    model: Model,
    predictor: Predictor,
    places: Sequence[str],
    total: int | None = None,
    resume: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, Any]]:
    """Write predictions into a file while they are made, in memory that does not grow with their number.

    Args:
        file: The file of results, see :func:`iformer.common.results.open_results`.
        model: The model.
        predictor: The predictor that :func:`predictor` returned for the model.
        places: Where the images are, see :func:`iformer.common.images.stream_images`.
        total: The number of images, if it is known.
        resume: Go on with the file of an earlier process: the images whose results it has are not read again.
        part: The part of the images to predict, see :func:`iformer.common.images.stream_images`.

    Yields:
        Each result, once it is written.

    Raises:
        ValueError: The file was written with other settings.
        OSError: The file is there and is not to be resumed, or could not be written.
    """
    asked = {"top": predictor.options.top, "features": predictor.options.features}
    settings = {"model": model.name, "weights": model.weights, **asked, "images": list(places)}
    about = {"settings": settings, **provenance(0)}
    with open_results(file, predictor.schema, about, resume) as results:
        rest = itertools.islice(stream_images(places, part), results.count, None)
        left = None if total is None else max(0, total - results.count)
        for result in predictions(model, predictor, rest, left):
            results.write(result)
            yield result


@torch.inference_mode()
def _predicted(predictor: Predictor, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the results of samples; if a batch fails, its samples are predicted one at a time."""
    if not samples:
        return []
    if len(samples) > 1:
        with contextlib.suppress(*ITEM_ERRORS):
            paths = [Path(str(sample.path)) for sample in samples]
            return predictor.predict(paths, [sample.image for sample in samples])
        return [result for sample in samples for result in _predicted(predictor, [sample])]
    try:
        return predictor.predict([Path(str(samples[0].path))], [samples[0].image])
    except ITEM_ERRORS as error:
        advice = " Give the image in a smaller size, or predict with --device cpu" * is_out_of_memory(error)
        return [{"error": item_error(samples[0].path, error) + advice}]

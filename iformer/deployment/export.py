"""``iformer export``: export of models of any task to files that run without this package."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iformer.common.batches import batches
from iformer.common.images import ImageFile, find_images
from iformer.common.provenance import provenance
from iformer.deployment import accuracy, detectors, engines, exported, formats
from iformer.models.locations import refuse_exported
from iformer.models.saved import Model, resolve

MOST_IMAGES = {"classification": 300, "segmentation": 30, "detection": 20}
"""The most images used to check and to calibrate: further ones hardly change the scales. Scenes need fewer images."""

BUILT_IN = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")
"""Pictures that come with matplotlib, used for the check if no images are given."""


def export(
    reference: str,
    kind: str = "onnx",
    precision: str = "fp32",
    dynamic: bool = False,
    output: Path | None = None,
    images: Path | None = None,
    labelled: Path | None = None,
    weights: str = "",
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Export a model and check the written file.

    Args:
        reference: A reference to the model, see :func:`iformer.models.saved.resolve`.
        kind: The format, one of onnx, openvino and torch-export.
        precision: The precision, one of fp32, bf16, fp16 and int8.
        dynamic: Whether the file takes any batch size, height and width. Detectors always take any height and width.
        output: The file to write; by default it has the model's name and lies in the working folder.
        images: A folder of images for the check and for the calibration of int8.
        labelled: A folder of labelled images on which the accuracy is measured before and after the export, see
            :func:`iformer.deployment.accuracy.measure`.
        weights: The weights of a model that is given by its name, see :func:`iformer.models.saved.resolve`.
        size: The height and width of a segmenter's images in pixels; by default those of its training crops.

    Returns:
        A dictionary of ``model``, ``file``, ``format``, ``precision``, ``dynamic``, ``images`` (the number of images in
        the check) and ``unreadable`` (a line for each skipped image), and the results of
        :func:`~iformer.deployment.formats.write` or, for a detector, :func:`~iformer.deployment.detectors.write`. If
        labelled images are given it also has ``accuracy``: the number of ``images``, and the scores of the original,
        ``eager``, and of the ``file``. The command, the versions and the machine are included too.

    Raises:
        ValueError: An argument is wrong, or contradicts another one.
        OSError: A file cannot be read or written.
    """
    formats.require_offered(kind, precision)
    refuse_exported(reference)
    model = resolve(reference, weights)
    if model.task == "detection":
        detectors.require_offered(kind, precision)
    if precision == "int8" and images is None:
        raise ValueError("precision int8: needs images to calibrate on, expected a folder of images (--images)")
    paths = find_images([images]) if images else _built_in()
    if size and model.task != "segmentation":
        raise ValueError(f"size: {reference} has its own size; leave --size out, it is for segmenters")
    file = output or Path(Path(reference).resolve().name + engines.FORMATS[kind])  # "." has no name of its own
    every = -(-len(paths) // MOST_IMAGES[model.task])
    few = paths[::every]  # evenly spread over all of them, and so over the class folders
    sized = _sized(model, reference, size) if model.task == "segmentation" else model
    measured = model if dynamic else sized
    unreadable: dict[ImageFile, str] = {}
    result = {
        **provenance(0),
        "model": reference,
        "file": str(file),
        "format": kind,
        "precision": precision,
        "dynamic": dynamic or model.task == "detection",
    }
    count, eager = accuracy.measure(measured, labelled, unreadable) if labelled else (0, {})
    result |= _write(sized, file, kind, precision, dynamic, few, unreadable)
    if labelled:
        run = replace(measured, network=exported.read(file).network)
        result["accuracy"] = {"images": count, "eager": eager, "file": accuracy.measure(run, labelled, unreadable)[1]}
    return {**result, "unreadable": list(unreadable.values())}


def _built_in() -> list[Path]:
    from matplotlib.cbook import get_sample_data  # here, so that the package can be imported without it

    return [Path(get_sample_data(file, asfileobj=False)) for file in BUILT_IN]


def _write(
    model: Model,
    file: Path,
    kind: str,
    precision: str,
    dynamic: bool,
    paths: Sequence[Path],
    unreadable: dict[ImageFile, str],
) -> dict[str, Any]:
    """Write and check the file, and return what the check has found."""
    if model.task == "detection":
        return detectors.write(model, file, kind, precision, _read(model, paths, detectors.prepare, unreadable))
    pixels = torch.stack(_read(model, paths, model.prepare, unreadable))
    return {"images": len(pixels), **formats.write(model, file, kind, precision, pixels, dynamic)}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that report the result of :func:`export`."""
    if "objects" in result:
        yield (
            f"{result['file']}: {result['same_objects']:.1%} of {result['objects']} objects in {result['images']} "
            f"images are those of eager, with scores that differ by at most {result['largest_difference']:.1e}"
        )
    else:
        yield (
            f"{result['file']}: largest difference from eager {result['largest_difference']:.2g} "
            f"({result['relative_difference']:.1e} of the largest logit) on {result['images']} images, "
            f"same class for {result['same_class']:.2%}{' of the pixels' * result['per_pixel']}"
        )
    if measured := result.get("accuracy"):
        for name, eager in measured["eager"].items():
            after = measured["file"][name]
            yield f"{accuracy.SCORES[name]} on {measured['images']:,} images: {eager:.2%} eager, {after:.2%} the file"


def _sized(model: Model, reference: str, size: tuple[int, int] | None) -> Model:
    """Return a segmenter for images of one size, whose configuration describes them as a classifier's does."""
    size = size or model.config.get("crop")
    if not size:
        raise ValueError(f"{reference}: the model has no size; give the images' height and width (--size 360 480)")
    if min(size) < 1:
        raise ValueError(f"size is {size}, expected the images' height and width (--size 360 480)")
    whole = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}  # resized to this size
    return replace(model, config={**model.config, "input_size": (3, *size), **whole, "window": None})


def _read(model: Model, paths: Sequence[Path], prepare: Any, unreadable: dict[ImageFile, str]) -> list[Any]:
    """Return the prepared images, and record those that cannot be read.

    Raises:
        ValueError: No image can be read.
    """
    samples = list(itertools.chain(*batches(paths, prepare, model.channels, len(paths))))
    unreadable |= {sample.path: sample.error for sample in samples if sample.error}
    images = [sample.image for sample in samples if not sample.error]
    if not images:
        raise ValueError(f"no image can be read: {next(iter(unreadable.values()))}")
    return images

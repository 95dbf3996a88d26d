"""``iformer export``: export of models of any task to files that run without this package."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.cbook import get_sample_data
from timm.data import ImageNetInfo

from iformer.common.batches import batches
from iformer.common.images import ImageFile, find_images
from iformer.common.provenance import provenance
from iformer.deployment import detectors, engines, formats
from iformer.models.saved import Model, resolve

MOST_IMAGES = {"classification": 300, "segmentation": 30, "detection": 20}
"""The most images used to check and to calibrate: further ones hardly change the scales. Scenes need fewer images."""

BUILT_IN = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")
"""Pictures that come with matplotlib, used for the check if no images are given."""

Labelled = list[tuple[Path, int]]


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
        labelled: A folder of class folders on which the accuracy is measured before and after the export. The folders
            are named like the classifier's classes, or like those of ImageNet (n01440764 and so on).
        weights: The weights of a model that is given by its name, see :func:`iformer.models.saved.resolve`.
        size: The height and width of a segmenter's images in pixels; by default those of its training crops.

    Returns:
        A dictionary of ``model``, ``file``, ``format``, ``precision``, ``dynamic``, ``images`` (the number of images in
        the check) and ``unreadable`` (a line for each skipped image). For classifiers and segmenters it also has the
        results of :func:`~iformer.deployment.formats.write` and, if labelled images are given, ``accuracy``
        (``images``, ``eager``, ``file``). For detectors it has ``objects`` and ``largest_difference``, see
        :func:`~iformer.deployment.detectors.write`. The command, the versions and the machine are included too.

    Raises:
        ValueError: An argument is wrong, or contradicts another one.
        OSError: A file cannot be read or written.
    """
    formats.require_offered(kind, precision)
    model = resolve(reference, weights)
    if model.task == "detection" and (kind, precision) != ("onnx", "fp32"):
        raise ValueError(f"{reference}: a detector is exported with --format onnx and --precision fp32 only")
    if precision == "int8" and images is None:
        raise ValueError("precision int8: needs images to calibrate on, expected a folder of images (--images)")
    paths = find_images([images]) if images else [Path(get_sample_data(file, asfileobj=False)) for file in BUILT_IN]
    if size and model.task != "segmentation":
        raise ValueError(f"size: {reference} has its own size; leave --size out, it is for segmenters")
    if labelled and model.task != "classification":
        raise ValueError(f"labelled: {reference} is not a classifier; leave --labelled out")
    file = output or Path(Path(reference).resolve().name + engines.FORMATS[kind])  # "." has no name of its own
    every = -(-len(paths) // MOST_IMAGES[model.task])
    few = paths[::every]  # evenly spread over all of them, and so over the class folders
    unreadable: dict[ImageFile, str] = {}
    result = {
        **provenance(0),
        "model": reference,
        "file": str(file),
        "format": kind,
        "precision": precision,
        "dynamic": dynamic,
    }
    if model.task == "detection":
        result |= detectors.write(model, file, _read(model, few, detectors.prepare, unreadable))
    else:
        if model.task == "segmentation":
            model = _sized(model, reference, size)
        samples = _samples(model, labelled) if labelled else []
        eager = _top1(model.network, model, samples, unreadable)
        pixels = torch.stack(_read(model, few, model.prepare, unreadable))
        result |= {"images": len(pixels), **formats.write(model, file, kind, precision, pixels, dynamic)}
        if samples:
            run = engines.open_file(file, precision)
            single: engines.Runner = lambda many: torch.cat([run(image[None]) for image in many])  # noqa: E731
            count = len(samples) - sum(path in unreadable for path, _ in samples)
            accuracy = {"eager": eager, "file": _top1(single, model, samples, unreadable)}
            result["accuracy"] = {"images": count, **accuracy}
    return {**result, "unreadable": list(unreadable.values())}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that report the result of :func:`export`."""
    if "objects" in result:
        yield (
            f"{result['file']}: scores of {result['objects']} objects in {result['images']} images differ by at most "
            f"{result['largest_difference']:.1e} from eager's"
        )
        return
    yield (
        f"{result['file']}: largest difference from eager {result['largest_difference']:.2g} "
        f"({result['relative_difference']:.1e} of the largest logit) on {result['images']} images, "
        f"same class for {result['same_class']:.2%}{' of the pixels' * result['per_pixel']}"
    )
    if accuracy := result.get("accuracy"):
        yield f"Top-1 on {accuracy['images']:,} images: {accuracy['eager']:.2%} eager, {accuracy['file']:.2%} the file"


def _sized(model: Model, reference: str, size: tuple[int, int] | None) -> Model:
    """Return a segmenter for images of one size, whose configuration describes them as a classifier's does."""
    size = size or model.config.get("crop")
    if not size:
        raise ValueError(f"{reference}: the model has no size; give the images' height and width (--size 360 480)")
    if min(size) < 1:
        raise ValueError(f"size is {size}, expected the images' height and width (--size 360 480)")
    whole = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}  # resized to this size
    return replace(model, config={**model.config, "input_size": (3, *size), **whole})


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


def _top1(run: engines.Runner, model: Model, labelled: Labelled, unreadable: dict[ImageFile, str]) -> float:
    """Return the top-1 accuracy on those of the labelled images that can be read."""
    labels: dict[ImageFile, int] = dict(labelled)
    hits = total = 0
    paths = [path for path in labels if path not in unreadable]
    for batch in batches(paths, model.prepare, model.channels, 64, "Measuring the accuracy"):
        unreadable |= {sample.path: sample.error for sample in batch if sample.error}
        readable = [sample for sample in batch if not sample.error]
        if readable:
            with torch.inference_mode():
                found = run(torch.stack([sample.image for sample in readable])).argmax(1)
            hits += sum(int(label) == labels[sample.path] for label, sample in zip(found, readable, strict=True))
            total += len(readable)
    if labelled and not total:
        raise ValueError(f"no image can be read: {next(iter(unreadable.values()))}")
    return hits / max(total, 1)


def _samples(model: Model, folder: Path) -> Labelled:
    """Return the images in a folder's class folders, with the model's labels.

    Raises:
        ValueError: A folder is not named like a class of the model. The message names the folder.
    """
    names = list(model.class_names)
    # As in training, a class consists of all images in its folder and in the folders inside it.
    named = [(path, path.relative_to(folder).parts[0]) for path in find_images([folder])]
    if len(names) == 1000 and not {name for _, name in named} <= set(names):
        names = list(ImageNetInfo().label_names())
    unknown = sorted({name for _, name in named} - set(names))
    if unknown:
        raise ValueError(f"{folder}: {unknown[0]} is not a class of the model, expected folders of {names[:10]}")
    return [(path, names.index(name)) for path, name in named]

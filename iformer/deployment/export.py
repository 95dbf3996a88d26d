"""``iformer export``: a model of any task as a file that runs without this package."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.cbook import get_sample_data
from timm.data import ImageNetInfo

from iformer.common.batches import batches
from iformer.common.images import find_images
from iformer.common.provenance import provenance
from iformer.deployment import detectors, engines, formats
from iformer.models.saved import Model, resolve

MOST_IMAGES = {"classification": 300, "segmentation": 30, "detection": 20}
"""Images to check with and to calibrate on: more change the scales no longer. Scenes hold more than photographs do."""

BUILT_IN = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")
"""Pictures that come with matplotlib, to check with where none are given."""

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
    """Export a model and check what was written.

    Args:
        reference: The model, see :func:`iformer.models.saved.resolve`, like ``weights``.
        kind: The format: onnx, openvino or torch-export.
        precision: fp32, bf16, fp16 or int8.
        dynamic: Take any batch size, height and width. Detectors always take any height and width.
        output: The file to write; by default the model's name in the working folder.
        images: A folder of images to check with and to calibrate int8 on.
        labelled: A folder of class folders, called as a classifier's classes or as ImageNet's (n01440764...), to
            measure the accuracy on before and after.
        weights: The weights of a model that is given by its name.
        size: Height and width of a segmenter's images; by default those of the crops that it was trained on.

    Returns:
        ``model``, ``file``, ``format``, ``precision``, ``dynamic``, ``images`` (how many it was checked with),
        ``unreadable`` (a line for each image that was passed over); for classifiers and segmenters what
        :func:`~iformer.deployment.formats.write` returns, and ``accuracy`` where labelled images are given
        (``images``, ``eager``, ``file``); for detectors ``objects`` and ``largest_difference``, see
        :func:`~iformer.deployment.detectors.write`; and the command, the versions and the machine.

    Raises:
        ValueError: An argument is wrong, or does not fit the others.
        OSError: A file cannot be read or written.
    """
    formats.require_offered(kind, precision)
    model = resolve(reference, weights)
    if model.task == "detection" and (kind, precision) != ("onnx", "fp32"):
        raise ValueError(f"{reference}: a detector is exported with --format onnx and --precision fp32 only")
    if precision == "int8" and images is None:
        raise ValueError("precision int8: needs images to calibrate on, expected a folder of them (--images)")
    paths = find_images([images]) if images else [Path(get_sample_data(file, asfileobj=False)) for file in BUILT_IN]
    if size and model.task != "segmentation":
        raise ValueError(f"size: {reference} has one of its own, expected none (it is for segmenters)")
    if labelled and model.task != "classification":
        raise ValueError(f"labelled: accuracy is measured of classifiers only, expected none for {model.task}")
    file = output or Path(Path(reference).resolve().name + engines.FORMATS[kind])  # "." has no name of its own
    few = paths[:: -(-len(paths) // MOST_IMAGES[model.task])]  # evenly from all of them, and so from every class folder
    unreadable: dict[Path, str] = {}
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
    """Yield the lines that tell a reader of what :func:`export` returned."""
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
    """Return a segmenter for images of one size, whose configuration says about them what a classifier's does."""
    size = size or model.config.get("crop")
    if not size:
        raise ValueError(f"{reference}: names no size, expected the images' height and width (--size 360 480)")
    if min(size) < 1:
        raise ValueError(f"size is {size}, expected the images' height and width (--size 360 480)")
    whole = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}  # resized to this size
    return replace(model, config={**model.config, "input_size": (3, *size), **whole})


def _read(model: Model, paths: Sequence[Path], prepare: Any, unreadable: dict[Path, str]) -> list[Any]:
    """Return prepared images, and note those that cannot be read.

    Raises:
        ValueError: None can be read.
    """
    samples = list(itertools.chain(*batches(paths, prepare, model.channels, len(paths))))
    unreadable |= {sample.path: sample.error for sample in samples if sample.error}
    images = [sample.image for sample in samples if not sample.error]
    if not images:
        raise ValueError(f"no image can be read: {next(iter(unreadable.values()))}")
    return images


def _top1(run: engines.Runner, model: Model, labelled: Labelled, unreadable: dict[Path, str]) -> float:
    """Return the share of labelled images whose most probable class is theirs, of those that can be read."""
    labels = dict(labelled)
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
        ValueError: A folder is none of the model's classes; names it.
    """
    names = list(model.class_names)
    # As in training, a class is all that lies in a folder and in the folders inside it.
    named = [(path, path.relative_to(folder).parts[0]) for path in find_images([folder])]
    if len(names) == 1000 and not {name for _, name in named} <= set(names):
        names = list(ImageNetInfo().label_names())
    unknown = sorted({name for _, name in named} - set(names))
    if unknown:
        raise ValueError(f"{folder}: {unknown[0]} is not a class of the model, expected folders of {names[:10]}")
    return [(path, names.index(name)) for path, name in named]

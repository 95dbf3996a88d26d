"""What ``iformer export`` does: find the model and the images, export, measure the accuracy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.cbook import get_sample_data
from timm.data import ImageNetInfo
from torch import Tensor
from torch.utils.data import DataLoader

from iformer.common.images import UnreadableImageError, find_images, read_image
from iformer.common.provenance import provenance
from iformer.deployment import engines
from iformer.deployment.export import export, load_images, require_offered
from iformer.deployment.quantize import Batches, top1
from iformer.models import saved
from iformer.segmentation import predict as segmentation

MOST_IMAGES = {"classification": 300, "segmentation": 30}
"""Images to check with and to calibrate on: more change the scales no longer. Scenes hold more than photographs do."""

BUILT_IN = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")
"""Pictures that come with matplotlib, to check with where none are given."""


def ship(
    name: str,
    kind: str,
    precision: str = "fp32",
    dynamic: bool = False,
    output: Path | None = None,
    images: Path | None = None,
    labelled: Path | None = None,
    weights: str = "released",
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Export a model and say how well that went.

    Args:
        name: A model of timm, or the folder of a trained one.
        kind: The format; see :func:`~iformer.deployment.export.export`, like ``precision`` and ``dynamic``.
        precision: As there.
        dynamic: As there.
        output: The file; by default the model's name in the working folder.
        images: A folder of images, needed for int8.
        labelled: A folder of class folders that are called as the model's classes, or as ImageNet's (n01440764...);
            not for segmenters.
        weights: Of a model of timm: released, random, or a file.
        size: Height and width of a segmenter's images; by default those of the crops that it was trained on.

    Returns:
        ``model``, ``file``, ``format``, ``precision``, ``dynamic``, ``images`` (how many it was checked with),
        ``unreadable`` (a line for each image that could not be read and was passed over), what
        :func:`~iformer.deployment.export.export` returns, with ``labelled`` ``accuracy``: ``images``, ``eager``,
        ``file``; and the command, the versions and the machine.

    Raises:
        ValueError: An argument is wrong, or does not fit the others.
        OSError: A file cannot be read or written.
    """
    require_offered(kind, precision)
    if precision == "int8" and images is None:
        raise ValueError("precision int8: needs images to calibrate on, expected a folder of them (--images)")
    paths = find_images([images]) if images else [Path(get_sample_data(file, asfileobj=False)) for file in BUILT_IN]
    task = task_of(name)
    if size and task != "segmentation":
        raise ValueError(f"size: {name} has one of its own, expected none (it is for segmenters)")
    if labelled and task == "segmentation":
        raise ValueError("labelled: accuracy is measured of classifiers only, expected none for a segmenter")
    model = load(name, weights, size)
    samples = _samples(model, labelled) if labelled else []
    file = output or Path(Path(name).resolve().name + engines.FORMATS[kind])  # "." has no name of its own
    few = paths[:: -(-len(paths) // MOST_IMAGES[task])]  # evenly from all of them, and so from every class folder
    unreadable = _unreadable([*few, *(path for path, _ in samples)])
    few = [path for path in few if path not in unreadable]
    readable = [sample for sample in samples if sample[0] not in unreadable]
    if not few or (samples and not readable):
        raise ValueError(f"no image can be read: {next(iter(unreadable.values()))}")
    result = {
        **provenance(0),
        "model": name,
        "file": str(file),
        "format": kind,
        "precision": precision,
        "dynamic": dynamic,
        "images": len(few),
        "unreadable": list(unreadable.values()),
        **export(model, file, kind, precision, load_images(model, few), dynamic),
    }
    if readable:
        run = engines.open_file(file, precision)
        batches = _batches(model, readable)
        result["accuracy"] = {
            "images": len(readable),
            "eager": top1(model, batches),
            "file": top1(lambda many: torch.cat([run(image[None]) for image in many]), batches),
        }
    return result


def task_of(name: str) -> str:
    """What a model is for: classification, detection or segmentation; see :func:`load`."""
    return saved.find(name)[1]["task"] if Path(name).exists() else "classification"


def load(name: str, weights: str = "released", size: tuple[int, int] | None = None) -> Any:
    """A model by timm's name, or from the folder of a trained one, in evaluation mode."""
    if not Path(name).exists():
        pretrained = {"released": True, "random": False}.get(weights, weights)
        return saved.create(name, pretrained).eval()
    if weights != "released":
        raise ValueError(f"weights: {name} is a folder that has weights, expected none (they are for a model's name)")
    folder, config = saved.find(name)
    return _segmenter(folder, config, size) if config["task"] == "segmentation" else saved.load(name)


def _segmenter(folder: Path, config: dict[str, Any], size: tuple[int, int] | None) -> Any:
    """A segmenter that says about itself what timm's models do."""
    model: Any = segmentation.load(folder, config)[0]
    size = size or config.get("crop")
    if not size:
        raise ValueError(f"{folder}: names no size, expected the images' height and width (--size 360 480)")
    if min(size) < 1:
        raise ValueError(f"size is {size}, expected the images' height and width (--size 360 480)")
    network = config["network"]
    model.pretrained_cfg = {
        "architecture": f"{network['architecture']}_{network['backbone']}",
        "input_size": (3, *size),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # the whole image, resized to this size
        "label_names": config["class_names"],
        **{key: config[key] for key in ("mean", "std", "palette", "resize")},
    }
    return model


def _unreadable(paths: Iterable[Path]) -> dict[Path, str]:
    """What is wrong with those of the images that cannot be read."""
    errors = {}
    for path in paths:
        try:
            read_image(path)
        except UnreadableImageError as error:
            errors[path] = str(error)
    return errors


def _samples(model: Any, folder: Path) -> list[tuple[Path, int]]:
    """Images of class folders with the model's labels."""
    names = list(model.pretrained_cfg.get("label_names") or [])
    if not names and model.num_classes == 1000:
        names = list(ImageNetInfo().label_names())
    # As in training, a class is all that lies in a folder and in the folders inside it.
    named = [(path, path.relative_to(folder).parts[0]) for path in find_images([folder])]
    unknown = sorted({name for _, name in named} - set(names))
    if unknown:
        raise ValueError(f"{folder}: {unknown[0]} is not a class of the model, expected folders of {names[:10]}")
    return [(path, names.index(name)) for path, name in named]


def _batches(model: Any, samples: list[tuple[Path, int]]) -> Batches:
    def collate(samples: list[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
        return load_images(model, [path for path, _ in samples]), torch.tensor([label for _, label in samples])

    return DataLoader(samples, batch_size=64, collate_fn=collate)  # type: ignore[arg-type]

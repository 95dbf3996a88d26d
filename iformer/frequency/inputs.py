"""The inputs of the analysis: models, and image files prepared for each of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from iformer.common.batches import Sample, batches
from iformer.common.images import ImageFile
from iformer.models import locations, saved
from iformer.models.prediction import backbone_input
from iformer.models.saved import Model


@dataclass(frozen=True)
class Backbone(Model):
    """The backbone of a detector or segmenter, as a model without classes whose images are those of the whole network.

    Attributes:
        whole: The detector or segmenter.
    """

    whole: Model | None = None

    @cached_property
    def prepare(self) -> Any:
        """The function that turns an image into the backbone's input ``(C, H, W)``, whose size depends on the image."""
        assert self.whole is not None
        return backbone_input(self.whole)


def open_model(reference: str, weights: str | Path = "", seed: int = 0) -> Model:
    """Return a model to analyse: a classifier, or the backbone of a detector or segmenter.

    The name of the returned model says "trained" or "untrained" unless its weights are the released ones.

    Args:
        reference: A reference to the model, see :func:`iformer.models.saved.resolve`.
        weights: The weights, as in :func:`iformer.models.saved.resolve`. By default they are the released ones, or
            fresh ones if none were released.
        seed: The seed of fresh weights.

    Raises:
        ValueError: There is no such model, or the weights do not fit it.
        OSError: The weights cannot be read.
    """
    locations.refuse_exported(reference or str(weights))
    named = timm.is_model(reference) and not locations.is_saved(reference)
    if named and not weights and not timm.is_model_pretrained(reference):
        weights = "random"
    model = saved.resolve(reference, weights, seed)
    if model.task != "classification":
        backbone = model.network.backbone
        features = getattr(backbone, "features", backbone)
        model = Backbone(model.name, model.task, features, (), model.config, model.weights, whole=model)
    if model.weights == "released":
        return model
    return replace(model, name=f"{model.name}, {'untrained' if model.weights.startswith('fresh') else 'trained'}")


def untrained(reference: str, weights: str | Path = "", seed: int = 0) -> Model:
    """Return the network that :func:`open_model` returns for ``reference`` and ``weights``, with fresh weights."""
    return open_model(str(weights) if not reference or locations.is_saved(str(weights)) else reference, "random", seed)


def class_index(model: Model, target: str) -> int:
    """Return the number of a class given by its name or number; of ImageNet's several names, the first is enough.

    Raises:
        ValueError: The model has no such class.
    """
    for names in (model.class_names, [name.partition(",")[0] for name in model.class_names]):
        if target in names:
            return names.index(target)
    if target.isdigit() and int(target) < len(model.class_names):
        return int(target)
    some = ", ".join(model.class_names[:10]) + (", ..." if len(model.class_names) > 10 else "")
    last = len(model.class_names) - 1
    raise ValueError(f"target: {model.name} has no class {target!r}, expected 0 to {last} or one of: {some}")


def displayed(model: Model, images: Tensor) -> Tensor:
    """Return normalised images ``(N, C, H, W)`` as pictures ``(N, H, W, C)`` with values from 0 to 1."""
    mean, std = (torch.tensor(model.config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


@dataclass
class ImageFiles:
    """Image files that are read and preprocessed anew for each model.

    Attributes:
        paths: The image files.
        batch_size: The number of images in a batch.
        unreadable: The files that could not be read or prepared for a model, each with the reason.
        available: The number of files from which these were chosen.
    """

    paths: Sequence[Path]
    batch_size: int = 32
    unreadable: dict[ImageFile, str] = field(default_factory=dict)
    available: int = 0

    def __post_init__(self) -> None:
        self.available = self.available or len(self.paths)

    def batches(self, model: Model) -> Iterator[Tensor]:
        """Yield batches of normalised images ``(N, C, H, W)``; unreadable files are recorded and skipped.

        So are images of another size than the first, where a model takes images at sizes of their own.

        Raises:
            ValueError: No file could be read.
        """
        for samples in self._samples(model):
            yield torch.stack([sample.image for sample in samples])

    def labelled(self, model: Model, labels: Mapping[ImageFile, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches as :meth:`batches` does, each with the labels ``(N,)`` of its images.

        Raises:
            ValueError: No file could be read.
        """
        for samples in self._samples(model):
            yield (
                torch.stack([sample.image for sample in samples]),
                torch.tensor([labels[sample.path] for sample in samples]),
            )

    def _samples(self, model: Model) -> Iterator[list[Sample]]:
        size: tuple[int, ...] = ()
        batch_size = 1 if isinstance(model, Backbone) else self.batch_size
        paths = [path for path in self.paths if path not in self.unreadable]
        for batch in batches(paths, model.prepare, model.channels, batch_size, f"Reading for {model.name}"):
            self.unreadable |= {sample.path: sample.error for sample in batch if sample.error}
            readable = [sample for sample in batch if not sample.error]
            size = size or (tuple(readable[0].image.shape[1:]) if readable else ())
            others = [sample for sample in readable if sample.image.shape[1:] != size]
            self.unreadable |= {sample.path: _of_another_size(sample, size) for sample in others}
            if same := [sample for sample in readable if sample.image.shape[1:] == size]:
                yield same
        if not size:
            raise ValueError(next(iter(self.unreadable.values()), "no image files"))

    def some(self, count: int | None) -> "ImageFiles":
        """Return at most ``count`` of the files, evenly spread in order, without those known to be unreadable.

        None stands for all of them.
        """
        paths = [path for path in self.paths if path not in self.unreadable]
        if count is None or len(paths) <= count:
            return ImageFiles(paths, self.batch_size, available=self.available)
        # The middles of equal parts are taken, so that all class folders are sampled alike.
        places = np.floor((np.arange(count) + 0.5) * len(paths) / count).astype(int)
        return ImageFiles([paths[place] for place in places], self.batch_size, available=self.available)


def _of_another_size(sample: Sample, size: tuple[int, ...]) -> str:
    height, width = sample.image.shape[1:]
    return f"{sample.path}: {height}x{width} pixels, expected {size[0]}x{size[1]} as of the first image"

"""What is analysed: models by name or folder, and image files as each of them takes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.progress import track
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_input_data_config
from torch import Tensor

from iformer.common.images import read_image
from iformer.models import saved
from iformer_command.terminal import ITEM_ERRORS, item_error, markup


@dataclass(frozen=True)
class Subject:
    """A model under study.

    Attributes:
        name: For figures and tables.
        model: A timm model in evaluation mode.
        weights: Where its weights come from.
    """

    name: str
    model: Any
    weights: str

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that it takes."""
        channels, height, width = resolve_input_data_config(self.model)["input_size"]
        return channels, height, width

    def class_names(self) -> list[str]:
        """The names of its classes: those of its checkpoint, ImageNet's by their number, or numbers."""
        if names := self.model.pretrained_cfg.get("label_names"):
            return list(names)
        if subset := infer_imagenet_subset(self.model):
            info = ImageNetInfo(subset)
            return [info.index_to_description(index).partition(",")[0] for index in range(info.num_classes())]
        return [f"class {index}" for index in range(self.model.num_classes)]

    def class_index(self, target: str) -> int:
        """The class that a name or a number means.

        Raises:
            ValueError: It has no such class.
        """
        names = self.class_names()
        if target in names:
            return names.index(target)
        if target.isdigit() and int(target) < len(names):
            return int(target)
        some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(
            f"target: {self.name} has no class {target!r}, expected 0 to {len(names) - 1} or one of: {some}"
        )

    def displayed(self, images: Tensor) -> Tensor:
        """Normalised images ``(N, C, H, W)`` as pictures ``(N, H, W, C)`` from 0 to 1."""
        config = resolve_input_data_config(self.model)
        mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
        return (images.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def open_subject(name: str, weights: Path | None = None, seed: int = 0) -> Subject:
    """A model by its name in timm's registry, with its released weights, or by the folder of its checkpoint.

    A model that was never released, ``iformer_nano`` say, has fresh weights.

    Args:
        name: Name or folder.
        weights: A file of weights, or the folder of a checkpoint, in place of the released ones.
        seed: Of fresh weights.

    Raises:
        ValueError: There is no such model, or the weights do not fit it.
        OSError: The weights cannot be read.
    """
    if (folder := _checkpoint(name, weights)) is not None:
        model: Any = saved.load(folder)
        architecture = model.pretrained_cfg["architecture"]
        if weights is not None and name not in ("", architecture):
            raise ValueError(f"{weights}: a checkpoint of {architecture}, expected one of {name}")
        return Subject(f"{architecture}, trained", model, str(folder))
    torch.manual_seed(seed)
    if weights is not None:
        return Subject(name, saved.create(name, str(weights)).eval(), str(weights))
    released = timm.is_model(name) and timm.is_model_pretrained(name)
    model = saved.create(name, released).eval()
    return Subject(name if released else f"{name}, untrained", model, "released" if released else f"fresh, seed {seed}")


def _checkpoint(name: str, weights: Path | None) -> Path | None:
    """The folder of a checkpoint that is meant; None where ``name`` is that of a model and ``weights`` no folder."""
    if name and not timm.is_model(name) and Path(name).exists():
        if weights is not None:
            raise ValueError(f"{weights}: {name} is a folder that has weights, expected the name of a model")
        return Path(name)
    return weights if weights is not None and (weights.is_dir() or not name) else None


def untrained(name: str, weights: Path | None = None, seed: int = 0) -> Subject:
    """The network that :func:`open_subject` gives for ``name`` and ``weights``, with fresh weights."""
    torch.manual_seed(seed)
    if (folder := _checkpoint(name, weights)) is not None:
        model: Any = saved.load(folder, pretrained=False)
        name = model.pretrained_cfg["architecture"]
    else:
        model = saved.create(name).eval()
    return Subject(f"{name}, untrained", model, f"fresh, seed {seed}")


@dataclass
class ImageFiles:
    """Image files, read anew for each model as its preprocessing wants them.

    Attributes:
        paths: The files.
        batch_size: Images at a time.
        unreadable: Files that turned out to be no images, or not to be made into what the model takes, and why.
        available: How many files there were to choose from.
    """

    paths: Sequence[Path]
    batch_size: int = 32
    unreadable: dict[Path, str] = field(default_factory=dict)
    available: int = 0

    def __post_init__(self) -> None:
        self.available = self.available or len(self.paths)

    def batches(self, subject: Subject) -> Iterator[Tensor]:
        """Normalised images ``(N, C, H, W)``; unreadable files are noted and passed over.

        Shows its progress on standard error where there are more than two batches.

        Raises:
            ValueError: No file could be read.
        """
        config = resolve_input_data_config(subject.model)
        transform = create_transform(**config, is_training=False)
        images: list[Tensor] = []
        readable = 0
        console, few = Console(stderr=True), len(self.paths) <= 2 * self.batch_size
        for path in track(self.paths, f"Reading for {markup(subject.name)}", console=console, disable=few):
            try:
                images.append(transform(read_image(path, channels=config["input_size"][0])))
            except ITEM_ERRORS as error:
                self.unreadable[path] = item_error(path, error)
                continue
            readable += 1
            if len(images) == self.batch_size:
                yield torch.stack(images)
                images = []
        if images:
            yield torch.stack(images)
        if not readable:
            raise ValueError(next(iter(self.unreadable.values()), "no image files"))

    def some(self, count: int) -> "ImageFiles":
        """At most ``count`` of the files, evenly spread over their order, without those known to be unreadable."""
        paths = [path for path in self.paths if path not in self.unreadable]
        if len(paths) <= count:
            return ImageFiles(paths, self.batch_size, available=self.available)
        # The middles of equal parts: sorted folders of classes are drawn from alike.
        places = ((np.arange(count) + 0.5) * len(paths) / count).astype(int)
        return ImageFiles([paths[place] for place in places], self.batch_size, available=self.available)

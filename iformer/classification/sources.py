"""Sources of labelled images: class folders, tar files, Hugging Face datasets and WebDataset shards.

Hugging Face datasets, tar files and shards are opened by timm's readers. This module chooses the splits, checks the
classes and decodes every kind of image.
"""

import io
import json
import logging
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from multiprocessing import Value
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from timm.data import add_img_extensions, create_reader
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from iformer.common.images import EXTENSIONS, UnreadableImageError, decode_image, image_files, is_hidden
from iformer.training.folders import SPLITS
from iformer.training.resumable import seed_from

SHUFFLE_BUFFER = 4096  # the number of encoded samples in memory from which the next one is drawn

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]


class Tolerance:
    """The treatment of unreadable images: raise an error at once, or count them and warn until a share is exceeded.

    Images are counted for all workers of a loader together and over all of its epochs: an unreadable image counts again
    in each epoch.

    Args:
        skip: Whether to skip unreadable images.
        max_share: Highest share of unreadable images in the epochs that have begun.
        length: Number of images in an epoch.
    """

    def __init__(self, skip: bool, max_share: float, length: int) -> None:
        self.skip, self.max_share, self.length = skip, max_share, length
        self.read, self.failed = Value("q", 0), Value("q", 0)

    def count(self) -> None:
        """Count an image that is about to be read."""
        with self.read.get_lock():
            self.read.value += 1

    def report(self, error: UnreadableImageError) -> None:
        """Count an image that could not be read, and warn.

        Raises:
            UnreadableImageError: Unreadable images are not skipped, or there are too many of them.
        """
        if not self.skip:
            raise error
        with self.failed.get_lock():
            self.failed.value += 1
        failed = self.failed.value
        asked = self.read.value - failed + 1  # each earlier failure was followed by an image in its place
        images = self.length * max(1, -(-asked // self.length))
        if failed > self.max_share * images:
            raise UnreadableImageError(
                f"{failed} of {images} images are unreadable, more than the share of {self.max_share:g} that "
                f"max_error_share allows; the last one: {error}"
            ) from None
        logger.warning("skipped (%d so far): %s", failed, error)


class LabelledImages(Dataset[tuple[Tensor, Any]]):
    """Labelled images ``((C, H, W), label)`` from a reader that finds them by index.

    An unreadable image is replaced by the next readable one if the tolerance allows it.

    Args:
        reader: A reader of timm or :class:`ClassFolders`.
        labels: The labels of all images of the reader: a number, or a tensor ``(K,)`` for several labels.
        indices: The indices of the images to use.
        transform: The function that turns an image into ``(C, H, W)``.
        channels: The number of channels to read: 3 for RGB, 1 for greyscale.
        tolerance: The treatment of unreadable images.
    """

    def __init__(
        self,
        reader: Any,
        labels: Sequence[int] | Tensor,
        indices: Sequence[int],
        transform: Transform,
        channels: int,
        tolerance: Tolerance,
    ) -> None:
        self.reader, self.labels, self.indices = reader, labels, indices
        self.transform, self.channels, self.tolerance = transform, channels, tolerance

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        while True:  # the tolerance ends this if there are too many unreadable images
            self.tolerance.count()
            index = self.indices[number % len(self)]
            try:
                image = self._read(index)
            except UnreadableImageError as error:
                self.tolerance.report(error)
                number += 1
            else:
                return self.transform(image), self.labels[index]

    def _read(self, index: int) -> Image.Image:
        name = _name(self.reader, index)
        try:
            with self.reader[index][0] as file:
                return decode_image(file, name, self.channels)
        except (OSError, tarfile.TarError) as error:
            raise UnreadableImageError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


class ShardedImages(IterableDataset[tuple[Tensor, int]]):
    """Labelled images ``((C, H, W), label)`` streamed from WebDataset shards.

    A sample is an image (``.jpg``, ``.png``, ``.webp``) and its label as digits (``.cls``). Shards are distributed to
    ranks and workers. In training, the order of the shards differs in each epoch, samples are drawn from a buffer, and
    every worker starts again with its first shard until it has yielded its part of the epoch, so that all ranks have
    the same number of batches. Order and augmentation depend only on the seed, the epoch, the rank and the worker.

    Args:
        reader: timm's reader, which knows the shards.
        num_classes: The number of classes, which all labels must be below.
        transform: The function that turns an image into ``(C, H, W)``.
        channels: The number of channels to read: 3 for RGB, 1 for greyscale.
        tolerance: The treatment of unreadable images.
        batches: The number of batches in a training epoch of one rank; None for one pass without shuffling.
        batch_size: The number of samples in a batch.
        seed: The seed of order and augmentation.
        rank: The rank of this process.
        world_size: The number of processes.
    """

    def __init__(
        self,
        reader: Any,
        num_classes: int,
        transform: Transform,
        channels: int,
        tolerance: Tolerance,
        batches: int | None,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.shards = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
        self.num_classes, self.transform, self.channels, self.tolerance = num_classes, transform, channels, tolerance
        self.batches, self.batch_size = batches, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = Value("q", 0)  # shared with workers that outlive an epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, part = self.epoch.value, self.rank * workers + worker
        shards = list(self.shards)
        wanted = None
        if self.batches is not None:
            random.Random(f"{self.seed} {epoch}").shuffle(shards)
            # A loader takes batches from its workers in turn.
            wanted = len(range(worker, self.batches, workers)) * self.batch_size
        shards = shards[part :: self.world_size * workers]
        if wanted and not shards:
            raise ValueError(
                f"{len(self.shards)} shards are too few for {self.world_size} ranks with {workers} workers each: "
                "expected at least one shard for each worker"
            )
        for count, sample in enumerate(self._samples(shards, endless=wanted is not None, shuffle=(epoch, part))):
            if count == wanted:
                return
            torch.default_generator.manual_seed(seed_from(self.seed, epoch, part, count))
            yield self.transform(sample[0]), sample[1]

    def _samples(self, shards: list[str], endless: bool, shuffle: tuple[int, int]) -> Iterator[tuple[Image.Image, int]]:
        """Yield decoded images and their labels."""
        import webdataset

        stages = [webdataset.SimpleShardList(shards), webdataset.tarfile_to_samples(select_files=_is_visible)]
        if endless:
            buffer = random.Random(f"{self.seed} {shuffle}")
            stages.append(webdataset.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER // 4, rng=buffer))
        pipeline = webdataset.DataPipeline(*stages)
        while True:
            readable = False
            for sample in pipeline:
                self.tolerance.count()
                try:
                    decoded = self._decode(sample)
                except UnreadableImageError as error:
                    self.tolerance.report(error)
                else:
                    readable = True
                    yield decoded
            if not (endless and readable):
                return

    def _decode(self, sample: dict[str, Any]) -> tuple[Image.Image, int]:
        name = f"{sample['__url__']}: {sample['__key__']}"
        extension = next((key for key in sample if f".{key}" in EXTENSIONS), None)
        if extension is None:
            raise UnreadableImageError(f"{name}: no image, only {', '.join(k for k in sample if k[0] != '_')}")
        try:
            label = int(sample["cls"])
        except (KeyError, ValueError):
            raise UnreadableImageError(f"{name}: no label, expected a .cls file with a number") from None
        if not 0 <= label < self.num_classes:
            raise ValueError(f"{name}: label {label}, but there are {self.num_classes} classes")
        return decode_image(io.BytesIO(sample[extension]), name, self.channels), label


class ClassFolders(Reader):
    """A reader of a folder for each class: as in torchvision, a class has all images in its folder and below it.

    timm's own reader names classes by the innermost folders, and takes hidden folders for classes too.

    Attributes:
        samples: The file and label of each image, in the natural order of the files' names.
        class_to_idx: The labels of the classes, in the natural order of their names. Images outside of class folders
            have the class ''.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = str(root)
        parts = [(str(file), file.relative_to(root).parts) for file in image_files(root)]
        named = [(file, inner[0] if len(inner) > 1 else "") for file, inner in parts]
        if not named:
            raise ValueError(f"Found 0 images ({', '.join(EXTENSIONS)})")
        ordered = sorted({name for _, name in named}, key=natural_key)
        self.class_to_idx = {name: label for label, name in enumerate(ordered)}
        found = sorted(named, key=lambda sample: natural_key(sample[0]))
        self.samples = [(file, self.class_to_idx[name]) for file, name in found]

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path, label = self.samples[index]
        return open(path, "rb"), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        file = self.samples[index][0]
        return os.path.basename(file) if basename else file if absolute else os.path.relpath(file, self.root)


class TarMembers(ReaderImageInTar):
    """A reader of the images in a tar file with class folders, or in a folder of tar files.

    As in :class:`ClassFolders`, hidden and system files are skipped. The classes of a single tar file are its outermost
    folders, below those that contain all of its images.
    """

    def __init__(self, root: Path) -> None:
        # Open files are not cached, because forked workers that share one would read from wrong positions.
        super().__init__(str(root), cache_tarfiles=False)
        shown = [number for number, (info, *_) in enumerate(self.samples) if _is_visible(info.path)]
        if not shown:
            raise ValueError(f"Found 0 images ({', '.join(EXTENSIONS)})")
        self.samples = self.samples[shown]
        names = [self.class_idx_to_name[target] for target in self.targets[shown]]
        if self.root_is_tar and all(outer is None for *_, outer in self.samples):
            folders = [PurePosixPath(info.path).parent.parts for info, *_ in self.samples]
            alike = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
            shared = len(list(alike)) if len(set(folders)) > 1 else max(0, len(folders[0]) - 1)
            # If the shared folder holds images beside folders, it is itself the class; at the top they have no class.
            names = [(*inner[shared:], "")[0] for inner in folders]
            if "" in names and shared:
                names = [inner[shared - 1] for inner in folders]
        ordered = sorted(set(names), key=natural_key)
        self.class_name_to_idx = {name: label for label, name in enumerate(ordered)}
        self.class_idx_to_name = dict(enumerate(ordered))
        self.targets = np.array([self.class_name_to_idx[name] for name in names])


def _is_visible(member: str) -> bool:
    """Return whether a member of a tar file is neither hidden nor a system file."""
    return not any(map(is_hidden, PurePosixPath(member).parts))


def choose_split(root: str, reader: str, kind: str, wanted: str | None) -> str | None:
    """Return the name of the split ``kind`` (train, val or test): ``wanted``, or the first usual name that exists.

    Args:
        root: The datamodule's ``root``.
        reader: The datamodule's ``reader``.
        kind: The kind of the split: train, val or test.
        wanted: The name that the user gave, or None.

    Returns:
        The name, or None if ``wanted`` is None and there is no split with a usual name.

    Raises:
        ValueError: There is no split ``wanted``; the message names those that exist.
    """
    if wanted is not None and reader == "wds" and ".tar" in wanted:
        return wanted  # a pattern of shards
    available = available_splits(root, reader)
    found = next((name for name in ([wanted] if wanted else SPLITS[kind]) if name in available), None)
    if wanted and found is None:
        raise ValueError(f"{root}: no split {wanted!r}, there are: {', '.join(available) or 'none'}")
    return found


def available_splits(root: str, reader: str) -> list[str]:
    """Return the names of the splits; those of folders, tar files and CSV files are in ``root``."""
    prefix, _, name = reader.partition("/")
    if prefix == "hfds":
        import datasets

        try:
            return [str(split) for split in datasets.get_dataset_split_names(name)]
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: not a dataset that can be read ({str(error).splitlines()[0]})") from error
    if not Path(root).exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    if prefix == "wds":
        return sorted(_shard_info(root).get("splits", {}))
    if prefix == "csv":
        return sorted(path.stem for path in Path(root).glob("*.csv") if not is_hidden(path.name))
    if Path(root).is_file():
        return []
    return sorted(
        {
            path.stem
            for path in Path(root).iterdir()
            if not is_hidden(path.name) and (path.is_dir() or path.suffix == ".tar")
        }
    )


def _shard_info(root: str) -> dict[str, Any]:
    """Return the contents of ``_info.json`` beside the shards, or nothing if it does not exist."""
    for name in ("_info.json", "info.json"):
        if (path := Path(root) / name).is_file():
            return dict(json.loads(path.read_text()))
    return {}


def open_split(root: str, reader: str, split: str | None) -> tuple[Any, dict[str, int]]:
    """Return the reader of a split, or of everything in ``root`` if it is None, and the labels of its classes by name.

    Raises:
        ValueError: There are no images, a class has none, or images lie outside of class folders.
    """
    add_img_extensions(EXTENSIONS)
    folder = Path(root, split) if split and Path(root, split).is_dir() else Path(root, f"{split}.tar" if split else "")
    tars = folder.suffix == ".tar" or any(folder.glob("*.tar"))
    try:
        if reader:
            opened = create_reader(reader if "/" in reader else f"{reader}/", root=root or None, split=split or "train")
        elif tars:
            opened = TarMembers(folder)
        else:
            opened = ClassFolders(folder)
    except (OSError, RuntimeError, AssertionError, ValueError, tarfile.TarError) as error:
        place = f"{reader} {root}".strip() if reader else folder
        raise ValueError(f"{place}: cannot be read as a set of images ({str(error).splitlines()[0]})") from error
    classes = dict(opened.class_name_to_idx if tars and not reader else opened.class_to_idx)
    if not reader:
        if "" in classes:
            index = labels_of(opened).index(classes[""])
            raise ValueError(f"{_name(opened, index)}: an image outside of class folders")
        if not tars:
            _require_images(folder, [path for path, _ in opened.samples])
    return opened, classes


def labels_of(reader: Any) -> list[int]:
    """Return the labels of a reader's images without reading the images."""
    if hasattr(reader, "samples") and hasattr(reader, "targets"):  # tar
        return [int(label) for label in reader.targets]
    if hasattr(reader, "samples"):  # folder
        return [label for _, label in reader.samples]
    return [int(label) for label in reader.iter_targets()]


def _require_images(folder: Path, files: Sequence[str]) -> None:
    """Raise ValueError if a class folder is empty."""
    used = {Path(os.path.relpath(file, folder)).parts[0] for file in files}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_hidden(entry.name) and entry.name not in used:
            raise ValueError(f"{entry}: a class folder without images ({', '.join(EXTENSIONS)})")


def _name(reader: Any, index: int) -> str:
    """Return the name of an image for messages."""
    file = reader.filename(index, absolute=True)
    if isinstance(reader, ReaderImageInTar):
        return f"{reader.root}: {file}"
    return str(file) if file else f"image {index}"

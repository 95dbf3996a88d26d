"""Where labelled images come from: class folders, tar files, Hugging Face datasets and WebDataset shards.

timm's readers open them; what is here chooses the split, checks the classes and decodes every kind of image.
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
from iformer.training.resumable import seed_from

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SHUFFLE_BUFFER = 4096  # samples that wait in memory, undecoded, to be drawn from

logger = logging.getLogger(__name__)

Transform = Callable[[Image.Image], Tensor]


class Tolerance:
    """What to do about unreadable images: raise at once, or count, warn and go on up to a share.

    Counts for all of a loader's workers together, and over all of its epochs: an image that is met again counts again.

    Args:
        skip: Go on.
        max_share: Unreadable images in those of the epochs begun.
        length: Images in the set, in an epoch.
    """

    def __init__(self, skip: bool, max_share: float, length: int) -> None:
        self.skip, self.max_share, self.length = skip, max_share, length
        self.read, self.failed = Value("q", 0), Value("q", 0)

    def count(self) -> None:
        """An image is about to be read."""
        with self.read.get_lock():
            self.read.value += 1

    def report(self, error: UnreadableImageError) -> None:
        """An image could not be read: raises ``error``, or an account of too many of them, or warns."""
        if not self.skip:
            raise error
        with self.failed.get_lock():
            self.failed.value += 1
        failed = self.failed.value
        asked = self.read.value - failed + 1  # each that failed before was followed by another in its place
        images = self.length * max(1, -(-asked // self.length))
        if failed > self.max_share * images:
            raise UnreadableImageError(
                f"{failed} of {images} images are unreadable, more than the share of {self.max_share:g} that "
                f"max_error_share allows; the last: {error}"
            ) from None
        logger.warning("skipped (%d so far): %s", failed, error)


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images that a timm reader finds by index: ``((C, H, W), label)``.

    An unreadable one is replaced by the next readable one, where the tolerance allows it.

    Args:
        reader: timm's.
        labels: Of all the reader's images.
        indices: Which of them to use.
        transform: Image to ``(C, H, W)``.
        channels: 3 for RGB, 1 for greyscale.
        tolerance: Of unreadable images.
    """

    def __init__(
        self,
        reader: Any,
        labels: Sequence[int],
        indices: Sequence[int],
        transform: Transform,
        channels: int,
        tolerance: Tolerance,
    ) -> None:
        self.reader, self.labels, self.indices = reader, labels, indices
        self.transform, self.channels, self.tolerance = transform, channels, tolerance

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        while True:  # Tolerance ends it
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
    """Images streamed from WebDataset shards: ``((C, H, W), label)``.

    A sample is an image (``.jpg``, ``.png``, ``.webp``) and its label as digits (``.cls``). Shards are dealt out to
    ranks and workers. In training they come in an order of the epoch, samples are drawn from a buffer, and every worker
    goes on from its first shard again until it has given its part of the epoch, so that all ranks do the same number of
    batches. Order and augmentation depend on seed, epoch, rank and worker only.

    Args:
        reader: timm's, which knows the shards and the number of samples.
        num_classes: Labels must be below it.
        transform: Image to ``(C, H, W)``.
        channels: 3 for RGB, 1 for greyscale.
        tolerance: Of unreadable images.
        batches: Batches of an epoch of one rank in training; None for one pass without shuffling.
        batch_size: Samples in a batch.
        seed: Of order and augmentation.
        rank: This process.
        world_size: All processes.
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
            # Loaders ask their workers for batches in turn.
            wanted = len(range(worker, self.batches, workers)) * self.batch_size
        shards = shards[part :: self.world_size * workers]
        if wanted and not shards:
            raise ValueError(
                f"{len(self.shards)} shards are too few for {self.world_size} ranks with {workers} workers each: "
                "each worker needs one of its own"
            )
        for count, sample in enumerate(self._samples(shards, endless=wanted is not None, shuffle=(epoch, part))):
            if count == wanted:
                return
            torch.default_generator.manual_seed(seed_from(self.seed, epoch, part, count))
            yield self.transform(sample[0]), sample[1]

    def _samples(self, shards: list[str], endless: bool, shuffle: tuple[int, int]) -> Iterator[tuple[Image.Image, int]]:
        """Decoded images and labels."""
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
            raise UnreadableImageError(f"{name}: no label, a .cls file with a number") from None
        if not 0 <= label < self.num_classes:
            raise ValueError(f"{name}: label {label}, but there are {self.num_classes} classes")
        return decode_image(io.BytesIO(sample[extension]), name, self.channels), label


class ClassFolders(Reader):
    """A folder for each class, as torchvision has it: a class is what lies in a folder and in the folders inside it.

    timm's own reader names classes by the innermost folders, and takes hidden ones for classes too.

    Attributes:
        samples: File and label of each image, in the natural order of the files' names.
        class_to_idx: The classes, in the natural order of their names. Images outside of class folders have the class
            ''.
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
    """The images in a tar file with class folders, or in a folder of tar files.

    As in :class:`ClassFolders`, hidden and system files are passed over, and the classes of one tar file are its first
    folders, below those that all of its images lie in.
    """

    def __init__(self, root: Path) -> None:
        # Not cached: an open file shared by forked workers would be read from the wrong place.
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
            # A folder that holds both images and all other folders is a class, or the images lie outside of classes.
            names = [(*inner[shared:], "")[0] for inner in folders]
            if "" in names and shared:
                names = [inner[shared - 1] for inner in folders]
        ordered = sorted(set(names), key=natural_key)
        self.class_name_to_idx = {name: label for label, name in enumerate(ordered)}
        self.class_idx_to_name = dict(enumerate(ordered))
        self.targets = np.array([self.class_name_to_idx[name] for name in names])


def _is_visible(member: str) -> bool:
    """Whether a member of a tar file is the user's, not hidden or of a system."""
    return not any(map(is_hidden, PurePosixPath(member).parts))


def choose_split(root: str, reader: str, kind: str, wanted: str | None) -> str | None:
    """The name of the split ``kind`` (train, val or test): the one asked for, or the first usual one that is there.

    Raises:
        ValueError: The split asked for is not there; names those that are.
    """
    if wanted is not None and reader == "wds" and ".tar" in wanted:
        return wanted  # a pattern of shards
    available = available_splits(root, reader)
    found = next((name for name in ([wanted] if wanted else SPLITS[kind]) if name in available), None)
    if wanted and found is None:
        raise ValueError(f"{root}: no split {wanted!r}, there are: {', '.join(available) or 'none'}")
    return found


def available_splits(root: str, reader: str) -> list[str]:
    """Names of the splits; of the folders and tar files in ``root`` for the reader of those."""
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
    """What ``_info.json`` beside the shards says."""
    for name in ("_info.json", "info.json"):
        if (path := Path(root) / name).is_file():
            return dict(json.loads(path.read_text()))
    return {}


def open_split(root: str, reader: str, split: str | None) -> tuple[Any, dict[str, int]]:
    """timm's reader of a split (None: all that ``root`` holds), and the classes that it names.

    Raises:
        ValueError: There are no images, a class has none, or images lie outside class folders.
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
    """The labels of a reader's images, without reading these."""
    if hasattr(reader, "samples") and hasattr(reader, "targets"):  # tar
        return [int(label) for label in reader.targets]
    if hasattr(reader, "samples"):  # folder
        return [label for _, label in reader.samples]
    return [int(label) for label in reader.iter_targets()]


def _require_images(folder: Path, files: Sequence[str]) -> None:
    """Raise where a class folder is empty, which timm passes over."""
    used = {Path(os.path.relpath(file, folder)).parts[0] for file in files}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_hidden(entry.name) and entry.name not in used:
            raise ValueError(f"{entry}: a class folder without images ({', '.join(EXTENSIONS)})")


def _name(reader: Any, index: int) -> str:
    """What to call an image in messages."""
    file = reader.filename(index, absolute=True)
    if isinstance(reader, ReaderImageInTar):
        return f"{reader.root}: {file}"
    return str(file) if file else f"image {index}"

"""The datamodule of classification: images from timm's readers, augmentation and loaders."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.layers import to_2tuple
from torch.utils.data import DataLoader
from torchvision import transforms

from iformer.classification.augmentation import allow_zero_bits, check_policy
from iformer.classification.sources import (
    LabelledImages,
    ShardedImages,
    Tolerance,
    Transform,
    available_splits,
    choose_split,
    labels_of,
    open_split,
)
from iformer.common.ranges import Count, NotNegativeInt, Positive, Range, Share, ShareRange, Size, checked
from iformer.training.class_weights import ClassWeights, require_weights, weights_of
from iformer.training.data import DataModule
from iformer.training.folders import SPLITS
from iformer.training.resumable import ResumableBatchSampler, position, run_seed

CropMode = Literal["center", "squash", "border"]
ErasingMode = Literal["pixel", "rand", "const"]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class ImageData(DataModule):
    """Labelled images from class folders, tar files, Hugging Face datasets or WebDataset shards.

    Batches are normalised float32 images ``(N, C, H, W)`` and labels ``(N,)``. Mixup and CutMix, which mix a batch, are
    part of the task. If the name of a split is not given, the usual names are tried (train, val, test and the like). If
    there is no validation split, a fixed share of each class of the training images is used for it. If there is no test
    split, the validation images are used for the test, as is customary on ImageNet.

    The order and augmentation of images depend on the run's seed, the epoch and the image, and not on the number of
    workers, and training can be resumed in the middle of an epoch. WebDataset shards are an exception, because they can
    only be read from the beginning: an interrupted epoch starts again, and order and augmentation depend on the number
    of workers too.

    Args:
        root: The folder with the splits, each of them a folder or a tar file that has a folder for each class; or, for
            all splits together, a folder of class folders or one tar file; or the folder of the shards; or the cache of
            Hugging Face datasets.
        reader: The kind of source: '' for folders and tar files, 'wds' for WebDataset shards, 'hfds/NAME' for the
            Hugging Face dataset NAME (or a local folder).
        train_split: Name of the training split. For shards, a split that ``_info.json`` beside them describes, or the
            names of the shards and the number of samples, such as ``train-{0000..0127}.tar|1281167``.
        val_split: Name of the validation split. The name of the training split keeps the share of its images apart,
            even if there is a validation split, for which ``test_split`` may then stand.
        test_split: Name of the test split.
        val_share: Share of the training images that is used for validation if there is no validation split.
        class_file: Text file with one class name per line, in the order of the labels. It is required for shards, which
            do not name their classes; other sources must have exactly these classes.
        image_size: Height and width of the model's images in pixels, or one number for both.
        in_chans: Number of image channels: 3 for RGB, 1 for greyscale.
        mean: Mean of each channel for normalisation, of pixel values from 0 to 1.
        std: Standard deviation of each channel for normalisation.
        interpolation: Interpolation in evaluation (and in training if ``train_interpolation`` is None): nearest,
            bilinear, bicubic, box, hamming or lanczos.
        crop_pct: Side of the central crop in evaluation, as a share of the side to which the image is resized.
        crop_mode: timm's crop mode in evaluation: center, squash or border.
        batch_size: Number of images in a training batch on each device.
        eval_batch_size: Number of images in an evaluation batch on each device; None for ``batch_size``.
        num_workers: Number of processes that load images for each device.
        pin_memory: Whether to load images into page-locked memory if there is a GPU.
        scale: Range of the random resized crop's area, as a share of the image's area.
        ratio: Range of the random resized crop's aspect ratio, width over height.
        crop_padding: If not 0, the image is resized and padded by this number of pixels, and a random window of it
            replaces the random resized crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of brightness, contrast and saturation changes if there is no ``auto_augment``.
        auto_augment: timm's augmentation policy, such as ``rand-m9-mstd0.5-inc1``; None for none.
        train_interpolation: Interpolation of the random resized crop and of ``auto_augment``, which does not support
            box, hamming and lanczos; random chooses between bilinear and bicubic.
        random_erasing: Probability of erasing a rectangle.
        erasing_mode: Filling of the erased rectangle: pixel (noise), rand (one colour) or const (the mean).
        repeats: Number of copies of an image in the same global batch, for repeated augmentation.
        class_sampling: The weight of each class's images in the draw of training images, which are then drawn with
            replacement: a list, a mapping from names to weights (1 for others), or ``balanced``, with which each class
            is drawn equally often.
        on_error: What to do with an unreadable image: raise an error, or skip it, that is warn and take the next image.
        max_error_share: Share of unreadable images above which skipping them ends with an error.

    Attributes:
        divided: Whether the validation images are a share of the training images, once :meth:`setup` has been called.
        has_test: Whether the test images are others than the validation images, once :meth:`setup` has been called.

    Raises:
        ValueError: An argument is out of range.
    """

    readers: ClassVar[tuple[str, ...]] = ("", "wds")  # the kinds of sources beside Hugging Face datasets

    @checked
    def __init__(
        self,
        root: str = "",
        reader: str = "",
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        class_file: str | None = None,
        image_size: Count | Size = 224,
        in_chans: Literal[1, 3] = 3,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[Positive] = IMAGENET_DEFAULT_STD,
        interpolation: str = "bicubic",
        crop_pct: Positive = 0.9,
        crop_mode: CropMode = "center",
        batch_size: Count = 128,
        eval_batch_size: Count | None = None,
        num_workers: NotNegativeInt = 4,
        pin_memory: bool = True,
        scale: ShareRange = (0.08, 1.0),
        ratio: Range = (3 / 4, 4 / 3),
        crop_padding: NotNegativeInt = 0,
        hflip: Share = 0.5,
        vflip: Share = 0.0,
        color_jitter: Share = 0.0,
        auto_augment: str | None = None,
        train_interpolation: str | None = "random",
        random_erasing: Share = 0.0,
        erasing_mode: ErasingMode = "pixel",
        repeats: Count = 1,
        class_sampling: ClassWeights | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_error_share: Share = 0.01,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.settings = self.hparams
        self.class_names: tuple[str, ...] = ()
        self.divided = self.has_test = False
        self.batch_size = batch_size
        # For each kind of split: the reader, the labels of all its images, and the indices to use.
        self._parts: dict[str, tuple[Any, Any, list[int]]] = {}
        _require_consistent(self.settings, self.readers)
        _require_known_names(self.settings)
        require_weights("class_sampling", class_sampling)

    @property
    def class_counts(self) -> list[int] | None:
        """The number of training images of each class, after :meth:`setup`; None for shards, which are not counted."""
        _, labels, indices = self._parts["train"]
        if self.settings.reader == "wds":
            return None
        return np.bincount(np.asarray(labels)[indices], minlength=self.num_classes).tolist()

    @property
    def num_classes(self) -> int:
        """The number of classes, which is known once :meth:`setup` has been called."""
        return len(self.class_names)

    @property
    def data_config(self) -> dict[str, Any]:
        """The preprocessing of images for a trained model, with the keys of timm's ``pretrained_cfg``."""
        config = {name: self.settings[name] for name in ("interpolation", "crop_pct", "crop_mode")}
        return {
            "input_size": self._input_size(),
            "mean": tuple(self.settings.mean),
            "std": tuple(self.settings.std),
            **config,
        }

    def setup(self, stage: str | None = None) -> None:
        """Open the splits that ``stage`` (fit, validate, test; None for all) needs, and check their classes.

        Raises:
            FileNotFoundError: A folder or file does not exist.
            ValueError: A split is missing, a class is empty, or a split has unknown classes; the message names it.
        """
        root, reader = self.settings.root, self.settings.reader
        wanted = {"train": self.settings.train_split, "val": self.settings.val_split, "test": self.settings.test_split}
        names = {kind: choose_split(root, reader, kind, name) for kind, name in wanted.items()}
        self.class_names = _read_class_file(self.settings.class_file)
        self._parts = {}
        whole = not any(names.values())  # then all images are for training, except for a share for validation
        if names["train"] or whole:
            # This is needed for evaluation too, since the model knows the classes of the training images.
            self._open("train", names["train"])
        elif stage in (None, "fit"):
            there = ", ".join(available_splits(root, reader))
            raise ValueError(f"{root}: no training split ({' or '.join(SPLITS['train'])}), there are: {there}")
        if names["val"] == names["train"]:
            names["val"] = None
        for kind in ("val", "test"):
            if names[kind]:
                self._open(kind, names[kind])
        if "val" not in self._parts and "train" in self._parts:
            self._keep_apart()
        self.has_test = "test" in self._parts and names["test"] != names["val"]
        self._parts.setdefault("test", self._parts.get("val") or self._parts["test"])

    def _open(self, kind: str, name: str | None) -> None:
        """Open a split; the first split that is opened determines the classes, unless a class file does."""
        reader, classes = open_split(self.settings.root, self.settings.reader, name)
        place = f"{self.settings.root or self.settings.reader}{f', split {name}' if name else ''}"
        ordered = sorted(classes, key=classes.__getitem__)
        self.class_names = self.class_names or tuple(ordered)
        if len(self.class_names) < 2:
            hint = " (shards do not name their classes, class_file must)" if self.settings.reader == "wds" else ""
            raise ValueError(f"{place}: {len(self.class_names)} class{hint}, expected at least two")
        if unknown := [name for name in ordered if name not in self.class_names]:
            known = self.settings.class_file or "the training images"
            raise ValueError(f"{place}: {_some(unknown)} not among the {self.num_classes} classes of {known}")
        if self.settings.reader == "wds":
            self._parts[kind] = reader, [], []
            return
        if self.settings.class_file and kind == "train" and (empty := set(self.class_names) - set(ordered)):
            raise ValueError(f"{self.settings.class_file}: {_some(sorted(empty))} without images in {place}")
        new = {classes[name]: self.class_names.index(name) for name in ordered}
        labels = [new.get(label, -1) for label in labels_of(reader)]
        if -1 in labels:
            raise ValueError(f"{place}: image {labels.index(-1)} has no label")
        self._parts[kind] = reader, labels, list(range(len(labels)))

    def _keep_apart(self) -> None:
        """Take a share of each class of the training images for validation, whatever the seed of the run."""
        if self.settings.reader == "wds":
            raise ValueError(f"{self.settings.root}: no validation split, and shards cannot be divided; name val_split")
        self.divided = True
        reader, labels, _ = self._parts["train"]
        order = np.random.default_rng(0).permutation(len(labels))
        apart: list[int] = []
        for label in range(self.num_classes):
            images = order[np.asarray(labels)[order] == label].tolist()
            # At least one image of each class is used for validation, but never its only image.
            apart += images[: min(max(1, round(self.settings.val_share * len(images))), len(images) - 1)]
        self._parts["val"] = reader, labels, sorted(apart)
        self._parts["train"] = reader, labels, sorted(set(range(len(labels))) - set(apart))

    def samples(self, kind: str) -> list[tuple[Path, int]]:
        """Return the file and the label of each image of a split (train, val or test), if it consists of folders."""
        reader, labels, indices = self._parts[kind]
        return [(Path(reader.filename(index, absolute=True)), labels[index]) for index in indices]

    def train_transform(self) -> transforms.Compose:
        """Return the augmentation and normalisation of training images: image to ``(C, H, W)``."""
        settings = self.settings
        color_jitter: Any = settings.color_jitter or None
        transform = create_transform(
            self._input_size(),
            is_training=True,
            scale=settings.scale,
            ratio=settings.ratio,
            hflip=settings.hflip,
            vflip=settings.vflip,
            color_jitter=color_jitter,
            auto_augment=settings.auto_augment,
            interpolation=settings.train_interpolation or settings.interpolation,
            mean=tuple(settings.mean),
            std=tuple(settings.std),
            re_prob=settings.random_erasing,
            re_mode=settings.erasing_mode,
        )
        allow_zero_bits(transform)
        if settings.crop_padding:
            size = self._input_size()[1:]
            resize = transforms.Resize(size, transforms.InterpolationMode(settings.interpolation))
            window = transforms.Compose([resize, transforms.RandomCrop(size, settings.crop_padding)])
            crops = [isinstance(step, RandomResizedCropAndInterpolation) for step in transform.transforms]
            transform.transforms[crops.index(True)] = window
        return transform

    def eval_transform(self) -> transforms.Compose:
        """Return the resizing, central crop and normalisation of evaluation images: image to ``(C, H, W)``."""
        return create_transform(
            self._input_size(),
            interpolation=self.settings.interpolation,
            mean=tuple(self.settings.mean),
            std=tuple(self.settings.std),
            crop_pct=self.settings.crop_pct,
            crop_mode=self.settings.crop_mode,
        )

    def _input_size(self) -> tuple[int, int, int]:
        return self.settings.in_chans, *to_2tuple(self.settings.image_size)

    def train_dataloader(self) -> DataLoader:
        """Return a loader of shuffled, augmented batches that begins at the trainer's position."""
        return self._loader("train", self.train_transform(), self.settings.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return a loader that yields every validation image once."""
        return self._loader("val", self.eval_transform(), self.settings.eval_batch_size or self.settings.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return a loader that yields every test image once."""
        return self._loader("test", self.eval_transform(), self.settings.eval_batch_size or self.settings.batch_size)

    def _loader(self, kind: str, transform: Transform, batch_size: int) -> DataLoader:
        settings, seed = self.settings, run_seed()
        reader, labels, indices = self._parts[kind]
        streamed, training = settings.reader == "wds", kind == "train"
        length = reader.num_samples if streamed else len(indices)
        tolerance = Tolerance(settings.on_error == "skip", settings.max_error_share, length)
        if streamed:
            count = length // (batch_size * self.rank[1]) if training else None
            images = ShardedImages(
                reader, self.num_classes, transform, settings.in_chans, tolerance, count, batch_size, seed, *self.rank
            )
            epoch = position(self.trainer)[0] if training and self.trainer else 0
            return ShardLoader(images, batch_size=batch_size, epoch=epoch, **self.loader_options)
        dataset = LabelledImages(reader, labels, indices, transform, settings.in_chans, tolerance)
        repeats = settings.repeats if training else 1
        batches = ResumableBatchSampler(
            length,
            batch_size,
            seed,
            *self.rank,
            shuffle=training,
            drop_last=training,
            repeats=repeats,
            weights=self._sample_weights() if training else None,
        )
        return self.loader(dataset, batches, training)

    def _sample_weights(self) -> np.ndarray | None:
        """Return the weight of each training image in the draw, or None if they are only shuffled."""
        given = self.settings.class_sampling
        if given is None:
            return None
        key = "data.init_args.class_sampling"
        weights = weights_of(key, given, self.class_names, lambda: self.class_counts)
        _, labels, indices = self._parts["train"]
        return np.asarray(weights)[np.asarray(labels)[indices]]


class ShardLoader(DataLoader):
    """A loader of :class:`ShardedImages` that counts epochs itself, as it has no sampler with ``set_epoch``.

    Args:
        dataset: The streamed images.
        epoch: The first epoch.
        options: Further arguments of ``DataLoader``.
    """

    def __init__(self, dataset: ShardedImages, epoch: int = 0, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.next_epoch = epoch

    def __iter__(self) -> Any:
        dataset: Any = self.dataset
        dataset.epoch.value = self.next_epoch
        self.next_epoch += 1
        return super().__iter__()


def _require_consistent(settings: Any, readers: Sequence[str]) -> None:
    """Raise ValueError, naming the argument, if an argument does not fit another one."""
    for name in ("mean", "std"):
        if len(settings[name]) != settings.in_chans:
            raise ValueError(
                f"{name} has {len(settings[name])} values, expected one for each of {settings.in_chans} channels"
            )
    if settings.reader not in readers and not re.match("hfds/.", settings.reader):
        kinds = ", ".join(repr(kind) + " (folders and tar files)" * (not kind) for kind in readers)
        raise ValueError(f"reader is {settings.reader!r}, expected {kinds} or 'hfds/NAME'")
    if settings.repeats > 1 and settings.reader == "wds":
        raise ValueError("repeats is more than 1, expected 1 for WebDataset shards, which cannot be read in any order")
    if settings.class_sampling is not None and settings.reader == "wds":
        raise ValueError(
            f"class_sampling is {settings.class_sampling}, expected null for WebDataset shards, which cannot be read "
            "in any order"
        )


def _require_known_names(settings: Any) -> None:
    """Raise ValueError, naming the argument, if timm does not know a name, which timm may ignore silently."""
    for name, known in (
        ("interpolation", INTERPOLATIONS),
        ("train_interpolation", (*INTERPOLATIONS, "random", None)),
    ):
        if settings[name] not in known:
            raise ValueError(f"{name} is {settings[name]!r}, expected {', '.join(map(str, known))}")
    if settings.auto_augment:
        check_policy(settings.auto_augment)
        name = "train_interpolation" if settings.train_interpolation else "interpolation"
        if settings[name] in ("box", "hamming", "lanczos"):  # which Pillow supports only for resizing
            raise ValueError(
                f"{name} is {settings[name]!r}, which auto_augment cannot use to rotate and shear; "
                "expected train_interpolation to be random, bicubic, bilinear or nearest"
            )


def _read_class_file(path: str | None) -> tuple[str, ...]:
    """Return the class names in a file that has one per line."""
    if path is None:
        return ()
    names = tuple(line.strip() for line in Path(path).read_text().splitlines() if line.strip())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{path}: {len(names)} class names, {len(set(names))} of them distinct; expected one per line")
    return names


def _some(names: Sequence[str]) -> str:
    """Return the first few of some names, as text."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

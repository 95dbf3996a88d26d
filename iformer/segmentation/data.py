"""The datamodule for segmentation: folders of images and label maps."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors

from iformer.common.images import UnreadableImageError, find_images, read_image
from iformer.common.plotting import default_palette
from iformer.common.ranges import Byte, Count, Factor, NotNegativeInt, Positive, Range, Share, Size, checked
from iformer.segmentation.transforms import IGNORE, EvaluationTransform, training_transform
from iformer.training.data import DataModule
from iformer.training.resumable import ResumableBatchSampler, run_seed

MapValue = Annotated[int, Field(ge=0, lt=1 << 16)]

LABEL_MAPS = ("image_suffix", "label_suffix", "first_label", "ignore_labels")
"""The arguments of :class:`SegmentationData` that say how label maps are called, and what their values stand for."""

SAMPLE = 200  # the number of label maps that are searched for classes without a pixel

logger = logging.getLogger(__name__)

Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class LabelMapError(UnreadableImageError):
    """A label map that does not fit its image or the classes. The message is one line and names the file."""


class LabelledScenes(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of images and their label maps, which are transformed together.

    Args:
        pairs: The files of each image and its label map.
        table: An array ``(65536,)`` of uint8 with the class of each value in the files, ``IGNORE``, or ``UNKNOWN``.
        transform: A function from an image ``(3, H, W)`` and its label map ``(H, W)``, both uint8, to a sample of the
            dataset.
        expected: A description of the values that a label map may hold, for error messages.
    """

    UNKNOWN = 254

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], table: np.ndarray, transform: Transform, expected: str
    ) -> None:
        self.pairs, self.table, self.transform, self.expected = pairs, table, transform, expected

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the transformed image and label map.

        Raises:
            UnreadableImageError: A file cannot be read.
            LabelMapError: The label map differs from its image in size, or has a value that stands for no class.
        """
        image_file, map_file = self.pairs[index]
        # The image stays as it is stored: label maps do not follow the orientation that a camera notes in its images.
        image = np.asarray(read_image(image_file, upright=False))
        labels = self.read_labels(map_file)
        if labels.shape != image.shape[:2]:
            raise LabelMapError(
                f"{map_file}: {labels.shape[1]} x {labels.shape[0]} pixels, "
                f"but its image {image_file} has {image.shape[1]} x {image.shape[0]}"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return self.transform(tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(labels)))

    def read_labels(self, file: Path) -> np.ndarray:
        """Return the classes in a label map as ``(H, W)`` uint8, ``IGNORE`` where there is none.

        Raises:
            UnreadableImageError: The file cannot be read.
            LabelMapError: The file is in colours, or has a value that stands for no class.
        """
        values = read_values(file)
        known = (values >= 0) & (values < len(self.table))
        labels = np.where(known, self.table[np.where(known, values, 0)], self.UNKNOWN)
        unknown = labels == self.UNKNOWN
        if unknown.any():
            raise LabelMapError(f"{file}: label {values[unknown][0]}, expected {self.expected}")
        return labels.astype(np.uint8)

    def values(self, most: int) -> tuple[set[int], int]:
        """Return the values found in a sample of the label maps, and how many label maps were read.

        At most ``most`` label maps are read, evenly spread over the dataset, and only until every class has been found.
        Damaged files are skipped, because training reports them.
        """
        classes, found, count = set(np.unique(self.table)) - {IGNORE, self.UNKNOWN}, set[int](), 0
        for _, file in self.pairs[:: -(-len(self.pairs) // most)]:
            with contextlib.suppress(UnreadableImageError):
                found |= set(np.unique(read_values(file)).tolist())
                count += 1
            if classes <= {self.table[value] for value in found if 0 <= value < len(self.table)}:
                break
        return found, count


def read_values(file: Path) -> np.ndarray:
    """Return the stored values of a label map as ``(H, W)`` int64.

    Raises:
        UnreadableImageError: The file cannot be read.
        LabelMapError: The file is neither a greyscale nor a palette image.
    """
    image = read_image(file, channels=None, upright=False)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise LabelMapError(f"{file}: a label map of mode {image.mode}, expected greyscale or palette")
    return np.asarray(image).astype(np.int64)


class SegmentationData(DataModule):
    """A datamodule of folders of images and label maps: greyscale or palette images with a class in each pixel.

    Training batches are normalised float32 crops ``(N, 3, H, W)`` and uint8 labels ``(N, H, W)``, which are 255 where
    there is no label. Evaluation batches are whole images, resized to fit ``resize``, and label maps of their original
    size.

    The order and the augmentation of the images depend on the run's seed, the epoch and the image, but not on the
    number of workers. A resumed run continues in the middle of an epoch.

    Args:
        root: The folder to which the other folders are relative.
        class_names: The names of the classes in the order of the labels, or a text file with one name per line, which
            may be one of those that come with the recipes.
        train_images: The folder of the training images, including its subfolders.
        train_labels: The folder of the training label maps, whose paths equal those of the images up to the suffix.
        val_images: The folder of the validation images.
        val_labels: The folder of the validation label maps.
        test_images: The folder of the test images; None means the validation images.
        test_labels: The folder of the test label maps.
        image_suffix: The end of the images' names that the label maps' names lack; '' means the extension.
        label_suffix: The end of the label maps' names that replaces ``image_suffix``.
        first_label: The value of the first class in the label maps, such as 1 in ADE20K.
        ignore_labels: The values in the label maps that stand for no class.
        palette: The red, green and blue of each class, from 0 to 255, for pictures; None chooses distinct colours.
        resize: The short and long side in pixels that images are resized to fit, keeping their shape; None keeps their
            size.
        crop: The height and width of the training crops in pixels.
        ratios: The least and the greatest factor of the random resize.
        max_share: The share of a training crop that no class should exceed, if such a crop is found.
        hflip: The probability of a horizontal flip.
        photometric: Whether to distort brightness, contrast, saturation and hue.
        mean: The mean of each channel for normalisation, of pixels from 0 to 1.
        std: The standard deviation of each channel for normalisation.
        batch_size: The number of images in a training batch, on each device.
        eval_batch_size: The number of images in an evaluation batch, on each device; a number above 1 requires images
            of one size.
        num_workers: The number of processes that load images, for each device.
        pin_memory: Whether to load batches into page-locked memory if there is a GPU.

    Raises:
        ValueError: An argument is out of range. :meth:`setup` raises it if the files are not as described.
    """

    @checked
    def __init__(
        self,
        root: str,
        class_names: list[str] | str,
        train_images: str = "images/training",
        train_labels: str = "annotations/training",
        val_images: str = "images/validation",
        val_labels: str = "annotations/validation",
        test_images: str | None = None,
        test_labels: str | None = None,
        image_suffix: str = "",
        label_suffix: str = ".png",
        first_label: MapValue = 0,
        ignore_labels: Sequence[MapValue] = (),
        palette: list[tuple[Byte, Byte, Byte]] | None = None,
        resize: Size | None = None,
        crop: Size = (512, 512),
        ratios: Range = (0.5, 2.0),
        max_share: Factor = 0.75,
        hflip: Share = 0.5,
        photometric: bool = True,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[Positive] = IMAGENET_DEFAULT_STD,
        batch_size: Count = 16,
        eval_batch_size: Count = 1,
        num_workers: NotNegativeInt = 4,
        pin_memory: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.settings = self.hparams
        self.batch_size = batch_size
        self.has_test = self.settings.test_images not in (None, self.settings.val_images)
        self.class_names = tuple(class_names) if not isinstance(class_names, str) else _read_names(class_names)
        self.palette = [tuple(colour) for colour in palette or default_palette(len(self.class_names))]
        _require_consistent(self.settings, self.class_names, self.palette)
        self._pairs: dict[str, list[tuple[Path, Path]]] = {}

    @property
    def class_counts(self) -> list[int]:
        """The number of pixels of each class in all training label maps, which are read for this.

        Raises:
            ValueError: A label map cannot be read, or has a value that stands for no class.
        """
        scenes = self._scenes("train", self._evaluation_transform())
        counts = np.zeros(IGNORE + 1, np.int64)
        for _, file in scenes.pairs:
            counts += np.bincount(scenes.read_labels(file).flatten(), minlength=IGNORE + 1)
        return counts[: len(self.class_names)].tolist()

    @property
    def data_config(self) -> dict[str, Any]:
        """The preprocessing and the classes that a trained model needs to know, and how its label maps are read."""
        return {
            "class_names": list(self.class_names),
            "palette": self.palette,
            "resize": self.settings.resize,
            "crop": self.settings.crop,
            "mean": list(self.settings.mean),
            "std": list(self.settings.std),
            "label_maps": {key: self.settings[key] for key in LABEL_MAPS},
        }

    def setup(self, stage: str | None = None) -> None:
        """Find the images and label maps that ``stage`` needs: fit, validate or test, or None for all of them.

        Raises:
            FileNotFoundError: A folder or a label map is missing. The message names it.
            ValueError: A folder holds no image.
        """
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for kind in needed.get(stage or "", ("train", "val", "test")):
            source = "val" if kind == "test" and self.settings.test_images is None else kind
            folders = (self.settings[f"{source}_{what}"] for what in ("images", "labels"))
            images, labels = (Path(self.settings.root, folder) for folder in folders)
            self._pairs[kind] = pairs(images, labels, self.settings.image_suffix, self.settings.label_suffix)
            if kind == "train" and (self.trainer is None or self.trainer.is_global_zero):
                self._tell_missing_classes(labels)

    def _tell_missing_classes(self, maps: Path) -> None:
        """Warn if a class has no pixel to learn from, for example if masks hold 0 and 255 and 255 is ignored.

        At most ``SAMPLE`` label maps are read, which is quick. In larger datasets these may well lack rare classes, so
        the warning is then given only if at least half of the classes are missing.
        """
        pairs, first, ignored = self._pairs["train"], self.settings.first_label, self.settings.ignore_labels
        found, count = self._scenes("train", self._evaluation_transform()).values(SAMPLE)
        missing = [name for label, name in enumerate(self.class_names, first) if label not in found]
        if not missing or not found or (count < len(pairs) and 2 * len(missing) < len(self.class_names)):
            return
        values = ", ".join(f"{value}{' (ignored)' * (value in ignored)}" for value in sorted(found)[:20])
        logger.warning(
            "%s: no pixel of %s in %s label maps, which hold the values %s; expected %s",
            maps,
            ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else ""),
            count if count == len(pairs) else f"{count} of {len(pairs)}",
            values + (", ..." if len(found) > 20 else ""),
            self._expected(),
        )

    def train_dataloader(self) -> DataLoader:
        """Return shuffled, augmented batches, starting from the trainer's position in the epoch."""
        settings = self.settings
        transform = training_transform(
            settings.resize,
            settings.ratios,
            settings.crop,
            settings.max_share,
            settings.hflip,
            settings.photometric,
            settings.mean,
            settings.std,
        )
        return self._loader("train", transform, settings.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return batches of the validation images, each image once."""
        return self._loader("val", self._evaluation_transform(), self.settings.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return batches of the test images, each image once."""
        return self._loader("test", self._evaluation_transform(), self.settings.eval_batch_size)

    def _evaluation_transform(self) -> Transform:
        return EvaluationTransform(self.settings.resize, self.settings.mean, self.settings.std)

    def _loader(self, kind: str, transform: Transform, batch_size: int) -> DataLoader:
        training = kind == "train"
        dataset = self._scenes(kind, transform)
        batches = ResumableBatchSampler(
            len(dataset), batch_size, run_seed(), *self.rank, shuffle=training, drop_last=training
        )
        return self.loader(dataset, batches, training, collate_fn=default_collate if training else _collate_whole)

    def _scenes(self, kind: str, transform: Transform) -> LabelledScenes:
        first, ignored = self.settings.first_label, self.settings.ignore_labels
        return labelled_scenes(self._pairs[kind], len(self.class_names), transform, first, ignored)

    def _expected(self) -> str:
        return _expected(len(self.class_names), self.settings.first_label, self.settings.ignore_labels)


def pairs(images: Path, maps: Path, image_suffix: str = "", label_suffix: str = ".png") -> list[tuple[Path, Path]]:
    """Return the images in a folder, each with its label map; see :class:`SegmentationData` for the arguments.

    Raises:
        FileNotFoundError: A folder or a label map is missing. The message names it.
        ValueError: The folder holds no image.
    """
    found = []
    for image in find_images([images]):
        path = image.relative_to(images)
        end = image_suffix or path.suffix
        if path.name.endswith(end):
            found.append((image, maps / path.with_name(f"{path.name.removesuffix(end)}{label_suffix}")))
    if not found:
        raise ValueError(f"{images}: no image whose name ends in {image_suffix}")
    missing = [(image, label_map) for image, label_map in found if not label_map.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0][1]}: no such label map, for {missing[0][0]}{more}")
    return found


def labelled_scenes(
    files: Sequence[tuple[Path, Path]],
    classes: int,
    transform: Transform,
    first_label: int = 0,
    ignore_labels: Sequence[int] = (),
) -> LabelledScenes:
    """Return a dataset of pairs of files; see :class:`SegmentationData` for the arguments."""
    table = np.full(1 << 16, LabelledScenes.UNKNOWN, np.uint8)
    table[first_label : first_label + classes] = range(classes)
    table[list(ignore_labels)] = IGNORE
    return LabelledScenes(files, table, transform, _expected(classes, first_label, ignore_labels))


def _expected(classes: int, first: int, ignored: Sequence[int]) -> str:
    expected = f"{first} to {first + classes - 1}, the classes"
    return expected + (f", or {', '.join(map(str, ignored))}, which is ignored" if ignored else "")


def _collate_whole(samples: list[tuple[Tensor, Tensor]]) -> Any:
    """Return a batch of whole images, which must have the same size."""
    if not samples:  # the other ranks have one more image; an ignored one lets this rank take as many steps
        return torch.zeros(1, 3, 32, 32), torch.full((1, 32, 32), IGNORE, dtype=torch.uint8)
    if len({part.shape for sample in samples for part in sample}) > 2:
        raise ValueError(f"eval_batch_size is {len(samples)}, but the images differ in size; expected 1")
    return default_collate(samples)


def _read_names(path: str) -> tuple[str, ...]:
    """Return the class names in a file, one per line; without such a file, one that comes with the recipes."""
    packaged = files("iformer") / "recipes" / path
    text = packaged.read_text() if packaged.is_file() and not Path(path).exists() else Path(path).read_text()
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _require_consistent(settings: Any, names: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Raise ValueError if the arguments contradict each other. The message names the argument."""
    if not 2 <= len(names) < LabelledScenes.UNKNOWN or len(set(names)) < len(names):
        raise ValueError(
            f"class_names has {len(names)} names, {len(set(names))} of them different; expected 2 to 253 different ones"
        )
    if len(palette) != len(names):
        raise ValueError(f"palette has {len(palette)} colours, expected one for each of {len(names)} classes")
    for value in settings.ignore_labels:
        if settings.first_label <= value < settings.first_label + len(names):
            raise ValueError(
                f"ignore_labels is {value}, which stands for the class {names[value - settings.first_label]}; expected "
                f"none of {settings.first_label} to {settings.first_label + len(names) - 1}"
            )
    if settings.first_label > (1 << 16) - len(names):
        raise ValueError(f"first_label is {settings.first_label}, expected 0 to {(1 << 16) - len(names)}")

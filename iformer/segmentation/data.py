"""The datamodule of segmentation: folders of images and of label maps."""

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

SAMPLE = 200  # label maps that are looked at for classes without a pixel

logger = logging.getLogger(__name__)

Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class LabelMapError(UnreadableImageError):
    """A label map that does not fit its image or the classes. The message is one line and names the file."""


class LabelledScenes(Dataset[tuple[Tensor, Tensor]]):
    """Images and their label maps, transformed together.

    Args:
        pairs: Files of image and label map.
        table: ``(65536,)`` uint8: the class of each value in the files, ``IGNORE``, or ``UNKNOWN``.
        transform: Image ``(3, H, W)`` and label map ``(H, W)``, both uint8, to what the loader is to give.
        expected: The values that may stand in a label map, for error messages.
    """

    UNKNOWN = 254

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], table: np.ndarray, transform: Transform, expected: str
    ) -> None:
        self.pairs, self.table, self.transform, self.expected = pairs, table, transform, expected

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The transformed image and label map.

        Raises:
            UnreadableImageError: A file cannot be read.
            LabelMapError: The label map is of another size, or has a value that stands for no class.
        """
        image_file, map_file = self.pairs[index]
        # As it is stored: label maps are not turned when a camera has noted that it was held upright.
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
        """The classes in a label map, ``(H, W)`` uint8, with ``IGNORE`` where there is none."""
        values = self.read_values(file)
        known = (values >= 0) & (values < len(self.table))
        labels = np.where(known, self.table[np.where(known, values, 0)], self.UNKNOWN)
        unknown = labels == self.UNKNOWN
        if unknown.any():
            raise LabelMapError(f"{file}: label {values[unknown][0]}, expected {self.expected}")
        return labels.astype(np.uint8)

    def read_values(self, file: Path) -> np.ndarray:
        """The values in a label map, ``(H, W)`` int64, as they are stored."""
        image = read_image(file, channels=None, upright=False)
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise LabelMapError(f"{file}: a label map of mode {image.mode}, expected greyscale or palette")
        return np.asarray(image).astype(np.int64)

    def values(self, most: int) -> tuple[set[int], int]:
        """The values that stand in label maps, and in how many of them: at most ``most``, from all over the set.

        Ends where every class has been met. Damaged ones are passed over: whoever trains on them will say so.
        """
        classes, found, count = set(np.unique(self.table)) - {IGNORE, self.UNKNOWN}, set[int](), 0
        for _, file in self.pairs[:: -(-len(self.pairs) // most)]:
            with contextlib.suppress(UnreadableImageError):
                found |= set(np.unique(self.read_values(file)).tolist())
                count += 1
            if classes <= {self.table[value] for value in found if 0 <= value < len(self.table)}:
                break
        return found, count


class SegmentationData(DataModule):
    """Folders of images and of label maps: greyscale or palette images with a class in each pixel.

    Training batches are ``(N, 3, H, W)`` normalised float32 crops and ``(N, H, W)`` uint8 labels, 255 where there is
    none. Evaluation is on whole images, resized to fit ``resize``, and label maps of the size that they have.

    Order and augmentation of an image depend on the run's seed, the epoch and the image, not on the number of workers,
    and training goes on in the middle of an epoch.

    Args:
        root: Folder of all the others.
        class_names: In the order of the labels; or a text file with a name a line, also one beside the recipes.
        train_images: Folder of images, those in its subfolders included.
        train_labels: Folder of label maps, at the same paths as the images but for the end of the name.
        val_images: Folder of images for validation.
        val_labels: Folder of their label maps.
        test_images: Folder of images for the test; None for those of the validation.
        test_labels: Folder of their label maps.
        image_suffix: End of the images' names that is not part of the label maps'; '' for the extension.
        label_suffix: What stands in its place in the label maps' names.
        first_label: What the first class is in the label maps; 1 in ADE20K.
        ignore_labels: Values in the label maps that stand for no class.
        palette: Red, green and blue of each class, 0 to 255, for pictures; None for colours that differ.
        resize: Short and long side that images are resized to fit, their shape kept; None leaves them as they are.
        crop: Height and width of the training crops.
        ratios: Least and greatest factor of the random resize.
        max_share: No class covers more of a training crop, if that is to be had.
        hflip: Probability of a horizontal flip.
        photometric: Distort brightness, contrast, saturation and hue.
        mean: Per channel, of pixels from 0 to 1, for normalisation.
        std: Per channel.
        batch_size: Images of a training batch, on each device.
        eval_batch_size: Images of an evaluation batch, on each device; more than 1 needs images of one size.
        num_workers: Processes that load images, for each device.
        pin_memory: Load into page-locked memory, where there is a GPU.

    Raises:
        ValueError: An argument is out of range. :meth:`setup` raises it where the files are not as described.
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
        self.class_names = tuple(class_names) if not isinstance(class_names, str) else _read_names(class_names)
        self.palette = [tuple(colour) for colour in palette or default_palette(len(self.class_names))]
        _require_consistent(self.settings, self.class_names, self.palette)
        self._pairs: dict[str, list[tuple[Path, Path]]] = {}

    @property
    def data_config(self) -> dict[str, Any]:
        """How a trained model is to preprocess images, and what its classes are."""
        return {
            "class_names": list(self.class_names),
            "palette": self.palette,
            "resize": self.settings.resize,
            "crop": self.settings.crop,
            "mean": list(self.settings.mean),
            "std": list(self.settings.std),
        }

    def setup(self, stage: str | None = None) -> None:
        """Find the images that ``stage`` (fit, validate, test; None for all) needs, and their label maps.

        Raises:
            FileNotFoundError: A folder or a label map is missing; names it.
            ValueError: A folder holds no image.
        """
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for kind in needed.get(stage or "", ("train", "val", "test")):
            source = "val" if kind == "test" and self.settings.test_images is None else kind
            folders = (self.settings[f"{source}_{what}"] for what in ("images", "labels"))
            images, labels = (Path(self.settings.root, folder) for folder in folders)
            self._pairs[kind] = self._pair(images, labels)
            if kind == "train" and (self.trainer is None or self.trainer.is_global_zero):
                self._tell_missing_classes(labels)

    def _tell_missing_classes(self, maps: Path) -> None:
        """Warn where a class has no pixel to learn from: masks of 0 and 255, say, whose 255 is ignored.

        Looks at up to ``SAMPLE`` label maps, which is quick. In larger sets rare classes may well be in none of these,
        so that it takes half of the classes to be missing.
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

    def _pair(self, images: Path, maps: Path) -> list[tuple[Path, Path]]:
        pairs = []
        for image in find_images([images]):
            path = image.relative_to(images)
            end = self.settings.image_suffix or path.suffix
            if path.name.endswith(end):
                name = f"{path.name.removesuffix(end)}{self.settings.label_suffix}"
                pairs.append((image, maps / path.with_name(name)))
        if not pairs:
            raise ValueError(f"{images}: no image whose name ends in {self.settings.image_suffix}")
        missing = [(image, label_map) for image, label_map in pairs if not label_map.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{missing[0][1]}: no such label map, for {missing[0][0]}{more}")
        return pairs

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches; from where the trainer stands."""
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
        """Every validation image once."""
        return self._loader("val", self._evaluation_transform(), self.settings.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Every test image once."""
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
        return LabelledScenes(self._pairs[kind], self._table(), transform, self._expected())

    def _table(self) -> np.ndarray:
        """The class of each value that may stand in a label map."""
        table = np.full(1 << 16, LabelledScenes.UNKNOWN, np.uint8)
        first = self.settings.first_label
        table[first : first + len(self.class_names)] = range(len(self.class_names))
        table[list(self.settings.ignore_labels)] = IGNORE
        return table

    def _expected(self) -> str:
        first, ignored = self.settings.first_label, self.settings.ignore_labels
        expected = f"{first} to {first + len(self.class_names) - 1}, the classes"
        return expected + (f", or {', '.join(map(str, ignored))}, which is ignored" if ignored else "")


def _collate_whole(samples: list[tuple[Tensor, Tensor]]) -> Any:
    """A batch of whole images, which must be of one size."""
    if not samples:  # other ranks have one more, and all must take as many steps: an image that does not count
        return torch.zeros(1, 3, 32, 32), torch.full((1, 32, 32), IGNORE, dtype=torch.uint8)
    if len({part.shape for sample in samples for part in sample}) > 2:
        raise ValueError(f"eval_batch_size is {len(samples)}, but images differ in size; expected 1")
    return default_collate(samples)


def _read_names(path: str) -> tuple[str, ...]:
    """The class names in a file, one a line; a file beside the recipes where there is no other."""
    packaged = files("iformer") / "recipes" / path
    text = packaged.read_text() if packaged.is_file() and not Path(path).exists() else Path(path).read_text()
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _require_consistent(settings: Any, names: Sequence[str], palette: Sequence[Sequence[int]]) -> None:
    """Raise ValueError, naming the argument, where one does not fit another."""
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

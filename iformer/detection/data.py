"""The datamodule for detection: COCO annotations, joint transforms and batches grouped by aspect ratio."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from iformer.common.images import UnreadableImageError, read_image
from iformer.common.ranges import Count, NotNegativeInt, Share, checked
from iformer.detection.annotations import Annotations, read, targets
from iformer.training.data import DataModule
from iformer.training.resumable import ResumableBatchSampler, run_seed

Sample = tuple[Tensor, dict[str, Tensor]]

MUCH = 0.05  # a warning is logged if training leaves out more than this share of the annotations

logger = logging.getLogger(__name__)


class CocoData(DataModule):
    """A datamodule of images with annotations in COCO's format.

    A batch consists of N images ``(3, H, W)``, each of its own size and with values from 0 to 1, and of N targets, see
    :func:`iformer.detection.annotations.targets`. The detector itself resizes and normalises the images. Training
    leaves out crowd regions, boxes narrower than a pixel and empty masks. Evaluation uses the annotations as they are,
    and ignores detections in crowd regions. Images without annotations serve as background. An image is turned upright
    if it has the annotated size only then.

    Masks are read if the task's detector finds masks. Where only some objects have one, the others take part in all but
    the mask's loss and AP.

    Args:
        root: The folder to which the other paths are relative.
        train_images: The folder of the training images.
        train_annotations: The annotation file of the training images.
        val_images: The folder of the validation images.
        val_annotations: The annotation file of the validation images.
        limit: The number of images to use from the start of each file; None uses all of them.
        batch_size: The number of images in a training batch, on each device.
        eval_batch_size: The number of images in an evaluation batch, on each device; None means ``batch_size``.
        num_workers: The number of processes that load images, for each device.
        pin_memory: Whether to load batches into page-locked memory if there is a GPU.
        hflip: The probability of a horizontal flip.

    Raises:
        ValueError: An argument is out of range. :meth:`setup` raises it if the files are not as described.
    """

    @checked
    def __init__(
        self,
        root: str = "data/coco",
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        limit: Count | None = None,
        batch_size: Count = 2,
        eval_batch_size: Count | None = None,
        num_workers: NotNegativeInt = 4,
        pin_memory: bool = True,
        hflip: Share = 0.5,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.settings = self.hparams
        self.batch_size = batch_size
        self.has_test = False  # COCO's test annotations are not public
        self.class_names: tuple[str, ...] = ()
        self.category_ids: tuple[int, ...] = ()
        self._splits: dict[str, CocoImages] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations that ``stage`` needs: fit, validate or test, or None for all of them.

        Raises:
            FileNotFoundError: An annotation file or a folder of images does not exist.
            ValueError: A file is not in COCO's format, training and validation differ in their classes, or training
                would have nothing to learn from, or no masks where the detector finds masks.
        """
        self._splits = {"val": self._open("val")}
        if stage in (None, "fit"):
            self._splits["train"] = self._open("train")
            train, val = (self._splits[split].annotations for split in ("train", "val"))
            require_same_classes(train, val)
            if told := left_out(train):
                logger.warning("%s", told)
        annotations = self._splits["val"].annotations
        self.class_names, self.category_ids = annotations.class_names, annotations.category_ids

    def _open(self, split: str) -> "CocoImages":
        root = Path(self.settings.root)
        folder = root / self.settings[f"{split}_images"]
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images")
        masks: bool = self.of_task("finds_masks", True)
        annotations = read(root / self.settings[f"{split}_annotations"], self.settings.limit, masks)
        if masks and not all(annotations.masked):
            _tell_of_masks(annotations, split)
        return CocoImages(folder, annotations, split == "train", self.settings.hflip, masks)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled, augmented batches, starting from the trainer's position in the epoch."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return batches of the validation images, each image once."""
        return self._loader("val", self.settings.eval_batch_size or self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return the validation batches."""
        return self.val_dataloader()

    def _loader(self, split: str, batch_size: int) -> DataLoader:
        images, where = self._splits[split], (batch_size, run_seed(), *self.rank)
        if split == "train":
            batches: ResumableBatchSampler = AspectBatchSampler(images.wide(), *where)
        else:
            batches = ResumableBatchSampler(len(images), *where, shuffle=False, drop_last=False)
        return self.loader(images, batches, split == "train", collate_fn=collate)


def _tell_of_masks(annotations: Annotations, split: str) -> None:
    """Log how many objects have no mask.

    Raises:
        ValueError: The annotations are for training, and no object has a mask.
    """
    path, masked = annotations.path, annotations.masked
    if split == "train" and not any(masked):
        raise ValueError(
            f"{path}: none of its {len(masked)} objects has a segmentation, from which Mask R-CNN learns masks; "
            "set model.init_args.architecture to faster_rcnn, which needs boxes only"
        )
    told = "they teach boxes and classes only" if split == "train" else "the AP of masks ignores them"
    logger.warning("%s: %d of %d objects have no segmentation: %s", path, masked.count(False), len(masked), told)


def require_same_classes(train: Annotations, val: Annotations) -> None:
    """Raise ValueError if training and validation annotations differ in their classes."""
    if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
        odd = sorted(set(train.class_names) ^ set(val.class_names)) or ["their ids"]
        raise ValueError(f"{val.path}: the classes differ from those of {train.path}: {', '.join(odd[:5])}")


def left_out(annotations: Annotations) -> str:
    """Return how many of the annotations training leaves out, and why; '' if it leaves out few or none.

    Raises:
        ValueError: There are no annotations, or training leaves out all of them.
    """
    path, images = annotations.path, f"{len(annotations.images)} images"
    total = annotations.total
    if not total:
        raise ValueError(f"{path}: nothing to learn from, its {images} have no annotations")
    reasons = annotations.unlearnable()
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    if reasons.total() == total:
        raise ValueError(f"{path}: nothing to learn from, all {total} annotations of its {images} are left out: {told}")
    if reasons.total() <= MUCH * total:
        return ""
    return f"{path}: training leaves out {reasons.total()} of {total} annotations: {told}"


class CocoImages(Dataset[Sample]):
    """A dataset of the images and targets of an annotation file.

    Args:
        folder: The folder of the images.
        annotations: The annotations of the images.
        training: Whether to flip images at random and to leave out annotations that training cannot learn from.
        hflip: The probability of a horizontal flip in training.
        masks: Whether the targets have masks.
    """

    def __init__(
        self, folder: Path, annotations: Annotations, training: bool, hflip: float, masks: bool = True
    ) -> None:
        self.folder, self.annotations, self.training, self.masks = folder, annotations, training, masks
        sanitize = v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_of_each_object)
        steps = [v2.RandomHorizontalFlip(hflip), v2.ClampBoundingBoxes(), sanitize]
        self.transform = v2.Compose(steps if training else [v2.Identity()])

    def __len__(self) -> int:
        return len(self.annotations.images)

    def wide(self) -> list[bool]:
        """Return for each image whether it is wider than it is high."""
        return [image["width"] > image["height"] for image in self.annotations.images]

    def __getitem__(self, index: int) -> Sample:
        """Return an image ``(3, H, W)`` with values from 0 to 1, and its target.

        Raises:
            UnreadableImageError: The file is missing or damaged, it has the annotated size neither as it is stored nor
                upright, or a mask is damaged.
        """
        entry = self.annotations.images[index]
        path = self.folder / entry["file_name"]
        try:
            image = read_image(path, upright=False)
            if image.size != (entry["width"], entry["height"]):  # perhaps it was annotated upright, as viewers show it
                stored, image = image, read_image(path)
                image = image if image.size == (entry["width"], entry["height"]) else stored
        except FileNotFoundError as error:
            raise UnreadableImageError(f"{error}, though {self.annotations.path} names it") from None
        if image.size != (entry["width"], entry["height"]):
            annotated = f"{entry['width']}x{entry['height']}"
            raise UnreadableImageError(
                f"{path}: {image.width}x{image.height} pixels, but {annotated} in {self.annotations.path}"
            )
        size = (image.height, image.width)
        objects = self.annotations.objects[entry["id"]]
        if self.training:
            objects = [item for item in objects if not item.get("iscrowd")]
        try:
            target = targets(objects, self.annotations.category_ids, size, self.masks)
        except ValueError as error:  # this type keeps to one line even if a worker raises it
            raise UnreadableImageError(f"{self.annotations.path}: {error}") from None
        if self.training:
            target = {name: value for name, value in target.items() if name not in ("iscrowd", "area")}
        if self.training and self.masks:
            seen = target["masks"].flatten(1).any(1).bool()
            target = {name: value[seen] for name, value in target.items()}
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        if self.masks:
            target["masks"] = tv_tensors.Mask(target["masks"])
        pixels, target = self.transform(tv_tensors.Image(image), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return pixels.as_subclass(Tensor).float() / 255, plain


def _of_each_object(sample: tuple[Tensor, dict[str, Tensor]]) -> list[Tensor]:
    """Return what a target says of each object besides its box and mask."""
    return [value for name, value in sample[1].items() if name not in ("boxes", "masks")]


class AspectBatchSampler(ResumableBatchSampler):
    """A sampler of global batches whose images are all wide or all high, so that little of a batch is padding.

    The samples of an epoch's permutation are collected in two groups, wide and high, and each group gives a batch as
    soon as it has enough samples. The samples that remain at the end form mixed batches. Grouping thus leaves out no
    more images than usual, and the order remains a function of the seed and the epoch.

    Args:
        wide: Whether each sample is wider than it is high.
        batch_size: The number of samples in a batch of one rank.
        seed: The seed of the order.
        rank: The number of this process.
        world_size: The number of processes.
    """

    def __init__(self, wide: Sequence[bool], batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(len(wide), batch_size, seed, rank, world_size)
        self.wide = wide

    def order(self, epoch: int) -> list[int]:
        """Return the order of the samples in ``epoch``; see :meth:`ResumableBatchSampler.order`."""
        whole = self.batch_size * self.world_size
        full: list[int] = []
        filling: dict[bool, list[int]] = {True: [], False: []}
        for sample in super().order(epoch):
            batch = filling[self.wide[sample]]
            batch.append(sample)
            if len(batch) == whole:
                full += batch
                batch.clear()
        return full + filling[True] + filling[False]


def collate(samples: Sequence[Sample]) -> tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]:
    """Return the images and the targets of a batch.

    The batch is empty if the other ranks have one more image; see :class:`ResumableBatchSampler`.
    """
    return tuple(image for image, _ in samples), tuple(target for _, target in samples)

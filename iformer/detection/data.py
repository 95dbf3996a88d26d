"""The datamodule of detection: images with annotations in COCO's format, joint transforms, batches by aspect ratio."""

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

MUCH = 0.05  # of the annotations: where training learns nothing from more of them, it says so

logger = logging.getLogger(__name__)


class CocoData(DataModule):
    """Images with annotations in COCO's format.

    Batches are N images ``(3, H, W)`` of their own size with values from 0 to 1, and N targets, see
    :func:`iformer.detection.annotations.targets`: the detector resizes and normalises. Training learns nothing from
    crowd regions, from boxes narrower than a pixel and from empty masks; evaluation takes the annotations as they
    stand, and ignores what is found in crowd regions. Images without annotations are background. An image is turned
    upright where only that makes it of the annotated size.

    Args:
        root: Folder that the other paths begin from.
        train_images: Folder of the training images.
        train_annotations: Their annotation file.
        val_images: Folder of the validation images.
        val_annotations: Their annotation file.
        limit: Use only so many of the first images of each file.
        batch_size: Images of a training batch, on each device.
        eval_batch_size: Images of an evaluation batch, on each device; None for ``batch_size``.
        num_workers: Processes that load images, for each device.
        pin_memory: Load into page-locked memory, where there is a GPU.
        hflip: Probability of a horizontal flip.

    Raises:
        ValueError: An argument is out of range. :meth:`setup` raises it where the files are not as described.
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
        self.class_names: tuple[str, ...] = ()
        self.category_ids: tuple[int, ...] = ()
        self._splits: dict[str, CocoImages] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations that ``stage`` (fit, validate, test; None for all) needs.

        Raises:
            FileNotFoundError: There is no such annotation file, or folder of images.
            ValueError: A file is not in COCO's format, or training and validation differ in their classes, or there is
                nothing to learn from.
        """
        self._splits = {"val": self._open("val")}
        if stage in (None, "fit"):
            self._splits["train"] = self._open("train")
            train, val = (self._splits[split].annotations for split in ("train", "val"))
            if (train.category_ids, train.class_names) != (val.category_ids, val.class_names):
                odd = sorted(set(train.class_names) ^ set(val.class_names)) or ["their ids"]
                raise ValueError(f"{val.path}: its classes are not those of {train.path}: {', '.join(odd[:5])} differ")
            _require_learnable(train)
        annotations = self._splits["val"].annotations
        self.class_names, self.category_ids = annotations.class_names, annotations.category_ids

    def _open(self, split: str) -> "CocoImages":
        root = Path(self.settings.root)
        folder = root / self.settings[f"{split}_images"]
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder (images)")
        annotations = read(root / self.settings[f"{split}_annotations"], self.settings.limit)
        return CocoImages(folder, annotations, split == "train", self.settings.hflip)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches; from where the trainer stands."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Every validation image once."""
        return self._loader("val", self.settings.eval_batch_size or self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """The validation images: COCO's test annotations are not public."""
        return self.val_dataloader()

    def _loader(self, split: str, batch_size: int) -> DataLoader:
        images, where = self._splits[split], (batch_size, run_seed(), *self.rank)
        if split == "train":
            batches: ResumableBatchSampler = AspectBatchSampler(images.wide(), *where)
        else:
            batches = ResumableBatchSampler(len(images), *where, shuffle=False, drop_last=False)
        return self.loader(images, batches, split == "train", collate_fn=collate)


def _require_learnable(annotations: Annotations) -> None:
    """Say how many annotations training learns nothing from, if they are many.

    Raises:
        ValueError: They are all.
    """
    path, images = annotations.path, f"{len(annotations.images)} images"
    total = sum(len(annotations.objects[image["id"]]) for image in annotations.images)
    if not total:
        raise ValueError(f"{path}: nothing to learn from, no annotations of its {images}")
    reasons = annotations.unlearnable()
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    if reasons.total() == total:
        raise ValueError(f"{path}: nothing to learn from, all {total} annotations of its {images} are left out: {told}")
    if reasons.total() > MUCH * total:
        logger.warning("%s: training leaves out %d of %d annotations: %s", path, reasons.total(), total, told)


class CocoImages(Dataset[Sample]):
    """Images and targets of an annotation file.

    Args:
        folder: Of the images.
        annotations: About them.
        training: Flip at random, and leave out what nothing can be learnt from.
        hflip: Probability of a horizontal flip, in training.
    """

    def __init__(self, folder: Path, annotations: Annotations, training: bool, hflip: float) -> None:
        self.folder, self.annotations, self.training = folder, annotations, training
        steps = [v2.RandomHorizontalFlip(hflip), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1)]
        self.transform = v2.Compose(steps if training else [v2.Identity()])

    def __len__(self) -> int:
        return len(self.annotations.images)

    def wide(self) -> list[bool]:
        """For each image whether it is wider than high."""
        return [image["width"] > image["height"] for image in self.annotations.images]

    def __getitem__(self, index: int) -> Sample:
        """Image ``(3, H, W)`` with values from 0 to 1, and target.

        Raises:
            UnreadableImageError: The file is missing or damaged, or its size is not the annotated one, neither as it is
                stored nor upright, or a mask is damaged.
        """
        entry = self.annotations.images[index]
        path = self.folder / entry["file_name"]
        try:
            image = read_image(path, upright=False)
            if image.size != (entry["width"], entry["height"]):  # annotated as a viewer shows it, turned upright
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
            target = targets(objects, self.annotations.category_ids, size)
        except ValueError as error:  # of one line also where a worker raised it
            raise UnreadableImageError(f"{self.annotations.path}: {error}") from None
        if self.training:
            seen = target["masks"].flatten(1).any(1).bool()
            target = {name: target[name][seen] for name in ("boxes", "labels", "masks")}
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        target["masks"] = tv_tensors.Mask(target["masks"])
        pixels, target = self.transform(tv_tensors.Image(image), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return pixels.as_subclass(Tensor).float() / 255, plain


class AspectBatchSampler(ResumableBatchSampler):
    """Global batches of images that are all wide or all high, so that little of a batch is padding.

    An epoch's batches are cut from its permutation as they fill up, wide and high ones apart; what fills none in the
    end makes mixed ones. So as many images are left out as without the grouping, and the order remains a function of
    seed and epoch.

    Args:
        wide: Whether each sample is wider than high.
        batch_size: Samples in a batch of one rank.
        seed: Of the order.
        rank: This process.
        world_size: All processes.
    """

    def __init__(self, wide: Sequence[bool], batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(len(wide), batch_size, seed, rank, world_size)
        self.wide = wide

    def order(self, epoch: int) -> list[int]:
        """See :meth:`ResumableBatchSampler.order`."""
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
    """Images and targets, each apart; none where the other ranks have an image more, see ResumableBatchSampler."""
    return tuple(image for image, _ in samples), tuple(target for _, target in samples)

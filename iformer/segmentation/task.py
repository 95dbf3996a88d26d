"""The task of segmentation: training and evaluation of segmenters."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import FSDPStrategy
from pydantic import Field
from torch import Tensor, nn

from iformer.common.ranges import NotNegativeInt, Size, checked
from iformer.models import saved
from iformer.models.recomputation import recompute
from iformer.segmentation import inference, metrics, pictures
from iformer.segmentation.model import Architecture, build, nested
from iformer.segmentation.transforms import IGNORE
from iformer.training.class_weights import ClassWeights, require_weights
from iformer.training.confusion import ConfusionMatrix
from iformer.training.optimization import AdamWCosine
from iformer.training.task import Task, network_config

PAPER = AdamWCosine(lr=2e-4, min_lr=0.0, base_batch=16, weight_decay=1e-4, warmup_epochs=0, per="step")  # frozen


class SegmentationTask(Task):
    """A task that trains segmenters by cross entropy and evaluates them by mean intersection over union.

    The loss is averaged over the labelled pixels, and the scores are computed over the whole dataset. Batches are
    images ``(N, 3, H, W)`` and label maps, which are 255 where there is no label. In training the label maps are
    ``(N, H, W)``; in evaluation they may have any size, and predictions are compared with them at that size.

    Args:
        backbone: The name of a timm model, such as ``iformer_small``.
        num_classes: The number of classes, which must equal that of the data.
        architecture: The name of the architecture, ``semantic_fpn`` or ``upernet``.
        pretrained: The backbone's weights: ``true`` for the released ones, a file, or a saved classifier's folder.
        model_args: Further arguments of the function in :mod:`iformer.segmentation.model`, such as ``neck_channels``
            and ``backbone_args``.
        optimization: The optimiser and its schedule.
        class_weights: The factor of each class's share of the cross entropy in training: a list, a mapping from names
            to weights (1 for others), or ``balanced``, inversely proportional to the number of pixels in the training
            label maps, all of which are read for this. The losses of evaluation are not weighted.
        overlap_loss: A loss of segmentation_models_pytorch that is added to the cross entropy in training, and counts
            classes alike, whatever their size: ``dice`` or ``lovasz``.
        window: The height and width of a window that slides over the images in evaluation; None takes them whole.
        flip_test: Whether evaluation averages the prediction with that for the mirrored image. Like ``window``, it is
            saved with the model, so that ``iformer predict`` uses it too.
        channels_last: Whether to keep images and weights in the memory format that convolutions prefer.
        pictures: The number of test images that ``pictures.png`` shows with their labels and predictions.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """

    metric = "miou"

    @checked
    def __init__(
        self,
        backbone: str = "iformer_small",
        num_classes: Annotated[int, Field(ge=1, le=IGNORE)] = 150,
        architecture: Architecture = "semantic_fpn",
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        optimization: AdamWCosine = PAPER,
        class_weights: ClassWeights | None = None,
        overlap_loss: Literal["dice", "lovasz"] | None = None,
        window: Size | None = None,
        flip_test: bool = False,
        channels_last: bool = True,
        pictures: NotNegativeInt = 4,
    ) -> None:
        super().__init__()
        own = {"architecture": architecture, "backbone": backbone, "num_classes": num_classes}
        self.network = nested(network_config(own, model_args))
        self.model = build(**self.network, pretrained_backbone=pretrained)
        recompute(self.model)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.num_classes, self.optimization = num_classes, optimization
        require_weights("class_weights", class_weights)
        self.class_weights, self.overlap_loss = class_weights, _overlap_loss(overlap_loss)
        self.window, self.flip_test, self.pictures = window, flip_test, pictures
        self.confusion = ConfusionMatrix(num_classes, ignore_index=IGNORE)
        self._shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def build(self) -> nn.Module:
        """Return a segmenter like ``model``, without its weights."""
        return build(**self.network)

    def setup(self, stage: str) -> None:
        """Compare the classes of data and model, and group the parameters while they are whole.

        Raises:
            ValueError: The data has a different number of classes, or ``window`` is set together with FSDP.
        """
        if self.window is not None and isinstance(self.trainer.strategy, FSDPStrategy):
            # Shards are gathered in each forward pass, and the ranks' images need different numbers of windows.
            raise ValueError(
                "model.init_args.window does not go with trainer.strategy fsdp; set it to null, or use ddp"
            )
        super().setup(stage)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes, H, W)`` for images ``(N, 3, H, W)``."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        logits = self(images)
        loss = _loss(logits, labels, self.loss_weights)
        if self.overlap_loss is not None and (labels != IGNORE).any():  # Lovász loss is not defined without labels
            loss = loss + self.overlap_loss(logits.float(), labels.long())
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation's loss and confusion matrix."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the test's loss and confusion matrix, and to the pictures."""
        found = self._evaluate(batch, "test")
        (batches,) = self.trainer.num_test_batches
        every = max(1, int(batches) // max(1, self.pictures))  # neighbours are often frames of one film
        if batch_idx % every == 0 and len(self._shown) < self.pictures:
            self._shown.append((batch[0][0].cpu(), batch[1][0].cpu(), found[0].cpu()))

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        images, labels = batch
        logits = inference.logits(self, images, self.window, self.flip_test)
        found = inference.labels(logits, (labels.shape[-2], labels.shape[-1]))
        self.confusion.update(found, labels)
        # The loss is computed at the image's size, which may be much smaller than the label map's.
        small = F.interpolate(labels[:, None].float(), logits.shape[-2:]).squeeze(1)
        labelled = int((small != IGNORE).sum())
        self.log(f"{stage}_loss", _loss(logits, small), batch_size=labelled, sync_dist=True)  # the mean of all pixels
        return found

    def on_validation_epoch_end(self) -> None:
        """Log the scores over the whole dataset."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores over the whole dataset; write ``per_class.csv``, ``confusion.csv`` and the pictures."""
        confusion = self._finish("test")
        self.write_confusion(confusion)
        if self.trainer.is_global_zero and self._shown and (config := self.of_data("data_config")):
            pictures.draw_grid(self._shown, config, Path(self.trainer.default_root_dir, "pictures.png"))
        self._shown = []

    def _finish(self, stage: str) -> Tensor:
        """Log the scores over the images of all ranks, and return their confusion matrix, the same on every rank."""
        confusion = self.confusion.compute()
        self.confusion.reset()
        self.keep_per_class(metrics.per_class(confusion, self.class_names))
        found = metrics.scores(confusion)
        for name in ("miou", "mean_accuracy", "pixel_accuracy"):
            self.log(f"{stage}_{name}", found[name], prog_bar=name == "miou")
        return confusion.cpu()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` and all that is needed to use it into ``folder``."""
        settings = {"network": self.network, "window": self.window, "flip_test": self.flip_test}
        saved.save_assembled(model, folder, "segmentation", {**settings, **(self.of_data("data_config") or {})})


def _loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy over the labelled pixels, or 0 if there are none; classes may have weights."""
    labels = labels.long()
    labelled = (labels != IGNORE).sum().clamp(min=1)
    # A GPU adds up the losses of pixels in the order in which they come, unless it is asked for each of them.
    losses = F.cross_entropy(logits.float(), labels, weights, ignore_index=IGNORE, reduction="none")
    return losses.sum() / labelled


def _overlap_loss(name: str | None) -> nn.Module | None:
    """Return a loss from logits ``(N, K, H, W)`` and labels ``(N, H, W)``, or None if it has no name."""
    if name is None:
        return None
    # This imports the whole package, which few users need.
    from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss

    return {"dice": DiceLoss, "lovasz": LovaszLoss}[name]("multiclass", ignore_index=IGNORE)

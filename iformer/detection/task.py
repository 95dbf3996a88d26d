"""The task of detection: training and evaluation of detectors."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iformer.common.ranges import Count, checked
from iformer.detection.masks import pasted
from iformer.detection.metrics import AveragePrecision
from iformer.detection.model import Architecture, build
from iformer.models import saved
from iformer.models.recomputation import recompute
from iformer.training.optimization import AdamWSteps
from iformer.training.task import Task, network_config

PAPER = AdamWSteps()  # frozen
Batch = tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]


class DetectionTask(Task):
    """A task that trains Mask R-CNN or Faster R-CNN and evaluates it by COCO's AP of boxes and masks.

    Training minimises the sum of the detector's losses, five or without masks four, with AdamW, whose learning rate
    falls in steps. The batches are those of :class:`iformer.detection.data.CocoData`.

    Args:
        backbone: The name of a timm model, such as ``iformer_small``.
        num_classes: The number of classes without the background, which must equal that of the data.
        architecture: The name of the architecture: ``mask_rcnn``, or ``faster_rcnn``, which finds boxes only.
        pretrained: The backbone's weights: ``true`` for the released ones, a file, or a saved classifier's folder.
        model_args: Further arguments of the function in :mod:`iformer.detection.model`, such as ``min_size`` and
            ``backbone_args``.
        optimization: The optimiser and its schedule.
        grad_checkpointing: Whether to save memory in training at the cost of time.

    Raises:
        ValueError: There is no such backbone, an argument is wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """

    metric = "box_ap"

    @checked
    def __init__(
        self,
        backbone: str,
        num_classes: Count = 80,
        architecture: Architecture = "mask_rcnn",
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        optimization: AdamWSteps = PAPER,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        own = {"architecture": architecture, "backbone": backbone, "num_classes": num_classes}
        self.network = network_config(own, model_args)
        self.model: Any = build(**self.network, pretrained_backbone=pretrained)
        recompute(self.model)
        self.model.to(memory_format=torch.channels_last)
        self.model.set_grad_checkpointing(grad_checkpointing)
        self.num_classes, self.optimization = num_classes, optimization
        self.finds_masks: bool = self.model.finds_masks
        self.average_precision = AveragePrecision(self.finds_masks)

    def build(self) -> nn.Module:
        """Return a detector like ``model``, without its weights."""
        return build(**self.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses."""
        images, targets = batch
        losses: dict[str, Tensor] = self.model(list(images), list(targets))
        loss = torch.stack(list(losses.values())).sum()
        self.log_dict(losses, batch_size=len(images))
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Detect the objects in a batch and keep them until the end of the epoch."""
        images, targets = batch
        if images:  # a rank has none if the others have one more
            found = self.model(list(images), paste=False)
            if self.finds_masks:
                for image, objects in zip(images, found, strict=True):
                    objects["masks"] = pasted(dict(objects), (image.shape[-2], image.shape[-1]))
            self.average_precision.update(found, list(targets))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the AP; outside of training, also write the AP of each class."""
        self._evaluate("val")

    def on_test_epoch_end(self) -> None:
        """Log the AP, and write the AP of each class."""
        self._evaluate("test")

    def _evaluate(self, stage: str) -> None:
        for name, value in self.average_precision.summary().items():
            # Every rank has computed the same value from all images; each needs it to know when to stop early.
            self.log(f"{stage}_{name}", value, prog_bar=name in ("box_ap", "mask_ap"), sync_dist=True)
        self.keep_per_class(
            [
                {"class": self.class_names[label - 1], **{name: round(value, 4) for name, value in scores.items()}}
                for label, scores in self.average_precision.per_class().items()
            ]
        )
        self.average_precision.reset()

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` and all that is needed to use it into ``folder``."""
        ids = self.of_data("category_ids") or range(1, self.num_classes + 1)
        config = {"network": self.network, "class_names": self.class_names, "category_ids": list(ids)}
        saved.save_assembled(model, folder, "detection", config)

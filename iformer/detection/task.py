"""Training and evaluation of detectors."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iformer.common.pages import write_csv
from iformer.common.ranges import Count, checked
from iformer.detection.masks import pasted
from iformer.detection.metrics import AveragePrecision
from iformer.detection.model import mask_rcnn
from iformer.models import saved
from iformer.training.optimization import AdamWSteps
from iformer.training.task import Task

PAPER = AdamWSteps()  # frozen
Batch = tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]


class DetectionTask(Task):
    """Mask R-CNN's five losses, AdamW whose rate falls in steps, COCO's AP of boxes and masks.

    Batches are those of :class:`iformer.detection.data.CocoData`.

    Args:
        backbone: A timm model's name, ``iformer_small`` say.
        num_classes: Classes without the background; those of the data, if the data names its classes.
        pretrained: Of the backbone: ``true`` for the released weights, or a file of weights, or the folder of a run.
        model_args: Of :func:`iformer.detection.model.mask_rcnn`: ``min_size``, ``max_size``, ``backbone_args``...
        optimization: Optimiser and schedule.
        grad_checkpointing: Trade time for memory in training.

    Raises:
        ValueError: There is no such backbone, an argument is wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """

    @checked
    def __init__(
        self,
        backbone: str,
        num_classes: Count = 80,
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        optimization: AdamWSteps = PAPER,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if own := {"backbone", "num_classes", "pretrained_backbone"} & set(model_args or {}):
            raise ValueError(f"model_args: {min(own)} is an argument of the task, expected it beside model_args")
        self.architecture = {"backbone": backbone, "num_classes": num_classes, **(model_args or {})}
        self.model: Any = mask_rcnn(**self.architecture, pretrained_backbone=pretrained)
        self.model.to(memory_format=torch.channels_last)
        self.model.set_grad_checkpointing(grad_checkpointing)
        self.num_classes, self.optimization = num_classes, optimization
        self.average_precision = AveragePrecision()
        self.per_class: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Compare the classes of data and model; group the parameters while they are whole.

        Raises:
            ValueError: The data's classes are not as many as the model's.
        """
        names = self._of_data("class_names")
        if names is not None and len(names) != self.num_classes:
            raise ValueError(
                f"model.init_args.num_classes is {self.num_classes}, but the data has {len(names)} classes"
            )
        self.parameter_groups = self.optimization.parameter_groups(self.model) if stage == "fit" else []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the five losses."""
        images, targets = batch
        losses: dict[str, Tensor] = self.model(list(images), list(targets))
        loss = torch.stack(list(losses.values())).sum()
        self.log_dict(losses, batch_size=len(images))
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Detect, and keep what was found until the end."""
        images, targets = batch
        if images:  # the other ranks may have more
            found = self.model(list(images), paste=False)
            for image, objects in zip(images, found, strict=True):
                objects["masks"] = pasted(dict(objects), (image.shape[-2], image.shape[-1]))
            self.average_precision.update(found, list(targets))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log AP; outside of training, write that of each class too."""
        self._evaluate("val")

    def on_test_epoch_end(self) -> None:
        """Log AP, write that of each class."""
        self._evaluate("test")

    def _evaluate(self, stage: str) -> None:
        for name, value in self.average_precision.summary().items():
            # Every rank has computed the same, from all images.
            self.log(f"{stage}_{name}", value, prog_bar=name in ("box_ap", "mask_ap"), rank_zero_only=True)
        self.per_class = [
            {"class": self._names()[label - 1], **{name: round(value, 4) for name, value in scores.items()}}
            for label, scores in self.average_precision.per_class().items()
        ]
        self.average_precision.reset()
        if self.per_class and self.trainer.state.fn != "fit" and self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(folder / "per_class.csv", [[*self.per_class[0]], *([*row.values()] for row in self.per_class)])

    def export(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the model for ``iformer predict`` into ``folder``.

        Args:
            folder: Of the run.
            state_dict: Of the task, where the weights in memory are only a rank's share.
        """
        model = self.model
        if state_dict is not None:
            model = mask_rcnn(**self.architecture)
            prefix = "model."
            model.load_state_dict({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
        ids = self._of_data("category_ids") or range(1, self.num_classes + 1)
        config = {"model": self.architecture, "class_names": self._names(), "category_ids": list(ids)}
        saved.save_assembled(model, folder, "detection", config)

    def _names(self) -> list[str]:
        return [str(name) for name in self._of_data("class_names") or range(1, self.num_classes + 1)]

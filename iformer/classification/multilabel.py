"""The training and evaluation of classifiers of images that may have several labels, or none."""

from pathlib import Path
from typing import Any, Literal

from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy
from torch import Tensor, nn
from torchmetrics import CatMetric

from iformer.classification.metrics import best_thresholds, per_label
from iformer.classification.task import Classifier
from iformer.common.ranges import Count, ShareBelowOne, checked
from iformer.models import locations, saved
from iformer.training.optimization import AdamWCosine

PAPER = AdamWCosine()  # frozen


class MultiLabelTask(Classifier):
    """The task of classification with several labels: a yes or no for each class, mean average precision and F1.

    Batches are images ``(N, C, H, W)`` and labels ``(N, K)``, which are 1 where an image has the label and 0 elsewhere.

    Each validation chooses for each class the threshold of the probability that gives the best F1 on the validation
    images. The thresholds are saved with the model, and ``test`` takes those of its checkpoint.

    Args:
        model: Name of a timm model, such as ``iformer_small``.
        num_classes: Number of classes, which must be the number of classes of the data.
        pretrained: ``true`` for the released weights; otherwise a file of weights, or a saved classifier, given by its
            folder or as ``hf-hub:USER/NAME``. If the number of classes differs, the last layer is newly initialised.
            The thresholds of a saved classifier are taken too, if it has as many.
        model_args: Further arguments of ``timm.create_model``, such as ``img_size``, ``in_chans``, ``drop_path_rate``.
        optimization: The optimiser and its schedule.
        loss: ``binary_cross_entropy``; or ``asymmetric``, timm's asymmetric loss (Ridnik et al., 2021), in which the
            many labels that an image does not have count less. Both are means over images and classes.
        label_smoothing: Share by which targets are moved from 0 and 1 towards 0.5.
        grad_checkpointing: Whether to trade time for memory in training, as ``set_grad_checkpointing`` does in timm.
        channels_last: Whether to keep images and weights in the memory format that convolutions prefer.
        compile_model: Whether to compile the model with ``torch.compile``, which takes some minutes at the start.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit it.
        OSError: The weights cannot be read.
    """

    metric = "map"
    learns_in_validation = True

    @checked
    def __init__(
        self,
        model: str,
        num_classes: Count = 80,
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        optimization: AdamWCosine = PAPER,
        loss: Literal["binary_cross_entropy", "asymmetric"] = "binary_cross_entropy",
        label_smoothing: ShareBelowOne = 0.0,
        grad_checkpointing: bool = False,
        channels_last: bool = True,
        compile_model: bool = False,
    ) -> None:
        super().__init__(
            model, num_classes, pretrained, model_args, optimization, grad_checkpointing, channels_last, compile_model
        )
        if loss == "asymmetric":
            self.loss: nn.Module = AsymmetricLossMultiLabel(smoothing=label_smoothing, reduction="mean")
        else:
            self.loss = BinaryCrossEntropy(smoothing=label_smoothing, smooth_dense=True)
        self.evaluation_loss = BinaryCrossEntropy(smoothing=0.0)
        self.thresholds = _thresholds(pretrained, num_classes)
        self.found, self.labels = (CatMetric(nan_strategy="disable") for _ in range(2))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        self._check(labels)
        loss = self.loss(self(images).float(), labels.float())
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Log the binary cross entropy, and keep the probabilities until the end."""
        images, labels = batch
        self._check(labels)
        logits = self(images).float()
        loss = self.evaluation_loss(logits, labels.float())
        self.log(f"{stage}_loss", loss, batch_size=len(labels), sync_dist=True)
        self.found.update(logits.sigmoid())
        self.labels.update(labels)

    def _check(self, labels: Tensor) -> None:
        if labels.ndim != 2:  # timm's loss would take them for one label each
            raise ValueError("the data has one label for each image, expected MultiLabelData for this task")

    def on_validation_epoch_end(self) -> None:
        """Choose the thresholds, log the scores, and write ``per_class.csv`` outside of training."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores at the thresholds that validation has chosen, and write ``per_class.csv``."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        """Log the scores over the images of all ranks, the same on every rank."""
        found, labels = self.found.compute().cpu(), self.labels.compute().cpu().int()
        self.found.reset()
        self.labels.reset()
        if stage == "val":
            self.thresholds = best_thresholds(found, labels)
        rows = per_label(found, labels, self.thresholds, self.class_names)
        self.keep_per_class(rows)
        for name, column in (("map", "average_precision"), ("f1", "f1")):
            known = [row[column] for row in rows if row[column] is not None]
            self.log(f"{stage}_{name}", sum(known) / len(known) if known else float("nan"), prog_bar=name == "map")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add ``thresholds`` to the checkpoint."""
        checkpoint["thresholds"] = self.thresholds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the thresholds of the checkpoint."""
        self.thresholds = checkpoint.get("thresholds", self.thresholds)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` into ``folder`` with everything that ``iformer predict`` and timm need to use it."""
        saved.save(model, folder, self.class_names, self.thresholds, **(self.of_data("data_config") or {}))


def _thresholds(pretrained: bool | str, num_classes: int) -> list[float]:
    """Return the thresholds of a saved classifier, or 0.5 for each class."""
    if isinstance(pretrained, str) and locations.is_saved(pretrained):
        found = locations.find(pretrained)[1].get("thresholds") or []
        if len(found) == num_classes:
            return found
    return [0.5] * num_classes

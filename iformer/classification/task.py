"""Training and evaluation of classifiers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from iformer.classification.metrics import per_class
from iformer.common.plotting import confusion_matrix, save_figure
from iformer.common.ranges import Count, NotNegative, ShareBelowOne, checked
from iformer.models import saved
from iformer.models.backbone import create
from iformer.models.recomputation import recompute
from iformer.training.optimization import AdamWCosine
from iformer.training.task import Task, network_config

PAPER = AdamWCosine()  # frozen


class ClassificationTask(Task):
    """Cross entropy on smoothed or mixed labels, AdamW with a cosine schedule, top-1 and top-5 accuracy.

    Batches are ``(N, C, H, W)`` images and ``(N,)`` labels.

    Args:
        model: A timm model's name, ``iformer_small`` say.
        num_classes: The number of classes; as many as the data names.
        pretrained: ``true`` for the released weights, a file, or a saved classifier's folder. Position embeddings are
            resized to the model's, and a classifier of another number of classes begins anew.
        model_args: Further arguments of ``timm.create_model``, such as ``img_size``, ``in_chans``, ``drop_path_rate``.
        optimization: The optimiser and its schedule.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Alpha of Mixup, 0 for none. Batches must be even.
        cutmix: Alpha of CutMix, 0 for none. With both, half of the batches get either.
        grad_checkpointing: Trade time for memory in training.
        channels_last: Keep images and weights in the memory format that convolutions prefer.
        compile_model: Compile the model with torch.compile; takes minutes, once.
        confusion: Write ``confusion.csv`` and ``confusion.png`` into the run's folder after a test.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """

    @checked
    def __init__(
        self,
        model: str,
        num_classes: Count = 1000,
        pretrained: bool | str = False,
        model_args: dict[str, Any] | None = None,
        optimization: AdamWCosine = PAPER,
        label_smoothing: ShareBelowOne = 0.1,
        mixup: NotNegative = 0.0,
        cutmix: NotNegative = 0.0,
        grad_checkpointing: bool = False,
        channels_last: bool = True,
        compile_model: bool = False,
        confusion: bool = False,
    ) -> None:
        super().__init__()
        self.network = network_config({"name": model, "num_classes": num_classes}, model_args)
        self.model: Any = create(**self.network, pretrained=pretrained)
        self.model.set_grad_checkpointing(grad_checkpointing)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        recompute(self.model)
        if compile_model:
            self.model.compile()
        self.num_classes, self.optimization, self.confusion = num_classes, optimization, confusion
        self.in_chans = (model_args or {}).get("in_chans", 3)
        self.mixup: Any = None
        if mixup or cutmix:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.label_smoothing = label_smoothing
        self.top1 = MulticlassAccuracy(num_classes, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes))
        self.confusion_matrix = MulticlassConfusionMatrix(num_classes)

    def build(self) -> nn.Module:
        """Return a classifier like ``model``, without its weights."""
        return create(**self.network)

    def setup(self, stage: str) -> None:
        """Compare the classes of data and model, and group the parameters while they are whole.

        Raises:
            ValueError: The data has another number of classes or channels than the model.
        """
        super().setup(stage)
        channels = (self.of_data("data_config") or {}).get("input_size", [self.in_chans])[0]
        if channels != self.in_chans:
            raise ValueError(
                f"data.init_args.in_chans is {channels}, but the model takes images of {self.in_chans} channels "
                "(model.init_args.model_args.in_chans)"
            )

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> logits ``(N, num_classes)``."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch, mixed if so asked."""
        images, labels = batch
        self._check(labels)
        if self.mixup is None:
            loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        else:
            if len(labels) % 2:
                raise ValueError(f"data.init_args.batch_size is {len(labels)}, but Mixup and CutMix need an even one")
            images, targets = self.mixup(images, labels)
            loss = SoftTargetCrossEntropy()(self(images), targets)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation's loss and accuracy; outside of training, to the confusion matrix too."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the test's loss, accuracy and confusion matrix."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        self._check(labels)
        logits = self(images)
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        if self.trainer.state.fn != "fit":
            self.confusion_matrix.update(logits.argmax(1), labels)
        size = len(labels)
        self.log(f"{stage}_loss", F.cross_entropy(logits, labels), batch_size=size, sync_dist=True)
        self.log(f"{stage}_accuracy", self.top1, prog_bar=True, batch_size=size, on_step=False, on_epoch=True)
        self.log(f"{stage}_top5", self.top5, batch_size=size, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Outside of training, write ``per_class.csv``."""
        if self.trainer.state.fn != "fit":
            self._finish()

    def on_test_epoch_end(self) -> None:
        """Write ``per_class.csv``, and the confusion matrix if asked for."""
        matrix = self._finish()
        if self.confusion:
            self.write_confusion(matrix)
            if self.trainer.is_global_zero:
                figure = confusion_matrix(matrix.numpy(), self.class_names)
                save_figure(figure, Path(self.trainer.default_root_dir, "confusion.png"))

    def _finish(self) -> Tensor:
        """Keep and write the accuracy of each class; the confusion matrix of all ranks' images (rows: true classes)."""
        matrix = self.confusion_matrix.compute().cpu()
        self.confusion_matrix.reset()
        self.keep_per_class(per_class(matrix, self.class_names))
        return matrix

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities, ``(N, num_classes)``."""
        return self(batch[0]).softmax(-1)

    def _check(self, labels: Tensor) -> None:
        """Raise ValueError for a label that the model has no class for; torch would crash, or on a GPU later."""
        if labels.max() >= self.num_classes or labels.min() < 0:
            raise ValueError(
                f"label {int(labels.max())} in the data, but model.init_args.num_classes is {self.num_classes}"
            )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` into ``folder`` with all that ``iformer predict`` and timm need to use it."""
        saved.save(model, folder, self.class_names, **(self.of_data("data_config") or {}))

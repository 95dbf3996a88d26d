"""Training and evaluation of classifiers."""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from iformer.common.pages import write_csv
from iformer.common.plotting import label, quiet_fonts
from iformer.common.ranges import Count, NotNegative, ShareBelowOne, checked
from iformer.models import saved
from iformer.training.optimization import AdamWCosine
from iformer.training.task import Task

PAPER = AdamWCosine()  # frozen


class ClassificationTask(Task):
    """Cross entropy on smoothed or mixed labels, AdamW with a cosine schedule, top-1 and top-5 accuracy.

    Batches are ``(N, C, H, W)`` images and ``(N,)`` labels.

    Args:
        model: A timm model's name, ``iformer_small`` say.
        num_classes: Classes; those of the data, if the data names its classes.
        pretrained: ``true`` for the released weights, or a file of weights, or the folder of a run; position embeddings
            are resized to the model's, and a classifier of another number of classes begins anew.
        model_args: Of the model: ``img_size``, ``in_chans``, ``drop_path_rate`` and so on.
        optimization: Optimiser and schedule.
        label_smoothing: Share of the target spread over all classes.
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
        self.model: Any = saved.create(model, pretrained, num_classes=num_classes, **(model_args or {}))
        self.model.set_grad_checkpointing(grad_checkpointing)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        if compile_model:
            self.model.compile()
        self.num_classes, self.optimization, self.confusion = num_classes, optimization, confusion
        self.in_chans = (model_args or {}).get("in_chans", 3)
        self.mixup: Any = None
        if mixup or cutmix:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self.label_smoothing = label_smoothing
        self._fresh = partial(saved.create, model, num_classes=num_classes, **(model_args or {}))
        self.top1 = MulticlassAccuracy(num_classes, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes))
        self.confusion_matrix = MulticlassConfusionMatrix(num_classes)
        self.per_class: list[dict[str, Any]] = []

    def setup(self, stage: str) -> None:
        """Compare the classes of data and model; group the parameters while they are whole.

        Raises:
            ValueError: The data's classes or channels are not as many as the model's.
        """
        names = self._of_data("class_names")
        if names is not None and len(names) != self.num_classes:
            raise ValueError(
                f"model.init_args.num_classes is {self.num_classes}, but the data has {len(names)} classes"
            )
        channels = (self._of_data("data_config") or {}).get("input_size", [self.in_chans])[0]
        if channels != self.in_chans:
            raise ValueError(
                f"data.init_args.in_chans is {channels}, but the model takes images of {self.in_chans} channels "
                "(model.init_args.model_args.in_chans)"
            )
        self.parameter_groups = self.optimization.parameter_groups(self.model) if stage == "fit" else []

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
        if self.confusion and self.trainer.is_global_zero:
            names, folder = [row["class"] for row in self.per_class], Path(self.trainer.default_root_dir)
            rows = zip(names, matrix.tolist(), strict=True)
            write_csv(folder / "confusion.csv", [["true", *names], *([name, *counts] for name, counts in rows)])
            draw_confusion(matrix, names, folder / "confusion.png")

    def _finish(self) -> Tensor:
        """Keep and write the accuracy of each class; the confusion matrix of all ranks' images (rows: true classes)."""
        matrix = self.confusion_matrix.compute().cpu()
        self.confusion_matrix.reset()
        names = [str(name) for name in self._of_data("class_names") or range(self.num_classes)]
        self.per_class = per_class(matrix, names)
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(folder / "per_class.csv", [[*self.per_class[0]], *([*row.values()] for row in self.per_class)])
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

    def export(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the model for ``iformer predict`` and timm into ``folder``, see :func:`iformer.models.saved.save`.

        Args:
            folder: Of the run.
            state_dict: Of the task, where the weights in memory are only a rank's share.
        """
        model = self.model
        if state_dict is not None:
            model = self._fresh()
            prefix = "model."
            model.load_state_dict({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
        names = self._of_data("class_names") or [f"class {i}" for i in range(self.num_classes)]
        saved.save(model, folder, names, **(self._of_data("data_config") or {}))


def per_class(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """``class``, ``images`` and ``accuracy`` (None without images) of each row of a confusion matrix."""
    rows = []
    for i, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        images = sum(counts)
        rows.append({"class": name, "images": images, "accuracy": round(counts[i] / images, 4) if images else None})
    return rows


def draw_confusion(matrix: Tensor, names: Sequence[str], file: Path) -> None:
    """Draw the share of each true class (row) that was taken for each class (column), with numbers if there is room."""
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    room = len(names) <= 25
    size = min(3 + 0.5 * len(names), 16)
    figure = Figure((size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= 100:
        labels = [label(name) for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=90)
        axes.set_yticks(range(len(names)), labels)
    for row, column in itertools.product(range(len(names)), repeat=2) if room else ():
        share = float(shares[row, column])
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=color, fontsize=8)
    with quiet_fonts():
        figure.savefig(file, dpi=150)

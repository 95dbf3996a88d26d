"""The training and evaluation of classifiers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.task.distillation import FeatureDistillationTrainableModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from iformer.classification.distillation import Distillation, Teacher
from iformer.classification.metrics import per_class
from iformer.common.plotting import confusion_matrix, save_figure
from iformer.common.ranges import Count, NotNegative, ShareBelowOne, checked
from iformer.models import saved
from iformer.models.backbone import create
from iformer.models.recomputation import recompute
from iformer.training.class_weights import ClassWeights, require_weights
from iformer.training.confusion import ConfusionMatrix
from iformer.training.optimization import AdamWCosine
from iformer.training.task import Task, network_config

PAPER = AdamWCosine()  # frozen


class Classifier(Task):
    """The base class of the tasks that train timm's classifiers.

    Batches are images ``(N, C, H, W)`` and labels.

    Args:
        model: Name of a timm model, such as ``iformer_small``.
        num_classes: Number of classes, which must be the number of classes of the data.
        pretrained: The weights to begin with.
        model_args: Further arguments of ``timm.create_model``.
        optimization: The optimiser and its schedule.
        grad_checkpointing: Whether to trade time for memory in training.
        channels_last: Whether to keep images and weights in the memory format that convolutions prefer.
        compile_model: Whether to compile the model.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit it.
        OSError: The weights cannot be read.
    """

    def __init__(
        self,
        model: str,
        num_classes: int,
        pretrained: bool | str,
        model_args: dict[str, Any] | None,
        optimization: AdamWCosine,
        grad_checkpointing: bool,
        channels_last: bool,
        compile_model: bool,
    ) -> None:
        super().__init__()
        self.network = network_config({"name": model, "num_classes": num_classes}, model_args)
        self.model: Any = self.build(pretrained)
        self.model.set_grad_checkpointing(grad_checkpointing)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        recompute(self.model)
        if compile_model:
            self.model.compile()
        self.num_classes, self.optimization = num_classes, optimization
        self.in_chans = (model_args or {}).get("in_chans", 3)

    def build(self, pretrained: bool | str = False) -> Any:
        """Return a classifier like ``model``, with other weights: ``pretrained`` ones, or fresh ones."""
        return create(**self.network, pretrained=pretrained)

    def setup(self, stage: str) -> None:
        """Compare the classes and channels of data and model, and group the parameters before they are sharded.

        Raises:
            ValueError: The number of classes or channels of the data differs from the model's.
        """
        super().setup(stage)
        channels = (self.of_data("data_config") or {}).get("input_size", [self.in_chans])[0]
        if channels != self.in_chans:
            raise ValueError(
                f"data.init_args.in_chans is {channels}, but the model takes images of {self.in_chans} channels "
                "(model.init_args.model_args.in_chans)"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        return self.model(images.contiguous(memory_format=self.memory_format))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the test."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Add a batch to the scores of ``val`` or ``test``."""
        raise NotImplementedError


class ClassificationTask(Classifier):
    """The task of classification: cross entropy on smoothed or mixed labels, and top-1 and top-5 accuracy.

    Batches are images ``(N, C, H, W)`` and labels ``(N,)``.

    Args:
        model: Name of a timm model, such as ``iformer_small``.
        num_classes: Number of classes, which must be the number of classes of the data.
        pretrained: ``true`` for the released weights; otherwise a file of weights, or a saved classifier, given by its
            folder or as ``hf-hub:USER/NAME``. Position embeddings are resized to the model's. If the number of classes
            differs, the last layer is newly initialised.
        model_args: Further arguments of ``timm.create_model``, such as ``img_size``, ``in_chans``, ``drop_path_rate``.
        optimization: The optimiser and its schedule.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Alpha of Mixup, or 0 for none. It needs an even batch size.
        cutmix: Alpha of CutMix, or 0 for none. It needs an even batch size. If both are used, each batch is mixed by
            one of them, chosen with equal probability.
        class_weights: The factor of each class's share of the training loss: a list, a mapping from names to weights (1
            for others), or ``balanced``, inversely proportional to the number of training images. The losses of
            evaluation are not weighted.
        grad_checkpointing: Whether to trade time for memory in training, as ``set_grad_checkpointing`` does in timm.
        channels_last: Whether to keep images and weights in the memory format that convolutions prefer.
        compile_model: Whether to compile the model with ``torch.compile``, which takes some minutes at the start.
        distillation: The teacher to learn from besides the labels, and how, see
            :mod:`iformer.classification.distillation`; null for none.
        confusion: Whether to write ``confusion.csv`` and ``confusion.png`` into the run's folder after a test.

    Raises:
        ValueError: There is no such model or teacher, its arguments are wrong, or the weights do not fit it.
        OSError: The weights cannot be read.
    """

    metric = "accuracy"
    teacher: Teacher | None = None

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
        class_weights: ClassWeights | None = None,
        grad_checkpointing: bool = False,
        channels_last: bool = True,
        compile_model: bool = False,
        distillation: Distillation | None = None,
        confusion: bool = False,
    ) -> None:
        super().__init__(
            model, num_classes, pretrained, model_args, optimization, grad_checkpointing, channels_last, compile_model
        )
        self.confusion = confusion
        self.mixup: Any = None
        if mixup or cutmix:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        require_weights("class_weights", class_weights)
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        # Labels are checked once, in _check: for each check a GPU's results are waited for.
        self.top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(num_classes, min(5, num_classes), "micro", validate_args=False)
        self.confusion_matrix = ConfusionMatrix(num_classes)
        self.projection: Any = None
        if distillation is not None:
            self._learn_from(Teacher(distillation, self.in_chans), compile_model)

    def _learn_from(self, teacher: Teacher, compiled: bool) -> None:
        """Set the teacher, and the projection of the student's features where their number is not the teacher's.

        The teacher is no submodule: it is not trained, wrapped, averaged, exported or saved in checkpoints.
        """
        self.__dict__["teacher"] = teacher
        if teacher.settings.kind != "features":
            return
        if compiled:
            raise ValueError("distillation.kind is features, which a compiled model does not give: no compile_model")
        if self.model.head_hidden_size != teacher.width:
            self.projection = nn.Linear(self.model.head_hidden_size, teacher.width)

    def setup(self, stage: str) -> None:
        """Compare the classes and channels of data, model and teacher, and group the parameters before sharding.

        Raises:
            ValueError: The number of classes or channels of the data differs from the model's, or the teacher's classes
                are others.
        """
        super().setup(stage)
        if stage == "fit" and self.teacher is not None:
            self.teacher.prepare(self.class_names, self.of_data("data_config") or {})
            self.parameter_groups = self.optimization.parameter_groups(self._with_features())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, which Mixup or CutMix mixes first if they are used.

        Raises:
            ValueError: A label has no class, or Mixup or CutMix get a batch of an odd size.
        """
        images, labels = batch
        self._check(labels)
        targets = labels
        if self.mixup is not None:
            if len(labels) % 2:
                raise ValueError(f"data.init_args.batch_size is {len(labels)}, but Mixup and CutMix need an even one")
            images, targets = self.mixup(images, labels)
        loss = self._training_loss(images, targets)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def _training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images with their, possibly mixed, labels."""
        return self._loss(self(images), targets) if self.teacher is None else self._taught(images, targets)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy of labels ``(N,)`` or of the shares ``(N, K)`` of mixed images."""
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0  # Mixup smooths them itself
        return _cross_entropy(logits, targets, self.loss_weights, smoothing)

    def _taught(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a student: that of the labels and that of the teacher, by its weight."""
        assert self.teacher is not None
        images = images.contiguous(memory_format=self.memory_format)
        if self.teacher.settings.kind == "features":
            logits, features = self._with_features()(images)
            distance = F.mse_loss(features, self.teacher(images, return_features=True))
        else:
            logits, answers = self(images), self.teacher(images)
            distance = self.teacher.distance(logits, answers)
            agreement = (logits.argmax(1) == answers.argmax(1)).float().mean()
            self.log("teacher_agreement", agreement, batch_size=len(images))
        self.log("teacher_loss", distance, batch_size=len(images))
        weight = self.teacher.settings.weight
        return (1 - weight) * self._loss(logits, targets) + weight * distance

    def _with_features(self) -> FeatureDistillationTrainableModule:
        """Return everything that a student trains: the network, which gives features too, and their projection."""
        return FeatureDistillationTrainableModule(self.model, self.projection)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what tells the teacher from others; its weights are not in the checkpoint."""
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the teacher with the checkpoint's; outside of training neither is needed.

        Raises:
            ValueError: The run began with another teacher, or with none.
        """
        if self.trainer.state.fn != "fit":
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in weights.items() if not k.startswith("projection.")}
            return
        now = None if self.teacher is None else self.teacher.fingerprint
        if checkpoint.get("teacher") != now:
            raise ValueError(
                f"model.init_args.distillation.teacher is {self.teacher and self.teacher.settings.teacher}, whose "
                "weights are not those of the teacher that this run began with"
            )

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Add a batch to the loss, the accuracies and the confusion matrix."""
        images, labels = batch
        self._check(labels)
        logits = self(images)
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.confusion_matrix.update(logits.argmax(1), labels)
        size = len(labels)
        self.log(f"{stage}_loss", F.cross_entropy(logits, labels), batch_size=size, sync_dist=True)
        self.log(f"{stage}_accuracy", self.top1, prog_bar=True, batch_size=size, on_step=False, on_epoch=True)
        self.log(f"{stage}_top5", self.top5, batch_size=size, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy of each class; outside of training, write ``per_class.csv``."""
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
        """Keep and write the accuracy of each class, and return the confusion matrix, whose rows are true classes."""
        matrix = self.confusion_matrix.compute().cpu()
        self.confusion_matrix.reset()
        self.keep_per_class(per_class(matrix, self.class_names))
        return matrix

    def _check(self, labels: Tensor) -> None:
        """Raise ValueError for a label without a class, for which torch would crash, on a GPU only later."""
        if labels.ndim != 1:
            raise ValueError("the data has several labels for an image, expected the task MultiLabelTask for it")
        lowest, highest = torch.stack(labels.aminmax()).tolist()  # one wait for the GPU instead of two
        if highest >= self.num_classes or lowest < 0:
            raise ValueError(f"label {highest} in the data, but model.init_args.num_classes is {self.num_classes}")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` into ``folder`` with everything that ``iformer predict`` and timm need to use it."""
        saved.save(model, folder, self.class_names, **(self.of_data("data_config") or {}))


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float = 0.0) -> Tensor:
    """Return the mean over a batch of the cross entropy, in which classes may have weights.

    The mean of torch itself would be weighted too, so that the batches of several ranks would count differently.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum") / len(targets)

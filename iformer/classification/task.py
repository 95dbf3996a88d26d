"""Training, evaluation and prediction of classifiers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_input_data_config
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from iformer.classification.data import read_image
from iformer.training.optimization import adamw_with_cosine


class ClassificationTask(lightning.LightningModule):
    """Cross entropy with label smoothing, AdamW with a cosine schedule, top-1 accuracy.

    Batches are ``(N, C, H, W)`` images and ``(N,)`` labels.

    Args:
        model: The classifier.
        num_classes: Its classes.
        lr: Learning rate after warm-up.
        weight_decay: Decoupled weight decay.
        warmup: Share of the run in which the learning rate grows linearly.
        label_smoothing: Share of the target spread over all classes.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.lr, self.weight_decay, self.warmup, self.label_smoothing = lr, weight_decay, warmup, label_smoothing
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> logits ``(N, num_classes)``."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch to the validation loss and accuracy."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log("val_accuracy", self.val_accuracy, prog_bar=True, batch_size=len(labels))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities, ``(N, num_classes)``."""
        return self(batch[0]).softmax(-1)

    def configure_optimizers(self) -> Any:
        """See :func:`~iformer.training.optimization.adamw_with_cosine`."""
        steps = int(self.trainer.estimated_stepping_batches)
        return adamw_with_cosine(
            self.model, self.lr, self.weight_decay, steps, warmup_steps=int(self.warmup * steps), min_lr=self.lr / 100
        )

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Timm's schedulers count updates themselves."""
        scheduler.step_update(self.global_step)


@torch.inference_mode()
def classify(model: Any, paths: Sequence[str | Path], top: int = 5) -> list[dict[str, Any]]:
    """The most probable classes of image files, with the preprocessing that the model's configuration states.

    Args:
        model: A timm model in evaluation mode.
        paths: Image files.
        top: How many classes to name.

    Returns:
        For each file ``{"image": path, "classes": [{"name": ..., "probability": ...}, ...]}``, most probable first.
    """
    config = resolve_input_data_config(model)
    transform = create_transform(**config, is_training=False)
    names = model.pretrained_cfg.get("label_names")
    results = []
    for path in paths:
        image = transform(read_image(path, channels=config["input_size"][0]))
        probabilities = model(image[None]).softmax(-1)[0]
        best = probabilities.topk(min(top, len(probabilities)))
        classes = [
            {"name": names[index] if names else f"class {index}", "probability": round(value, 4)}
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        results.append({"image": str(path), "classes": classes})
    return results

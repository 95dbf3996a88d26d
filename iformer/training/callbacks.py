"""The callbacks that all tasks share."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.progress import BarColumn
from timm.utils import distribute_bn
from torch import Tensor
from torch.optim import Optimizer

from iformer.common.ranges import Count, NotNegative, checked

WIDE = 110  # the columns of a terminal that has room for the whole progress bar
TAKEN, TAKEN_WIDE = 52, 92  # the columns before the metrics, with up to five digits for batches


class ProgressBar(RichProgressBar):
    """A progress bar on standard error, so that standard output holds nothing but results.

    It takes one line on narrow terminals too, and counts epochs from 1.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=1, leave=True, console_kwargs={"stderr": True})

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the columns: stage, bar, batches, elapsed and remaining time and, if there is room, batches/s."""
        what, bar, *others = super().configure_columns(trainer)
        if Console(stderr=True).width < WIDE:
            bar, others = BarColumn(bar_width=10), others[:2]
        return [what, bar, *others]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return as many metrics as there is room for, with four digits."""
        width = Console(stderr=True).width
        room = width - (TAKEN_WIDE if width >= WIDE else TAKEN)
        shown: dict[str, Any] = {}
        for name, value in super().get_metrics(trainer, pl_module).items():
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            room -= len(f"{name}: {text} ")
            if room < 0:
                break
            shown[name] = text
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        # There is no public way to count from 1; a test fails when the name changes.
        most = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}{f'/{most}' if most and most > 0 else ''}".ljust(len("Validation"))


class ImagesPerSecond(Callback):
    """Logs the throughput in images per second, which includes the loading of the images.

    In training it is a running mean, ``images/s``. In ``validate`` and ``test`` it is the mean over the whole set,
    ``val_images/s`` or ``test_images/s``.
    """

    def __init__(self) -> None:
        self.rate = 0.0
        self.last = self.began = time.perf_counter()
        self.images = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, also in a run that is resumed in the middle of an epoch and does not see its start."""
        self.last = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock anew, so that the time between epochs is not counted."""
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images of a batch ``(images, ...)`` on all ranks together."""
        now = time.perf_counter()
        rate = len(batch[0]) * trainer.world_size / (now - self.last)
        self.rate = 0.95 * self.rate + 0.05 * rate if self.rate else rate
        self.last = now
        pl_module.log("images/s", self.rate, prog_bar=True, batch_size=1)

    def _on_evaluation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began, self.images = time.perf_counter(), 0

    def _on_evaluation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size

    on_validation_epoch_start = on_test_epoch_start = _on_evaluation_start
    on_validation_batch_end = on_test_batch_end = _on_evaluation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the throughput of ``validate``; that of validations during training is not logged."""
        if trainer.state.fn == "validate":
            pl_module.log("val_images/s", self.images / (time.perf_counter() - self.began))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the throughput of the whole test."""
        pl_module.log("test_images/s", self.images / (time.perf_counter() - self.began))


class NonFiniteLossError(ValueError):
    """The loss or its gradient is infinite or not a number."""


class TrainingHealth(Callback):
    """Logs the learning rate and the gradient norm, and stops the run if the loss or the gradient is not finite.

    Raises:
        NonFiniteLossError: The loss or the gradient is not finite. The message names the epoch, batch, step, learning
            rate and likely causes. Nothing has been updated or saved since the last good step.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            NonFiniteLossError: The loss is not finite.
        """
        if not torch.isfinite(loss):
            self._stop(trainer, f"the loss is {loss.item()}")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the norm of the gradient before it is clipped, and log it with the learning rate.

        Raises:
            NonFiniteLossError: The norm is not finite.
        """
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(trainer.strategy, FSDPStrategy):  # each rank holds a part of the gradients
            norm = trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
        # The scaler of 16-bit floats skips steps with infinite gradients by itself and lowers its scale.
        if not torch.isfinite(norm) and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._stop(trainer, f"the gradient norm is {norm.item()}")
        values = {"grad_norm": norm, "lr": max(group["lr"] for group in optimizer.param_groups)}
        pl_module.log_dict(values, batch_size=1)

    def _stop(self, trainer: Trainer, what: str) -> None:
        (optimizer,) = trainer.optimizers
        lr = max(group["lr"] for group in optimizer.param_groups)
        raise NonFiniteLossError(
            f"{what} at batch {trainer.fit_loop.batch_idx} of epoch {trainer.current_epoch} "
            f"(step {trainer.global_step}, learning rate {lr:.3g}); likely causes: a learning rate too high for the "
            "batch, no gradient clipping, 16-bit floats where bf16 would do, or images that are not finite. "
            "The last good checkpoint is kept"
        )


class SharedBatchNorm(Callback):
    """Averages BatchNorm's running statistics over the ranks at the end of each epoch, as the authors' release did."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after the last batch, so that the following validation and checkpoint already use the result."""
        if trainer.world_size > 1 and trainer.is_last_batch:
            distribute_bn(pl_module, trainer.world_size, reduce=True)


class StopEarly(EarlyStopping):
    """Ends the run when validations no longer improve the task's main metric.

    A resumed run counts on from the checkpoint, with the settings of now.

    Args:
        patience: The number of validations without a better one after which the run ends; null never ends it.
        min_delta: By how much a validation must be better to count.
    """

    @checked
    def __init__(self, patience: Count | None = None, min_delta: NotNegative = 0.0) -> None:
        super().__init__("", min_delta, patience or 0, mode="max", check_on_train_epoch_end=False)
        self.active = patience is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the metric from the task.

        Raises:
            ValueError: The run has no validation.
        """
        self.monitor = f"val_{getattr(pl_module, 'metric', 'loss')}"
        if self.active and stage == "fit":
            require_validation(trainer, "early_stopping.patience")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over everything but the patience, which is that of now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the validation with the best one, and end the run if it is time."""
        if not self.active:
            return
        super().on_validation_end(trainer, pl_module)
        if trainer.should_stop and self.stopping_reason_message:
            rank_zero_info(
                f"Ended early: no better {self.monitor} than {self.best_score:.4f} for {self.wait_count} times."
            )


def require_validation(trainer: Trainer, key: str) -> None:
    """Raise ValueError, naming the setting that needs it, if a run has no validation."""
    if not trainer.enable_validation:
        raise ValueError(f"{key} needs validations, but trainer.limit_val_batches is {trainer.limit_val_batches}")

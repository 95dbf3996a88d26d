"""The optimisers and learning rate schedules of the recipes."""

from dataclasses import dataclass
from typing import Any, Literal

from lightning import Trainer
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from iformer.common.ranges import Count, Factor, NotNegative, NotNegativeInt, require_fields


@dataclass(frozen=True)
class AdamWCosine:
    """AdamW with linear warm-up, cosine decay and cooldown (Section 4.1 of the paper).

    All rates are stated for a global batch (batch size times devices times accumulated batches) of ``base_batch``
    images, and are scaled for any other: ``lr * global_batch / base_batch``. If ``base_batch`` is ``None``, they are
    used as they are.

    After t epochs the rate is ``warmup_lr + t (lr - warmup_lr) / warmup_epochs`` during warm-up, then
    ``min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2`` until T, the number of epochs before the cooldown, and ``min_lr``
    in the cooldown. If the length of a run is given by ``trainer.max_steps`` instead of ``trainer.max_epochs``, steps
    take the place of epochs throughout.

    Args:
        lr: Learning rate after warm-up.
        min_lr: Learning rate at the end of the cosine and in the cooldown.
        base_batch: Global batch size for which the rates are stated.
        weight_decay: Decoupled weight decay.
        warmup_epochs: Number of epochs of linear warm-up, which are part of T.
        warmup_lr: Learning rate of the first step.
        cooldown_epochs: Number of epochs of the cooldown, at the end of the run.
        per: Whether to update the rate after each 'epoch', as the authors' release did, or after each 'step'.
        layer_decay: Ratio of the learning rates of a layer and the next one; the head has the full learning rate.
    """

    lr: NotNegative = 1e-3
    min_lr: NotNegative = 1e-6
    base_batch: Count | None = 1024
    weight_decay: NotNegative = 0.05
    warmup_epochs: NotNegative = 5
    warmup_lr: NotNegative = 1e-6
    cooldown_epochs: NotNegativeInt = 0
    per: Literal["epoch", "step"] = "epoch"
    layer_decay: Factor | None = None

    def __post_init__(self) -> None:
        require_fields(self)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups with and without weight decay, and separate ones for each layer if ``layer_decay``.

        This must be called before the model is sharded. Vectors (norms, biases, layer scales) and the parameters that
        the model's ``no_weight_decay`` names, the position embeddings, are not decayed. The authors' release did decay
        its position embeddings: its ``no_weight_decay`` names ``pos_embed``, but its parameters are called
        ``pos_embed1`` to ``pos_embed4``.
        """
        kept: set[str] = getattr(model, "no_weight_decay", set)()
        if self.layer_decay is None:
            return param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=kept)
        return param_groups_layer_decay(model, self.weight_decay, kept, layer_decay=self.layer_decay)

    def configure(self, groups: list[dict[str, Any]], trainer: Trainer, batch_size: int) -> dict[str, Any]:
        """Return the optimiser and the scheduler as ``configure_optimizers`` does.

        Args:
            groups: The groups that :meth:`parameter_groups` returned.
            trainer: The run's trainer.
            batch_size: The number of images in a batch of one device.

        Raises:
            ValueError: The run has no more epochs than its cooldown.
        """
        limit = "max_steps" if trainer.max_epochs == -1 else "max_epochs"
        quick = bool(getattr(trainer, "fast_dev_run", False))  # a trial of one epoch, whatever the recipe says
        epochs = 1 if quick else (getattr(trainer, limit) or 0) - self.cooldown_epochs
        if epochs < 1:
            raise ValueError(
                f"trainer.{limit} is {getattr(trainer, limit)}, "
                f"expected more than the {self.cooldown_epochs} of optimization.cooldown_epochs"
            )
        factor = scale(self.base_batch, trainer, batch_size)
        optimizer = create_optimizer_v2(groups, opt="adamw", lr=self.lr * factor)
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=epochs,
            lr_min=self.min_lr * factor,
            cycle_decay=0.5,  # that of a second cycle, which there is not; with 1, timm complains of one epoch
            warmup_t=self.warmup_epochs,  # type: ignore[arg-type]  # fractions of epochs work too
            warmup_lr_init=self.warmup_lr * factor,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def update(self, scheduler: Any, trainer: Trainer) -> None:
        """Set the learning rate of the next step, which depends only on the number of steps taken."""
        if trainer.max_epochs == -1:
            scheduler.step(trainer.global_step)
            return
        steps = _steps_per_epoch(trainer)
        whole, rest = divmod(trainer.global_step, steps)
        scheduler.step(whole + rest / steps if self.per == "step" else whole)


@dataclass(frozen=True)
class AdamWSteps:
    """AdamW with linear warm-up and a step schedule: the "1x" and "3x" schedules of detection (Section 4.2).

    The rate is stated for a global batch of ``base_batch`` images and is scaled for any other, as in
    :class:`AdamWCosine`.

    Args:
        lr: Learning rate after warm-up.
        base_batch: Global batch size for which ``lr`` is stated.
        weight_decay: Decoupled weight decay, which vectors and position embeddings do not get.
        drops: Numbers of epochs after each of which the learning rate is multiplied by ``factor``.
        factor: Factor by which the learning rate is multiplied at each of the ``drops``.
        warmup_steps: Number of steps of linear warm-up.
        warmup_factor: Learning rate of the first step as a share of ``lr``.
    """

    lr: NotNegative = 1e-4
    base_batch: Count | None = 16
    weight_decay: NotNegative = 0.05
    drops: tuple[Count, ...] = (8, 11)
    factor: Factor = 0.1
    warmup_steps: NotNegativeInt = 500
    warmup_factor: Factor = 0.001

    def __post_init__(self) -> None:
        require_fields(self)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups with and without weight decay, as :meth:`AdamWCosine.parameter_groups` does."""
        kept: set[str] = getattr(model, "no_weight_decay", set)()
        return param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=kept)

    def configure(self, groups: list[dict[str, Any]], trainer: Trainer, batch_size: int) -> dict[str, Any]:
        """Return the optimiser and the scheduler as ``configure_optimizers`` does.

        Args:
            groups: The groups that :meth:`parameter_groups` returned.
            trainer: The run's trainer.
            batch_size: The number of images in a batch of one device.
        """
        lr = self.lr * scale(self.base_batch, trainer, batch_size)
        optimizer = create_optimizer_v2(groups, opt="adamw", lr=lr)
        scheduler = LambdaLR(optimizer, lambda step: self._share(step, trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _share(self, step: int, trainer: Trainer) -> float:
        """Return the learning rate of a step, counted from 0, as a share of ``lr``."""
        warmup = self.warmup_factor + (1 - self.warmup_factor) * step / max(self.warmup_steps, 1)
        # The length of an epoch is not known before the first step.
        epoch = step // _steps_per_epoch(trainer) if step else 0
        return min(1.0, warmup) * self.factor ** sum(epoch >= drop for drop in self.drops)

    def update(self, scheduler: Any, trainer: Trainer) -> None:
        """Set the learning rate of the next step, which depends only on the number of steps taken."""
        scheduler.last_epoch = trainer.global_step - 1
        scheduler.step()


def scale(base_batch: int | None, trainer: Trainer, batch_size: int) -> float:
    """Return the ratio of the run's global batch size to the one for which the rates are stated."""
    global_batch = batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return global_batch / base_batch if base_batch else 1.0


def _steps_per_epoch(trainer: Trainer) -> int:
    return -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)

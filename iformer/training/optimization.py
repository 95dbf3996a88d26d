"""Optimiser and learning rate schedule, through timm."""

from dataclasses import dataclass
from typing import Any, Literal

from lightning import Trainer
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from iformer.common.ranges import Count, Factor, NotNegative, NotNegativeInt, Positive, require_fields


@dataclass(frozen=True)
class AdamWCosine:
    """AdamW with linear warm-up, cosine decay and cooldown (Section 4.1 of the paper).

    All rates belong to a global batch (batch size times devices times accumulated batches) of ``base_batch`` images and
    are scaled for another: ``lr * global_batch / base_batch``. ``None`` takes them as they are.

    With t the epochs gone by, the rate is ``warmup_lr + t (lr - warmup_lr) / warmup_epochs`` during warm-up, then
    ``min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2`` up to T, all epochs but the cooldown, and ``min_lr`` from there.
    A run that has no ``trainer.max_epochs`` but ``trainer.max_steps`` counts steps for epochs throughout.

    Args:
        lr: Learning rate after warm-up.
        min_lr: Learning rate of the cooldown.
        base_batch: Global batch that the rates are stated for.
        weight_decay: Decoupled weight decay.
        warmup_epochs: Epochs of linear growth, of the cosine's T.
        warmup_lr: Learning rate of the first step.
        cooldown_epochs: The last of the run's epochs.
        per: Update the rate after each 'epoch', as the authors' release did, or each 'step'.
        layer_decay: Factor between the learning rates of one layer and the next, the head having the full one.
    """

    lr: Positive = 1e-3
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
        """Groups with and without weight decay, and for each layer with ``layer_decay``; before the model is sharded.

        Vectors (norms, biases, layer scales) and what the model's ``no_weight_decay`` names, the position embeddings,
        are not decayed. The authors' release decayed its position embeddings: its ``no_weight_decay`` names
        ``pos_embed``, and its parameters are called ``pos_embed1`` to ``pos_embed4``.
        """
        kept: set[str] = getattr(model, "no_weight_decay", set)()
        if self.layer_decay is None:
            return param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=kept)
        return param_groups_layer_decay(model, self.weight_decay, kept, layer_decay=self.layer_decay)

    def configure(self, groups: list[dict[str, Any]], trainer: Trainer, batch_size: int) -> dict[str, Any]:
        """What ``configure_optimizers`` returns, for :meth:`parameter_groups` and images in a batch of one device.

        Raises:
            ValueError: The run has no more epochs than its cooldown.
        """
        limit = "max_steps" if trainer.max_epochs == -1 else "max_epochs"
        quick = bool(getattr(trainer, "fast_dev_run", False))  # a try of one epoch, whatever the recipe says
        epochs = 1 if quick else (getattr(trainer, limit) or 0) - self.cooldown_epochs
        if epochs < 1:
            raise ValueError(
                f"trainer.{limit} is {getattr(trainer, limit)}, "
                f"expected more than the {self.cooldown_epochs} of the cooldown"
            )
        scale = _scale(self.base_batch, trainer, batch_size)
        optimizer = create_optimizer_v2(groups, opt="adamw", lr=self.lr * scale)
        scheduler = CosineLRScheduler(
            optimizer,
            t_initial=epochs,
            lr_min=self.min_lr * scale,
            warmup_t=self.warmup_epochs,  # type: ignore[arg-type]  # parts of epochs work too
            warmup_lr_init=self.warmup_lr * scale,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def update(self, scheduler: Any, trainer: Trainer) -> None:
        """Set the learning rate of the next step, a function of the number of steps taken and nothing else."""
        if trainer.max_epochs == -1:
            scheduler.step(trainer.global_step)
            return
        steps = _steps_per_epoch(trainer)
        whole, rest = divmod(trainer.global_step, steps)
        scheduler.step(whole + rest / steps if self.per == "step" else whole)


@dataclass(frozen=True)
class AdamWSteps:
    """AdamW with linear warm-up, its rate lowered after some epochs: the "1x" and "3x" of detection (Section 4.2).

    The rate belongs to a global batch of ``base_batch`` images and is scaled for another, as in :class:`AdamWCosine`.

    Args:
        lr: Learning rate after warm-up.
        base_batch: Global batch that ``lr`` is stated for.
        weight_decay: Decoupled weight decay; none for vectors and position embeddings.
        drops: Epochs after each of which the rate is multiplied by ``factor``.
        factor: See ``drops``.
        warmup_steps: Steps of linear growth.
        warmup_factor: Share of ``lr`` that the first step takes.
    """

    lr: Positive = 1e-4
    base_batch: Count | None = 16
    weight_decay: NotNegative = 0.05
    drops: tuple[Count, ...] = (8, 11)
    factor: Factor = 0.1
    warmup_steps: NotNegativeInt = 500
    warmup_factor: Factor = 0.001

    def __post_init__(self) -> None:
        require_fields(self)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See :meth:`AdamWCosine.parameter_groups`."""
        kept: set[str] = getattr(model, "no_weight_decay", set)()
        return param_groups_weight_decay(model, self.weight_decay, no_weight_decay_list=kept)

    def configure(self, groups: list[dict[str, Any]], trainer: Trainer, batch_size: int) -> dict[str, Any]:
        """What ``configure_optimizers`` returns, for :meth:`parameter_groups` and images in a batch of one device."""
        lr = self.lr * _scale(self.base_batch, trainer, batch_size)
        optimizer = create_optimizer_v2(groups, opt="adamw", lr=lr)
        scheduler = LambdaLR(optimizer, lambda step: self._share(step, trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _share(self, step: int, trainer: Trainer) -> float:
        """Of ``lr``, in a step counted from 0."""
        warmup = self.warmup_factor + (1 - self.warmup_factor) * step / max(self.warmup_steps, 1)
        # The length of an epoch is not known before the first step.
        epoch = step // _steps_per_epoch(trainer) if step else 0
        return min(1.0, warmup) * self.factor ** sum(epoch >= drop for drop in self.drops)

    def update(self, scheduler: Any, trainer: Trainer) -> None:
        """Set the learning rate of the next step, a function of the number of steps taken and nothing else."""
        scheduler.last_epoch = trainer.global_step - 1
        scheduler.step()


def _scale(base_batch: int | None, trainer: Trainer, batch_size: int) -> float:
    """The run's global batch over the one that the rates are stated for."""
    global_batch = batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return global_batch / base_batch if base_batch else 1.0


def _steps_per_epoch(trainer: Trainer) -> int:
    return -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)

"""Optimiser and learning rate schedule, through timm."""

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn


def adamw_with_cosine(
    model: nn.Module, lr: float, weight_decay: float, total_steps: int, warmup_steps: int, min_lr: float
) -> dict[str, Any]:
    """AdamW with linear warm-up and cosine decay per optimiser step, for Lightning's ``configure_optimizers``.

    Vectors (norms, biases) and what the model's ``no_weight_decay`` names (position embeddings) are not decayed.

    Args:
        model: Whose parameters to train.
        lr: Learning rate after warm-up.
        weight_decay: Decoupled weight decay.
        total_steps: Optimiser steps of the whole run, warm-up included.
        warmup_steps: Steps from ``min_lr`` up to ``lr``.
        min_lr: Learning rate at the first and last step.
    """
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=weight_decay)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total_steps,
        lr_min=min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=min_lr,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

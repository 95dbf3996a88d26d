"""What the tasks share."""

from typing import Any

import lightning
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer


class Task(lightning.LightningModule):
    """A LightningModule whose gradient can be clipped by its norm where it is in shards too."""

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, which refuses to clip norms under FSDP because it does not know the root module."""
        strategy: Any = self.trainer.strategy
        if isinstance(strategy.model, FullyShardedDataParallel) and gradient_clip_algorithm != "value":
            if gradient_clip_val:
                strategy.model.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

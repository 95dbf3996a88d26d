"""What the tasks share."""

from typing import Any

import lightning
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from iformer.training.optimization import AdamWCosine, AdamWSteps


class Task(lightning.LightningModule):
    """Optimiser and schedule of a task, and clipping of the gradient's norm where it is in shards too.

    A task sets ``optimization`` when it is made, and ``parameter_groups`` in ``setup``, while the parameters are whole.
    """

    optimization: AdamWCosine | AdamWSteps
    parameter_groups: list[dict[str, Any]]

    def _of_data(self, name: str) -> Any:
        """What the datamodule knows, None without one."""
        return getattr(getattr(self.trainer, "datamodule", None), name, None)

    def configure_optimizers(self) -> Any:
        """See :mod:`iformer.training.optimization`.

        Raises:
            ValueError: The learning rate is to be scaled by a batch size that the data does not tell.
        """
        batch_size = self._of_data("batch_size")
        if batch_size is None and self.optimization.base_batch is not None:
            raise ValueError(
                "optimization.base_batch scales the learning rate by data.batch_size, which the data lacks"
            )
        return self.optimization.configure(self.parameter_groups, self.trainer, batch_size or 0)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """See :mod:`iformer.training.optimization`."""
        self.optimization.update(scheduler, self.trainer)

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

"""Callbacks that the tasks share."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


def progress_bar() -> RichProgressBar:
    """A progress bar on standard error, so that standard output holds results only."""
    return RichProgressBar(refresh_rate=1, leave=True, console_kwargs={"stderr": True})


class ImagesPerSecond(Callback):
    """Logs training throughput, as a running mean, to the progress bar and the loggers."""

    def __init__(self) -> None:
        self.rate = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not count what happens between epochs."""
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch ``(images, ...)``, on all ranks together."""
        now = time.perf_counter()
        rate = len(batch[0]) * trainer.world_size / (now - self.last)
        self.rate = 0.95 * self.rate + 0.05 * rate if self.rate else rate
        self.last = now
        pl_module.log("images/s", self.rate, prog_bar=True, batch_size=1)

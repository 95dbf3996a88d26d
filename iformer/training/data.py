"""What the three datamodules share: loaders whose order and augmentation are those of an uninterrupted run."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from iformer.training.resumable import ResumableBatchSampler, SeededDataset, run_seed


class DataModule(lightning.LightningDataModule):
    """The base class of the datamodules.

    What makes a run exactly resumable is three lines in a datamodule derived from this one::

        def train_dataloader(self):
            batches = ResumableBatchSampler(len(dataset), self.batch_size, run_seed(), *self.rank)
            return self.loader(dataset, batches, training=True)

    A datamodule sets ``settings``, its hyperparameters, with ``num_workers`` and ``pin_memory`` among them.
    """

    settings: Any
    batch_size: int
    class_names: Sequence[str]

    @property
    def rank(self) -> tuple[int, int]:
        """The number of this process among those that train together, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def loader_options(self) -> dict[str, Any]:
        """The arguments of every ``DataLoader`` of a run."""
        workers = self.settings.num_workers
        return {
            "num_workers": workers,
            "worker_init_fn": leave_signals_to_the_run,
            "pin_memory": self.settings.pin_memory and torch.cuda.is_available(),
            "persistent_workers": workers > 0,
        }

    def loader(
        self, dataset: Dataset[Any], batches: ResumableBatchSampler, training: bool, **options: Any
    ) -> DataLoader[Any]:
        """Return a loader whose random draws depend on the run's seed, the epoch and the sample alone.

        Args:
            dataset: A dataset whose samples are found by their numbers.
            batches: Which samples come together.
            training: Begin where the trainer stands, in the middle of an epoch too.
            options: Further arguments of ``DataLoader``.
        """
        if training and self.trainer:
            batches.begin_with(self.trainer)
        return DataLoader(SeededDataset(dataset, run_seed()), batch_sampler=batches, **self.loader_options, **options)


def leave_signals_to_the_run(worker: int) -> None:
    """Let a loader's worker survive a SIGTERM or Ctrl-C that reaches all of the run's processes.

    torchrun and SLURM signal whole groups of processes. A worker that died of it would take the run with it before
    :class:`~iformer.training.checkpoints.RunCheckpoint` could save. SIGTERM from the main process still ends a worker:
    that is how Python gets rid of those that are left when it exits, and it would wait for them for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: who sent it is not known elsewhere
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_says_so, daemon=True).start()


def _end_when_main_says_so() -> None:
    main = multiprocessing.parent_process()
    while main is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(128 + signal.SIGTERM)

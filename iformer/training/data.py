"""What the datamodules share: loaders that make a resumed run draw the same batches as an uninterrupted one."""

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

    A derived datamodule makes a run exactly resumable with three lines::

        def train_dataloader(self):
            batches = ResumableBatchSampler(len(dataset), self.batch_size, run_seed(), *self.rank)
            return self.loader(dataset, batches, training=True)

    A datamodule sets ``settings``, its hyperparameters, with ``num_workers`` and ``pin_memory`` among them.
    """

    settings: Any
    batch_size: int
    class_names: Sequence[str]
    has_test: bool | None = None
    """Whether there are test images; otherwise ``test`` takes the validation images. None if it is not known."""

    @property
    def class_counts(self) -> Sequence[int] | None:
        """The number of training labels of each class, after :meth:`setup`; None if the data does not tell."""
        return None

    @property
    def rank(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes that train together."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def of_task(self, name: str, default: Any) -> Any:
        """Return an attribute of the task that is trained with the data, or ``default`` if there is none."""
        return getattr(getattr(self.trainer, "lightning_module", None), name, default)

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
        """Return a loader whose random draws depend only on the run's seed, the epoch and the sample.

        Args:
            dataset: The dataset, whose samples are indexed by number.
            batches: The sampler that decides which samples form a batch.
            training: Whether to begin at the trainer's position, which may be in the middle of an epoch.
            options: Further arguments of ``DataLoader``.
        """
        if training and self.trainer:
            batches.begin_with(self.trainer)
        return DataLoader(SeededDataset(dataset, run_seed()), batch_sampler=batches, **self.loader_options, **options)


def leave_signals_to_the_run(worker: int) -> None:
    """Make a loader's worker survive a SIGTERM or Ctrl-C that is sent to all processes of the run.

    torchrun and SLURM signal whole groups of processes. If a worker died of the signal, the run would fail before
    :class:`~iformer.training.checkpoints.RunCheckpoint` could save. SIGTERM from the main process still ends a worker,
    because Python sends it at exit to the workers that are left and then waits for them.

    Args:
        worker: The number of the worker, which is not used.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # on Linux; elsewhere the sender of a signal is not known
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_says_so, daemon=True).start()


def _end_when_main_says_so() -> None:
    main = multiprocessing.parent_process()
    while main is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(128 + signal.SIGTERM)

"""Exact resumption: every random draw is a function of the seed and counters, so that only counters are restored.

The order of an epoch depends on ``(seed, epoch)``, the augmentation of a sample on ``(seed, epoch, sample, repeat)``,
and what the model and Mixup draw in a training step on ``(seed, rank, epoch, batch)``. A run that starts again in the
middle of an epoch therefore goes on as if it had never stopped, whatever the number of loader workers.

:class:`iformer.training.data.DataModule` says what a datamodule needs for it.
"""

import os
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import Dataset, Sampler


class SampleKey(NamedTuple):
    """Which sample, and in which of its appearances: what the augmentation's random draws depend on."""

    epoch: int
    sample: int
    repeat: int = 0


def run_seed() -> int:
    """The seed that ``lightning.seed_everything`` was given in this run, 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def position(trainer: Trainer) -> tuple[int, int]:
    """``(epoch, batch)`` of the next training batch, counted from 0; right too after a checkpoint was restored."""
    epoch = current_epoch(trainer)
    unfinished = trainer.fit_loop.epoch_progress.current.ready > epoch
    return epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready if unfinished else 0


def current_epoch(trainer: Trainer) -> int:
    """The epoch that Lightning names to ``set_epoch``; ``trainer.current_epoch`` lags behind it between epochs."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


def seed_from(*values: int) -> int:
    """Seed Python and NumPy with a hash of ``values``, none negative; returns a seed for torch."""
    words = np.random.SeedSequence(values).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # timm draws from the global generator
    return int(words[2]) << 32 | int(words[3])


class ResumableBatchSampler(Sampler[list[SampleKey]]):
    """Lists of :class:`SampleKey`, one list for each batch of this rank.

    The ranks' batches number k together are the batch number k of one process with ``world_size`` times the batch size.

    Args:
        length: Samples in the dataset.
        batch_size: Samples in a batch of one rank.
        seed: Of the order.
        rank: This process.
        world_size: All processes.
        shuffle: A new order in each epoch, rather than that of the dataset.
        drop_last: Leave out the samples that do not fill a batch on every rank; without it no sample is left out or
            doubled, and batches may be smaller on some ranks, though their number is the same on all.
        repeats: Repeated augmentation (Hoffer et al., 2020; timm's ``RepeatAugSampler``): so many differently augmented
            copies of an image in the same global batch, and so many times fewer images in an epoch of the same length.

    Raises:
        ValueError: There are fewer samples than one for each rank, or than one batch with ``drop_last``.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        repeats: int = 1,
    ) -> None:
        needed = batch_size * world_size if drop_last else world_size
        if length < needed:
            raise ValueError(
                f"{length} samples are too few: batch_size {batch_size} on {world_size} ranks needs {needed}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.drop_last, self.repeats = shuffle, drop_last, repeats
        self.epoch = self.first = 0
        self.same_order = False  # each epoch has the order of the first

    @property
    def sampler(self) -> "ResumableBatchSampler":
        """Where Lightning looks for ``set_epoch``."""
        return self

    def start(self, epoch: int, batch: int = 0) -> None:
        """Begin ``epoch`` with its batch number ``batch``; the epochs after it begin with their first."""
        self.epoch, self.first = epoch, batch

    def begin_with(self, trainer: Trainer) -> None:
        """Begin where the trainer stands. With ``overfit_batches`` each epoch is to have the same batches."""
        self.start(*position(trainer))
        self.same_order = bool(getattr(trainer, "overfit_batches", 0))

    def set_epoch(self, epoch: int) -> None:
        """Go on with ``epoch``; from its beginning, unless :meth:`start` has named another place in it."""
        if epoch != self.epoch:
            self.start(epoch)

    def __len__(self) -> int:
        """Batches in a whole epoch of one rank."""
        if self.drop_last:
            return self.length // (self.batch_size * self.world_size)
        return -(-self.length // (self.batch_size * self.world_size))

    def order(self, epoch: int) -> Sequence[int]:
        """The samples in the order of an epoch, all ranks' together: each global batch takes as many as it holds."""
        if not self.shuffle:
            return range(self.length)
        order: list[int] = np.random.default_rng((self.seed, epoch)).permutation(self.length).tolist()
        return order

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # The position is read now, not when the generator is first asked for a batch.
        return self._batches(self.epoch, self.first)

    def _batches(self, epoch: int, first: int) -> Iterator[list[SampleKey]]:
        order = self.order(0 if self.same_order else epoch)
        places = range(self.rank, self.length, self.world_size)  # of this rank, in the order of the epoch
        count = len(self)
        # Other ranks may have a sample more, and a batch more for it: then ours are spread over as many batches.
        spread = not self.drop_last and len(places) <= (count - 1) * self.batch_size
        for batch in range(first, count):
            if spread:
                part = places[batch * len(places) // count : (batch + 1) * len(places) // count]
            else:
                part = places[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(epoch, order[i // self.repeats], i % self.repeats) for i in part]


class SeededDataset(Dataset[Any]):
    """A map-style dataset, indexed by :class:`SampleKey`, whose random draws depend on the key alone.

    The global generators are not put back, which would cost more than seeding them: :class:`SeededSteps` sees to the
    model's draws where samples are loaded in the main process.
    """

    def __init__(self, dataset: Sequence[Any] | Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> Any:
        # Not torch.manual_seed, which seeds all devices and takes a hundred times as long.
        torch.default_generator.manual_seed(seed_from(self.seed, *key))
        return self.dataset[key.sample]


class SeededSteps(Callback):
    """Seeds what a training step draws (Mixup, drop path, dropout) from the run's seed, the rank, epoch and batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Called after the batch has been loaded, before the step."""
        torch.manual_seed(seed_from(run_seed(), trainer.global_rank, current_epoch(trainer), batch_idx))

"""Exact resumption: every random draw is a function of the seed and of counters, so that only counters are restored.

The order of an epoch depends on ``(seed, epoch)``, the augmentation of a sample on ``(seed, epoch, sample, repeat)``,
and the random numbers of the model and of Mixup in a training step on ``(seed, rank, epoch, batch)``. A run that is
resumed in the middle of an epoch therefore continues as if it had never stopped, whatever the number of loader workers.

:class:`iformer.training.data.DataModule` shows what a datamodule has to do for this.
"""

import itertools
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import Dataset, Sampler


class SampleKey(NamedTuple):
    """The epoch, number and repeat of a sample, which determine the random draws of its augmentation.

    The repeat tells apart the copies of a sample in an epoch.
    """

    epoch: int
    sample: int
    repeat: int = 0


def run_seed() -> int:
    """Return the seed that was given to ``lightning.seed_everything`` in this run, or 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def position(trainer: Trainer) -> tuple[int, int]:
    """Return ``(epoch, batch)`` of the next training batch, counted from 0, also after a checkpoint was restored."""
    epoch = current_epoch(trainer)
    unfinished = trainer.fit_loop.epoch_progress.current.ready > epoch
    return epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready if unfinished else 0


def current_epoch(trainer: Trainer) -> int:
    """Return the epoch that Lightning passes to ``set_epoch``; ``trainer.current_epoch`` lags behind between epochs."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


def seed_from(*values: int) -> int:
    """Seed Python and NumPy with a hash of ``values``, which must not be negative, and return a seed for torch."""
    words = np.random.SeedSequence(values).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # timm draws from the global generator
    return int(words[2]) << 32 | int(words[3])


class ResumableBatchSampler(Sampler[list[SampleKey]]):
    """A sampler that yields a list of :class:`SampleKey` for each batch of this rank.

    Batch k of all ranks together equals batch k of a single process with ``world_size`` times the batch size.

    Args:
        length: Number of samples in the dataset.
        batch_size: Number of samples in a batch of one rank.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.
        shuffle: Whether to draw a new order in each epoch, instead of using the dataset's order.
        drop_last: Whether to leave out the samples that do not fill a batch on every rank. Otherwise no sample is left
            out or repeated; some ranks may have smaller batches, but all have the same number of them.
        repeats: Number of differently augmented copies of an image in the same global batch (repeated augmentation,
            Hoffer et al., 2020; timm's ``RepeatAugSampler``). The length of an epoch does not change, so that it has
            that many times fewer images.
        weights: Weight of each sample: instead of being shuffled, as many samples as there are in the dataset are drawn
            with replacement in each epoch, with probabilities proportional to their weights.

    Raises:
        ValueError: There are not enough samples for one on each rank or, with ``drop_last``, for one batch; or no
            weight is above 0.
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
        weights: Sequence[float] | np.ndarray | None = None,
    ) -> None:
        needed = batch_size * world_size if drop_last else world_size
        if length < needed:
            raise ValueError(
                f"{length} samples are too few: batch_size {batch_size} on {world_size} ranks needs {needed}"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.drop_last, self.repeats = shuffle, drop_last, repeats
        self.shares: np.ndarray | None = None  # the probability of each sample in a draw
        if weights is not None:
            given = np.asarray(weights, dtype=np.float64)
            if not given.sum() > 0:
                raise ValueError("all samples have the weight 0, expected a weight above 0 for some of them")
            self.shares = given / given.sum()
        self.epoch = self.first = 0
        self.same_order = False  # whether each epoch has the order of the first one

    @property
    def sampler(self) -> "ResumableBatchSampler":
        """The sampler itself; Lightning looks for ``set_epoch`` here."""
        return self

    def start(self, epoch: int, batch: int = 0) -> None:
        """Begin ``epoch`` with its batch number ``batch``; later epochs begin with their first batch."""
        self.epoch, self.first = epoch, batch

    def begin_with(self, trainer: Trainer) -> None:
        """Begin at the trainer's position; with ``overfit_batches``, use the same batches in each epoch."""
        self.start(*position(trainer))
        self.same_order = bool(getattr(trainer, "overfit_batches", 0))

    def set_epoch(self, epoch: int) -> None:
        """Continue with ``epoch``, at its beginning unless :meth:`start` has set another batch in it."""
        if epoch != self.epoch:
            self.start(epoch)

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch of one rank."""
        if self.drop_last:
            return self.length // (self.batch_size * self.world_size)
        return -(-self.length // (self.batch_size * self.world_size))

    def order(self, epoch: int) -> Sequence[int]:
        """Return the samples of all ranks in the order of an epoch, from which global batches are taken in turn."""
        generator = np.random.default_rng((self.seed, epoch))
        order: list[int]
        if self.shares is not None:
            order = generator.choice(self.length, self.length, p=self.shares).tolist()
            return order
        if not self.shuffle:
            return range(self.length)
        order = generator.permutation(self.length).tolist()
        return order

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # The position is read now, not when the generator is first asked for a batch.
        return self._batches(self.epoch, self.first)

    def _batches(self, epoch: int, first: int) -> Iterator[list[SampleKey]]:
        order = self.order(0 if self.same_order else epoch)
        # A sample that is drawn again in the epoch is augmented anew.
        copies = [0] * self.length if self.shares is None else list(_earlier(order))
        places = range(self.rank, self.length, self.world_size)  # this rank's places in the order of the epoch
        count = len(self)
        # Other ranks may need one more batch for one more sample; this rank's samples are then spread over as many.
        spread = not self.drop_last and len(places) <= (count - 1) * self.batch_size
        for batch in range(first, count):
            if spread:
                part = places[batch * len(places) // count : (batch + 1) * len(places) // count]
            else:
                part = places[batch * self.batch_size : (batch + 1) * self.batch_size]
            drawn = ((i // self.repeats, i % self.repeats) for i in part)
            yield [SampleKey(epoch, order[k], copies[k] * self.repeats + repeat) for k, repeat in drawn]


def _earlier(order: Sequence[int]) -> Iterator[int]:
    """Yield for each place of an order how often its sample stands in earlier places."""
    seen: dict[int, Iterator[int]] = defaultdict(itertools.count)
    for sample in order:
        yield next(seen[sample])


class SeededDataset(Dataset[Any]):
    """A map-style dataset, indexed by :class:`SampleKey`, whose random draws depend only on the seed and the key.

    The state of the global generators is not restored, because that would take longer than seeding them. Where samples
    are loaded in the main process, :class:`SeededSteps` seeds them again for the model.

    Args:
        dataset: The dataset, indexed by the numbers of its samples.
        seed: The run's seed.
    """

    def __init__(self, dataset: Sequence[Any] | Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: SampleKey) -> Any:
        # torch.manual_seed would seed all devices and take a hundred times as long.
        torch.default_generator.manual_seed(seed_from(self.seed, *key))
        return self.dataset[key.sample]


class SeededSteps(Callback):
    """Seeds each training step (Mixup, drop path, dropout) with the run's seed, the rank, the epoch and the batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators after the batch has been loaded and before the step."""
        torch.manual_seed(seed_from(run_seed(), trainer.global_rank, current_epoch(trainer), batch_idx))

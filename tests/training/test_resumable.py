"""Order and augmentation as functions of counters."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from iformer.training.resumable import ResumableBatchSampler, SampleKey, SeededDataset


class Draws(Dataset[torch.Tensor]):
    """Each sample is its index and a draw from each of the three generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.random(), torch.rand(()).item()])


def batches(sampler: ResumableBatchSampler, workers: int = 0) -> list[torch.Tensor]:
    return list(DataLoader(SeededDataset(Draws(), 5), batch_sampler=sampler, num_workers=workers))


def test_starts_anywhere_with_the_same_batches_whatever_the_workers() -> None:
    whole = ResumableBatchSampler(40, 6, seed=3)
    whole.start(2)
    expected = batches(whole)
    assert len(expected) == len(whole) == 6
    for workers in (0, 2):
        resumed = ResumableBatchSampler(40, 6, seed=3)
        resumed.start(2, 4)
        found = batches(resumed, workers)
        assert len(found) == 2
        assert all(map(torch.equal, found, expected[4:]))
        assert len(resumed) == 6


def test_set_epoch_keeps_the_start_in_its_epoch_only() -> None:
    sampler = ResumableBatchSampler(40, 6, seed=3)
    sampler.start(2, 4)
    sampler.set_epoch(2)
    assert len(list(sampler)) == 2
    sampler.set_epoch(3)
    assert len(list(sampler)) == 6


def test_epochs_and_repeats_are_augmented_differently() -> None:
    dataset = SeededDataset(Draws(), 5)
    samples = [dataset[SampleKey(*key)][1:] for key in ((0, 7, 0), (1, 7, 0), (0, 7, 1), (0, 8, 0))]
    assert len({tuple(sample.tolist()) for sample in samples}) == 4
    first, second = ResumableBatchSampler(40, 40, seed=3), ResumableBatchSampler(40, 40, seed=3)
    second.start(1)
    assert [key.sample for key in next(iter(first))] != [key.sample for key in next(iter(second))]


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_share_the_global_batch(repeats: int) -> None:
    whole = list(ResumableBatchSampler(40, 12, seed=3, repeats=repeats))
    ranks = [list(ResumableBatchSampler(40, 4, 3, rank, 3, repeats=repeats)) for rank in range(3)]
    for k, batch in enumerate(whole):
        assert sorted(batch) == sorted(key for rank in ranks for key in rank[k])
        assert len(set(batch)) == 12
        assert len({key.sample for key in batch}) == 12 // repeats


@pytest.mark.parametrize("length", [7, 8, 9, 16, 17, 40, 41])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_sample_once_in_as_many_batches_on_each_rank(length: int, world_size: int) -> None:
    samplers = [
        ResumableBatchSampler(length, 4, 0, rank, world_size, shuffle=False, drop_last=False)
        for rank in range(world_size)
    ]
    found = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in found} == {len(samplers[0])}
    assert all(1 <= len(batch) <= 4 for batches in found for batch in batches)
    assert sorted(key.sample for batches in found for batch in batches for key in batch) == list(range(length))


def test_too_few_samples_are_named() -> None:
    with pytest.raises(ValueError, match="10 samples are too few"):
        ResumableBatchSampler(10, 6, 0, world_size=2)

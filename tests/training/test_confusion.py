"""The confusion matrix of a whole evaluation."""

import pytest
import torch
from sklearn.metrics import confusion_matrix

from iformer.training.confusion import ConfusionMatrix
from tests.gpu.conditions import deterministic


def test_counts_are_those_of_scikit_learn() -> None:
    found, labels = torch.randint(0, 5, (3, 40, 30)), torch.randint(0, 5, (3, 40, 30))
    labels[:, :7] = 255
    metric = ConfusionMatrix(5, ignore_index=255)
    for one, other in zip(found, labels.to(torch.uint8), strict=True):
        metric.update(one, other)
    known = labels != 255
    expected = confusion_matrix(labels[known], found[known], labels=range(5))
    assert metric.compute().tolist() == expected.tolist()
    metric.reset()
    assert metric.compute().sum() == 0


def test_deterministic_counts_take_no_memory_for_pairs_of_classes() -> None:
    """150 classes and a quarter of a million pixels; comparing each pixel with each pair takes 47 terabytes."""
    found, labels = torch.randint(0, 150, (512, 512)), torch.randint(0, 150, (512, 512))
    metric = ConfusionMatrix(150)
    with deterministic():
        metric.update(found, labels)
    assert metric.compute().sum() == 512 * 512
    assert metric.compute()[labels[0, 0], found[0, 0]] > 0


@pytest.mark.parametrize("ignored", [None, 9])
def test_no_labels_at_all(ignored: int | None) -> None:
    metric = ConfusionMatrix(4, ignore_index=ignored)
    metric.update(torch.zeros(2, 2, dtype=torch.long)[:0], torch.full((2, 2), 9)[:0])
    assert metric.compute().sum() == 0

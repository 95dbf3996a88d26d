"""Scores against an independent implementation."""

from statistics import fmean

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from iformer.segmentation.metrics import per_class, scores
from iformer.segmentation.transforms import IGNORE


def independent(truths: list[np.ndarray], predictions: list[np.ndarray], classes: int) -> dict[str, float]:
    """Intersections and unions added up image by image and class by class, without a confusion matrix."""
    intersection, union, size = np.zeros(classes, int), np.zeros(classes, int), np.zeros(classes, int)
    for truth, prediction in zip(truths, predictions, strict=True):
        labelled = truth != IGNORE
        for label in range(classes):
            is_truth, is_found = (truth == label) & labelled, (prediction == label) & labelled
            intersection[label] += np.count_nonzero(is_truth & is_found)
            union[label] += np.count_nonzero(is_truth | is_found)
            size[label] += np.count_nonzero(is_truth)
    return {
        "miou": fmean([intersection[k] / union[k] for k in range(classes) if union[k]]),
        "mean_accuracy": fmean([intersection[k] / size[k] for k in range(classes) if size[k]]),
        "pixel_accuracy": intersection.sum() / size.sum(),
        "iou": [intersection[k] / union[k] if union[k] else None for k in range(classes)],
    }


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_an_independent_implementation(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 30))
    # Some classes are in neither, some in the labels only, some in the predictions only.
    in_truth, in_found = (random.permutation(classes)[: random.integers(1, classes + 1)] for _ in range(2))
    metric = MulticlassConfusionMatrix(classes, ignore_index=IGNORE)
    truths, predictions = [], []
    for _ in range(4):
        size = tuple(random.integers(1, 40, 2))
        truth, found = random.choice(in_truth, size).astype(np.uint8), random.choice(in_found, size)
        truth[random.random(size) < random.choice([0, 0.3, 0.9])] = IGNORE
        truth.flat[0] = in_truth[0]  # one labelled pixel at least
        metric.update(torch.from_numpy(found)[None], torch.from_numpy(truth)[None].long())
        truths.append(truth)
        predictions.append(found)
    expected = independent(truths, predictions, classes)
    found = scores(metric.compute())
    assert [None if value.isnan() else float(value) for value in found["iou"]] == expected.pop("iou")
    assert {name: found[name] for name in expected} == expected  # exactly


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_only_predicted_counts() -> None:
    truth, found = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 2, 1]])
    metric = MulticlassConfusionMatrix(4)
    metric.update(found, truth)
    result = scores(metric.compute())
    assert result["miou"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    rows = per_class(metric.compute(), ["a", "b", "c", "d"])
    assert rows[0] == {"class": "a", "share": 0.75, "iou": 0.6667, "accuracy": 0.6667}
    assert rows[2] == {"class": "c", "share": 0.0, "iou": 0.0, "accuracy": None}
    assert rows[3] == {"class": "d", "share": 0.0, "iou": None, "accuracy": None}

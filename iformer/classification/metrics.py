"""The figures of each class: from a confusion matrix or, where images have several labels, from probabilities."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision_recall_curve,
)


def per_class(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return ``class``, ``images`` and ``accuracy`` (None if there are no images) for each class.

    Args:
        matrix: The numbers of images of each true class (row) that were predicted as each class (column), ``(K, K)``.
        names: The names of the K classes.
    """
    rows = []
    for i, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        images = sum(counts)
        rows.append({"class": name, "images": images, "accuracy": round(counts[i] / images, 4) if images else None})
    return rows


def best_thresholds(found: Tensor, labels: Tensor) -> list[float]:
    """Return for each class the threshold with the best F1, or 0.5 for a class that no image has.

    A threshold lies in the middle between two of the probabilities, so that rounding changes no decision about these.

    Args:
        found: The probabilities ``(N, K)``.
        labels: The labels ``(N, K)``, 0 or 1.
    """
    with _empty_classes_allowed():
        curves = multilabel_precision_recall_curve(found, labels, labels.shape[1])
    chosen = []
    for column, here, precision, recall, thresholds in zip(found.T, labels.T, *curves, strict=True):
        if not here.any():
            chosen.append(0.5)
            continue
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        best = thresholds[f1[:-1].argmax()]  # the curve's last point has no threshold
        lower = column[column < best]
        chosen.append(float(best + (lower.max() if len(lower) else 0.0)) / 2)
    return chosen


def per_label(found: Tensor, labels: Tensor, thresholds: Sequence[float], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return ``class``, ``images``, ``average_precision``, ``f1`` and ``threshold`` for each class.

    A class that no image has gets None for the scores.

    Args:
        found: The probabilities ``(N, K)``.
        labels: The labels ``(N, K)``, 0 or 1.
        thresholds: The probabilities from which on an image is taken to have each label.
        names: The names of the K classes.
    """
    images, classes = labels.sum(0).tolist(), len(names)
    decided = (found >= torch.tensor(thresholds)).int()
    f1 = multilabel_f1_score(decided, labels, classes, average="none").view(-1).tolist()
    with _empty_classes_allowed():
        precision = multilabel_average_precision(found, labels, classes, average="none").view(-1).tolist()
    return [
        {
            "class": name,
            "images": images[i],
            "average_precision": round(precision[i], 4) if images[i] else None,
            "f1": round(f1[i], 4) if images[i] else None,
            "threshold": round(thresholds[i], 4),
        }
        for i, name in enumerate(names)
    ]


@contextlib.contextmanager
def _empty_classes_allowed() -> Iterator[None]:
    """Suppress torchmetrics' warning of classes that no image has, which are reported without scores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No positive samples found")
        yield

"""Scores from a confusion matrix of pixels, computed over the whole dataset and not image by image."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor


def scores(confusion: Tensor) -> dict[str, Any]:
    """Compute intersection over union and accuracy.

    Args:
        confusion: The confusion matrix ``(K, K)``: the number of pixels of each true class (row) that were predicted as
            each class (column), over all images.

    Returns:
        A dictionary of ``iou`` ``(K,)``, the intersection over union of each class, NaN for a class that is neither in
        the labels nor in the predictions; ``accuracy`` ``(K,)``, the share of each class's pixels that were predicted
        correctly, NaN for a class without pixels; ``miou`` and ``mean_accuracy``, their means over the classes that
        are not NaN; and ``pixel_accuracy``, the share of all labelled pixels that were predicted correctly.
    """
    confusion = confusion.cpu().double()
    hits, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    iou, accuracy = hits / (truth + predicted - hits), hits / truth  # 0 / 0 gives NaN
    return {
        "iou": iou,
        "accuracy": accuracy,
        "miou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "pixel_accuracy": float(hits.sum() / truth.sum()),
    }


def per_class(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each class: its name, share of the labelled pixels, IoU and accuracy, with None for NaN."""
    found = scores(confusion)
    shares = confusion.sum(1).double().cpu() / confusion.sum().cpu()
    columns = {"share": shares, "iou": found["iou"], "accuracy": found["accuracy"]}
    return [
        {"class": name, **{key: _rounded(values[i]) for key, values in columns.items()}} for i, name in enumerate(names)
    ]


def _mean(values: Tensor) -> float:
    """Return the mean of the values that are not NaN, correctly rounded whatever their order."""
    known = values[~values.isnan()].tolist()
    return fmean(known) if known else float("nan")


def _rounded(value: Tensor) -> float | None:
    return None if value.isnan() else round(float(value), 4)

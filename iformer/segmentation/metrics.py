"""What a confusion matrix of pixels says, as the field counts it: over the whole set, not image by image."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor


def scores(confusion: Tensor) -> dict[str, Any]:
    """Intersection over union and accuracy.

    Args:
        confusion: ``(K, K)`` pixels of each true class (row) that were taken for each class (column), all images
            together.

    Returns:
        ``iou`` ``(K,)``: intersection over union of each class, not a number where the class is neither in the labels
        nor in the predictions. ``accuracy`` ``(K,)``: share of the class's pixels that were found, not a number where
        it has none. ``miou``, ``mean_accuracy``: their means over the other classes. ``pixel_accuracy``.
    """
    confusion = confusion.cpu().double()
    hits, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    iou, accuracy = hits / (truth + predicted - hits), hits / truth  # 0 / 0 is not a number
    return {
        "iou": iou,
        "accuracy": accuracy,
        "miou": _mean(iou),
        "mean_accuracy": _mean(accuracy),
        "pixel_accuracy": float(hits.sum() / truth.sum()),
    }


def per_class(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class: its name, its share of the labelled pixels, IoU and accuracy; None where there is none."""
    found = scores(confusion)
    shares = confusion.sum(1).double().cpu() / confusion.sum().cpu()
    columns = {"share": shares, "iou": found["iou"], "accuracy": found["accuracy"]}
    return [
        {"class": name, **{key: _rounded(values[i]) for key, values in columns.items()}} for i, name in enumerate(names)
    ]


def _mean(values: Tensor) -> float:
    """Of those that are numbers; correctly rounded, whatever their order."""
    known = values[~values.isnan()].tolist()
    return fmean(known) if known else float("nan")


def _rounded(value: Tensor) -> float | None:
    return None if value.isnan() else round(float(value), 4)

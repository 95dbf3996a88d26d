"""What a confusion matrix of images says of each class."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def per_class(matrix: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return ``class``, ``images`` and ``accuracy`` (None where it has no images) for each class.

    Args:
        matrix: ``(K, K)`` images of each true class (row) that were taken for each class (column).
        names: The names of the classes.
    """
    rows = []
    for i, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        images = sum(counts)
        rows.append({"class": name, "images": images, "accuracy": round(counts[i] / images, 4) if images else None})
    return rows

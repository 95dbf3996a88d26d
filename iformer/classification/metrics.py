"""The figures of each class, computed from a confusion matrix."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


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

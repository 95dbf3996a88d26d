"""The confusion matrix that the tasks keep over a whole evaluation."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ConfusionMatrix(Metric):
    """The number of samples of each true class (row) that were predicted as each class (column), ``(K, K)``.

    torchmetrics' own counts with K * K comparisons for each sample where deterministic algorithms are asked for: the
    pixels of one image with 150 classes would take terabytes. ``torch.bincount`` is deterministic without weights.

    Args:
        num_classes: The number of classes K.
        ignore_index: The label of samples that do not count.
    """

    full_state_update = False
    matrix: Tensor

    def __init__(self, num_classes: int, ignore_index: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.add_state("matrix", torch.zeros(num_classes, num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, found: Tensor, labels: Tensor) -> None:
        """Count predicted classes and labels, integers of one shape."""
        found, labels = found.flatten(), labels.flatten().long()
        if self.ignore_index is not None:
            known = labels != self.ignore_index
            found, labels = found[known], labels[known]
        counts = torch.bincount(labels * self.num_classes + found, minlength=self.num_classes**2)
        self.matrix += counts.view(self.num_classes, self.num_classes)

    def compute(self) -> Tensor:
        """Return the matrix."""
        return self.matrix

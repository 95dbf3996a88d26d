"""Work whose memory is known, for the tests of measuring it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def take(mebibytes: int) -> Callable[[], object]:
    """Return a step that takes memory."""
    return lambda: np.ones(mebibytes * 2**17)


class WithoutMemory(nn.Module):
    """A model that finds no memory, as one that is too large for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB.")


def without_memory() -> nn.Module:
    """Return a model that finds no memory."""
    return WithoutMemory()

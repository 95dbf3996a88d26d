"""Average pooling that a graph for images of any size can hold."""

import torch.nn.functional as F
from timm.layers import is_exporting
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Average over square cells. ``(N, C, H, W)`` -> ``(N, C, ceil(H / stride), ceil(W / stride))``.

    Where a side is odd, the last cells are smaller: each is the average of the values that are there.

    Args:
        stride: Side of the cells: 2, or 1 for the map itself.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if _is_symbolic(x.shape[2]) or _is_symbolic(x.shape[3]):
            # Pooling with ceil_mode asks whether a side is odd, which a graph for any size cannot answer. The mean of
            # a cell whose last row or column is repeated is the mean of what there is; at an even side it is unused.
            more = self.stride - 1
            return F.avg_pool2d(F.pad(x, (0, more, 0, more), mode="replicate"), self.stride)
        return F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


def _is_symbolic(size: int) -> bool:
    """Whether ``torch.export`` leaves this size open."""
    return is_exporting() and not isinstance(size, int)

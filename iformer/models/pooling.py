"""Average pooling that can be exported in a graph for images of any size."""

import torch.nn.functional as F
from timm.layers import is_exporting
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Average pooling over square cells: ``(N, C, H, W)`` -> ``(N, C, ceil(H / stride), ceil(W / stride))``.

    Where a side is odd, the last cells are smaller, and each is the average of the values inside the map.

    Args:
        stride: Side of the cells: 2, or 1 for no pooling.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if _is_symbolic(x.shape[2]) or _is_symbolic(x.shape[3]):
            # Pooling with ceil_mode depends on whether a side is odd, which is unknown in a graph for any size. If the
            # last row or column is repeated, the mean of a cell that it fills is still the mean of the values inside
            # the map; if the side is even, the repeated values are not used.
            more = self.stride - 1
            return F.avg_pool2d(F.pad(x, (0, more, 0, more), mode="replicate"), self.stride)
        return F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


def _is_symbolic(size: int) -> bool:
    """Return whether ``torch.export`` treats this size as unknown."""
    return is_exporting() and not isinstance(size, int)

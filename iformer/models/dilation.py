"""Dilation instead of strides, for decoders that want finer maps; it is applied to a built network from outside.

Where a stage would make the map coarser than asked, its downsampling keeps the size, and the 3x3 windows of
convolutions and max-pooling are spread, so that they see what they saw before (Yu and Koltun, "Multi-Scale Context
Aggregation by Dilated Convolutions", 2016). Weights keep their shapes, and those trained without dilation fit.
"""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn


def dilate(stages: Iterable[Any], stem_stride: int, output_stride: int) -> None:
    """Dilate the stages of an iFormer so that no map is coarser than ``output_stride``.

    Self-attention, its pooling and the position embeddings, which are resized to the map, stay as they are.

    Args:
        stages: The stages, each with ``downsample`` (none in the first) and ``blocks``.
        stem_stride: The stride of the first stage's map.
        output_stride: The greatest stride.
    """
    stride, dilation = stem_stride, 1
    for stage in list(stages)[1:]:
        stride *= 2
        if stride > output_stride:
            stage.downsample.conv.stride = (1, 1)
            _spread(stage.downsample.conv, dilation)  # its input is as fine as the map of the stage before
            dilation *= 2
            for block in stage.blocks:
                _dilate_mixer(block.mixer, dilation)


def _dilate_mixer(mixer: Any, dilation: int) -> None:
    _spread(mixer.fusion, dilation)
    if mixer.conv_branch is not None:
        _spread(mixer.conv_branch.conv, dilation)
    if mixer.pool_branch is not None:  # PyTorch's max-pooling pads by no more than half of a window that is not spread
        pad = nn.ConstantPad2d(dilation, -math.inf)
        mixer.pool_branch.pool = nn.Sequential(pad, nn.MaxPool2d(3, stride=1, dilation=dilation))


def _spread(conv: nn.Conv2d, dilation: int) -> None:
    """Set the dilation of a 3x3 convolution, and as much padding, which keeps the size of the map."""
    conv.dilation = conv.padding = (dilation, dilation)

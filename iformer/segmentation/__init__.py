"""Semantic segmentation: Semantic FPN and UPerNet over any timm backbone, with data, training and prediction.

Recipes name ``iformer.segmentation.data.SegmentationData`` and ``iformer.segmentation.task.SegmentationTask``.
"""

from iformer.segmentation.model import build as build
from iformer.segmentation.model import semantic_fpn as semantic_fpn
from iformer.segmentation.model import upernet as upernet

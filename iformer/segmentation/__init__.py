"""Semantic segmentation: Semantic FPN and UPerNet over any backbone of timm, data, training and prediction.

``iformer.segmentation.data.SegmentationData`` and ``iformer.segmentation.task.SegmentationTask`` stand in recipes.
"""

from iformer.segmentation.model import build as build

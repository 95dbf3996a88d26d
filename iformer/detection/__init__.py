"""Object detection: Mask R-CNN over any timm backbone, with data in COCO's format, training and prediction.

Recipes name ``iformer.detection.data.CocoData`` and ``iformer.detection.task.DetectionTask``.
"""

from iformer.detection.model import build as build

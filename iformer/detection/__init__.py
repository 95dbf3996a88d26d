"""Object detection: Mask R-CNN and Faster R-CNN over any timm backbone, data in COCO's format, training, prediction.

Recipes name ``iformer.detection.data.CocoData`` and ``iformer.detection.task.DetectionTask``.
"""

from iformer.detection.model import build as build

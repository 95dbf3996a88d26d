"""Object detection: Mask R-CNN over any backbone of timm, its data in COCO's format, training and prediction.

``iformer.detection.data.CocoData`` and ``iformer.detection.task.DetectionTask`` stand in recipes.
"""

from iformer.detection.model import build as build

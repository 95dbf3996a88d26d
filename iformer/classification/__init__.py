"""Image classification: data, training and prediction. The networks are timm's.

``iformer.classification.data.ImageData`` and ``iformer.classification.task.ClassificationTask`` stand in recipes.
"""

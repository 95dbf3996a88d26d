"""Prediction with a classifier: the most probable classes of images, or all labels that they have."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from iformer.models.prediction import Options, usual_batch
from iformer.models.saved import Model


class Predictor:
    """Names the most probable classes of images; see :class:`iformer.models.prediction.Predictor`.

    The result of an image is ``{"classes": [{"name": ..., "probability": ...}, ...]}``, the most probable first. If the
    model has thresholds, since images may have several labels, these are all labels from their thresholds on, however
    many they are.
    """

    doing = "Classifying"
    schema: ClassVar[dict[str, Any]] = {"classes": [{"name": str, "probability": float}]}

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options, self.prepare = model, options, model.prepare
        self.thresholds = torch.tensor(model.config.get("thresholds", ()))
        self.top = len(model.class_names) if len(self.thresholds) else min(options.top, len(model.class_names))
        self.batch_size = options.batch_size or usual_batch(model)
        model.network.to(memory_format=torch.channels_last)

    def predict(self, paths: Sequence[Path], images: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the classes of prepared images ``(C, H, W)``."""
        pixels = torch.stack(list(images)).to(self.model.device, memory_format=torch.channels_last)
        probabilities = self.model.probabilities(self.model.network(pixels)).cpu()
        found = probabilities >= self.thresholds if len(self.thresholds) else torch.ones_like(probabilities).bool()
        best = probabilities.topk(self.top)
        return [
            {
                "classes": [
                    {"name": self.model.class_names[index], "probability": round(value, 4)}
                    for value, index in zip(values, indices, strict=True)
                    if named[index]
                ]
            }
            for values, indices, named in zip(best.values.tolist(), best.indices.tolist(), found, strict=True)
        ]

    def document(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results as they are."""
        return list(results)

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield a line with the probability and the name of each class."""
        for entry in result["classes"]:
            yield f"{entry['probability']:7.2%}  {entry['name']}"
        if not result["classes"]:
            yield "no label"

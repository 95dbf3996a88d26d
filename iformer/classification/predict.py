"""Prediction with a classifier: the most probable classes of images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from iformer.models.prediction import Options
from iformer.models.saved import Model


class Predictor:
    """Names the most probable classes of images; see :class:`iformer.models.prediction.Predictor`.

    The result of an image is ``{"classes": [{"name": ..., "probability": ...}, ...]}``, the most probable first.
    """

    doing = "Classifying"
    schema: ClassVar[dict[str, Any]] = {"classes": [{"name": str, "probability": float}]}

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options, self.prepare = model, options, model.prepare
        self.top, self.batch_size = min(options.top, len(model.class_names)), options.batch_size
        model.network.to(memory_format=torch.channels_last)

    def predict(self, paths: Sequence[Path], images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """Return the most probable classes of prepared images ``(C, H, W)``."""
        pixels = torch.stack(list(images)).to(self.model.device, memory_format=torch.channels_last)
        best = self.model.network(pixels).float().softmax(-1).topk(self.top)
        return [
            {
                "classes": [
                    {"name": self.model.class_names[index], "probability": round(value, 4)}
                    for value, index in zip(values, indices, strict=True)
                ]
            }
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def document(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results as they are."""
        return list(results)

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield a line with the probability and the name of each class."""
        for entry in result["classes"]:
            yield f"{entry['probability']:7.2%}  {entry['name']}"

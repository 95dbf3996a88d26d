"""Features instead of classes: what a classifier computes before its last layer, for search, clustering and probes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from iformer.models.prediction import Options, usual_batch
from iformer.models.saved import Model

KINDS = ("pooled", "map")


class Predictor:
    """Computes the features of images; see :class:`iformer.models.prediction.Predictor`.

    The result of an image is ``{"features": [...]}``: with ``pooled`` a vector of C numbers, what the classifier's last
    layer takes; with ``map`` the C x H x W numbers of the last feature map, and its ``shape``.

    Raises:
        ValueError: The model is no classifier, or there are no such features.
    """

    doing = "Computing features"

    def __init__(self, model: Model, options: Options) -> None:
        if options.features not in KINDS:
            raise ValueError(f"features is {options.features!r}, expected {' or '.join(KINDS)}")
        if model.task != "classification":
            raise ValueError(f"features: {model.name} is a model for {model.task}, expected a classifier")
        self.model, self.options, self.prepare = model, options, model.prepare
        self.batch_size = options.batch_size or usual_batch(model)
        shape = {"shape": [int]} if options.features == "map" else {}
        self.schema: dict[str, Any] = {"features": [float], **shape}
        model.network.to(memory_format=torch.channels_last)

    def predict(self, paths: Sequence[Path], images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """Return the features of prepared images ``(C, H, W)``."""
        network = self.model.network
        pixels = torch.stack(list(images)).to(self.model.device, memory_format=torch.channels_last)
        found = network.forward_features(pixels)
        if self.options.features == "pooled":
            return [{"features": row} for row in network.forward_head(found, pre_logits=True).float().tolist()]
        return [{"features": each.flatten().tolist(), "shape": list(each.shape)} for each in found.float().contiguous()]

    def document(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results as they are."""
        return list(results)

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield a line with the number of features and the first of them."""
        first = ", ".join(f"{value:.3g}" for value in result["features"][:6])
        yield f"{len(result['features']):,} features: {first}, ..."

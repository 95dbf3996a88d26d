"""Prediction with a segmenter: overlays, label maps, and the share of the pixels that each class covers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.files import DistinctStems
from iformer.models.prediction import Options
from iformer.models.saved import Model
from iformer.segmentation import inference, pictures


def backbone_input(model: Model, image: Image.Image) -> torch.Tensor:
    """Return an image as the input ``(3, H, W)`` of the segmenter's backbone, at the size that it takes as a whole."""
    return inference.prepared(model, pil_to_tensor(image))


class Predictor:
    """A predictor that segments images and draws the classes; see :class:`iformer.models.prediction.Predictor`.

    For each image it writes ``NAME_overlay.png`` and ``NAME_labels.png``. The label map is a palette image of the size
    of the upright image, whose values are the classes in the order of ``class_names``.

    The result for an image is ``{"overlay": FILE, "labels": FILE, "classes": [{"name": ..., "share": ...}, ...]}``,
    with the class that covers most pixels first.

    Args:
        model: The segmenter.
        options: The options of the prediction.

    Raises:
        OSError: The output folder could not be created.
    """

    doing = "Segmenting"
    batch_size = 1
    schema: ClassVar[dict[str, Any]] = {"classes": [{"name": str, "share": float}], "overlay": str, "labels": str}

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options, self.names = model, options, DistinctStems()
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the image's pixels, ``(H, W, 3)`` of uint8."""
        return np.asarray(image)

    def predict(self, paths: Sequence[Path], images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Segment the images, write their pictures, and return the result for each image."""
        return [self._segmented(path, image) for path, image in zip(paths, images, strict=True)]

    def _segmented(self, path: Path, image: np.ndarray) -> dict[str, Any]:
        name, config = self.names.name(path), self.model.config
        labels = label_map(self.model, image)
        written = {}
        if self.options.output is not None:
            files = {"overlay": f"{name}_overlay.png", "labels": f"{name}_labels.png"}
            written = {kind: self.options.output / file for kind, file in files.items()}
            pictures.draw_overlay(image, labels, config, written["overlay"])
            label_image(labels, config["palette"]).save(written["labels"])
        return {
            **{kind: str(file) for kind, file in written.items()},
            "classes": shares(labels, self.model.class_names),
        }

    def document(self, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results unchanged."""
        return list(results)

    def lines(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield a line for each of the largest classes, and one for each picture."""
        for entry in result["classes"][: self.options.top]:
            yield f"{entry['share']:7.2%}  {entry['name']}"
        for kind in ("overlay", "labels"):
            if kind in result:
                yield f"{kind}: {result[kind]}"


def label_map(model: Model, image: np.ndarray) -> np.ndarray:
    """Return the class of each pixel ``(H, W)`` of an image ``(H, W, 3)``, both of uint8."""
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return inference.classes(model, pixels).cpu().numpy().astype(np.uint8)


def label_image(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Return classes ``(H, W)`` as a palette image."""
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette for channel in colour])  # changes the mode to P
    return image


def shares(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the share of the pixels that each class covers, the largest first, without those that cover none."""
    counts = np.bincount(labels.flatten(), minlength=len(names))
    return [
        {"name": names[label], "share": round(float(counts[label] / labels.size), 4)}
        for label in np.argsort(-counts, kind="stable")
        if counts[label]
    ]

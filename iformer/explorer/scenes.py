"""The panel Objects and regions: what detectors and segmenters find in a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.common.plotting import bright_colour
from iformer.detection import predict as detection
from iformer.explorer import html, pictures
from iformer.explorer.pictures import Picture
from iformer.explorer.workbench import Results, View, Workbench
from iformer.models.prediction import Options
from iformer.models.saved import Model
from iformer.segmentation import predict as segmentation
from iformer.segmentation.pictures import coloured

LISTED = 12
"""The number of objects or classes that are listed."""


class Scenes:
    """Objects and regions in pictures; one pass of the network answers all that is asked about one of them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.found: Results[dict[str, Any]] = Results(bench, 16)
        self.maps: Results[np.ndarray] = Results(bench, 8)

    def view(self, file: str | None, name: str, threshold: float, opacity: float) -> View:
        """Return the panel.

        Args:
            file: The picture's file.
            name: The detector or segmenter.
            threshold: The lowest score of a detector's objects that are shown.
            opacity: The share of the classes' colours in a segmenter's picture, from 0 to 1.

        Raises:
            ValueError: There is no picture, or the model is a classifier. The message is for the page.
        """
        model = self.bench.whole(name)
        if model.task == "classification":
            raise ValueError(
                f"{name} is a classifier; this panel is for detectors and segmenters: iformer explore --model FOLDER."
            )
        picture = self.bench.picture(file)
        if model.task == "detection":
            return self._objects(name, model, picture, threshold)
        return self._regions(name, model, picture, opacity)

    def objects(self, name: str, picture: Picture) -> dict[str, Any]:
        """Return what a detector finds in a picture, as its predictor describes it."""
        model = self.bench.whole(name)

        @torch.inference_mode()
        def compute() -> dict[str, Any]:
            predictor = detection.Predictor(model, Options(output=None))
            (result,) = predictor.predict([Path(picture.name)], [predictor.prepare(picture.image)])
            return result

        return self.found.once((name, picture.digest), compute)

    def labels(self, name: str, picture: Picture) -> np.ndarray:
        """Return the class of each pixel of a picture, ``(H, W)`` of uint8."""
        model = self.bench.whole(name)

        @torch.inference_mode()
        def compute() -> np.ndarray:
            return segmentation.label_map(model, np.asarray(picture.image))

        return self.maps.once((name, picture.digest), compute)

    def _objects(self, name: str, model: Model, picture: Picture, threshold: float) -> View:
        result = self.objects(name, picture)
        drawn = detection.picture_of(pil_to_tensor(picture.image), result["objects"], threshold, model.config)
        shown = [item for item in result["objects"] if item["score"] >= threshold]
        coco = detection.Predictor(model, Options(output=None)).document([{"image": picture.name, **result}])
        content = html.render(
            "scene",
            picture=pictures.data_uri(drawn),
            what=f"{_counted(len(shown), 'object')} with a score of {threshold:.0%} at least".replace("%", " %"),
            more=len(result["objects"]) - len(shown),
            bars=[_row(item, model) for item in shown[:LISTED]],
            rest=max(0, len(shown) - LISTED),
            file="objects",
            saved=[("objects.json", "COCO JSON", pictures.text_uri(json.dumps(coco, indent=2)))],
            note=picture.note,
        )
        words = ["iformer", "predict", picture.name, "--model", name, "--threshold", threshold]
        parts = [("A picture", html.command(*words)), ("COCO JSON", html.command(*words, "--json"))]
        return View(content, html.same(*parts))

    def _regions(self, name: str, model: Model, picture: Picture, opacity: float) -> View:
        labels = self.labels(name, picture)
        palette = model.config["palette"]
        colours = Image.fromarray(coloured(labels, palette))
        drawn = Image.blend(picture.image, colours, opacity)
        areas = segmentation.shares(labels, model.class_names)
        bars = [
            {**each, "value": each["share"], "colour": _hex(palette[model.class_names.index(each["name"])])}
            for each in areas
        ]
        label_map = pictures.data_uri(segmentation.label_image(labels, palette), lossless=True)
        content = html.render(
            "scene",
            picture=pictures.data_uri(drawn),
            what=_counted(len(areas), "class", "classes"),
            bars=bars[:LISTED],
            rest=max(0, len(bars) - LISTED),
            file="overlay",
            saved=[
                ("labels.png", "Label map", label_map),
                ("areas.json", "Areas", pictures.text_uri(json.dumps(areas, indent=2))),
            ],
            note=picture.note,
        )
        words = ["iformer", "predict", picture.name, "--model", name]
        return View(content, html.same(("Overlay and label map", html.command(*words))))


def _row(item: dict[str, Any], model: Model) -> dict[str, Any]:
    colour = bright_colour(model.config["category_ids"].index(item["category_id"]) + 1)
    return {"name": item["name"], "value": item["score"], "colour": _hex(colour)}


def _hex(colour: Any) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _counted(count: int, one: str, several: str = "") -> str:
    return f"{count or 'no'} {one if count == 1 else several or one + 's'}"

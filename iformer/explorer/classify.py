"""The panel Classify: the most probable classes of a picture, and where a model sees one of them (Grad-CAM)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from iformer.explorer import html, pictures
from iformer.explorer.pictures import Picture
from iformer.explorer.workbench import Results, View, Workbench, probabilities
from iformer.frequency.grad_cam import class_layer, grad_cam
from iformer.frequency.inputs import displayed
from iformer.models.saved import Model

TOP = 5
"""The number of classes that are shown."""


@dataclass(frozen=True)
class Choice:
    """A class that a user has clicked on: its number in the model where that was, and its name."""

    index: int
    name: str

    def of(self, model: Model) -> int | None:
        """Return the number of this class in another model; None if that has no such class."""
        names = model.class_names
        if self.index < len(names) and names[self.index] == self.name:
            return self.index
        return names.index(self.name) if self.name in names else None


@dataclass(frozen=True)
class Answer:
    """A classifier's answer: the picture as it sees it, the pixels across and down, and the classes' probabilities."""

    seen: Image.Image
    size: tuple[int, int]
    probabilities: np.ndarray


class Classify:
    """What classifiers say about pictures; one pass of the network answers all that is asked about one of them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.answers: Results[Answer] = Results(bench, 32)
        self.evidences: Results[np.ndarray] = Results(bench, 32)

    def answer(self, name: str, picture: Picture) -> Answer:
        """Return what a classifier says about a picture.

        Raises:
            ValueError: The model is no classifier.
        """
        model = self.bench.classifier(name)

        def compute() -> Answer:
            images = self.bench.inputs(name, picture)
            seen = pictures.shown(displayed(model, images)[0].numpy())
            return Answer(seen, (images.shape[3], images.shape[2]), probabilities(model, images)[0])

        return self.answers.once((name, picture.digest), compute)

    def evidence(self, name: str, picture: Picture, index: int) -> np.ndarray:
        """Return the Grad-CAM map ``(H, W)`` of a class, from 0 to 1."""
        model = self.bench.classifier(name)

        def compute() -> np.ndarray:
            images = self.bench.inputs(name, picture)
            layer = class_layer(model.network, images)
            return grad_cam(model.network, layer, images, index)[0].cpu().numpy()

        return self.evidences.once((name, picture.digest, index), compute)

    def choice(self, name: str, index: int) -> Choice:
        """Return the choice of a model's class."""
        return Choice(index, self.bench.classifier(name).class_names[index])

    def view(self, file: str | None, names: list[str], chosen: Choice | None, strength: float) -> View:
        """Return the panel.

        Args:
            file: The picture's file.
            names: The models, side by side.
            chosen: The class that is explained; None for the most probable one of each model.
            strength: How strongly the Grad-CAM map covers the picture, from 0 to 1.

        Raises:
            ValueError: There is no picture, or a model is no classifier.
        """
        picture = self.bench.picture(file)
        columns = [self._column(name, picture, chosen, strength) for name in dict.fromkeys(names)]
        explained = columns[0]["explained"]
        words = (picture.name, "--model", names[0])
        parts = [
            ("Classes", html.command("iformer", "predict", *words)),
            ("Grad-CAM", html.command("iformer", "analyze", *words, "--target", explained)),
        ]
        return View(html.render("classify", columns=columns, note=picture.note), html.same(*parts))

    def _column(self, name: str, picture: Picture, chosen: Choice | None, strength: float) -> dict[str, Any]:
        model, answer = self.bench.classifier(name), self.answer(name, picture)
        best = np.argsort(-answer.probabilities, kind="stable")[:TOP].tolist()
        found = chosen.of(model) if chosen else None
        index = best[0] if found is None else found
        shown = best if index in best else [*best, index]
        overlay = pictures.blended(answer.seen, self.evidence(name, picture, index), strength)
        names = model.class_names
        return {
            "model": name,
            "picture": pictures.data_uri(overlay),
            "explained": index if names.count(names[index]) > 1 else names[index],
            "class": names[index],
            "size": "{} × {}".format(*answer.size),
            "bars": [bar(model, answer.probabilities, i, i == index) for i in shown],
            "untrained": model.is_untrained,
        }


def bar(model: Model, values: np.ndarray, index: int, chosen: bool = False) -> dict[str, Any]:
    """Return what the template of bars shows of a class."""
    return {"index": index, "name": model.class_names[index], "value": float(values[index]), "chosen": chosen}

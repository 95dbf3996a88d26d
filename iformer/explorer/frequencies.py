"""The panel Frequencies: a picture without its high or low frequencies, and what a classifier says about it then."""

import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from iformer.explorer import charts, html, pictures
from iformer.explorer.classify import TOP, bar
from iformer.explorer.pictures import Picture
from iformer.explorer.workbench import TASKS, Results, View, Workbench, probabilities
from iformer.frequency import fourier
from iformer.frequency.inputs import displayed
from iformer.frequency.sensitivity import CUT_OFFS
from iformer.models.saved import Model

LOW, HIGH = "Low-pass", "High-pass"
"""The filters: the frequencies up to the cut-off, or those above it."""


@dataclass(frozen=True)
class Filtered:
    """A filtered picture.

    Attributes:
        seen: The picture.
        spectrum: log(1 + |F|) relative to the largest of the whole picture, in colours.
        centre: Where frequency 0 is in the spectrum, from the left and from the top, each from -1 to 1.
        probabilities: The probability of each class; None from a network that has none.
    """

    seen: Image.Image
    spectrum: Image.Image
    centre: tuple[float, float]
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class Measured:
    """The accuracies in per cent at :data:`CUT_OFFS` that ``iformer analyze --labelled`` measured on so many images."""

    accuracies: dict[str, list[float]]
    images: int


class Frequencies:
    """Filtered pictures and what models say about them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.results: Results[Filtered] = Results(bench, 8)  # of up to 3 MiB each
        self.curves: Results[dict[str, np.ndarray]] = Results(bench, 16)

    def filtered(self, name: str, picture: Picture, kind: str, cut_off: float) -> Filtered:
        """Return a picture with the frequencies up to a cut-off, or those above it.

        Args:
            name: The model, which says how the picture is prepared.
            picture: The picture.
            kind: :data:`LOW` or :data:`HIGH`.
            cut_off: The radius of the filter, in units of pi.
        """
        model, whole = self.bench.models[name], self.bench.whole(name)

        def compute() -> Filtered:
            images = self.bench.inputs(name, picture)
            kept = filter_images(images, kind, cut_off)
            largest = fourier.spectrum(fourier.amplitude(images)).max()
            spectrum = (fourier.spectrum(fourier.amplitude(kept))[0] / largest).clamp(0, 1).cpu().numpy()
            height, width = spectrum.shape
            return Filtered(
                pictures.shown(displayed(normalised(model), kept)[0].numpy()),
                pictures.shown(np.asarray(pictures.coloured(spectrum, pictures.SPECTRA)) / 255),
                ((2 * (width // 2) + 1) / width - 1, (2 * (height // 2) + 1) / height - 1),
                probabilities(whole, kept)[0] if model is whole else None,
            )

        return self.results.once((name, picture.digest, kind, cut_off), compute)

    def curve(self, name: str, picture: Picture) -> dict[str, np.ndarray]:
        """Return the probabilities ``(cut-offs, classes)`` at :data:`CUT_OFFS` by the kind of the filter.

        Raises:
            ValueError: The model is no classifier.
        """
        model = self.bench.classifier(name)

        def compute() -> dict[str, np.ndarray]:
            images = self.bench.inputs(name, picture)
            return {
                kind: np.concatenate([probabilities(model, filter_images(images, kind, at)) for at in CUT_OFFS])
                for kind in (LOW, HIGH)
            }

        return self.curves.once((name, picture.digest), compute)

    def view(self, file: str | None, name: str, kind: str, cut_off: float) -> View:
        """Return the panel without its curve.

        Raises:
            ValueError: There is no picture.
        """
        picture = self.bench.picture(file)
        all_of_it = self.filtered(name, picture, LOW, CUT_OFFS[-1])
        found = self.filtered(name, picture, kind, cut_off)
        bars = None
        if found.probabilities is not None and all_of_it.probabilities is not None:
            order = np.argsort(-all_of_it.probabilities, kind="stable")[: TOP - 1].tolist()
            now = int(found.probabilities.argmax())
            model = self.bench.whole(name)
            bars = [
                {**bar(model, found.probabilities, i, i == now), "before": float(all_of_it.probabilities[i])}
                for i in dict.fromkeys([*order, now])
            ]
        content = html.render(
            "frequencies",
            picture=pictures.data_uri(found.seen),
            spectrum=pictures.data_uri(found.spectrum),
            bars=bars,
            task=TASKS.get(self.bench.whole(name).task),
            words=f"{'up to' if kind == LOW else 'above'} {cut_off:.2f} π",
            radius=cut_off,
            centre=found.centre,
            note=picture.note,
        )
        return View(content, html.same(("Python", program(name, picture.name, kind, cut_off))))

    def curve_view(self, file: str | None, name: str, kind: str, cut_off: float) -> str:
        """Return the curve of the predicted class's probability, and of the measured accuracy where there is one.

        Raises:
            ValueError: There is no picture, or the model is no classifier.
        """
        picture = self.bench.picture(file)
        model = self.bench.classifier(name)
        values = self.curve(name, picture)
        index = int(values[LOW][-1].argmax())
        lines = {model.class_names[index]: (100 * values[kind][:, index]).tolist()}
        measured = self.measured(name, model)
        if measured:
            lines[f"accuracy on {measured.images:,} images"] = measured.accuracies[kind]
        return html.render(
            "curve",
            chart=charts.lines(CUT_OFFS, lines, cut_off),
            csv=pictures.text_uri(table(lines), "text/csv"),
            kind=kind,
            name=model.class_names[index],
            measured=measured,
            how=html.command("iformer", "analyze", "--labelled", "FOLDER", "--model", name),
        )

    def measured(self, name: str, model: Model) -> Measured | None:
        """Return the accuracies that were measured for a model; None if there are none, or their file is another's."""
        try:
            results = json.loads((self.bench.analysis / "results.json").read_text())
            for each in results["models"]:
                same = each["weights"] == model.weights or Path(each["weights"]).resolve() == Path(name).resolve()
                if same and each["model"].partition(",")[0] == model.name.partition(",")[0] and each["sensitivity"]:
                    by_kind = {LOW: "low_pass", HIGH: "high_pass"}
                    found = {
                        kind: [100 * point["value"] for point in each["sensitivity"][key]]
                        for kind, key in by_kind.items()
                    }
                    return Measured(found, results["labelled"]["measured"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None


def table(lines: dict[str, list[float]]) -> str:
    """Return curves of percentages at :data:`CUT_OFFS`, by name, as a table of comma-separated values."""
    rows = [["cut-off / pi", *lines], *zip(CUT_OFFS, *lines.values(), strict=True)]
    csv.writer(text := io.StringIO()).writerows(rows)
    return text.getvalue()


def filter_images(images: Tensor, kind: str, cut_off: float) -> Tensor:
    """Return images ``(N, C, H, W)`` with the frequencies up to a cut-off (:data:`LOW`), or those above it."""
    kept = fourier.low_pass(images, cut_off)
    return kept if kind == LOW else images - kept


def normalised(model: Model) -> Any:
    """Return a model whose configuration says how its images are normalised; a detector's network says it."""
    if "mean" in model.config:
        return model
    transform = model.whole.network.transform  # type: ignore[attr-defined]
    return replace(model, config={**model.config, "mean": transform.image_mean, "std": transform.image_std})


def program(name: str, file: str, kind: str, cut_off: float) -> str:
    """Return a program that prints what a classifier says about a filtered picture."""
    kept = f"low_pass(image, {cut_off})"
    return f"""from iformer.common.images import read_image
from iformer.frequency.fourier import low_pass
from iformer.frequency.inputs import open_model

model = open_model({name!r})
image = model.prepare(read_image({file!r}, model.channels))[None]
print(model.probabilities(model.network({kept if kind == LOW else f"image - {kept}"})).topk(3))
"""

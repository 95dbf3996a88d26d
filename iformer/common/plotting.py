"""The style and colours of all figures, writing them to files, and the figures that several packages draw."""

import colorsys
import csv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from iformer.common.files import written
from iformer_command.terminal import printable

# Colours that can be told apart with any colour vision, four of them from Okabe and Ito's palette.
BLUE, ORANGE, GREEN, PURPLE, RED = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#CC3311"

SERIES = tuple(zip((BLUE, ORANGE, GREEN, PURPLE, RED, "#56B4E9", "#E69F00", "#444444"), "osD^vPX*", strict=True))
"""The colours and markers of what is compared in one figure, in order; after the last they begin again."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
}
"""The style of figures on pages."""

PAPER_STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.titlepad": 3,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text, as publishers ask
    "svg.fonttype": "none",
    "svg.hashsalt": "iformer",  # the same figure gives the same file
    "figure.dpi": 300,
}
"""The style of figures that are as wide as a column of a paper."""

Colour = tuple[int, int, int]


def bright_colour(label: int) -> Colour:
    """Return a bright colour for a class, far from its neighbours': hues follow each other by the golden angle."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def default_palette(length: int) -> list[Colour]:
    """Return distinct colours without black: PASCAL VOC's, which spread the bits of a label over the three channels."""
    palette = []
    for label in range(1, length + 1):
        bits = [sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)]
        palette.append((bits[0], bits[1], bits[2]))
    return palette


def short(name: object, longest: int = 32) -> str:
    """Return a name in one line, shortened to ``longest`` characters, so that it fits into a picture."""
    text = printable(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def label(name: object, longest: int = 32) -> str:
    """Return the :func:`short` form of a name with dollar signs escaped, between which matplotlib reads mathematics."""
    return short(name, longest).replace("$", r"\$")


@contextmanager
def quiet_fonts() -> Iterator[None]:
    """Suppress matplotlib's warnings about characters that the fonts lack, such as Chinese; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield


def training_curve(metrics: Path) -> Figure:
    """Draw the training loss and the validation accuracy over the optimiser steps.

    Args:
        metrics: The run's ``metrics.csv``; the curves are empty if it does not exist, as in a run that was interrupted
            at once.
    """
    rows = []
    if metrics.exists():
        with metrics.open() as file:
            rows = list(csv.DictReader(file))

    def series(name: str) -> tuple[list[int], list[float]]:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        return [step for step, _ in points], [value for _, value in points]

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*series("loss"), color=BLUE, linewidth=1)
        left.set(xlabel="optimiser step", ylabel="training loss")
        steps, accuracy = series("val_accuracy")
        right.plot(steps, [100 * value for value in accuracy], color=ORANGE, marker="o", markersize=4)
        right.set(xlabel="optimiser step", ylabel="validation accuracy (%)")
    return figure


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draw the share of each true class (row) that was predicted as each class (column), in per cent.

    The cells show their values if there are at most 25 classes, and the axes show the names of at most 100.

    Args:
        counts: The numbers of images or pixels, ``(K, K)``, with the true class first.
        class_names: The names of the K classes.
    """
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(3 + 0.5 * len(class_names), 16)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        if len(class_names) <= 100:
            labels = [label(name) for name in class_names]
            axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(percent) if len(class_names) <= 25 else ():
            if value >= 0.05:
                colour = "white" if value > 50 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    return figure


def save_figure(figure: Figure, file: Path, dpi: int = 150) -> None:
    """Write a figure, completely or not at all.

    Raises:
        OSError: The figure could not be written; the message names ``file``, and an earlier figure is kept.
    """
    with written(file) as temporary, quiet_fonts():
        figure.savefig(temporary, dpi=dpi, metadata={"Date": None} if file.suffix == ".svg" else None)


def prediction_grid(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], columns: int = 8
) -> Figure:
    """Draw two rows of correct predictions, chosen at random, and two rows of the most confident wrong ones.

    Args:
        images: The images as bytes, ``(N, H, W)`` or ``(N, H, W, 3)``.
        labels: The true classes, ``(N,)``.
        probabilities: The predicted probabilities, ``(N, K)``.
        class_names: The names of the K classes.
        columns: The number of images in a row.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    right = np.random.default_rng(0).permutation(np.flatnonzero(predicted == labels))[: 2 * columns]
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong])][: 2 * columns]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.25 * columns, 6.4), layout="constrained")
        for axes in (grid := figure.subplots(4, columns)).flat:
            axes.axis("off")
        for rows, indices, colour in ((grid[:2], right, GREEN), (grid[2:], wrong, RED)):
            for axes, index in zip(rows.flat, indices, strict=False):
                axes.imshow(images[index], cmap="gray")
                title = f"{label(class_names[predicted[index]])} {100 * confidence[index]:.0f}%"
                if predicted[index] != labels[index]:
                    title += f"\nis {label(class_names[labels[index]])}"
                axes.set_title(title, fontsize=7, color=colour)
    return figure

"""Figures of a training run, and the style of all figures."""

import csv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from iformer_command.terminal import printable

BLUE, ORANGE, GREEN, RED = "#0072B2", "#D55E00", "#009E73", "#CC3311"  # told apart by colour-blind readers too

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def short(name: object, longest: int = 32) -> str:
    """Return a name as a picture has room for it: in one line, cut where it is longer than ``longest`` letters."""
    text = printable(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def label(name: object, longest: int = 32) -> str:
    """Return :func:`short` of a name for matplotlib, which would read mathematics between two dollar signs."""
    return short(name, longest).replace("$", r"\$")


@contextmanager
def quiet_fonts() -> Iterator[None]:
    """Draw what the fonts have no letters for, Chinese or emoji say, as boxes without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        yield


def training_curve(metrics: Path) -> Figure:
    """Training loss and validation accuracy over optimiser steps.

    Args:
        metrics: The ``metrics.csv`` of Lightning's CSVLogger; a run that was interrupted at once leaves none.
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
    """Shares of each true class (rows) that were predicted as each class (columns), in per cent.

    Args:
        counts: ``(classes, classes)``, true class first.
        class_names: One per class.
    """
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(6.4, 5.4), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        labels = [label(name) for name in class_names]
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.05:
                colour = "white" if value > 50 else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    return figure


def prediction_grid(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], columns: int = 8
) -> Figure:
    """Two rows of right predictions taken at random and two rows of the most confident wrong ones.

    Args:
        images: ``(N, H, W)`` or ``(N, H, W, 3)``, bytes.
        labels: ``(N,)`` true classes.
        probabilities: ``(N, classes)``.
        class_names: One per class.
        columns: Pictures in a row.
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

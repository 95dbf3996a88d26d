"""The figures of a comparison."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from iformer.common.plotting import SERIES, STYLE, label


@contextmanager
def _axes(width: float = 6.4, height: float = 3.6, columns: int = 1) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        yield figure, figure.subplots(1, columns, squeeze=False)[0]


def _styled(variants: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    for variant, (colour, marker) in zip(variants, cycle(SERIES), strict=False):
        yield variant, colour, marker


def curves(variants: Sequence[Mapping[str, Any]], score: str) -> Figure:
    """Draw the metric and the training loss over the epochs: the mean of the seeds, and a band from lowest to highest.

    Args:
        variants: The variants in the comparison's document.
        score: The metric in words.
    """
    panels = {"curve": (f"{score} (%)", 100), "training_loss": ("training loss", 1)}
    shown = [key for key in panels if any(variant[key] for variant in variants)]  # short runs log no loss
    with _axes(4.8 * len(shown), columns=len(shown)) as (figure, columns):
        for axes, key in zip(columns, shown, strict=True):
            words, scale = panels[key]
            for variant, colour, _ in _styled(variants):
                epochs = [point["epoch"] for point in variant[key]]
                low, mean, high = (
                    [scale * each[which] for each in variant[key]] for which in ("lowest", "mean", "highest")
                )
                marker = "." if len(epochs) < 40 else ""
                axes.plot(epochs, mean, color=colour, marker=marker, label=label(variant["name"]))
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set(xlabel="epoch", ylabel=words)
        figure.legend(*columns[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(variants), 5))
    return figure


def differences(variants: Sequence[Mapping[str, Any]], reference: str) -> Figure:
    """Draw each variant's difference from the reference: each seed's as a dot, and the mean with its interval."""
    shown = [each for each in _styled(variants) if each[0]["difference"]]
    with _axes(height=1.1 + 0.38 * len(shown)) as (figure, (axes,)):
        axes.axvline(0, color="0.4", linewidth=1)
        for row, (variant, colour, marker) in enumerate(shown):
            difference = variant["difference"]
            seeds = [100 * value for value in difference["by_seed"]]
            axes.plot(seeds, [row] * len(seeds), ".", color="0.6")
            margin = 100 * (difference["margin"] or 0)
            axes.errorbar(100 * difference["mean"], row, xerr=margin, color=colour, marker=marker, capsize=3)
        axes.set_yticks(range(len(shown)), [label(variant["name"]) for variant, _, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(f"points above or below {label(reference)}")
    return figure


def score_against(variants: Sequence[Mapping[str, Any]], costs: Mapping[str, float], score: str, cost: str) -> Figure:
    """Draw the score, with its interval, against a cost.

    Args:
        variants: The variants in the comparison's document.
        costs: The cost of each variant by name; variants without one are left out.
        score: The metric in words.
        cost: The cost in words, with its unit.
    """
    with _axes() as (figure, (axes,)):
        for variant, colour, marker in _styled(variants):
            if variant["name"] in costs:
                margin = None if variant["margin"] is None else 100 * variant["margin"]
                place = (costs[variant["name"]], 100 * variant["mean"])
                axes.errorbar(
                    *place,
                    yerr=margin,
                    color=colour,
                    marker=marker,
                    capsize=3,
                    linestyle="",
                    label=label(variant["name"]),
                )
        axes.set(xlabel=cost, ylabel=f"{score} (%)")
        axes.margins(0.15)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure

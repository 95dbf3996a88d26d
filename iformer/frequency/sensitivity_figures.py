"""Figures of the frequencies that classifiers use: accuracy on filtered images, and Fourier heat maps."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from iformer.common.plotting import SERIES, label
from iformer.frequency.figures import COLUMN, HEAT, PAGE, draw_spectrum, in_lines, share_axes_labels, style
from iformer.frequency.sensitivity import CUT_OFFS, Sensitivity, Share


def filtered_accuracy(found: Mapping[str, Sensitivity]) -> Figure:
    """Draw the accuracy on low-pass and on high-pass filtered images against the cut-off, a curve for each model."""
    with style():
        figure = Figure(figsize=(PAGE, 2.2 + _legend_height(found)), layout="constrained")
        low, high = figure.subplots(1, 2, sharey=True)
        for each, colour, marker, name in _styled(found):
            _curve(low, CUT_OFFS, each.low_pass, colour, marker, name)
            _curve(high, CUT_OFFS, each.high_pass, colour, marker, name)
        low.set(title="low-pass: the frequencies up to the cut-off", ylabel="accuracy (%)")
        high.set(title="high-pass: the frequencies above the cut-off")
        for axes in (low, high):
            _over_radii(axes, "cut-off")
        _legend(figure, low)
    return figure


def errors_by_radius(found: Mapping[str, Sensitivity]) -> Figure:
    """Draw the error rate against the radius of the frequency that is added, a curve for each model.

    The dashed lines are the error rates on the images as they are.
    """
    with style():
        figure = Figure(figsize=(COLUMN, 2.2 + _legend_height(found, 1)), layout="constrained")
        axes = figure.subplots()
        for each, colour, marker, name in _styled(found):
            bands = each.heat_map.bands()
            centres = [(band.low + band.high) / 2 for band in bands]
            _curve(axes, centres, [band.error for band in bands], colour, marker, name)
            axes.axhline(100 * each.heat_map.unperturbed.double().mean().item(), color=colour, lw=0.8, ls=(0, (3, 2)))
        axes.set_ylabel("error rate (%)")
        _over_radii(axes, "frequency added")
        _legend(figure, axes, 1)
    return figure


def heat_maps(found: Mapping[str, Sensitivity]) -> Figure:
    """Draw the Fourier heat map of each model, on one scale of error rates."""
    maps = {name: 100 * each.heat_map.errors for name, each in found.items()}
    largest = max(10.0, max(errors.max().item() for errors in maps.values()))
    across = min(len(maps), 2 if len(maps) < 3 else 4)
    down = -(-len(maps) // across)
    with style():
        size = (COLUMN if across < 3 else PAGE, 0.4 + (1.55 if across < 4 else 1.7) * down)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        for axes, (name, errors) in zip(grid.flat, maps.items(), strict=False):
            draw_spectrum(axes, errors, largest, HEAT)
            axes.set_title(in_lines(name), fontsize=6)
        share_axes_labels(grid)
        for axes in list(grid.flat)[len(maps) :]:
            axes.axis("off")
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, largest), HEAT), ax=grid.ravel().tolist(), aspect=14 * down, pad=0.02
        )
        bar.set_label("error rate (%)", fontsize=6)
        figure.supxlabel("frequency added", fontsize=7)
    return figure


def _styled(found: Mapping[str, Sensitivity]) -> list[tuple[Sensitivity, str, str, str]]:
    styles = zip(found.items(), cycle(SERIES), strict=False)
    return [(each, colour, marker, name) for (name, each), (colour, marker) in styles]


def _curve(axes: Axes, radii: Sequence[float], shares: Sequence[Share], colour: str, marker: str, name: str) -> None:
    value, low, high = (100 * np.array([getattr(share, of) for share in shares]) for of in ("value", "low", "high"))
    axes.plot(radii, value, color=colour, marker=marker, markersize=2.5, lw=1.1, label=label(name, 60))
    axes.fill_between(radii, low, high, color=colour, alpha=0.2, linewidth=0)


def _over_radii(axes: Axes, what: str) -> None:
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1, CUT_OFFS[-1]], ["0", "¼π", "½π", "¾π", "π", "√2 π"])
    axes.set_xlabel(f"{what} (radius)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True)


def _legend_height(found: Mapping[str, Any], columns: int = 2) -> float:
    return 0.14 * -(-len(found) // columns)


def _legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)

"""Figures of the measurements: Figs. 1(a), 1(b), 4 and 5 of the paper, attention distances and receptive fields.

Each figure is as wide as a column of a paper (8 cm), or as the text of a page (17 cm) if necessary. Its text has at
least 6 points, and its colours can be told apart with any colour vision.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from iformer.common.plotting import BLUE, GREEN, ORANGE, PAPER_STYLE, label, quiet_fonts, save_figure, short
from iformer.frequency.layers import BRANCHES, Layer
from iformer.frequency.measurement import BranchInStage, Measurement

COLUMN, PAGE = 3.15, 6.7  # inches: 8 and 17 cm
COLOURS = dict(zip(BRANCHES, (BLUE, ORANGE, GREEN), strict=True))
MARKERS = dict(zip(BRANCHES, "so^", strict=True))
SPECTRA, DEPTH, HEAT = "viridis", "cividis", "inferno"


@contextmanager
def style() -> Iterator[None]:
    """Apply the matplotlib settings with which the figures are drawn and saved."""
    with matplotlib.rc_context(PAPER_STYLE):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure to ``path`` twice, with the suffixes .png and .svg.

    Raises:
        OSError: The files cannot be written.
    """
    with style(), quiet_fonts():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keeps the layout for both files, which saves most of the time
        for suffix in (".png", ".svg"):
            save_figure(figure, path.with_suffix(suffix), dpi=300)


def in_lines(name: str) -> str:
    """Return a name for a label, with a line for each part between commas, or several where it is long."""
    # Long names are broken behind underscores, where textwrap breaks them if there is a space.
    parts = (textwrap.wrap(short(part).replace("_", "_ "), 20) for part in name.split(", "))
    return "\n".join(label(line.replace("_ ", "_")) for lines in parts for line in lines)


def _title(layer: Layer, size: tuple[int, ...]) -> str:
    return f"{layer.label.replace(', ', chr(10))}\n{size[0]}×{size[1]}"


def draw_spectrum(axes: Axes, values: Tensor, largest: float | None = None, colours: str = SPECTRA) -> None:
    """Draw values ``(H, W)`` over frequencies from -pi to pi, relative to the largest of them if none is given."""
    height, width = values.shape
    # With even sides, -pi and pi are the same frequency. It is shown at both edges, so that the picture is symmetric.
    periodic = np.pad(values.numpy(), [(0, 1 - height % 2), (0, 1 - width % 2)], mode="wrap")
    bottom, right = (side / (side - 1 + size % 2) for side, size in zip(periodic.shape, values.shape, strict=True))
    axes.imshow(
        periodic / (largest or periodic.max()),
        cmap=colours,
        vmin=0,
        vmax=1,
        extent=(-right, right, bottom, -bottom),
        aspect="auto",
    )
    axes.set_box_aspect(height / width)
    axes.set_xticks([-1, 0, 1], ["−π", "0", "π"])
    axes.set_yticks([-1, 0, 1], ["−π", "0", "π"])
    axes.set_xlim(-1, 1)
    axes.set_ylim(1, -1)


def _spectrum_bar(figure: Figure, grid: Any) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), SPECTRA), ax=grid.ravel().tolist(), aspect=14 * len(grid), pad=0.02
    )
    bar.set_label("log(1 + |F|),\nrelative to the largest", fontsize=6)


def share_axes_labels(grid: Any) -> None:
    """Keep the tick labels at the outer edges of a grid only."""
    for axes in grid[:, 1:].flat:
        axes.set_yticklabels([])
    for axes in grid[:-1].flat:
        axes.set_xticklabels([])


def layer_spectra(measurements: Mapping[str, Measurement], columns: int = 4) -> Figure:
    """Draw Fig. 1(a): the Fourier spectra of blocks of growing depth, one row for each model.

    Args:
        measurements: The measurement of each model, by the model's name.
        columns: The number of blocks to show of each model, the first and the last among them.
    """
    chosen = [_spread(list(measurement.blocks.items()), columns) for measurement in measurements.values()]
    columns = max(map(len, chosen))
    with style():
        figure = Figure(figsize=(COLUMN, 0.25 + 1.0 * len(chosen)), layout="constrained")
        grid = figure.subplots(len(chosen), columns, squeeze=False)
        for name, row, panels in zip(measurements, grid, chosen, strict=True):
            for axes, (layer, frequencies) in zip(row, panels, strict=False):
                draw_spectrum(axes, frequencies.spectrum)
                axes.set_title(_title(layer, frequencies.size), fontsize=6)
            for axes in row[len(panels) :]:
                axes.axis("off")
            row[0].set_ylabel(in_lines(name), fontsize=6)
        _spectrum_bar(figure, grid)
        share_axes_labels(grid)
        figure.supxlabel("frequency", fontsize=7)
    return figure


def _spread(items: list[Any], count: int) -> list[Any]:
    """Return at most ``count`` of the items, evenly spread from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]


def relative_log_amplitudes(measurements: Mapping[str, Measurement]) -> Figure:
    """Draw Fig. 1(b): one curve for each block, coloured by depth, in one panel for each model."""
    across = min(len(measurements), 2)
    down = -(-len(measurements) // across)
    with style():
        figure = Figure(figsize=(COLUMN, 0.5 + 1.6 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        colours = matplotlib.colormaps[DEPTH]
        for axes, (name, measurement) in zip(grid.flat, measurements.items(), strict=False):
            axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
            depths = np.linspace(
                0, 0.93, len(measurement.blocks)
            )  # the last yellow of the palette is too pale for a line
            for depth, frequencies in zip(depths, measurement.blocks.values(), strict=True):
                curve = frequencies.relative_log_amplitude.numpy()
                marker = "o" if len(curve) < 6 else None
                axes.plot(
                    frequencies.frequencies.numpy(), curve, color=colours(depth), lw=1.1, marker=marker, markersize=2.2
                )
            axes.set_title(in_lines(name))
            axes.set_xticks([0, 0.5, 1], ["0", "0.5π", "π"])
            axes.spines[["top", "right"]].set_visible(False)
        for axes in list(grid.flat)[len(measurements) :]:
            axes.axis("off")
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1 / 0.93), DEPTH), ax=grid.ravel().tolist(), aspect=25)
        bar.ax.set_ylim(0, 1)
        bar.set_ticks([0, 1], labels=["first", "last"])
        bar.set_label("block", labelpad=-6)
        figure.supxlabel("frequency", fontsize=7)
        figure.supylabel("Δ log amplitude", fontsize=7)
    return figure


def branch_spectra(stages: Sequence[BranchInStage]) -> Figure:
    """Draw Fig. 4: the Fourier spectra of the outputs of the three branches, one row for each stage."""
    numbers = sorted({each.stage for each in stages})
    there = [branch for branch in BRANCHES if any(each.branch == branch for each in stages)]
    panels = {(each.stage, each.branch): each for each in stages}
    with style():
        figure = Figure(figsize=(COLUMN, 0.35 + 0.88 * len(numbers)), layout="constrained")
        grid = figure.subplots(len(numbers), len(there), squeeze=False)
        for number, row in zip(numbers, grid, strict=True):
            for branch, axes in zip(there, row, strict=True):
                if (number, branch) not in panels:
                    axes.axis("off")
                    continue
                draw_spectrum(axes, panels[number, branch].spectrum)
                height, width = panels[number, branch].size
            first = next(axes for axes in row if axes.axison)
            first.set_ylabel(f"stage {number}\n{height}×{width}")
        for branch, axes in zip(there, grid[0], strict=True):
            axes.set_title(branch)
        _spectrum_bar(figure, grid)
        share_axes_labels(grid)
        figure.supxlabel("frequency", fontsize=7)
    return figure


def branch_shares(stages: Mapping[str, Sequence[BranchInStage]]) -> Figure:
    """Draw how each branch changes the share of high frequencies in each stage, in one panel for each model.

    Stages whose maps are too small to hold low frequencies are left out.
    """
    shown = {name: [each for each in found if each.verdict != "map too small"] for name, found in stages.items()}
    numbers = sorted({each.stage for found in shown.values() for each in found})
    with style():
        figure = Figure(figsize=(COLUMN if len(shown) < 3 else PAGE, 2.1), layout="constrained")
        for axes, (name, found) in zip(
            figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown.items(), strict=True
        ):
            for each in found:
                x = each.stage + 0.24 * (BRANCHES.index(each.branch) - 1)
                before, after = 100 * each.shares["input"].value, 100 * each.shares["output"].value
                colour, marker = COLOURS[each.branch], MARKERS[each.branch]
                axes.plot([x, x], [before, after], color=colour, lw=1)
                axes.plot(x, before, marker=marker, color=colour, markerfacecolor="white", markersize=3.5)
                axes.errorbar(x, after, 100 * each.shares["output"].margin, fmt=marker, color=colour, markersize=3.5)
            axes.set_title(in_lines(name))
            axes.set_xticks(numbers)
            axes.set_xlabel("stage")
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylim(bottom=0)  # after all panels, because it ends the automatic scale that they share
        figure.axes[0].set_ylabel("high-frequency share (%)")
        first, second, third = (
            Line2D([], [], marker=MARKERS[branch], color=COLOURS[branch], label=branch, markersize=3.5, lw=1)
            for branch in BRANCHES
        )
        hollow, filled = (
            Line2D([], [], marker="o", markersize=3.5, ls="none", color="0.4", markerfacecolor=face, label=label)
            for face, label in (("white", "input"), ("0.4", "output, 95 % CI"))
        )
        _legend(figure, [first, hollow, second, filled, third])
    return figure


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=3, columnspacing=1, handletextpad=0.4)


def attention_distances(measurements: Mapping[str, Measurement]) -> Figure:
    """Draw the attention distance of each head of each low-frequency branch, beside that of uniform attention."""
    shown = {name: each for name, each in measurements.items() if each.distances}
    with style():
        figure = Figure(figsize=(COLUMN if len(shown) < 3 else PAGE, 2.0), layout="constrained")
        for axes, (name, measurement) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            for x, distance in enumerate(measurement.distances.values(), 1):
                heads = distance.pixels.numpy()
                axes.plot([x - 0.35, x + 0.35], 2 * [distance.uniform], color="0.5", lw=1, ls=(0, (2, 1)))
                axes.plot(np.full(len(heads), x), heads, "o", color=COLOURS["attention"], alpha=0.5, ms=2.5, mew=0)
                axes.plot([x - 0.35, x + 0.35], 2 * [heads.mean()], color=COLOURS["attention"], lw=1.4)
            axes.set_title(in_lines(name))
            count = len(measurement.distances)
            axes.set_xticks(range(1, count + 1, -(-count // 10)))
            axes.set_xlabel("block")
            axes.set_ylim(bottom=0, top=1.12 * max(each.uniform for each in measurement.distances.values()))
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("attention distance (px)")
        green = COLOURS["attention"]
        handles = [
            Line2D([], [], marker="o", ls="none", color=green, alpha=0.5, mew=0, ms=2.5, label="a head"),
            Line2D([], [], color=green, lw=1.4, label="their mean"),
            Line2D([], [], color="0.5", lw=1, ls=(0, (2, 1)), label="uniform attention"),
        ]
        _legend(figure, handles)
    return figure


def receptive_fields(fields: Mapping[str, Mapping[Layer, Tensor]]) -> Figure:
    """Draw the effective receptive fields at the end of each stage on a logarithmic scale, one row for each model."""
    columns = max(len(found) for found in fields.values())
    with style():
        figure = Figure(figsize=(COLUMN, 0.45 + 0.68 * len(fields)), layout="constrained")
        grid = figure.subplots(len(fields), columns, squeeze=False)
        norm = LogNorm(1e-3, 1, clip=True)
        for row, (name, found) in zip(grid, fields.items(), strict=True):
            for axes in row[len(found) :]:
                axes.axis("off")
            for axes, (layer, field) in zip(row, found.items(), strict=False):
                axes.imshow((field / field.max()).numpy(), cmap=HEAT, norm=norm)
                axes.set_title(f"stage {layer.stage}" if layer.stage else layer.label, fontsize=6)
                height, width = field.shape
                axes.set_xticks([0, width - 1], ["1", str(width)])
                axes.set_yticks([0, height - 1], ["1", str(height)])
            row[0].set_ylabel(in_lines(name), fontsize=6)
        share_axes_labels(grid)
        bar = figure.colorbar(ScalarMappable(norm, HEAT), ax=grid.ravel().tolist(), aspect=12 * len(fields), pad=0.02)
        bar.set_label("gradient, relative\nto the largest", fontsize=6)
        figure.supxlabel("pixels", fontsize=7)
    return figure


@dataclass(frozen=True)
class Evidence:
    """The Grad-CAM maps of a model.

    Attributes:
        pictures: The images as the model sees them, ``(N, H, W, 3)`` or ``(N, H, W, 1)``, from 0 to 1.
        maps: The maps ``(N, H, W)``, from 0 to 1.
        titles: The title of each picture: the explained class and its probability.
    """

    pictures: Tensor
    maps: Tensor
    titles: Sequence[str]


def _wrapped(title: str, inches: float) -> str:
    """Return a title broken into lines that fit into a width at 6 points, where letters are about 0.05 inches wide."""
    name, comma, share = title.rpartition(", ")
    lines = textwrap.wrap(f"{short(name)}{comma}{short(share)}", max(8, int(inches / 0.05)))
    return "\n".join(label(line) for line in lines)


def class_activation(found: Mapping[str, Evidence]) -> Figure:
    """Draw Fig. 5: the images, and below them the Grad-CAM maps of each model, by the models' names."""
    first = next(iter(found.values()))
    columns, rows = len(first.pictures), 1 + len(found)
    beside = 0.7  # inches for names and the colour bar
    side = min(1, max(COLUMN - beside, PAGE - beside if columns > 4 else 0) / columns)
    across = beside + columns * side
    titles = {name: [_wrapped(title, side) for title in evidence.titles] for name, evidence in found.items()}
    lines = sum(1 + max(title.count("\n") for title in under) for under in titles.values())
    with style():
        figure = Figure(figsize=(across, 0.1 + rows * (side + 0.03) + 0.1 * lines), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_xticks([])
            axes.set_yticks([])
        for axes, picture in zip(grid[0], first.pictures, strict=True):
            axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
        grid[0, 0].set_ylabel("image")
        for row, (name, evidence) in zip(grid[1:], found.items(), strict=True):
            row[0].set_ylabel(in_lines(name), fontsize=6)
            for axes, picture, heat, title in zip(row, evidence.pictures, evidence.maps, titles[name], strict=True):
                axes.imshow(picture.mean(-1).numpy(), cmap="gray", vmin=0, vmax=1)
                axes.imshow(heat.numpy(), cmap=HEAT, vmin=0, vmax=1, alpha=0.6)
                axes.set_title(title, fontsize=6)
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), HEAT), ax=grid.ravel().tolist(), aspect=14 * rows, pad=0.02
        )
        bar.set_label("evidence for the class, relative to the largest", fontsize=6)
    return figure

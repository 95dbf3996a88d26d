"""The figures of a search."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from iformer.common.plotting import BLUE, GREEN, ORANGE, STYLE

HIGH, LOW = "#E69F00", BLUE
"""The colours of the high-frequency mixer's channels and of attention's."""


def accuracy_against_cost(results: Mapping[str, Any], cost: str, scale: float) -> Figure:
    """Draw the validation accuracy of all ramps that were evaluated against their cost, and the Pareto front.

    Args:
        results: The search's document.
        cost: The cost in words, with its unit.
        scale: The number of units in the document's cost.
    """

    def places(ramps: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
        return (
            [each[results["cost"]] / scale for each in ramps],
            [100 * each["validation_accuracy"] for each in ramps],
        )

    with matplotlib.rc_context(STYLE):
        figure = Figure((6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(*places(results["evaluated"]), ".", color="0.7", label="evaluated ramps")
        axes.plot(*places(results["front"]), "o-", color=BLUE, markersize=4, linewidth=1, label="Pareto front")
        axes.plot(*places([results["hand_set"]]), "*", color=ORANGE, markersize=12, label="hand-set ramp")
        if results["limit"] is not None:
            axes.axvline(results["limit"] / scale, color=GREEN, linewidth=1, linestyle="--", label="budget")
        axes.set(xlabel=cost, ylabel="validation accuracy with shared weights (%)")
        axes.legend()
    return figure


def ramps(space: Mapping[str, Any], named: Mapping[str, Sequence[int]]) -> Figure:
    """Draw ramps as Fig. 2 of the paper does: for each block, its channels, attention's below and the others above.

    Args:
        space: ``blocks``, the number of heads of each block, and ``stages``, the number of blocks of each stage.
        named: The ramps by what to call them.
    """
    stages, columns = space["stages"], min(len(named), 3)
    rows = -(-len(named) // columns)
    width = max(2.2, 0.14 * sum(stages) + 0.8)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure((width * columns, 1.7 * rows + 0.4), layout="constrained")
        for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
            axes.axis("off")
        for axes, (name, ramp) in zip(grid.flat, named.items(), strict=False):
            axes.axis("on")
            axes.set_title(name, fontsize=8)
            axes.spines[:].set_visible(False)
            centres, block, left = [], 0, 0.0
            for depth in stages:
                for _ in range(depth):
                    share = ramp[block] / space["blocks"][block]
                    axes.add_patch(Rectangle((left, 0), 0.9, share, color=LOW, linewidth=0))
                    axes.add_patch(Rectangle((left, share), 0.9, 1 - share, color=HIGH, linewidth=0))
                    left, block = left + 1, block + 1
                centres.append(left - depth / 2 - 0.05)
                left += 0.5
            axes.set_xlim(-0.2, left)
            axes.set_ylim(0, 1)
            axes.set_xticks(centres, [f"stage {number}" for number in range(1, len(stages) + 1)], fontsize=6)
            axes.set_yticks([0, 0.5, 1], ["0", "½", "1"], fontsize=6)
            axes.tick_params(length=0)
        handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (HIGH, LOW)]
        labels = ["convolution and max-pooling", "self-attention"]
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
    return figure

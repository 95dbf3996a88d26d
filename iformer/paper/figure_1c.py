"""Fig. 1(c): top-1 accuracy over parameters and over multiply-adds, from Table 1 of the paper."""

from collections import defaultdict
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from iformer.common.plotting import BLUE, GREEN, ORANGE, PAPER_STYLE, PURPLE, save_figure
from iformer.paper.published import TABLE_1, Row

# Markers distinguish the families of one colour.
_COLOURS = {"CNN": BLUE, "ViT": GREEN, "Hybrid": PURPLE}
_IFORMER = ORANGE
_MARKERS = "osD^vPXd"

_STYLE = {
    **PAPER_STYLE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def draw(path: str | Path) -> None:
    """Draw the figure into a file, 5.5 inches wide like the text of a page.

    All values are the paper's, so the figure includes models that timm lacks.

    Args:
        path: The file to write, whose suffix determines the format, such as png, pdf or svg.

    Raises:
        ValueError: The suffix is not a format that matplotlib writes.
        OSError: The file cannot be written.
    """
    if not Path(path).suffix:
        raise ValueError(f"{path}: a file name without suffix, expected one such as .png, .pdf or .svg")
    families: dict[str, list[Row]] = defaultdict(list)
    for row in TABLE_1.rows:
        families[row.method.rpartition("-")[0] or row.method].append(row)

    with rc_context(_STYLE):
        figure = Figure(figsize=(5.5, 3.1), dpi=300, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        lines = _panel(left, families, "parameters", [20, 30, 50, 100, 150])
        _panel(right, families, "multiply_adds", [4, 6, 10, 20, 30])
        left.set_xlabel("Parameters (M)")
        right.set_xlabel("Multiply-adds (G)")
        left.set_ylabel("ImageNet-1K top-1 (%)")
        _legend(figure, lines)
        save_figure(figure, Path(path), dpi=300)


def _panel(axes: Axes, families: dict[str, list[Row]], quantity: str, ticks: list[int]) -> dict[str, list[Line2D]]:
    """Draw one line per family, from its smallest model to its largest, and return the lines by kind of model."""
    lines: dict[str, list[Line2D]] = {kind: [] for kind in _COLOURS}
    for family, rows in families.items():
        kind, ours = rows[0].kind, family == "iFormer"
        x = [float(getattr(row, quantity)) for row in rows]
        y = [float(row.accuracies[0]) for row in rows]
        lines[kind] += axes.plot(
            x,
            y,
            label=family,
            color=_IFORMER if ours else _COLOURS[kind],
            marker="*" if ours else _MARKERS[len(lines[kind])],
            markersize=8 if ours else 4,
            markeredgecolor="white",
            markeredgewidth=0.4,
            linewidth=1.6 if ours else 0.8,
            zorder=3 if ours else 2,
        )
        for row, point in zip(rows, zip(x, y, strict=True), strict=True):
            if ours:
                size = row.method.rpartition("-")[2]
                axes.annotate(
                    size, point, (0, 5), textcoords="offset points", ha="center", weight="bold", color=_IFORMER
                )
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.margins(y=0.1)
    return lines


def _legend(figure: Figure, lines: dict[str, list[Line2D]]) -> None:
    """Draw the legend in columns of three families each, headed by their kind."""
    handles: list[Line2D] = []
    for kind, members in lines.items():
        for start in range(0, len(members), 3):
            head = Line2D([], [], linestyle="none", label="" if start else kind)
            handles += [head, *members[start : start + 3]]
    columns = -(-len(handles) // 4)
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        if text.get_text() in lines:
            text.set_fontweight("bold")

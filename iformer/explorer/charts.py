"""Drawings in SVG that take the colours of the page: curves and a network's ramp."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from iformer.common.plotting import SERIES
from iformer.explorer import html

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 14, 32


def lines(places: Sequence[float], series: Mapping[str, Sequence[float]], marked: float) -> Markup:
    """Draw curves of percentages over cut-offs from 0 to the last one.

    Args:
        places: The cut-offs in units of pi.
        series: The values of each curve, by its name.
        marked: The cut-off at which a line is drawn.
    """
    last = places[-1]

    def across(place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(place, last) / last

    def up(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / 100)

    drawn: list[dict[str, Any]] = []
    for (name, values), (colour, _) in zip(series.items(), SERIES, strict=False):
        points = [(round(across(x), 1), round(up(y), 1)) for x, y in zip(places, values, strict=True)]
        drawn.append({"name": name, "colour": colour, "points": points})
    ticks = [(0, "0"), (0.5, "½ π"), (1, "π"), (last, "√2 π")]
    return Markup(  # the template escapes
        html.render(
            "lines",
            size=(WIDTH, HEIGHT),
            series=drawn,
            marked=across(marked),
            edges=(LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
            across=[(across(place), text) for place, text in ticks],
            up=[(up(value), f"{value} %") for value in (0, 50, 100)],
        )
    )

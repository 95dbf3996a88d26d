"""The results of a search: tables for the terminal, and its pages with figures."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from iformer.common import pages
from iformer.common.files import write_json
from iformer.common.plotting import save_figure
from iformer.search import figures

RESULTS = "search.json"
"""The name of the results' file."""

DRAWN = 6
"""The number of ramps that are drawn, with the one that was set by hand."""

COSTS = {
    "macs": ("multiply-adds (M)", 1e6),
    "params": ("parameters (M)", 1e6),
    "latency": ("latency (ms)", 1.0),
}
"""The quantities in words, and the units in which they are shown."""

NOTES = {
    "validation accuracy": "top-1 accuracy with the shared weights on training images that were kept apart; it ranks "
    "ramps, and is not what a ramp reaches alone",
    "test accuracy": "the same on the test images, at the end of the search, once for each ramp of the table",
    "multiply-adds": "of matrix products and convolutions, for one image",
    "latency": "of one image, put together from the latencies of single blocks",
    "measured latency": "of the whole network, the median of interleaved rounds, with random weights",
}


def header(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of the table of ramps."""
    costs = [COSTS[quantity][0] for quantity in COSTS if quantity in results["hand_set"]]
    measured = ["measured latency (ms)"] if "measured_latency" in results["hand_set"] else []
    return ("attention heads", "validation accuracy (%)", "test accuracy (%)", *costs, *measured, "")


def rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of ramps, with the columns of :func:`header`: the Pareto front, the cheapest first.

    The ramp that was set by hand stands below it, if it is not in it.
    """
    own = results["hand_set"]
    listed = [*results["front"]]
    if own["attention_heads"] not in [each["attention_heads"] for each in listed]:
        listed.append(own)
    return [_row(each, each["attention_heads"] == own["attention_heads"]) for each in listed]


def _row(ramp: Mapping[str, Any], by_hand: bool) -> tuple[str, ...]:
    costs = [f"{ramp[quantity] / unit:.3f}" for quantity, (_, unit) in COSTS.items() if quantity in ramp]
    measured = [f"{ramp['measured_latency']:.3f}"] if "measured_latency" in ramp else []
    test = "" if ramp["test_accuracy"] is None else f"{100 * ramp['test_accuracy']:.2f}"
    heads = " ".join(map(str, ramp["attention_heads"]))
    return (
        heads,
        f"{100 * ramp['validation_accuracy']:.2f}",
        test,
        *costs,
        *measured,
        "set by hand" if by_hand else "",
    )


def lines(results: Mapping[str, Any]) -> list[str]:
    """Return the argument of ``iformer fit`` for each ramp of the front, the most accurate first."""
    return [ramp["arguments"] for ramp in reversed(results["front"])]


def draw(results: Mapping[str, Any]) -> dict[str, tuple[str, Figure]]:
    """Return the figures by the names of their files, each with its caption."""
    words, unit = COSTS[results["cost"]]
    best = {_title(each): each["attention_heads"] for each in reversed(results["front"][-(DRAWN - 1) :])}
    own = results["hand_set"]
    drawn = {f"by hand: {_title(own)}": own["attention_heads"], **best}
    return {
        "pareto": (
            f"Validation accuracy of the ramps with shared weights, against their {words}.",
            figures.accuracy_against_cost(results, words, unit),
        ),
        "ramps": (
            "The ramp that was set by hand, and the most accurate ones of the Pareto front: the shares of the channels "
            "in each block, as in Fig. 2 of the paper.",
            figures.ramps(results["space"], drawn),
        ),
    }


def _title(ramp: Mapping[str, Any]) -> str:
    return f"{' '.join(map(str, ramp['attention_heads']))}, {100 * ramp['validation_accuracy']:.2f} %"


def write(output: Path, results: dict[str, Any]) -> None:
    """Write ``search.json``, the figures, ``README.md``, and ``search.html``, which needs no other file.

    Raises:
        OSError: A file could not be written; the message names it.
    """
    pictures = []
    for name, (caption, figure) in draw(results).items():
        picture = output / f"{name}.png"
        save_figure(figure, picture)
        data = base64.b64encode(picture.read_bytes()).decode()
        pictures.append({"caption": caption, "file": picture.name, "data": data, "width": figure.get_figwidth()})
    for page, template in (("search.html", "search.html.j2"), ("README.md", "search.md.j2")):
        pages.write_page(
            output / page,
            template,
            title=f"Frequency ramps of {results['model']}",
            results=results,
            header=header(results),
            rows=rows(results),
            lines=lines(results),
            pictures=pictures,
        )
    write_json(output / RESULTS, results)

"""A table and a picture of the results of a benchmark."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from iformer.benchmark.configurations import titled
from iformer.common.plotting import save_figure

COLORS = {"fp32": "tab:blue", "bf16": "tab:orange", "fp16": "tab:green", "int8": "tab:red"}


def rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the table of results and its rows."""
    headings = ["Model", "Engine", "Type", "Batch", "ms", "quartiles", "images/s", "of peak"]
    headings += ["prepare s", "first s", "peak MiB"]
    body = []
    for configuration in results["variants"]:
        share = configuration["share_of_peak"]
        alone = [
            f"{configuration[key]:,.{digits}f}" if key in configuration else ""
            for key, digits in (("preparation_seconds", 1), ("first_inference_seconds", 2), ("peak_memory_mib", 0))
        ]
        low, high = configuration["quartiles"]
        body.append(
            [
                titled(configuration["model"], configuration["task"]),
                configuration["engine"],
                configuration["precision"],
                str(configuration["batch"]),
                f"{configuration['milliseconds']:.1f}",
                f"{low:.1f}-{high:.1f}",
                f"{configuration['images_per_second']:.1f}",
                "" if share is None else f"{share:.0%}",
                *alone,
            ]
        )
    return headings, body


def end_to_end_rows(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the table of what :func:`iformer.benchmark.end_to_end.run` measured, and its rows."""
    headings = ["Model", "Type", "Batch", "Workers", "Images", "images/s", "network alone", "share"]
    body = [
        [
            titled(row["model"], row["task"]),
            row["precision"],
            *(f"{row[key]:,}" for key in ("batch", "workers", "images")),
            *(f"{row[key]:,.1f}" for key in ("images_per_second", "network_images_per_second")),
            f"{row['share_of_network']:.0%}",
        ]
        for row in results
    ]
    return headings, body


def render(results: dict[str, Any]) -> list[Table]:
    """Return the results as tables for the terminal: the variants, and what was measured end to end."""
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in results["matrix_product_gmacs_per_second"].items())
    caption = f"Peak, G multiply-adds/s: {peaks}. {results['machine']}"
    views = [_table(*rows(results), 3, caption=caption)]
    if "end_to_end" in results:
        views.append(_table(*end_to_end_rows(results["end_to_end"]), 2, title="\nFrom files to results"))
    return views


def _table(headings: list[str], body: list[list[str]], words: int, **texts: str) -> Table:
    """Return a table whose first columns hold words, and the others numbers."""
    view = Table(box=None, padding=(0, 1), header_style="bold", title_justify="left", **texts)  # type: ignore[arg-type]
    for index, heading in enumerate(headings):
        view.add_column(heading, justify="left" if index < words else "right", no_wrap=True)
    for row in body:
        view.add_row(*row)
    return view


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the median time per image of each configuration, with quartiles, into a file.

    Raises:
        ValueError: ``file`` has a suffix that matplotlib does not know.
    """
    shown = results["variants"]
    figure = Figure((8, 1 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    seen: set[str] = set()
    for index, configuration in enumerate(shown):
        value, precision = configuration["milliseconds"] / configuration["batch"], configuration["precision"]
        low, high = (quartile / configuration["batch"] for quartile in configuration["quartiles"])
        axes.barh(
            index,
            value,
            xerr=[[max(value - low, 0)], [max(high - value, 0)]],
            color=COLORS[precision],
            label=None if precision in seen else precision,
        )
        seen.add(precision)
        axes.annotate(f"{value:.1f}", (max(value, high), index), (4, 0), textcoords="offset points", va="center")
    labels = [f"{titled(row['model'], row['task'])}, {row['engine']}, batch {row['batch']}" for row in shown]
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.set_xlabel("milliseconds for an image: median and quartiles")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, file)

"""Pages and tables for people: HTML and Markdown from the templates beside this file, and CSV.

Names that stand in them are text, whatever they look like: each of the three escapes them in one place, here.
"""

import base64
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from iformer.common.files import write_text, written
from iformer.common.plotting import quiet_fonts
from iformer_command.terminal import printable


def write_report(
    path: Path, title: str, summary: dict[str, Any], figures: dict[str, Figure], usage: str, note: str = ""
) -> None:
    """Write an HTML page that needs no other file.

    Args:
        path: The page.
        title: Its heading.
        summary: Facts for the table at the top, in order.
        figures: By their captions.
        usage: A command to copy.
        note: A remark under the heading, for what the reader must not overlook.
    """
    pictures = []
    for caption, figure in figures.items():
        buffer = io.BytesIO()
        with quiet_fonts():
            figure.savefig(buffer, format="png", dpi=160)
        pictures.append({"caption": caption, "data": base64.b64encode(buffer.getvalue()).decode()})
    write_page(path, "report.html.j2", title=title, note=note, summary=summary, pictures=pictures, usage=usage)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that ``template``, a file in ``templates/``, makes of ``values``.

    Every string among the values is text: escaped as HTML if ``path`` ends so, and as Markdown if not.
    """
    html = path.suffix == ".html"
    escape = printable if html else markdown  # Jinja itself escapes for HTML, after this
    environment = Environment(
        loader=PackageLoader("iformer.common"),
        autoescape=html,
        trim_blocks=True,
        finalize=lambda value: escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["code"] = lambda text: Markup(printable(text))  # for blocks of code in Markdown
    write_text(path, environment.get_template(template).render(**values))


def markdown(text: str) -> str:
    """Return Markdown that shows ``text``; no markup, HTML or table's cell begins or ends in it."""
    text = re.sub(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whose strings are text to spreadsheets too.

    A string that a spreadsheet would take for a formula gets an apostrophe before it, as OWASP recommends.

    Raises:
        OSError: The table could not be written, and an earlier one is kept; names ``path``.
    """
    with written(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    formula = re.match(r"[=@]|[+-](?![\d.]+$)", value)  # -1 is a number and may stay one
    return f"'{printable(value)}" if formula else printable(value)

"""HTML and Markdown pages from the templates beside this file, and CSV tables.

Names in them are plain text, whatever characters they contain: for each of the three formats they are escaped here.
"""

import base64
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from iformer.common.files import write_text, written
from iformer_command.terminal import printable


def write_report(
    path: Path, title: str, summary: dict[str, Any], figures: dict[str, Path], usage: str, note: str = ""
) -> None:
    """Write a self-contained HTML page with a table of facts and some figures.

    Args:
        path: The HTML file to write.
        title: The page's heading.
        summary: The names and values of the table at the top, in order.
        figures: The figures by their captions: PNG files, which the page will hold.
        usage: A command that the reader can copy.
        note: A remark under the heading that the reader must not overlook.
    """
    pictures = [
        {"caption": caption, "data": base64.b64encode(file.read_bytes()).decode()} for caption, file in figures.items()
    ]
    write_page(path, "report.html.j2", title=title, note=note, summary=summary, pictures=pictures, usage=usage)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that ``template`` renders from ``values``: HTML if ``path`` ends in ``.html``, otherwise Markdown.

    Raises:
        OSError: The page could not be written; the message names ``path``, and an earlier page is kept.
    """
    write_text(path, render(template, path.suffix == ".html", **values))


def render(template: str, html: bool, **values: Any) -> str:
    """Return the page that ``template``, a file in ``templates/``, makes of ``values``.

    Every string among the values is plain text. It is escaped as HTML if ``html``, and as Markdown otherwise.
    """
    escape = printable if html else markdown  # for HTML, Jinja itself escapes afterwards
    environment = Environment(
        loader=PackageLoader("iformer.common"),
        autoescape=html,
        trim_blocks=True,
        finalize=lambda value: escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["code"] = lambda text: Markup(printable(text))  # for code blocks in Markdown
    return environment.get_template(template).render(**values)


def markdown(text: str) -> str:
    """Return Markdown that shows ``text`` literally: nothing in it acts as markup, HTML or a cell's border."""
    text = re.sub(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table whose strings spreadsheets show as plain text.

    A string that a spreadsheet would take for a formula is preceded by an apostrophe, as OWASP recommends.

    Raises:
        OSError: The table could not be written; the message names ``path``, and an earlier table is kept.
    """
    with written(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([csv_cell(value) for value in row] for row in rows)


def csv_cell(value: Any) -> Any:
    """Return a value for a cell of a table that a spreadsheet may open."""
    if not isinstance(value, str):
        return value
    formula = re.match(r"[=@]|[+-](?![\d.]+$)", value)  # numbers such as -1 are left as they are
    return f"'{printable(value)}" if formula else printable(value)

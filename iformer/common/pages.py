"""Pages: self-contained HTML and Markdown from the templates beside this file."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure


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
        figure.savefig(buffer, format="png", dpi=160)
        pictures.append({"caption": caption, "data": base64.b64encode(buffer.getvalue()).decode()})
    write_page(path, "report.html.j2", title=title, note=note, summary=summary, pictures=pictures, usage=usage)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that ``template``, a file in ``templates/``, makes of ``values``."""
    environment = Environment(
        loader=PackageLoader("iformer.common"), autoescape=path.suffix == ".html", trim_blocks=True
    )
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8")

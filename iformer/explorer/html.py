"""HTML from the templates beside this file; all text in it is escaped."""

import shlex
from typing import Any

from jinja2 import Environment, PackageLoader

from iformer_command.terminal import printable

_templates = Environment(
    loader=PackageLoader("iformer.explorer"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_templates.filters["printable"] = printable


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template, ``NAME.html.j2``."""
    return _templates.get_template(f"{template}.html.j2").render(values)


def note(text: object) -> str:
    """Return a sentence that is shown instead of a panel."""
    return render("note", text=text)


def same(*parts: tuple[str, str]) -> str:
    """Return headings, each with a command or program that makes what a panel shows."""
    return render("same", parts=parts)


def command(*words: object) -> str:
    """Return a command line of these words."""
    return shlex.join(map(str, words))

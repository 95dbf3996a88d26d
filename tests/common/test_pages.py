"""Names of strangers in pages, tables and figures."""

import csv
import os
import resource
import signal
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from iformer.common import pages, plotting

NAMES = [
    "a$b$",
    r"\$x_{",
    "[red]x[/",
    "a|b`c*_d_",
    "<script>alert(1)</script>",
    "![x](http://example.org/x.png)",
    "=cmd()|' /C calc'!A0",
    "+1+cmd()",
    "-x\n# new",
    "@SUM(1)",
    "\x1b[2J",
    os.fsdecode(b"caf\xe9"),
    "猫🐈",
    "n" * 200,
    "_background_",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_html(name: str, tmp_path: Path) -> None:
    found: list[str] = []
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_data = found.append  # type: ignore[method-assign]
    parser.handle_starttag = lambda tag, _: tags.add(tag)  # type: ignore[method-assign]
    pages.write_report(tmp_path / "a.html", name, {name: name}, {}, name, name)
    parser.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    shown = name.replace("\n", r"\n").replace("\x1b", r"\x1b").replace("\udce9", r"\xe9")
    assert found.count(shown) == 6  # title, heading, note, table twice, usage
    assert "script" not in tags


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("iformer_nano, trained", "iformer_nano, trained"),
        ("a|b`c*_d_", r"a\|b\`c\*\_d\_"),
        ("<script>&amp;", "&lt;script&gt;&amp;amp;"),
        ("![x](http://example.org/x.png)", r"!\[x\](http://example.org/x.png)"),
        ("-x\n# new", r"-x\\n\# new"),
        ("a$b$", r"a\$b\$"),
        ("\\", r"\\"),
    ],
)
def test_a_name_is_text_in_markdown(name: str, escaped: str) -> None:
    assert pages.markdown(name) == escaped


def test_a_name_is_text_in_a_spreadsheet(tmp_path: Path) -> None:
    pages.write_csv(tmp_path / "a.csv", [["class", "images"], *([name, -1] for name in NAMES), ["-1", 0.5]])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    assert [count for _, count in rows] == ["-1"] * len(NAMES) + ["0.5"]
    assert [name for name, _ in rows if name[0] in "=+-@\t\r"] == ["-1"]
    assert "'=cmd()|' /C calc'!A0" in dict(rows)
    assert r"caf\xe9" in dict(rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_a_figure(name: str, tmp_path: Path) -> None:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], label=plotting.label(name))
    axes.set_title(plotting.label(name))
    axes.set_xticks([0], [plotting.label(name)])
    with warnings.catch_warnings(), plotting.quiet_fonts():
        warnings.filterwarnings("error", "(?!Glyph)")
        figure.savefig(tmp_path / "a.svg")
    assert len(plotting.label(name).replace(r"\$", "$")) <= 32


def test_a_table_that_does_not_fit_on_the_disk_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "per_class.csv"
    pages.write_csv(path, [["of the run before"]])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"per_class.csv: cannot be written \(File too large\)"):
            pages.write_csv(path, [["name", 1.0]] * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "of the run before\n"
    assert list(tmp_path.iterdir()) == [path]

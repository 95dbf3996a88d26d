"""What the documentation site needs besides MkDocs: pages in its navigation, and the programs of tutorials executed."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GENERATED = {"reference/commands.md", "reference/recipes.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}


@pytest.fixture(scope="module")
def execute() -> Any:
    spec = importlib.util.spec_from_file_location("execute", ROOT / "docs/execute.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages(navigation: Any) -> Iterator[str]:
    for value in navigation.values() if isinstance(navigation, dict) else navigation:
        if isinstance(value, str):
            yield value
        else:
            yield from pages(value)


def test_every_page_is_in_the_navigation() -> None:
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    listed = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert listed <= there | GENERATED
    assert {page for page in there if not page.startswith("results/")} <= listed  # those are linked from other pages


def test_output_is_shown_below_a_program(execute: Any, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "One.\n\n```sh\necho two > file\ncat file\n```\n\n```python\nprint(open('file').read() * 2)\n```\n\n"
        "```text\nnot a program\n```\n\n```sh\ntrue\n```\n"
    )
    execute.execute(tmp_path, [["page.md"]], tmp_path / "work")
    text = (tmp_path / "work/pages/page.md").read_text()
    assert "cat file\n```\n\n```text\ntwo\n```\n" in text
    assert "* 2)\n```\n\n```text\ntwo\ntwo\n```\n" in text
    assert text.endswith("```sh\ntrue\n```\n")


def test_pages_are_executed_again_when_they_change(execute: Any, tmp_path: Path) -> None:
    page, log = tmp_path / "page.md", tmp_path / "log"
    for text in ("One.", "One.", "Two."):
        page.write_text(f"{text}\n\n```sh\necho ran >> {log}\n```\n")
        execute.execute(tmp_path, [["page.md"]], tmp_path / "work")
    assert log.read_text() == "ran\nran\n"


def test_program_that_fails_is_named(execute: Any, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```sh\necho no such thing\nexit 3\necho never\n```\n")
    with pytest.raises(execute.FailedError, match=r"page.md: exit status 3 of\necho no such thing") as raised:
        execute.execute(tmp_path, [["page.md"]], tmp_path / "work")
    assert str(raised.value).endswith("no such thing\n")
    assert not (tmp_path / "work/sources").exists()  # so that the next time tries again


def test_output_is_what_a_terminal_shows_in_the_end(execute: Any) -> None:
    epochs = "".join(f"Epoch {number}/5 loss: {number}\n" for number in range(1, 6))
    printed = f"Seed set to 0\nreading 1/2\rreading 2/2\n\x1b[1mbold\x1b[0m\n{epochs}done\n\n"
    assert execute.readable(printed) == (
        "reading 2/2\nbold\nEpoch 1/5 loss: 1\nEpoch 2/5 loss: 2\n...\nEpoch 5/5 loss: 5\ndone\n"
    )

"""What a terminal is shown of names and errors."""

import os
from pathlib import Path

import pytest

from iformer_command.terminal import item_error, printable, reason


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a cat_1.jpg", "a cat_1.jpg"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nb\tc\rd\u2028e", r"a\nb\tc\rd\u2028e"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),  # which turns the writing round
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud800", r"\ud800"),
        ("猫 🐈 \u0646\u200c\u0647 \u3000é", "猫 🐈 \u0646\u200c\u0647 \u3000é"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(name: str, shown: str) -> None:
    assert printable(name) == shown
    printable(name).encode()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(5, None, "a.png"), "a.png: OSError"),
        (OSError("a.png: of our own"), "a.png: of our own"),
        (FileExistsError(17, "File exists", "a", None, "b"), "a -> b: File exists"),
        (ValueError("one\n  and two\n"), "one and two"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_exception_is_one_line(error: Exception, shown: str) -> None:
    assert reason(error) == shown


def test_an_items_error_names_it_once() -> None:
    assert item_error(Path("a  b.png"), ValueError("a  b.png: cut off")) == "a  b.png: cut off"
    assert item_error("a.png", MemoryError()) == "a.png: there is not enough memory"
    assert item_error("a.png", OSError(28, "No space left on device")) == "a.png: No space left on device"

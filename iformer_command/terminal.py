r"""Text of any origin as a terminal may be shown it: names and errors, in one line each and without control characters.

Names of files and classes come from strangers. What a terminal would obey rather than show (escape sequences, line
breaks, changes of the writing direction) is written as Python writes it in a string, ``\x1b`` say.
"""

import io
import re
import sys
import unicodedata
from typing import TextIO

from rich.markup import escape

ITEM_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""What a single image may raise on its way through a model; the images after it are none the worse for it."""

JOINERS = "\u200c\u200d"  # they shape Persian words and families of emoji, and are harmless


def printable(text: object) -> str:
    r"""Return ``text`` in one line, with escapes for characters that are not shown, among them bytes that are no text.

    A file name that is not UTF-8 holds such bytes as lone surrogates; they become ``\xe9`` and the like.
    """
    string = str(text)
    return string if string.isprintable() else "".join(map(_shown, string))


def _shown(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS:
        return ascii(character)[1:-1]
    return character


def markup(text: object) -> str:
    """Return ``text`` for a string that Rich reads its markup in, where ``[red]`` would be a colour."""
    return escape(printable(text))


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print each of ``lines`` in one line, see :func:`printable`."""
    for line in lines:
        print(printable(line), file=file)


def encode_anything() -> None:
    """Let standard output and error take every character, whatever the locale: escaped where it lacks them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def reason(error: BaseException) -> str:
    """Return what an exception says, in one line and with the name of the file that it is about."""
    if isinstance(error, OSError) and error.errno is not None:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([" -> ".join(files)] * bool(files) + [error.strerror or type(error).__name__])
    if isinstance(error, MemoryError) and not str(error):
        return "there is not enough memory"
    return re.sub(r"\s*\n\s*", " ", str(error).strip()) or type(error).__name__


def item_error(path: object, error: BaseException) -> str:
    """Return the line about an item, an image say, that could not be dealt with; it names the item.

    Args:
        path: The item's file.
        error: One of :data:`ITEM_ERRORS`.
    """
    message = reason(error)
    return message if str(path) in message else f"{path}: {message}"

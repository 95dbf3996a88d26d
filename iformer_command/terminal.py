r"""Safe output of text to a terminal: names and errors in one line each, without control characters.

Names of files and classes may come from strangers. Characters that a terminal would obey rather than show (escape
sequences, line breaks, changes of the writing direction) are escaped as in a Python string, for example ``\x1b``.
"""

import io
import re
import sys
import unicodedata
from typing import TextIO

from rich.markup import escape

ITEM_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""The errors that a single image may raise on its way through a model, without harm to the images after it."""

JOINERS = "\u200c\u200d"  # harmless; they shape Persian words and families of emoji


def printable(text: object) -> str:
    r"""Return ``text`` in one line, with escapes for characters that cannot be shown.

    The bytes of a file name that is not UTF-8, which Python keeps as lone surrogates, become ``\xe9`` and the like.
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
    """Return ``text`` escaped for a string with Rich markup, where ``[red]`` would be a colour."""
    return escape(printable(text))


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print each of ``lines`` in one line, as :func:`printable` returns it."""
    for line in lines:
        print(printable(line), file=file)


def encode_anything() -> None:
    """Let standard output and error accept every character; those that the locale lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU was not enough; torch, whose error it is, need not be loaded to know."""
    return type(error).__name__ == "OutOfMemoryError"


def reason(error: BaseException) -> str:
    """Return the message of an exception in one line, with the name of the file that it is about."""
    if is_out_of_memory(error):  # without its advice on the allocator
        sentences = re.findall(r".+?\.(?=\s|$)\s*", str(error))[:3]
        return "".join(sentences).strip() or "there is not enough memory on the GPU"
    if isinstance(error, OSError) and error.errno is not None:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([" -> ".join(files)] * bool(files) + [error.strerror or type(error).__name__])
    if isinstance(error, MemoryError) and not str(error):
        return "there is not enough memory"
    return re.sub(r"\s*\n\s*", " ", str(error).strip()) or type(error).__name__


def item_error(path: object, error: BaseException) -> str:
    """Return a line that names an item, such as an image, and says why it could not be processed.

    Args:
        path: The file of the item.
        error: The error, one of :data:`ITEM_ERRORS`.
    """
    message = reason(error)
    return message if str(path) in message else f"{path}: {message}"

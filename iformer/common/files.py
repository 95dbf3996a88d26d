"""Writing files completely or not at all, and giving them distinct names."""

import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

TEMPORARY = re.compile(r"\.iformer-(\d+)-(.*)-\w+")
"""The pattern of temporary folders' names: the number of the writing process, its machine, and random letters."""

A_DAY = 24 * 60 * 60


@contextmanager
def replaced(folder: Path, named: Path | None = None) -> Iterator[Path]:
    """Provide a temporary folder whose files replace those of ``folder`` when they are complete.

    The temporary folder is a hidden one inside ``folder``, because a file can be renamed atomically only within one
    file system. If a process is killed, its temporary folder stays behind until the next process that writes there
    removes it.

    Args:
        folder: The folder to write into; it is created if it does not exist.
        named: The file or folder that errors name; ``folder`` by default.

    Raises:
        OSError: The files could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=f".iformer-{os.getpid()}-{platform.node()}-", dir=folder) as temporary:
            yield Path(temporary)
            for file in sorted(Path(temporary).iterdir()):  # .bin before .xml: a new .xml then finds its weights
                file.chmod(0o644)  # temporary files are private
                os.replace(file, folder / file.name)
    except SafetensorError as error:
        raise OSError(f"{named or folder}: cannot be written ({error})") from error
    except OSError as error:
        # A full disk is reported without a file name, and the name of a temporary file would tell the user nothing.
        ours = error.filename is None or Path(error.filename).is_relative_to(folder)
        if error.errno is None or not ours:
            raise
        raise OSError(f"{named or folder}: cannot be written ({error.strerror})") from error


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """Provide the path of a temporary file that takes the place of ``file`` when it is complete.

    Raises:
        OSError: The file could not be written; the message names ``file``, and an earlier file is kept.
    """
    with replaced(file.parent, named=file) as folder:
        yield folder / file.name


def write_text(file: Path, text: str) -> None:
    """Write a text file, completely or not at all.

    Raises:
        OSError: The file could not be written; the message names ``file``, and an earlier file is kept.
    """
    with written(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, document: Any) -> None:
    """Write a JSON file, completely or not at all.

    Raises:
        OSError: The file could not be written; the message names ``file``, and an earlier file is kept.
    """
    write_text(file, json.dumps(document, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if the file does not exist."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    return found


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name ``file`` in the errors of the operating system about what is done here, such as a full disk's."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of processes that have ended.

    Whether a process on another machine has ended cannot be known, so its folder is removed when it is a day old.
    """
    for entry in folder.glob(".iformer-*"):
        if name := TEMPORARY.fullmatch(entry.name):
            here = name[2] == platform.node()
            if not _is_running(int(name[1])) if here else time.time() - entry.stat().st_mtime > A_DAY:
                shutil.rmtree(entry, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's process
        pass
    return True


class DistinctStems:
    """Distinct names for what is written about input files: each file's name without its extension.

    A number is added where files of several folders have the same name. A name of more than ``longest`` bytes is cut,
    because file systems allow 255 bytes, including the suffixes that are added to it.
    """

    def __init__(self, longest: int = 200) -> None:
        self.longest = longest
        self.taken: set[str] = set()

    def name(self, path: Path) -> str:
        """Return a name that has not been given before."""
        stem = path.stem
        while len(os.fsencode(stem)) > self.longest:
            stem = stem[:-1]
        name, number = stem, 2
        while name in self.taken:
            name, number = f"{stem}_{number}", number + 1
        self.taken.add(name)
        return name

"""Writing files completely or not at all, and under names of their own."""

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
"""What temporary folders are called: by the process that writes, its machine, and something random."""

A_DAY = 24 * 60 * 60


@contextmanager
def replaced(folder: Path, named: Path | None = None) -> Iterator[Path]:
    """Give a temporary folder whose files replace those of ``folder`` when they are complete.

    It is a hidden folder inside ``folder``, because a file is renamed atomically only within a file system. A process
    that is killed leaves its own behind, which the next one to write there removes.

    Args:
        folder: The folder, made if it is not there.
        named: The file or folder that errors name; ``folder`` by default.

    Raises:
        OSError: The files could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        with tempfile.TemporaryDirectory(prefix=f".iformer-{os.getpid()}-{platform.node()}-", dir=folder) as temporary:
            yield Path(temporary)
            for file in sorted(Path(temporary).iterdir()):  # .bin before .xml: who sees a new .xml finds its weights
                file.chmod(0o644)  # temporary files are private
                os.replace(file, folder / file.name)
    except SafetensorError as error:
        raise OSError(f"{named or folder}: cannot be written ({error})") from error
    except OSError as error:
        # A full disk is reported without a file's name, and no one knows the name of a temporary file.
        ours = error.filename is None or Path(error.filename).is_relative_to(folder)
        if error.errno is None or not ours:
            raise
        raise OSError(f"{named or folder}: cannot be written ({error.strerror})") from error


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """Give the path of a temporary file that takes the place of ``file`` when it is complete.

    Raises:
        OSError: It could not be written, and an earlier file is kept; names ``file``.
    """
    with replaced(file.parent, named=file) as folder:
        yield folder / file.name


def write_text(file: Path, text: str) -> None:
    """Write a text file, completely or not at all.

    Raises:
        OSError: It could not be written, and an earlier file is kept; names ``file``.
    """
    with written(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, document: Any) -> None:
    """Write a JSON file, completely or not at all.

    Raises:
        OSError: It could not be written, and an earlier file is kept; names ``file``.
    """
    write_text(file, json.dumps(document, indent=2) + "\n")


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of processes that are no more; on other machines, of those begun a day ago."""
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
    except PermissionError:  # another user's
        pass
    return True


class DistinctStems:
    """Names for what is written about files: a file's own without its extension.

    Where files of several folders share a name it gets a number, and a name of more than ``longest`` bytes is cut, for
    file systems take 255 with all that follows.
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

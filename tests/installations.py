"""Installations with some of the optional packages, made of links to what is installed here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from iformer_command.extras import DISTRIBUTION

ROOT = Path(__file__).parents[1]

PROGRAM = """
import contextlib, io, json, sys
sys.path[:] = json.loads(sys.argv[1])
from iformer_command import cli
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["iformer", *arguments]
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


class Ended(NamedTuple):
    """What a command ended with."""

    status: int
    out: str
    err: str


def distributions(extras: Iterable[str] = (), name: str = DISTRIBUTION) -> set[str]:
    """The distributions that pip installs for one of them, by default this project, with some of its extras."""
    found: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = each = waiting.pop()
        if each in found:
            continue
        found.add(each)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, inner) for inner in ("", *requirement.extras)]
    return {name for name, _ in found}


def install(folder: Path, extras: Iterable[str]) -> Path:
    """Link into a new folder what an environment with some extras would have; return the folder."""
    return link(folder, distributions(extras))


def link(folder: Path, names: Iterable[str]) -> Path:
    """Link distributions that are installed here into a new folder; return the folder."""
    folder.mkdir()
    for name in names:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            place, target = folder / top, Path(str(distribution.locate_file(top)))
            if target.exists() and target.suffix != ".pth" and not place.exists():
                place.symlink_to(target)
    return folder


def run(installation: Path, commands: Sequence[Sequence[object]], folder: Path) -> list[Ended]:
    """Run ``iformer`` with each of some lists of arguments, one after the other in a process of its own in ``folder``.

    Of what is installed here, the process has only what the installation has.
    """
    standard = [path for path in sys.path if path and "site-packages" not in path and Path(path) != ROOT]
    path = [str(ROOT), str(installation), *standard]
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    result = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, json.dumps(path), arguments],
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},  # for the processes that it starts
        text=True,
        check=False,
    )
    assert not result.returncode, result.stderr
    return [Ended(*json.loads(line)) for line in result.stdout.splitlines()]

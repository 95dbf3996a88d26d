"""Optional packages: which extra of the distribution holds one that is missing, and the command that installs it."""

import re
import traceback
from importlib import metadata

DISTRIBUTION = "iformer-inception"

EXTRAS = {
    "training": "train",
    "classification": "train",
    "comparison": "train",
    "frequency": "analysis",
    "paper": "analysis",
    "deployment": "deploy",
    "benchmark": "deploy",
    "explorer": "explore",
    "demo": "train,analysis",
}
"""The extras of rooms, the packages in ``iformer``, that are not called like the room."""


def missing(error: BaseException) -> str | None:
    """Return a line that names a missing optional package and the command that installs it.

    Of several extras that hold the package, it is that of the outermost room that imported it, or else the smallest.

    Args:
        error: An error, in whose chain of causes there may be the failure of an import.

    Returns:
        The line; None if no optional package was missing.
    """
    cause: BaseException | None = error
    while cause and not (isinstance(cause, ModuleNotFoundError) and cause.name):
        cause = cause.__cause__ or cause.__context__
    if not isinstance(cause, ModuleNotFoundError) or not cause.name:
        return None
    package = cause.name.partition(".")[0]
    held = contents()
    offered = sorted((extra for extra in held if _normalised(package) in held[extra]), key=lambda each: len(held[each]))
    if not offered:
        return f"{package} is not installed" if cause is error else None
    frames = [*traceback.walk_tb(error.__traceback__), *traceback.walk_tb(cause.__traceback__)]
    names = (frame.f_globals.get("__name__", "").split(".") for frame, _ in frames)
    rooms = [name[1] for name in names if name[0] == "iformer" and name[1:]]
    wanted = (EXTRAS.get(room, room) for room in rooms)
    preferred = [extras for extras in wanted if not set(extras.split(",")).isdisjoint(offered)]
    return not_installed(package, (preferred or offered)[0])


def not_installed(package: str, extra: str) -> str:
    """Return the line that says that a package is missing, which ``extra`` holds."""
    return f"{package} is not installed; run pip install '{DISTRIBUTION}[{extra}]'"


def contents() -> dict[str, set[str]]:
    """Return the names of the packages in each extra of the installed distribution."""
    try:
        required = metadata.requires(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:  # a source tree that is only on the path
        return {}
    found: dict[str, set[str]] = {}
    for line in required:
        if (name := re.match(r"[\w.-]+", line)) and (extra := re.search(r"extra == ['\"]([\w-]+)", line)):
            found.setdefault(extra[1], set()).add(_normalised(name[0]))
    return found


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

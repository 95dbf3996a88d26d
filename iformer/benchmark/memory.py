"""Measurement of the memory that a function takes, in a fresh process."""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class Peak:
    """The resident memory of a process in MiB.

    Attributes:
        before: The memory of imports, model and images before the work begins.
        highest: The highest memory during the work.
    """

    before: float
    highest: float

    @property
    def added(self) -> float:
        """The memory in MiB that the work adds."""
        return self.highest - self.before


def peak_of(preparation: str, *arguments: Any, threads: int | None = None) -> Peak:
    """Measure two steps of some work in a fresh process; in training, the second has the optimiser's state.

    Args:
        preparation: The module and name of a function, ``package.module:function``, that returns a step to call.
        arguments: The arguments of the function, which must be representable in JSON.
        threads: The number of torch's CPU threads; None leaves it to torch.

    Raises:
        subprocess.CalledProcessError: The work failed.
    """
    command = [sys.executable, "-m", __name__, preparation, json.dumps(arguments), json.dumps(threads)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    return Peak(*json.loads(answer))


def resident() -> float:
    """Return the resident memory of this process in MiB, or the highest so far if the system reports only that."""
    return _status("VmRSS")


def highest() -> float:
    """Return the highest resident memory of this process in MiB, on Linux since :func:`forget`."""
    return _status("VmHWM")


def forget() -> None:
    """Restart the measurement of the highest resident memory from now (on Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(what: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _measure(preparation: str, arguments: list[Any], threads: int | None) -> None:
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the work may print what it likes
    if threads:
        torch.set_num_threads(threads)
    step: Callable[[], object] = resolve_name(preparation)(*arguments)
    before = resident()
    step()
    step()
    print(json.dumps([before, highest()]), file=answers, flush=True)


if __name__ == "__main__":
    _measure(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))

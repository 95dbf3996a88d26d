"""The memory that work takes, in a process of its own, where nothing else has taken any."""

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
    """Resident memory of a process in MiB.

    Attributes:
        before: What imports, model and images take before the work begins.
        highest: The highest during the work.
    """

    before: float
    highest: float

    @property
    def added(self) -> float:
        """What the work adds."""
        return self.highest - self.before


def peak_of(preparation: str, *arguments: Any, threads: int | None = None) -> Peak:
    """Measure two steps of some work in a fresh process; in training, the second has the optimiser's state.

    Args:
        preparation: A function by its module and name, ``package.module:function``, that returns a step to call.
        arguments: Its arguments, as JSON can hold them.
        threads: The CPU threads of torch; its own choice if None.

    Raises:
        subprocess.CalledProcessError: The work failed.
    """
    command = [sys.executable, "-m", __name__, preparation, json.dumps(arguments), json.dumps(threads)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    return Peak(*json.loads(answer))


def resident() -> float:
    """Return the resident memory of this process in MiB; where the system does not tell, the highest so far."""
    return _status("VmRSS")


def highest() -> float:
    """Return the highest resident memory of this process in MiB, since :func:`forget` where there is that."""
    return _status("VmHWM")


def forget() -> None:
    """Let the highest resident memory count from now, so that what was done before is not in it (Linux)."""
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

"""Provenance: what every result file records about how it was made."""

import contextlib
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance(seed: int) -> dict[str, Any]:
    """Return the command, the seed, the versions of the libraries, and the machine."""
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "seed": seed,
        "versions": _versions("iformer-inception", "torch", "timm", "lightning", "pillow"),
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads used, "
        f"{', '.join([platform.system(), *_accelerators()])}",
    }


def _versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _program() -> list[str]:
    """Return the words that start the running program."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return [Path(sys.argv[0]).name]
    return ["python", "-m", module.name.removesuffix(".__main__")]


def _processor() -> str:
    """Return the processor's name, which Python itself does not know on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

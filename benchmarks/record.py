"""What every result file says about how it came to be."""

import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(seed: int) -> dict[str, Any]:
    """The command, the seed, the versions and the machine."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "seed": seed,
        "versions": {name: version(name) for name in ("iformer-inception", "torch", "timm", "pillow")},
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads used, "
        f"{platform.system()}",
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """Write ``results`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def _processor() -> str:
    """The processor's name, which Python knows on other systems than Linux only."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

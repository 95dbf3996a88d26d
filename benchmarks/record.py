"""Result files."""

import json
from pathlib import Path
from typing import Any


def write(path: Path, results: dict[str, Any]) -> None:
    """Write ``results`` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")

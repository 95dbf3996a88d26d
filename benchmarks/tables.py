"""What the sections of docs/performance.md have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(results: dict[str, Any]) -> str:
    """Return a sentence on how and where results were measured."""
    versions = ", ".join(
        f"{name} {results['versions'][name]}"
        for name in ("torch", "cuda", "timm", "onnxruntime", "openvino", "nncf")
        if name in results["versions"]
    )
    return f"{results['rounds']} interleaved rounds, medians. {results['machine']}. {versions}."


def exponent(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of costs over amounts in logarithms: 1 if the cost is in proportion to the amount."""
    return round(float(np.polyfit(np.log(amounts), np.log(costs), 1)[0]), 3)

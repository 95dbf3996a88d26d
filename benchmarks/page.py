"""docs/performance.md, written from the results of the other benchmarks that are in docs/results/performance.

python -m benchmarks.page
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import many_files, performance, prediction, scaling, tasks
from iformer.common.files import write_text

FOLDER = "results/performance"
SECTIONS = {
    "results": performance.section,
    "tasks": tasks.section,
    "scaling": scaling.section,
    "prediction": prediction.section,
    "many_files": many_files.section,
}
"""For each file of results, what the page says about it, in this order; files that are missing are left out."""


def page(docs: Path) -> str:
    """Return the page in Markdown."""
    files = {name: docs / FOLDER / f"{name}.json" for name in SECTIONS}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    parts = ["# Performance", "Written by `make bench`, each section from one run; figures are ratios within a run."]
    parts += [SECTIONS[name](results, FOLDER) for name, results in found.items()]
    exported = [json.loads(file.read_text()) for file in sorted((docs / FOLDER / "int8").glob("*.json"))]
    if exported:
        parts.append(performance.accuracy_section(exported))
    return "\n\n".join(parts) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    docs = parser.parse_args(given).docs
    write_text(docs / "performance.md", page(docs))


if __name__ == "__main__":
    main()

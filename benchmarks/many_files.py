"""Memory of `iformer predict` over very many file names, with a trivially small model.

    python -m benchmarks.many_files

The names are those of eight small JPEGs over and over, given as a list on standard input, and the results go to a file.
Memory is what is resident in the command's process (on Linux) when it has passed the first 10,000, and in the end.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.tables import markdown
from iformer.common.files import write_json
from iformer.common.provenance import provenance
from iformer.models import saved

IMAGES = 8


def prepare(folder: Path) -> list[str]:
    """Write a small model and some images into a folder, and return the images' paths."""
    narrow = {"depths": [1] * 4, "dims": [8] * 4, "num_heads": [2] * 4, "attention_heads": [1] * 4, "img_size": 32}
    network: Any = timm.create_model("iformer_nano", num_classes=2, **narrow)
    saved.save(network, folder / "model", ["one", "two"], input_size=(3, 32, 32))
    random = np.random.default_rng(0)
    paths = []
    for number in range(IMAGES):
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(paths[-1])
    return paths


def measure(count: int, every: int, format_: str) -> dict[str, Any]:
    """Return the MiB that are resident after each ``every`` of ``count`` file names."""
    resident: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = prepare(folder)
        output = folder / f"results.{format_}"
        command = [sys.executable, "-m", "iformer", "predict", "-", "--model", str(folder / "model")]
        with subprocess.Popen(
            [*command, "--output", str(output), "--batch-size", "64"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdin
            # The pipe holds some thousand names at most, so that the command is never far behind.
            for number in track(range(1, count + 1), "Predicting", console=Console(stderr=True)):
                process.stdin.write(f"{paths[number % IMAGES]}\n")
                if number % every == 0:
                    process.stdin.flush()
                    resident[number] = _resident(process.pid)
            process.stdin.close()
        if process.returncode:
            raise RuntimeError(f"predict ended with status {process.returncode}")
        rows = sum(1 for _ in output.open()) if format_ == "jsonl" else count
    return {"files": count, "format": format_, "rows": rows, "resident_mib": resident}


def _resident(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 2**10, 1)
    raise RuntimeError(f"process {process} has no resident memory")


def growth(measured: dict[str, Any], settled: int) -> float:
    """Return the MiB by which the memory after the last names exceeds that after the first ``settled``."""
    resident = measured["resident_mib"]
    return round(resident[max(resident)] - resident[min(number for number in resident if number >= settled)], 1)


def section(results: dict[str, Any], folder: str) -> str:
    """Return the section of the page in Markdown."""
    rows = [[f"{int(number):,}", f"{mib:,.0f}"] for number, mib in results["resident_mib"].items()]
    some = [*rows[:: max(1, len(rows) // 10)], rows[-1]]
    return f"""## Very many files

`iformer predict` with a trivially small model, {results["files"]:,} names on standard input, results to a file.
Resident memory grows by {results["growth_mib"]:.0f} MiB between the {results["settled"]:,}th name and the last.
{results["machine"]}.

{markdown(["names", "MiB resident"], list(dict.fromkeys(map(tuple, some))))}"""


def main(given: Sequence[str] | None = None) -> None:
    """Measure the memory, print its growth and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=10_000, help="file names between two looks at the memory")
    parser.add_argument("--settled", type=int, default=10_000, help="file names before the growth counts")
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--output", type=Path, default=Path("docs/results/performance/many_files.json"))
    arguments = parser.parse_args(given)
    measured = measure(arguments.files, arguments.every, arguments.format)
    grown = growth(measured, arguments.settled)
    print(f"{grown:.1f} MiB more after {arguments.files:,} names than after {arguments.settled:,}")
    write_json(arguments.output, {**provenance(0), **measured, "settled": arguments.settled, "growth_mib": grown})


if __name__ == "__main__":
    main()

"""A process that makes one run by the launcher and writes its result file.

The run ends, with a checkpoint, when the process that started it closes the pipe on standard input. That happens on
Ctrl-C as well as when the other process is killed, in whatever way.
"""

import csv
import json
import os
import shlex
import signal
import statistics
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from iformer.benchmark import memory
from iformer.common.files import write_json
from iformer.common.provenance import provenance
from iformer.comparison import costs
from iformer.training import checkpoints, launcher
from iformer.training.run_folder import locked
from iformer_command.terminal import reason


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        variant: The variant's name.
        seed: The run's seed.
        metric: The name of the task's main metric.
        recipe: The file of the variant's recipe.
        folder: The run's folder; the result file stands beside it, with the same name and the suffix ``.json``.
        epochs: The number of epochs, or 0 if the recipe does not say.
    """

    variant: str
    seed: int
    metric: str
    recipe: str
    folder: str
    epochs: int

    @property
    def result(self) -> Path:
        """The result file."""
        return Path(f"{self.folder}.json")

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``iformer fit`` that make this run."""
        return ["--config", self.recipe, "--seed_everything", str(self.seed), "--trainer.default_root_dir", self.folder]

    @property
    def command(self) -> list[str]:
        """The command of the process that makes the run."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]


def make(job: Job) -> None:
    """Train, or go on training; evaluate the network unless the training ended with that; and write the result file.

    Raises:
        ValueError: The recipe is wrong, or the training does not log the metric.
        OSError: A file is missing or cannot be written.
    """
    folder = Path(job.folder)
    rank_zero_only(_wait_for)(folder)
    if job.result.is_file():
        return
    arguments = [*job.arguments, "--trainer.enable_progress_bar", "false"]
    found = launcher.run("fit", [*arguments, *(["--resume"] if checkpoints.available(folder) else [])])
    rows = read_log(folder)
    validated = [int(row["step"]) + 1 for row in rows if row.get(f"val_{job.metric}")]
    steps = int(checkpoints.newest(folder).stem.partition("-")[2])
    if steps not in validated or "per_class" not in found:  # no such figures of a training that had ended before
        found = launcher.run("validate", [*arguments, "--resume", "--verbose=false"])
    rank_zero_only(_write)(job, rows, found, steps)


def _wait_for(folder: Path) -> None:
    """Wait for a process of an earlier comparison that may still be saving."""
    with locked(folder, wait=True):
        pass


def _write(job: Job, rows: Sequence[Mapping[str, str]], found: Mapping[str, Any], steps: int) -> None:
    """Write the result file.

    Args:
        job: The run.
        rows: The rows of the run's log.
        found: What the launcher returned of the last evaluation.
        steps: The number of optimiser steps.
    """
    folder, name = Path(job.folder), f"val_{job.metric}"
    metrics = {key: value for key, value in found["metrics"].items() if key.startswith("val_")}
    if name not in metrics:
        raise ValueError(f"{folder}: the run logs no {name}, the metric to compare by")
    if not metrics[name] >= 0:  # -1 or NaN: there was nothing to judge by
        raise ValueError(f"{folder}: {name} is {metrics[name]}: the validation images have nothing to judge by")
    network = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rates = [float(row["images/s"]) for row in rows if row.get("images/s")]
    result = {
        "variant": job.variant,
        "seed": job.seed,
        "metric": job.metric,
        "value": metrics[name],
        "metrics": metrics,
        "per_class": found["per_class"],
        "curve": by_epoch(rows, name),
        "training_loss": by_epoch(rows, "loss"),
        "steps": steps,
        "images_per_second": round(statistics.median(rates), 1) if rates else None,
        "peak_memory_mib": round(_peak_memory()),
        **costs.size(network),
        **provenance(job.seed),
        "command": shlex.join(["iformer", "fit", *job.arguments]),
        "network": network,
    }
    write_json(job.result, result)


def read_log(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's ``metrics.csv``, and none if it is not there yet."""
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def by_epoch(rows: Iterable[Mapping[str, str]], column: str) -> list[list[float]]:
    """Return ``[epoch, mean value]`` of a column of the log for each epoch that has one, counted from 1."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if row.get(column):
            values.setdefault(int(row["epoch"]) + 1, []).append(float(row[column]))
    return [[epoch, statistics.fmean(found)] for epoch, found in values.items()]


def _peak_memory() -> float:
    """Return the highest memory of this process in MiB, on a GPU that of the GPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else memory.highest()


def _end_with_the_other() -> None:
    """Wait for the end of standard input, and then end the run as SIGTERM does, with a checkpoint."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Make the run that the argument describes; exit with status 1 and a one-line message for a user's mistake."""
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    try:
        make(Job(**json.loads(sys.argv[1])))
    except (OSError, ValueError, MemoryError) as error:
        sys.exit(reason(error))


if __name__ == "__main__":
    main()

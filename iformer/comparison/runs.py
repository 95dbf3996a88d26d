"""Making the runs of a comparison: several at a time, each in a process of its own, and only those that are missing."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iformer.comparison.variants import Variant
from iformer.comparison.worker import Job, read_log
from iformer_command.terminal import markup, printable

LOG = "fit.log"
"""The name of the file in a run's folder that has all that the run prints."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PAUSE, LOOK = 0.2, 5.0
"""The seconds between two looks at the processes, and at their logs."""


def jobs_of(variants: Sequence[Variant], output: Path) -> list[Job]:
    """Return the runs to make, one seed of all variants after the other; write the variants' recipes.

    Raises:
        ValueError: ``output`` has runs by other recipes.
        OSError: A recipe could not be written.
    """
    recipes = {variant.name: variant.write(output) for variant in variants}
    return [
        Job(
            variant.name,
            seed,
            variant.task.metric,
            str(recipes[variant.name]),
            str(output / variant.name / f"seed_{seed}"),
            variant.epochs,
        )
        for seed in range(max(variant.seeds for variant in variants))
        for variant in variants
        if seed < variant.seeds
    ]


@dataclass
class _Running:
    """A run in progress."""

    job: Job
    process: subprocess.Popen[bytes]
    log: TextIO
    line: Any  # its line in the progress display
    looked: float = 0.0
    done: float = field(default=0.0)  # the share of its epochs that have ended

    def end(self) -> None:
        """Ask the run to save and end."""
        assert self.process.stdin
        self.process.stdin.close()


def make(jobs: Sequence[Job], at_a_time: int) -> dict[Job, str]:
    """Make the runs whose result files are missing.

    Args:
        jobs: The runs.
        at_a_time: The number of runs at a time; the CPU threads are divided among them.

    Returns:
        The runs that failed, each with the last line of its log.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs have saved what they did and have ended.
    """
    waiting = [job for job in jobs if not job.result.is_file()]
    failed: dict[Job, str] = {}
    running: list[_Running] = []
    columns = ("[progress.description]{task.description}", BarColumn(20), "{task.fields[state]}")
    # Runs take minutes: the remaining time is estimated from all that has been done, not from the last seconds.
    with Progress(
        *map(_column, columns),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=1,
        speed_estimate_period=1e6,
    ) as display:
        whole = display.add_task("Runs", total=len(jobs) or None, completed=len(jobs) - len(waiting), state="")
        try:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    running.append(_start(waiting.pop(0), at_a_time, display))
                time.sleep(PAUSE)
                for each in list(running):
                    if each.process.poll() is None:
                        _look(each, display)
                        continue
                    running.remove(each)
                    _finish(each, failed, display)
                over = len(jobs) - len(waiting) - len(running)
                state = f"{over - len(failed)} of {len(jobs)} finished" + (f", {len(failed)} failed" if failed else "")
                display.update(whole, completed=over + sum(each.done for each in running), state=state)
        except BaseException:
            display.console.print("Saving the runs in progress; Ctrl-C again gives up what follows their checkpoints.")
            _end(running)
            raise
    return failed


def _column(column: Any) -> Any:
    return TextColumn(column) if isinstance(column, str) else column


def _start(job: Job, at_a_time: int, display: Progress) -> _Running:
    """Start a process in a session of its own, so that Ctrl-C in the terminal reaches only this process."""
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    log = open(Path(job.folder, LOG), "a", encoding="utf-8")  # noqa: SIM115
    threads = str(max(1, torch.get_num_threads() // at_a_time))
    process = subprocess.Popen(
        job.command,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **dict.fromkeys(THREADS, threads)},
    )
    line = display.add_task(f"  {markup(job.label)}", total=job.epochs or None, state="starting")
    return _Running(job, process, log, line)


def _look(each: _Running, display: Progress) -> None:
    """Show the epoch and the latest metric of a run."""
    if time.monotonic() - each.looked < LOOK:
        return
    each.looked = time.monotonic()
    rows = read_log(Path(each.job.folder))
    if rows:
        epoch = int(rows[-1].get("epoch") or 0)
        values = [row[f"val_{each.job.metric}"] for row in rows if row.get(f"val_{each.job.metric}")]
        state = f"epoch {epoch + 1}" + (f", {each.job.metric} {float(values[-1]):.4f}" if values else "")
        each.done = epoch / each.job.epochs if each.job.epochs else 0.0
        display.update(each.line, completed=epoch, state=state)


def _finish(each: _Running, failed: dict[Job, str], display: Progress) -> None:
    """Report a run that has ended."""
    each.log.close()
    display.remove_task(each.line)
    file = Path(each.job.folder, LOG)
    if each.job.result.is_file():
        display.console.print(f"{markup(each.job.label)}: finished")
        return
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    status = each.process.returncode
    failed[each.job] = printable(lines[-1]) if lines and status > 0 else f"its process ended with status {status}"
    display.console.print(f"[red]{markup(each.job.label)}: failed:[/] {markup(failed[each.job])} (see {markup(file)})")


def _end(running: Sequence[_Running]) -> None:
    """Ask the runs to end and wait for them; kill them if that is interrupted."""
    for each in running:
        each.end()
    try:
        for each in running:
            each.process.wait()
    except KeyboardInterrupt:
        for each in running:
            each.process.kill()
    finally:
        for each in running:
            each.log.close()

"""A process that prepares one configuration, reports the cost of this, and then runs the configuration on request.

Each configuration has its own process, so that its memory can be measured and engines do not share threads or settings.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from iformer.benchmark import configurations, memory
from iformer.benchmark.configurations import Configuration

WARM_UP = 0.3
"""The seconds for which a GPU works before its times are taken."""


class MeasuredProcess:
    """A handle of the process of a configuration, which must be closed.

    Args:
        configuration: The configuration to prepare and run.
        threads: The number of CPU threads.

    Attributes:
        facts: ``preparation_seconds``; ``first_inference_seconds``, which includes compilation if the engine compiles;
            ``peak_memory_mib``, the highest resident memory of the process during later inferences, or on a GPU the
            highest memory that torch has taken there, from the weights on; and ``inference_memory_mib``, the same minus
            the memory that was resident before the first inference.

    Raises:
        ValueError: The configuration cannot be prepared or run; the message ends with the reason.
    """

    def __init__(self, configuration: Configuration, threads: int) -> None:
        self.configuration = configuration
        self._log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up  # noqa: SIM115
        command = [sys.executable, "-m", __name__, json.dumps(asdict(configuration)), str(threads)]
        # A cache from earlier runs would hide the time that torch.compile takes.
        self._cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": self._cache.name},
        )
        try:
            self.facts: dict[str, float] = json.loads(self._answer())
        except BaseException:
            self.close()
            raise

    def times(self, count: int) -> list[float]:
        """Return the seconds that each of ``count`` inferences takes, after at least one that is not timed.

        Raises:
            ValueError: The configuration cannot be run any more; the message ends with the reason.
        """
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            print(count, file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._cache.cleanup()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            reason = (self._log.read().strip().splitlines() or [f"its process ended with status {status}"])[-1]
            raise ValueError(f"{self.configuration.label}: {reason}")
        return line


def _serve(configuration: Configuration, threads: int) -> None:
    """Print the facts, and then a list of times for each number on standard input, each in one line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps the output of compilers and engines out of the answers
    torch.set_num_threads(threads)
    start = time.perf_counter()
    call = configurations.runner(configuration, threads)
    ready = time.perf_counter()
    before = memory.resident()
    call()
    first = time.perf_counter()
    memory.forget()
    call()
    call()
    peak = memory.highest()
    if configuration.device == "cuda":
        before, peak = 0, torch.cuda.max_memory_allocated() / 2**20
    facts = {
        "preparation_seconds": round(ready - start, 2),
        "first_inference_seconds": round(first - ready, 3),
        "peak_memory_mib": round(peak, 1),
        "inference_memory_mib": round(peak - before, 1),
    }
    _leave_to_others(configuration.device)
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        _warm_up(call, configuration.device)
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        _leave_to_others(configuration.device)
        print(json.dumps(times), file=answers, flush=True)


def _warm_up(call: Callable[[], object], device: str) -> None:
    """Run once, or on a GPU, whose clock rises only under load, for some time."""
    end = time.perf_counter() + (WARM_UP if device == "cuda" else 0)
    call()
    while time.perf_counter() < end:
        call()


def _leave_to_others(device: str) -> None:
    """Give back the memory of a GPU that torch keeps for later, because the processes share it."""
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    _serve(Configuration(**json.loads(sys.argv[1])), int(sys.argv[2]))

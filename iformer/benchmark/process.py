"""A configuration in a process of its own, which prepares it once, says what that cost, and then runs it whenever told.

So its memory is its own, and no engine's threads or settings reach another one's.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

import torch

from iformer.benchmark import configurations, memory
from iformer.benchmark.configurations import Configuration


class MeasuredProcess:
    """The process as the measuring one sees it; to be closed.

    Attributes:
        facts: ``preparation_seconds``; ``first_inference_seconds``, with compilation where the engine compiles;
            ``peak_memory_mib``, the highest resident memory of the process during later inferences (of the GPU's
            memory, during all); ``inference_memory_mib``, that less what was resident before the first inference.

    Raises:
        ValueError: The configuration cannot be prepared or run; the message ends with the reason.
    """

    def __init__(self, configuration: Configuration, threads: int) -> None:
        self.configuration = configuration
        self._log = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up  # noqa: SIM115
        command = [sys.executable, "-m", __name__, json.dumps(asdict(configuration)), str(threads)]
        # What torch.compile has kept from earlier would hide how long it takes.
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
        """Seconds of ``count`` inferences, after one that is not timed."""
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
    """What the process does: facts, then a list of times for each number on standard input; one line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers and engines may print what they like
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
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        call()
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Configuration(**json.loads(sys.argv[1])), int(sys.argv[2]))

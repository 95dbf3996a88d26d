"""Latency, throughput and memory of models in several engines, side by side in one run.

Rounds in which each variant runs a few times, one after the other and in alternating order, so that whatever else the
machine does hits all alike; medians and quartiles are reported. A product of two large matrices is measured in the same
rounds: the fastest the machine can multiply, in each type. Memory, time to get ready and the first inference: each
variant in a fresh process.
"""

import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iformer.deployment import variants
from iformer.deployment.export import TYPES
from iformer.deployment.variants import ENGINES, Variant
from iformer.training.provenance import provenance

TIMED = 3
"""Inferences that each variant does in a round, after one that is not timed."""

SIDE = 2048
"""Of the matrices whose product measures the machine."""


def run(chosen: Sequence[Variant], rounds: int = 15, threads: int | None = None, memory: bool = True) -> dict[str, Any]:
    """Measure variants side by side.

    Args:
        chosen: From :func:`combinations`.
        rounds: How often each one's turn comes.
        threads: Of the CPU; torch's choice if None.
        memory: Measure memory, preparation and first inference too, in a fresh process for each variant.

    Returns:
        Where and how it was measured, ``matrix_product_gmacs_per_second`` by type, ``multiply_adds`` of an image by
        model, and ``variants``: what each is and its figures.
    """
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    alone = [measure_alone(variant, threads) if memory else {} for variant in _progress(chosen, "Memory")]
    calls = [variants.runner(variant, threads) for variant in _progress(chosen, "Preparing")]
    types = sorted({variant.precision for variant in chosen} & set(TYPES))
    products = [_product(name, chosen[0].device) for name in types]
    seconds = _time_in_rounds([*calls, *products], rounds)
    peaks = {name: SIDE**3 / min(times) for name, times in zip(types, seconds[len(calls) :], strict=True)}
    costs = {variant.model: multiply_adds(variant) for variant in {each.model: each for each in chosen}.values()}
    results = []
    for variant, times, extra in zip(chosen, seconds, alone, strict=False):
        figures = _figures(times, costs[variant.model], peaks.get(variant.precision), variant.batch)
        results.append({**asdict(variant), **figures, **extra})
    return {
        **provenance(0),
        "rounds": rounds,
        "matrix_product_gmacs_per_second": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        "multiply_adds": costs,
        "variants": results,
    }


def combinations(
    models: Sequence[str],
    engines: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int] = (1,),
    size: int = 224,
    device: str = "cpu",
) -> list[Variant]:
    """Every combination that exists: an engine is passed over where it does not have a precision.

    Args:
        models: See :attr:`Variant.model`.
        engines: Of ``variants.ENGINES``.
        precisions: fp32, bf16, fp16, int8.
        batches: Images at a time.
        size: Side of the images in pixels.
        device: cpu or cuda.

    Raises:
        ValueError: There is no such model, engine, precision or device.
    """
    known = sorted({precision for each in ENGINES.values() for precision in each})
    for kind, given, expected in (("engine", engines, ENGINES), ("precision", precisions, known)):
        for name in given:
            if name not in expected:
                raise ValueError(f"{kind} is {name!r}, expected one of {', '.join(expected)}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, expected cpu{' or cuda' if torch.cuda.is_available() else ''}")
    chosen = [
        Variant(model, engine, precision, batch, size, size, device)
        for batch in batches
        for model in models
        for engine in engines
        for precision in precisions
        if precision in ENGINES[engine] and (device == "cpu" or engine in ("eager", "fused", "compile"))
    ]
    if not chosen:
        raise ValueError(
            f"engines {', '.join(engines)} have none of the precisions {', '.join(precisions)} on {device}"
        )
    for model in models:
        variants.network(replace(chosen[0], model=model))  # a wrong name is found before anything is measured
    return chosen


def _progress(items: Sequence[Any], what: str) -> Any:
    return track(items, what, console=Console(stderr=True))


def _product(precision: str, device: str) -> Callable[[], object]:
    """A product of two square matrices in a type."""
    matrix = torch.randn(SIDE, SIDE, dtype=TYPES[precision], device=device)

    def multiply() -> None:
        torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()

    return multiply


def _time_in_rounds(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each call, round by round."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for number in _progress(range(rounds), "Measuring"):
        for index in range(len(calls))[:: 1 if number % 2 else -1]:
            calls[index]()
            for _ in range(TIMED):
                start = time.perf_counter()
                calls[index]()
                seconds[index].append(time.perf_counter() - start)
    return seconds


def _figures(times: list[float], cost: int, peak: float | None, batch: int) -> dict[str, Any]:
    """Milliseconds, images per second, and the share of the peak that the multiply-adds are done at."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "milliseconds": round(1e3 * median, 3),
        "quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
        "images_per_second": round(batch / median, 2),
        "share_of_peak": round(cost * batch / median / peak, 3) if peak else None,
    }


@torch.no_grad()
def multiply_adds(variant: Variant) -> int:
    """Multiply-adds of a model's matrix products and convolutions, attention included, for one image."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        variants.network(variant)(torch.randn(1, 3, variant.height, variant.width))
    return int(counter.get_total_flops()) // 2


def measure_alone(variant: Variant, threads: int) -> dict[str, float]:
    """Memory, preparation and first inference of a variant, from a fresh process."""
    command = [sys.executable, "-m", "iformer.deployment.benchmark", json.dumps(asdict(variant)), str(threads)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{variant.label}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def _in_fresh_process(variant: Variant, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    call = variants.runner(variant, threads)
    ready = time.perf_counter()
    before = _resident("VmRSS")
    _forget_peak()
    call()
    first = time.perf_counter()
    call()
    call()
    peak = _resident("VmHWM")
    if variant.device == "cuda":
        before, peak = 0, torch.cuda.max_memory_allocated() / 2**20
    return {
        "preparation_seconds": round(ready - start, 2),
        "first_inference_seconds": round(first - ready, 3),
        "peak_memory_mib": round(peak, 1),
        "inference_memory_mib": round(peak - before, 1),
    }


def _resident(what: str) -> float:
    """Resident memory of this process in MiB: now (VmRSS), or its highest (VmHWM), which alone other systems know."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _forget_peak() -> None:
    """Let the highest resident memory count from now, so that what preparation needed is not in it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(_in_fresh_process(Variant(**json.loads(sys.argv[1])), int(sys.argv[2]))))  # noqa: T201

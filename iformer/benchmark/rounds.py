"""Latency, throughput and memory of models in several engines, side by side in one run.

Rounds in which each variant runs a few times, one after the other and in alternating order, so that whatever else the
machine does hits all alike; medians and quartiles are reported. A product of two large matrices is measured in the same
rounds: the fastest the machine can multiply, in each type. Each variant lives in a process of its own, which says what
memory, preparation and the first inference cost.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iformer.benchmark import variants
from iformer.benchmark.variants import ENGINES, Variant
from iformer.benchmark.worker import Worker
from iformer.common.provenance import provenance
from iformer.deployment.formats import TYPES

TIMED = 3
"""Inferences that each variant does in a round, after one that is not timed."""

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices whose product measures the machine."""


def run(chosen: Sequence[Variant], rounds: int = 10, threads: int | None = None) -> dict[str, Any]:
    """Measure variants side by side.

    Args:
        chosen: From :func:`combinations`.
        rounds: How often each one's turn comes.
        threads: Of the CPU, for every engine and the matrix products; torch's choice if None.

    Returns:
        Where and how it was measured, ``matrix_product_gmacs_per_second`` by type, ``multiply_adds`` of an image by
        model, and ``variants``: what each is, its figures, and :attr:`Worker.facts`.

    Raises:
        ValueError: A variant cannot be prepared or run.
    """
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    types = sorted({variant.precision for variant in chosen} & set(TYPES))
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True), refresh_per_second=1))
        prepared = bar.track(chosen, description="Preparing")
        workers = [stack.enter_context(closing(Worker(variant, threads))) for variant in prepared]
        products = [_product(name, chosen[0].device) for name in types]
        turns: list[Callable[[], list[float]]] = [*[partial(worker.times, TIMED) for worker in workers], *products]
        seconds = _time_in_rounds(turns, bar.track(range(rounds), description="Measuring"))
    costs = {variant.model: multiply_adds(variant) for variant in {each.model: each for each in chosen}.values()}
    size = SIDE[chosen[0].device]
    peaks = {name: size**3 / min(times) for name, times in zip(types, seconds[len(workers) :], strict=True)}
    results = []
    for worker, times in zip(workers, seconds, strict=False):
        each = worker.variant
        figures = _figures(times, costs[each.model], peaks.get(each.precision), each.batch)
        results.append({**asdict(each), **figures, **worker.facts})
    about = provenance(0)
    about["versions"] |= {name: version(name) for name in _packages(chosen)}
    return {
        **about,
        "rounds": rounds,
        "matrix_product_gmacs_per_second": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        "multiply_adds": costs,
        "variants": results,
    }


def _packages(chosen: Sequence[Variant]) -> set[str]:
    """The packages of the engines that were used."""
    used = {variant.engine for variant in chosen} & {"onnxruntime", "openvino"}
    quantised = any((variant.engine, variant.precision) == ("openvino", "int8") for variant in chosen)
    return used | ({"nncf"} if quantised else set())


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


def _product(precision: str, device: str) -> Callable[[], list[float]]:
    """A turn of a product of two square matrices in a type."""
    matrix = torch.randn(SIDE[device], SIDE[device], dtype=TYPES[precision], device=device)
    product = torch.empty_like(matrix)

    def multiply() -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return lambda: [multiply() for _ in range(1 + TIMED)][1:]


def _time_in_rounds(turns: Sequence[Callable[[], list[float]]], rounds: Iterable[int]) -> list[list[float]]:
    """Seconds of each one's inferences, round by round."""
    seconds: list[list[float]] = [[] for _ in turns]
    for number in rounds:
        for index in range(len(turns))[:: 1 if number % 2 else -1]:
            seconds[index] += turns[index]()
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

"""Latency, throughput and memory of models in several engines, side by side in one run.

Configurations are measured in rounds, see :func:`in_rounds`. Each has its own process, which reports its memory and the
time of the preparation and of the first inference. The product of two large matrices is measured in the same rounds, as
the highest speed at which the machine can multiply in each type.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from iformer.benchmark import configurations, detectors, training
from iformer.benchmark.configurations import Configuration
from iformer.benchmark.process import MeasuredProcess
from iformer.common.provenance import provenance
from iformer.models.prediction import TYPES

TIMED = 3
"""The number of timed inferences of each configuration in a round, after one that is not timed."""

SIDE = {"cpu": 2048, "cuda": 8192}
"""The side of the matrices whose product measures the machine, for each device."""


BACKWARD = 2
"""The multiply-adds of a backward pass over those of the forward pass: the gradients of the inputs and the weights."""


def run(
    chosen: Sequence[Configuration],
    rounds: int = 10,
    threads: int | None = None,
    failed: dict[Configuration, str] | None = None,
) -> dict[str, Any]:
    """Measure configurations side by side.

    Args:
        chosen: The configurations, see :func:`iformer.benchmark.configurations.combinations`.
        rounds: The number of rounds.
        threads: The number of CPU threads of every engine and of the matrix products; None leaves it to torch.
        failed: A dictionary that takes the reasons why configurations cannot be prepared or run, which are then left
            out; by default the first of them is an error.

    Returns:
        The machine, versions and settings of the measurement, ``matrix_product_gmacs_per_second`` by type, and
        ``variants``, each with its configuration, the ``multiply_adds`` of an image, in training those of both passes,
        its figures, and its :attr:`MeasuredProcess.facts`.

    Raises:
        ValueError: A configuration cannot be prepared or run, and there is no ``failed`` to take the reason.
    """
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    types = sorted({configuration.precision for configuration in chosen} & set(TYPES))
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True), refresh_per_second=1))
        processes: list[MeasuredProcess] = []
        for configuration in bar.track(chosen, description="Preparing"):
            with _kept(configuration, failed):
                processes.append(stack.enter_context(closing(MeasuredProcess(configuration, threads))))
        products = [_product(name, chosen[0].device) for name in types]
        turns: list[Callable[[], list[float]]] = [
            *[partial(_turn, process, failed) for process in processes],
            *products,
        ]
        seconds = in_rounds(turns, bar.track(range(rounds), description="Measuring"))
    lost = failed or {}
    alike = {_work(configuration): configuration for configuration in chosen if configuration not in lost}
    costs = {work: multiply_adds(configuration) for work, configuration in alike.items()}
    size = SIDE[chosen[0].device]
    peaks = {name: size**3 / min(times) for name, times in zip(types, seconds[len(processes) :], strict=True)}
    results = []
    for process, times in zip(processes, seconds, strict=False):
        each = process.configuration
        if each in lost:
            continue
        cost = costs[_work(each)]
        figures = _figures(times, cost, peaks.get(each.precision), each.batch)
        results.append({**asdict(each), "multiply_adds": cost, **figures, **process.facts})
    about = provenance(0)
    about["versions"] |= {name: version(name) for name in _packages(chosen)}
    if chosen[0].device == "cuda":
        about["versions"]["cuda"] = str(torch.version.cuda)
    return {
        **about,
        "rounds": rounds,
        "matrix_product_gmacs_per_second": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        "variants": results,
    }


@contextmanager
def _kept(configuration: Configuration, failed: dict[Configuration, str] | None) -> Iterator[None]:
    """Keep the reason why a configuration cannot be prepared or run, if there is a dictionary for it."""
    try:
        yield
    except ValueError as error:
        if failed is None:
            raise
        failed[configuration] = str(error).removeprefix(f"{configuration.label}: ")


def _turn(process: MeasuredProcess, failed: dict[Configuration, str] | None) -> list[float]:
    """Return the times of a process, and none once it has failed."""
    times: list[float] = []
    if process.configuration not in (failed or {}):
        with _kept(process.configuration, failed):
            times = process.times(TIMED)
    return times


def _packages(chosen: Sequence[Configuration]) -> set[str]:
    """Return the names of the packages of the engines in use."""
    used = {configuration.engine for configuration in chosen} & {"onnxruntime", "openvino"}
    quantised = any((configuration.engine, configuration.precision) == ("openvino", "int8") for configuration in chosen)
    return used | ({"nncf"} if quantised else set())


def _product(precision: str, device: str) -> Callable[[], list[float]]:
    """Return a function that times products of two square matrices in a type."""
    matrix = torch.randn(SIDE[device], SIDE[device], dtype=TYPES[precision], device=device)
    product = torch.empty_like(matrix)

    def multiply() -> float:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return lambda: [multiply() for _ in range(1 + TIMED)][1:]


def in_rounds(turns: Sequence[Callable[[], list[float]]], rounds: Iterable[int]) -> list[list[float]]:
    """Measure several functions in rounds, in which each has its turn, in an order drawn anew for each round.

    Other work on the machine thus affects all of them alike, even if it comes and goes at regular intervals; and none
    always follows itself, or the same other one, which would leave it the caches in a state of its own.

    Args:
        turns: The functions, each of which does some work and returns its times in seconds.
        rounds: One item for each round.

    Returns:
        The times of each function over all rounds, in seconds.
    """
    seconds: list[list[float]] = [[] for _ in turns]
    drawn = random.Random(0)
    for _ in rounds:
        for index in drawn.sample(range(len(turns)), len(turns)):
            seconds[index] += turns[index]()
    return seconds


def _figures(times: list[float], cost: int, peak: float | None, batch: int) -> dict[str, Any]:
    """Return milliseconds per batch, images per second, and the speed of the multiply-adds as a share of the peak."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return {
        "milliseconds": round(1e3 * median, 3),
        "quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
        "images_per_second": round(batch / median, 2),
        "share_of_peak": round(cost * batch / median / peak, 3) if peak else None,
    }


def _work(configuration: Configuration) -> tuple[Any, ...]:
    """Return what the multiply-adds of an image depend on."""
    return tuple(getattr(configuration, name) for name in ("model", "task", "features", "height", "width", "training"))


def multiply_adds(configuration: Configuration) -> int:
    """Return the multiply-adds of a model's matrix products and convolutions, including attention, for one image.

    In training they are those of a forward pass and, as twice as many, those of a backward pass.
    """
    passes = 1 + BACKWARD if configuration.training else 1
    return passes * _of_a_pass(replace(configuration, training=False), configuration.training)


def _of_a_pass(configuration: Configuration, training_losses: bool) -> int:
    """Return the multiply-adds of a forward pass for one image; a detector's in training are those of its losses."""
    height, width = configuration.height, configuration.width
    network = configurations.network(configuration)
    if not detectors.is_detector(network):
        images = torch.empty(1, configurations.channels(network), height, width, device="meta")
        return count_multiply_adds(network.to("meta"), images)
    if training_losses:  # of samples around objects, and not of what the detector finds
        network = training.network(configuration)
        return count_multiply_adds(network, *training.inputs_for(network, configuration, 1, torch.device("cpu")))
    return count_multiply_adds(network, detectors.images_for(1, height, width))


@torch.no_grad()
def count_multiply_adds(network: Any, *inputs: Any) -> int:
    """Return the multiply-adds of a network's matrix products and convolutions, including attention, for its inputs."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        network(*inputs)
    return int(counter.get_total_flops()) // 2

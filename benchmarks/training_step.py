"""A training step of iformer_small at 224 pixels on the CPU: a naive iFormer and ours, side by side in one run.

A step consists of forward pass, cross entropy, backward pass and AdamW. Both models have the same weights and must
first give the same logits. Speed is the median over interleaved rounds in which each model does one step. Memory is the
highest of a fresh process that does two steps, and the part of it that the steps add to imports, model and images.

    python -m benchmarks.training_step
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import iformer  # noqa: F401  (registers the models)
from benchmarks.naive_iformer import NaiveIFormer
from iformer.benchmark.memory import peak_of
from iformer.benchmark.rounds import in_rounds
from iformer.common.files import write_json
from iformer.common.provenance import provenance
from iformer.models.recomputation import recompute
from iformer.models.released import convert

PRECISIONS = ("float32", "bfloat16")


def build(name: str, seed: int) -> nn.Module:
    """Return the ``naive`` model or ``ours``, in training mode."""
    torch.manual_seed(seed)
    if name == "naive":
        return NaiveIFormer("iformer_small")
    return recompute(timm.create_model("iformer_small")).to(memory_format=torch.channels_last)


def models(seed: int) -> dict[str, nn.Module]:
    """Return the naive model and ours with the same weights, in training mode.

    Raises:
        AssertionError: Their logits differ.
    """
    naive, ours = build("naive", seed), build("ours", seed)
    ours.load_state_dict(convert(naive.state_dict()))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), naive.eval()(images), rtol=1e-4, atol=1e-5)
    return {"naive": naive.train(), "ours": ours.train()}


def step(name: str, model: nn.Module, precision: str, batch_size: int) -> Callable[[], None]:
    """Return a training step that can be called repeatedly."""
    images = torch.randn(batch_size, 3, 224, 224)
    labels = torch.randint(1000, (batch_size,))
    if name == "ours":
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def run() -> None:
        autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
        with autocast:
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def prepared_step(name: str, precision: str, batch_size: int, seed: int) -> Callable[[], None]:
    """Return a training step of one of the two models, for a separate process."""
    return step(name, build(name, seed), precision, batch_size)


def timed(run: Callable[[], None]) -> list[float]:
    """Return the seconds that a step takes, as a list of one value."""
    start = time.perf_counter()
    run()
    return [time.perf_counter() - start]


def measure_speed(batch_size: int, rounds: int, seed: int) -> dict[str, float]:
    """Return the median images per second of each model in each precision."""
    steps = {
        f"{name} {precision}": step(name, model, precision, batch_size)
        for precision in PRECISIONS
        for name, model in models(seed).items()
    }
    for run in steps.values():
        run()  # warm up
    console = Console(stderr=True)
    turns = [partial(timed, run) for run in steps.values()]
    seconds = in_rounds(turns, track(range(rounds), "Measuring", console=console))
    medians = zip(steps, map(statistics.median, seconds), strict=True)
    return {name: round(batch_size / median, 2) for name, median in medians}


def measure_memory(batch_size: int, threads: int, seed: int) -> dict[str, list[float]]:
    """Return the peak of a process with each model in each precision in MiB, and how much of it training added."""
    memory = {}
    for name, precision in itertools.product(("naive", "ours"), PRECISIONS):
        arguments = (name, precision, batch_size, seed)
        peak = peak_of("benchmarks.training_step:prepared_step", *arguments, threads=threads)
        memory[f"{name} {precision}"] = [round(peak.highest, 1), round(peak.added, 1)]
    return memory


def report(speed: dict[str, float], memory: dict[str, list[float]]) -> dict[str, object]:
    """Return the figures of both models and their ratios, for each precision."""
    results: dict[str, object] = {}
    for precision in PRECISIONS:
        naive, ours = f"naive {precision}", f"ours {precision}"
        results[precision] = {
            "images_per_second": {"naive": speed[naive], "ours": speed[ours]},
            "peak_memory_mib": {"naive": memory[naive][0], "ours": memory[ours][0]},
            "added_memory_mib": {"naive": memory[naive][1], "ours": memory[ours][1]},
            "speed_ratio": round(speed[ours] / speed[naive], 3),
            "peak_memory_ratio": round(memory[ours][0] / memory[naive][0], 3),
            "added_memory_ratio": round(memory[ours][1] / memory[naive][1], 3),
        }
    return results


def print_table(results: dict[str, dict]) -> None:
    """Print the figures as a table."""
    table = Table("precision", "", "naive", "ours", "ratio")
    for precision, result in results.items():
        for what, key, ratio in (
            ("images/s", "images_per_second", "speed"),
            ("peak MiB", "peak_memory_mib", "peak_memory"),
            ("added MiB", "added_memory_mib", "added_memory"),
        ):
            values = [f"{result[key][name]:,.1f}" for name in ("naive", "ours")]
            table.add_row(precision, what, *values, f"{result[f'{ratio}_ratio']:.2f}")
    Console().print(table)


def main() -> None:
    """Measure speed and memory, print them and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/training_step.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    memory = measure_memory(arguments.batch_size, arguments.threads, arguments.seed)
    speed = measure_speed(arguments.batch_size, arguments.rounds, arguments.seed)
    results = report(speed, memory)
    print_table(json.loads(json.dumps(results)))
    write_json(
        arguments.output,
        {
            **provenance(arguments.seed),
            "environment": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
            "model": "iformer_small",
            "image_size": 224,
            "batch_size": arguments.batch_size,
            "rounds": arguments.rounds,
            **results,
        },
    )


if __name__ == "__main__":
    main()

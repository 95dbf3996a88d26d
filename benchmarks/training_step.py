"""One training step of iformer_small at 224 pixels on the CPU: a naive iFormer beside ours, in one run.

A step is forward, cross entropy, backward and AdamW. Both models carry the same weights and must give the same logits
first. Speed: rounds in which each variant does one step, one after the other and in alternating order, so that whatever
else the machine does hits all alike; medians are reported. Memory: each variant in a fresh process, the highest
resident memory that two steps (the second has optimiser state) add to what imports, model and images take.

    python -m benchmarks.training_step
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import iformer  # noqa: F401  (registers the models)
from benchmarks import record
from benchmarks.naive_iformer import NaiveIFormer
from iformer.common.provenance import provenance
from iformer.models.recomputation import recompute
from iformer.models.released import convert

PRECISIONS = ("float32", "bfloat16")
TARGETS = {"speed": ">= 1.4", "peak_memory": "<= 0.75", "added_memory": ""}


def build(name: str, seed: int) -> nn.Module:
    """``naive`` or ``ours``, in training mode."""
    torch.manual_seed(seed)
    if name == "naive":
        return NaiveIFormer("iformer_small")
    return recompute(timm.create_model("iformer_small")).to(memory_format=torch.channels_last)


def models(seed: int) -> dict[str, nn.Module]:
    """The naive model and ours with the same weights, in training mode.

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
    """A training step to call again and again."""
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


def measure_speed(batch_size: int, rounds: int, seed: int) -> dict[str, float]:
    """Median images per second of each variant."""
    steps = {
        f"{name} {precision}": step(name, model, precision, batch_size)
        for precision in PRECISIONS
        for name, model in models(seed).items()
    }
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    for variant in steps:
        steps[variant]()  # warm up
    for number in range(rounds):
        for variant in list(steps)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            steps[variant]()
            seconds[variant].append(time.perf_counter() - start)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {variant: round(batch_size / statistics.median(times), 2) for variant, times in seconds.items()}


def peak_memory() -> float:
    """Highest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure_memory(name: str, precision: str, batch_size: int, seed: int) -> tuple[float, float]:
    """Peak of this process in MiB, and how much of it training added. To be called in a fresh process."""
    run = step(name, build(name, seed), precision, batch_size)
    before = peak_memory()
    run()
    run()
    return round(peak_memory(), 1), round(peak_memory() - before, 1)


def memory_in_fresh_process(name: str, precision: str, arguments: argparse.Namespace) -> list[float]:
    """:func:`measure_memory` in a process of its own."""
    options = {"--batch-size": arguments.batch_size, "--threads": arguments.threads, "--seed": arguments.seed}
    command = [sys.executable, "-m", "benchmarks.training_step", "--memory-of", name, precision]
    command += [str(part) for option in options.items() for part in option]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(speed: dict[str, float], memory: dict[str, list[float]]) -> dict[str, object]:
    """The figures of both models and their ratios, per precision."""
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
    """For people."""
    table = Table("precision", "", "naive", "ours", "ratio", "target")
    for precision, result in results.items():
        for what, key, ratio in (
            ("images/s", "images_per_second", "speed"),
            ("peak MiB", "peak_memory_mib", "peak_memory"),
            ("added MiB", "added_memory_mib", "added_memory"),
        ):
            target = TARGETS[ratio] if precision == "float32" else ""
            values = [f"{result[key][name]:,.1f}" for name in ("naive", "ours")]
            table.add_row(precision, what, *values, f"{result[f'{ratio}_ratio']:.2f}", target)
    Console().print(table)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/training_step.json"))
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(json.dumps(measure_memory(*arguments.memory_of, arguments.batch_size, arguments.seed)))
        return
    # Memory first: a child's figure cannot be below what its parent took when it was started.
    memory = {
        f"{name} {precision}": memory_in_fresh_process(name, precision, arguments)
        for precision in PRECISIONS
        for name in ("naive", "ours")
    }
    speed = measure_speed(arguments.batch_size, arguments.rounds, arguments.seed)
    results = report(speed, memory)
    print_table(json.loads(json.dumps(results)))
    record.write(
        arguments.output,
        {
            **provenance(arguments.seed),
            "environment": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
            "model": "iformer_small",
            "image_size": 224,
            "batch_size": arguments.batch_size,
            "rounds": arguments.rounds,
            "targets": {"speed_ratio": TARGETS["speed"], "peak_memory_ratio": TARGETS["peak_memory"]},
            **results,
        },
    )


if __name__ == "__main__":
    main()

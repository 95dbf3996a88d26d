"""Mask R-CNN and Semantic FPN with iFormer-S in every engine, beside their peers in eager float32.

    python -m benchmarks.tasks

Detectors take images of 800x1066 pixels, segmenters of 512x512. The weights are random, and every detector is given the
same number of boxes, see iformer.benchmark.detectors.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import about, markdown
from iformer.benchmark import configurations, detectors
from iformer.benchmark import page as benchmark_page
from iformer.benchmark.configurations import Configuration, combinations
from iformer.benchmark.rounds import run
from iformer.common.files import write_json

OURS = "iformer_small"
PEERS = {
    "detection": ("torchvision.models.detection:maskrcnn_resnet50_fpn", "swin_tiny_patch4_window7_224"),
    "segmentation": ("torchvision.models.segmentation:deeplabv3_resnet50",),
}
ENGINES = {"fused": ["fp32", "bf16"], "onnxruntime": ["fp32"], "openvino": ["fp32", "bf16", "int8"]}
SIZES = {"detection": (800, 1066), "segmentation": (512, 512)}


def chosen_configurations(task: str, size: tuple[int, int], ours: str = OURS) -> list[Configuration]:
    """Return the configurations of a task: ours and its peers in eager float32, and ours in all engines."""
    offered = detectors.ENGINES if task == "detection" else configurations.ENGINES
    chosen = combinations([ours, *PEERS[task]], ["eager"], ["fp32"], size=size, task=task)
    for engine, precisions in ENGINES.items():
        if engine in offered:
            chosen += combinations([ours], [engine], precisions, size=size, task=task)
    return chosen


def ratios(results: dict[str, Any], ours: str = OURS) -> dict[str, float]:
    """Return how many times as fast the best engine is as eager float32, and int8 as the best engine's float32."""
    time = {
        (row["model"], row["engine"], row["precision"]): row["milliseconds"]
        for row in results["variants"]
        if row["model"] == ours
    }
    eager = time[ours, "eager", "fp32"]
    engine = min((each for each in time if each[2] == "fp32"), key=lambda each: time[each])[1]
    found = {
        "fp32, best engine over eager": eager / time[ours, engine, "fp32"],
        "any precision, best engine over eager": eager / min(time.values()),
    }
    if (ours, engine, "int8") in time:
        found["int8 over the same engine's fp32"] = time[ours, engine, "fp32"] / time[ours, engine, "int8"]
    others = [row for row in results["variants"] if row["model"] != ours]
    for row in others:
        name = row["model"].rpartition(":")[2]
        found[f"eager fp32, over {name}"] = row["milliseconds"] / eager
    return {what: round(value, 2) for what, value in found.items()}


def section(results: dict[str, Any], folder: str) -> str:
    """Return the section of the page in Markdown."""
    parts = ["## Detection and segmentation"]
    for task, each in results.items():
        headings, body = benchmark_page.rows(each)
        height, width = each["variants"][0]["height"], each["variants"][0]["width"]
        what = "Mask R-CNN" if task == "detection" else "Semantic FPN"
        parts += [
            f"{what}, images of {height}x{width} pixels, random weights. {about(each)}",
            markdown(["speed", "ratio"], [[name, f"{value:.2f}"] for name, value in each["ratios"].items()]),
            markdown(headings, body),
        ]
    return "\n\n".join(parts)


def main(given: Sequence[str] | None = None) -> None:
    """Measure both tasks, print the ratios and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--model", default=OURS, help="the backbone to measure in every engine")
    parser.add_argument("--size", nargs=2, type=int, help="height and width; default: the task's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("docs/results/performance/tasks.json"))
    arguments = parser.parse_args(given)
    results = {}
    for task in arguments.tasks:
        size = tuple(arguments.size) if arguments.size else SIZES[task]
        measured = run(chosen_configurations(task, size, arguments.model), arguments.rounds, arguments.threads)
        results[task] = {**measured, "ratios": ratios(measured, arguments.model)}
        print(json.dumps(results[task]["ratios"], indent=2))
    write_json(arguments.output, results)


if __name__ == "__main__":
    main()

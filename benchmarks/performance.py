"""iFormer-S in every engine beside a naive iFormer, ConvNeXt-T and Swin-T: all in one run.

python -m benchmarks.performance

The accuracy lost by int8 needs a trained model and its images. docs/performance.md has a row for each file in
docs/results/performance/int8 that a command like this has written:

iformer export runs/cifar10 --format openvino --precision int8 --images TRAIN_FOLDER --labelled TEST_FOLDER --json
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.naive_iformer import NaiveIFormer
from benchmarks.tables import about, markdown
from iformer.benchmark import page as benchmark_page
from iformer.benchmark.configurations import Configuration, combinations
from iformer.benchmark.process import MeasuredProcess
from iformer.benchmark.rounds import run
from iformer.common.files import write_json
from iformer.deployment.accuracy import SCORES

NAIVE = "benchmarks.naive_iformer:NaiveIFormer"
OURS = "iformer_small"
PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
DETECTION = (800, 1280)


def naive_backbone() -> nn.Module:
    """Return the naive model for images of ``DETECTION`` pixels; the cost of its classifier is negligible."""
    model = NaiveIFormer()
    for stage in range(1, 5):
        embedding = getattr(model, f"pos_embed{stage}")
        height, width = (side // 2 ** (stage + 1) for side in DETECTION)
        setattr(model, f"pos_embed{stage}", nn.Parameter(torch.zeros(1, height, width, embedding.shape[-1])))
    return model


def chosen_configurations() -> list[Configuration]:
    """Return the configurations to compare, torch.compile in one type and size only as it takes minutes to compile."""
    return [
        *combinations([NAIVE, OURS, *PEERS], ["eager"], ["fp32"]),
        *combinations([OURS], ["fused"], ["fp32", "bf16"]),
        *combinations([OURS], ["compile"], ["fp32"]),
        *combinations([OURS], ["onnxruntime", "openvino"], ["fp32", "bf16", "int8"]),
        *combinations(PEERS, ["openvino"], ["fp32"]),
        *combinations([OURS], ["fused"], ["fp32"], [8]),
        *combinations([OURS], ["openvino"], ["fp32", "bf16", "int8"], [8]),
    ]


def backbone_memory(threads: int) -> dict[str, dict[str, float]]:
    """Return the peak memory of fp32 backbones at ``DETECTION`` pixels, and the part that inference adds, in MiB."""
    height, width = DETECTION
    memory = {}
    for name, configuration in {
        "naive, eager": Configuration("benchmarks.performance:naive_backbone", "eager", "fp32", 1, height, width),
        "ours, fused": Configuration(OURS, "fused", "fp32", 1, height, width, features=True),
    }.items():
        with closing(MeasuredProcess(configuration, threads)) as process:
            memory[name] = {
                "peak": process.facts["peak_memory_mib"],
                "inference": process.facts["inference_memory_mib"],
            }
    return memory


def ratios(results: dict[str, Any], memory: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the ratios of iFormer-S to the other models within the run."""
    time = {
        (row["model"], row["engine"], row["precision"]): row["milliseconds"]
        for row in results["variants"]
        if row["batch"] == 1
    }
    work = {row["model"]: row["multiply_adds"] for row in results["variants"]}
    naive = time[NAIVE, "eager", "fp32"]
    ideal = work[OURS] / results["matrix_product_gmacs_per_second"]["fp32"] / 1e6
    best = min(time[OURS, engine, "fp32"] for engine in ("onnxruntime", "openvino"))
    in_torch = min(time[OURS, engine, "fp32"] for engine in ("fused", "compile"))

    def gain(precision: str) -> float:
        return time[OURS, "openvino", "fp32"] / time[OURS, "openvino", precision]

    def pace(model: str) -> float:
        return time[model, "openvino", "fp32"] / work[model]

    def saved(what: str) -> float:
        return memory["ours, fused"][what] / memory["naive, eager"][what]

    found = {
        "fp32, best engine: times the naive model's speed": naive / best,
        "fp32, best engine: time over that of its multiply-adds at the peak": best / ideal,
        "fp32, the best of torch's own: times the naive model's speed": naive / in_torch,
        "bf16 over fp32, OpenVINO: speed": gain("bf16"),
        "int8 over fp32, OpenVINO: speed": gain("int8"),
        **{f"fp32, OpenVINO: time per multiply-add over {peer}'s": pace(OURS) / pace(peer) for peer in PEERS},
        "backbone at 800x1280, fp32: peak memory over the naive model's": saved("peak"),
        "the same without what is resident before, weights and libraries": saved("inference"),
    }
    return {what: round(value, 2) for what, value in found.items()}


def section(results: dict[str, Any], folder: str) -> str:
    """Return the section of the page in Markdown; its figure is in ``folder``."""
    headings, body = benchmark_page.rows(results)
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in results["matrix_product_gmacs_per_second"].items())
    memory = [
        [name, f"{mib['peak']:,.0f}", f"{mib['inference']:,.0f}"]
        for name, mib in results["backbone_memory_mib"].items()
    ]
    return f"""## Classification

{about(results)}

{markdown(["", "ratio"], [[what, f"{value:.2f}"] for what, value in results["ratios"].items()])}

Images of 224 pixels, random weights. Matrix products reach, in G multiply-adds/s: {peaks}. "of peak" is the share of it
at which a row does its multiply-adds; [deployment.md](deployment.md) says how the rest is measured.

{markdown(headings, body)}

![Median time of an image in each engine]({folder}/latency.png)

MiB of memory, backbone at 800x1280, fp32:

{markdown(["", "whole process, peak", "added by inference"], memory)}"""


def accuracy_section(exported: Sequence[dict[str, Any]]) -> str:
    """Return what the page says of the results of ``iformer export`` for trained models."""
    rows = []
    for each in exported:
        count, before, after = (each["accuracy"][key] for key in ("images", "eager", "file"))
        for name, value in before.items():
            row = [each["model"], f"{each['format']} {each['precision']}", f"{count:,}", SCORES[name]]
            rows.append([*row, f"{value:.2%}", f"{after[name]:.2%}", f"{100 * (value - after[name]):.2f}"])
    headings = ["Model", "Exported", "Images", "Score", "eager fp32", "exported", "points lost"]
    return f"## Accuracy in int8\n\n{markdown(headings, rows)}"


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print the ratios, and write the results and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args(given)
    memory = backbone_memory(arguments.threads)
    results = run(chosen_configurations(), arguments.rounds, arguments.threads)
    results |= {"backbone_memory_mib": memory, "ratios": ratios(results, memory)}
    folder = arguments.docs / "results" / "performance"
    write_json(folder / "results.json", results)
    benchmark_page.draw(results, folder / "latency.png")
    print(json.dumps(results["ratios"], indent=2))


if __name__ == "__main__":
    main()

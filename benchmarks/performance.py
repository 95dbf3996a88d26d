"""iFormer-S in every engine beside a naive iFormer, ConvNeXt-T and Swin-T: the page docs/performance.md, from one run.

python -m benchmarks.performance

What int8 costs in accuracy needs a trained model and its images; the page quotes it where this has been run before:

iformer export runs/cifar10 --format openvino --precision int8 --images TRAIN_FOLDER --labelled TEST_FOLDER --json \
    > docs/results/performance/int8.json
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import record
from benchmarks.naive_iformer import NaiveIFormer
from iformer.benchmark import page as benchmark_page
from iformer.benchmark.rounds import combinations, run
from iformer.benchmark.variants import Variant
from iformer.benchmark.worker import Worker

NAIVE = "benchmarks.naive_iformer:NaiveIFormer"
OURS = "iformer_small"
PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
DETECTION = (800, 1280)
KEPT = 2
"""Earlier runs whose figures stand beside the last one's."""


def naive_backbone() -> nn.Module:
    """The naive model for images of ``DETECTION`` pixels; its classifier costs nothing worth counting."""
    model = NaiveIFormer()
    for stage in range(1, 5):
        embedding = getattr(model, f"pos_embed{stage}")
        height, width = (side // 2 ** (stage + 1) for side in DETECTION)
        setattr(model, f"pos_embed{stage}", nn.Parameter(torch.zeros(1, height, width, embedding.shape[-1])))
    return model


def chosen_variants() -> list[Variant]:
    """What is compared. torch.compile takes minutes to get ready, and so it is here in one type and size only."""
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
    """MiB of the whole process at its peak, and what inference adds, of backbones at ``DETECTION`` pixels in fp32."""
    height, width = DETECTION
    memory = {}
    for name, variant in {
        "naive, eager": Variant("benchmarks.performance:naive_backbone", "eager", "fp32", 1, height, width),
        "ours, fused": Variant(OURS, "fused", "fp32", 1, height, width, features=True),
    }.items():
        with closing(Worker(variant, threads)) as worker:
            memory[name] = {"peak": worker.facts["peak_memory_mib"], "inference": worker.facts["inference_memory_mib"]}
    return memory


def targets(results: dict[str, Any], memory: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What was aimed at and what was reached: ratios within the run."""
    time = {
        (row["model"], row["engine"], row["precision"]): row["milliseconds"]
        for row in results["variants"]
        if row["batch"] == 1
    }

    def gain(precision: str) -> float:
        return time[OURS, "openvino", "fp32"] / time[OURS, "openvino", precision]

    def pace(model: str) -> float:
        return time[model, "openvino", "fp32"] / work[model]

    def saved(what: str) -> float:
        return memory["ours, fused"][what] / memory["naive, eager"][what]

    naive = time[NAIVE, "eager", "fp32"]
    work = results["multiply_adds"]
    ideal = work[OURS] / results["matrix_product_gmacs_per_second"]["fp32"] / 1e6
    best = min(time[OURS, engine, "fp32"] for engine in ("onnxruntime", "openvino"))
    torch_only = min(time[OURS, engine, "fp32"] for engine in ("fused", "compile"))
    rows = [
        ("fp32, best engine: times the naive model's speed", naive / best, ">=", 2.0),
        ("fp32, best engine: time over that of its multiply-adds at the peak", best / ideal, "<=", 1.1),
        ("fp32, fused, in torch: times the naive model's speed", naive / torch_only, ">=", 1.5),
        ("bf16 over fp32, OpenVINO: speed", gain("bf16"), ">=", 1.7),
        ("int8 over fp32, OpenVINO: speed", gain("int8"), ">=", 2.3),
        *[
            (f"fp32, OpenVINO: time per multiply-add over {peer}'s", pace(OURS) / pace(peer), "<=", 1.1)
            for peer in PEERS
        ],
        ("backbone at 800x1280, fp32: peak memory over the naive model's", saved("peak"), "<=", 0.4),
        ("the same without what is resident before, weights and libraries", saved("inference"), "<=", 0.4),
    ]
    return [
        {
            "what": what,
            "reached": round(value, 2),
            "target": f"{sign} {aim}",
            "met": value >= aim if sign == ">=" else value <= aim,
        }
        for what, value, sign, aim in rows
    ]


def page(results: dict[str, Any], figure: str, accuracy: dict[str, Any] | None = None) -> str:
    """The page in Markdown; ``accuracy`` is what ``iformer export`` said of a trained model."""
    headings, body = benchmark_page.rows(results)
    earlier = results["earlier_runs"]
    aims = [
        [row["what"], f"{row['reached']:.2f}", *before, row["target"], "yes" if row["met"] else "no"]
        for row, before in zip(
            results["aims"],
            [[f"{run[index]:.2f}" for run in earlier] for index in range(len(results["aims"]))],
            strict=True,
        )
    ]
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in results["matrix_product_gmacs_per_second"].items())
    memory = [
        [name, f"{mib['peak']:,.0f}", f"{mib['inference']:,.0f}"]
        for name, mib in results["backbone_memory_mib"].items()
    ]
    versions = ", ".join(
        f"{name} {results['versions'][name]}"
        for name in ("torch", "timm", "onnxruntime", "openvino", "nncf")
        if name in results["versions"]
    )
    return f"""# Performance

Written by `make bench`, from one run; the runs before it on the same machine stand beside it. Machine:
{results["machine"]}. {results["rounds"]} interleaved rounds. {versions}.

{_markdown(["", "reached", *["run before"] * len(earlier), "target", "met"], aims)}

Images of 224 pixels, random weights. Matrix products reach, in G multiply-adds/s: {peaks}. "of peak" is the share of it
at which a row does its multiply-adds; [deployment.md](deployment.md) says how the rest is measured.

{_markdown(headings, body)}

![Median time of an image in each engine]({figure})

MiB of memory, backbone at 800x1280, fp32:

{_markdown(["", "whole process, peak", "added by inference"], memory)}
{_accuracy(accuracy) if accuracy else ""}"""


def _accuracy(shipped: dict[str, Any]) -> str:
    top1 = shipped["accuracy"]
    return f"""
Top-1 of {shipped["model"]} on {top1["images"]:,} images: {top1["eager"]:.2%} eager in fp32, {top1["file"]:.2%} in
{shipped["precision"]} ({shipped["format"]}): {100 * (top1["eager"] - top1["file"]):.2f} points lost, target <= 0.5.
"""


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def earlier_runs(file: Path, machine: str) -> list[list[float]]:
    """What was reached in the last runs on this machine, the latest first."""
    if not file.is_file():
        return []
    last = json.loads(file.read_text())
    if last["machine"] != machine:
        return []
    return [[row["reached"] for row in last["aims"]], *last["earlier_runs"]][:KEPT]


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print, write the results, the picture and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args(given)
    memory = backbone_memory(arguments.threads)
    results = run(chosen_variants(), arguments.rounds, arguments.threads)
    results |= {"backbone_memory_mib": memory, "aims": targets(results, memory)}
    folder = arguments.docs / "results" / "performance"
    results["earlier_runs"] = earlier_runs(folder / "results.json", results["machine"])
    record.write(folder / "results.json", results)
    benchmark_page.draw(results, folder / "latency.png")
    int8 = folder / "int8.json"
    accuracy = json.loads(int8.read_text()) if int8.is_file() else None
    (arguments.docs / "performance.md").write_text(page(results, "results/performance/latency.png", accuracy))
    print(json.dumps(results["aims"], indent=2))


if __name__ == "__main__":
    main()

"""iFormer-S in every engine beside a naive iFormer, ConvNeXt-T and Swin-T: the page docs/performance.md, from one run.

python -m benchmarks.performance
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import record
from benchmarks.naive_iformer import NaiveIFormer
from iformer.deployment import benchmark_page
from iformer.deployment.benchmark import combinations, measure_alone, run
from iformer.deployment.variants import Variant
from iformer.training.provenance import provenance

NAIVE = "benchmarks.naive_iformer:NaiveIFormer"
OURS = "iformer_small"
PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
DETECTION = (800, 1280)


def naive_backbone() -> nn.Module:
    """The naive model for images of ``DETECTION`` pixels; its classifier costs nothing worth counting."""
    model = NaiveIFormer()
    for stage in range(1, 5):
        embedding = getattr(model, f"pos_embed{stage}")
        height, width = (side // 2 ** (stage + 1) for side in DETECTION)
        setattr(model, f"pos_embed{stage}", nn.Parameter(torch.zeros(1, height, width, embedding.shape[-1])))
    return model


def chosen_variants() -> list[Variant]:
    """What is compared."""
    torch_engines, others = ("eager", "fused", "compile"), ("onnxruntime", "openvino")
    return [
        *combinations([NAIVE], ["eager"], ["fp32"]),
        *combinations([OURS], torch_engines, ["fp32", "bf16"]),
        *combinations([OURS], others, ["fp32", "bf16", "int8"]),
        *combinations(PEERS, ["eager"], ["fp32"]),
        *combinations(PEERS, ["openvino"], ["fp32", "bf16", "int8"]),
        *combinations([OURS], ["openvino"], ["fp32", "bf16", "int8"], [8]),
    ]


def backbone_memory(threads: int) -> dict[str, float]:
    """MiB that inference adds, of backbones at ``DETECTION`` pixels in float32."""
    height, width = DETECTION
    backbones = {
        "naive": Variant("benchmarks.performance:naive_backbone", "eager", "fp32", 1, height, width),
        "ours": Variant(OURS, "fused", "fp32", 1, height, width, features=True),
    }
    return {name: measure_alone(variant, threads)["inference_memory_mib"] for name, variant in backbones.items()}


def targets(results: dict[str, Any], memory: dict[str, float]) -> list[dict[str, Any]]:
    """What was aimed at and what was reached: ratios within the run."""
    time = {
        (row["model"], row["engine"], row["precision"]): row["milliseconds"]
        for row in results["variants"]
        if row["batch"] == 1
    }

    def best(precision: str) -> float:
        return min(time.get((OURS, engine, precision), 1e9) for engine in ("onnxruntime", "openvino"))

    def gain(precision: str) -> float:
        return time[OURS, "openvino", "fp32"] / time[OURS, "openvino", precision]

    def cost(peer: str) -> float:
        return time[peer, "openvino", "fp32"] / work[peer]

    naive = time[NAIVE, "eager", "fp32"]
    work = results["multiply_adds"]
    ideal = work[OURS] / results["matrix_product_gmacs_per_second"]["fp32"] / 1e6
    per_mac = best("fp32") / work[OURS]
    torch_only = min(time[OURS, engine, "fp32"] for engine in ("fused", "compile"))
    rows = [
        ("fp32, best engine: times the naive model's speed", naive / best("fp32"), ">=", 2.0),
        ("fp32, best engine: time over that of its multiply-adds at the peak", best("fp32") / ideal, "<=", 1.1),
        ("fp32, fused, in torch: times the naive model's speed", naive / torch_only, ">=", 1.5),
        ("bf16 over fp32, OpenVINO: speed", gain("bf16"), ">=", 1.7),
        ("int8 over fp32, OpenVINO: speed", gain("int8"), ">=", 2.3),
        *[(f"fp32: time per multiply-add over {peer}'s", per_mac / cost(peer), "<=", 1.1) for peer in PEERS],
        ("backbone at 800x1280, fp32: memory over the naive model's", memory["ours"] / memory["naive"], "<=", 0.4),
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


def page(results: dict[str, Any], figure: str) -> str:
    """The page in Markdown."""
    headings, body = benchmark_page.rows(results)
    aims = [[row["what"], str(row["reached"]), row["target"], "yes" if row["met"] else "no"] for row in results["aims"]]
    peaks = ", ".join(f"{name} {value:,.0f}" for name, value in results["matrix_product_gmacs_per_second"].items())
    memory = results["backbone_memory_mib"]
    return f"""# Performance

Written by `make bench`. Machine: {results["machine"]}. {results["rounds"]} interleaved rounds; PyTorch \
{results["versions"]["torch"]}.

{_markdown(["", "reached", "target", "met"], aims)}

Images of 224 pixels. Matrix products reach, in G multiply-adds/s: {peaks}. "of peak" is the share of it at which a row
does its multiply-adds; [deployment.md](deployment.md) says how the rest is measured.

{_markdown(headings, body)}

![Median time of an image in each engine]({figure})

Memory that inference adds, backbone at 800x1280, fp32: {memory["naive"]:,.0f} MiB naive, {memory["ours"]:,.0f} MiB
ours.
"""


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, print, write the results, the picture and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    memory = backbone_memory(arguments.threads)
    results = run(chosen_variants(), arguments.rounds, arguments.threads)
    results = {**provenance(0), **results, "backbone_memory_mib": memory, "aims": targets(results, memory)}
    record.write(arguments.docs / "results" / "performance.json", results)
    benchmark_page.draw(results, arguments.docs / "images" / "performance.svg")
    (arguments.docs / "performance.md").write_text(page(results, "images/performance.svg"))
    print(json.dumps(results["aims"], indent=2))


if __name__ == "__main__":
    main()

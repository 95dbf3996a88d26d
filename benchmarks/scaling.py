"""How cost grows with work: image side, batch, threads and accuracy, for iFormer-S beside its peers.

    python -m benchmarks.scaling

The weights are random. All models of one image side, or of one batch size, are measured in the same rounds; the slopes
are fitted over the sides (in the number of pixels) and over the batch sizes, in logarithms.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.tables import about, exponent, markdown
from iformer.benchmark.configurations import Configuration, network
from iformer.benchmark.rounds import in_rounds, run
from iformer.common.files import write_json
from iformer.common.plotting import BLUE, GREEN, ORANGE, STYLE, save_figure
from iformer.common.provenance import provenance
from iformer.deployment import engines
from iformer.deployment.channels_first import channels_first
from iformer.deployment.engines import quiet
from iformer.deployment.formats import prepare, to_openvino
from iformer.models.backbone import create
from iformer.paper.published import TABLE_1

OURS = "iformer_small"
MODELS = {OURS: BLUE, "benchmarks.scaling:swin_tiny": ORANGE, "convnext_tiny": GREEN}

# Top-1 on ImageNet-1K and the side of the test images, from results/results-imagenet.csv in timm's repository at commit
# 0173a139a2c66db3a41ebfe1d8ac4fb02483642e (https://github.com/huggingface/pytorch-image-models). All are trained on
# ImageNet-1K only, without a teacher.
PUBLISHED = {
    "swin_tiny_patch4_window7_224.ms_in1k": (81.376, 224),
    "deit3_small_patch16_224.fb_in1k": (81.370, 224),
    "pvt_v2_b2.in1k": (82.086, 224),
    "poolformer_m36.sail_in1k": (82.102, 224),
    "efficientnet_b3.ra2_in1k": (82.242, 320),
    "convnext_tiny.fb_in1k": (82.698, 288),
    "regnety_040.ra3_in1k": (83.044, 288),
    "pvt_v2_b3.in1k": (83.120, 224),
    "swin_small_patch4_window7_224.ms_in1k": (83.208, 224),
    "coatnet_rmlp_1_rw_224.sw_in1k": (83.362, 224),
    "maxvit_tiny_tf_224.in1k": (83.402, 224),
    "caformer_s18.sail_in1k": (83.656, 224),
    "convnext_small.fb_in1k": (83.700, 288),
}
OF_THE_PAPER = ("iformer_small", "iformer_base")


def swin_tiny() -> nn.Module:
    """Return Swin-T for images of any size, with its windows of 7x7 and padding where they do not fit."""
    return create("swin_tiny_patch4_window7_224", strict_img_size=False)


def growth(chosen: dict[int, list[Configuration]], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return the figures of configurations that are grouped by the amount of their work, which each row names."""
    rows = []
    for amount, group in chosen.items():
        for row in run(group, rounds, threads)["variants"]:
            rows.append({"amount": amount, **row})
    return rows


def by_side(sides: Sequence[int], engines: Sequence[str]) -> dict[int, list[Configuration]]:
    """Return the configurations of one image of each side, in pixels."""
    return {
        side: [Configuration(model, engine, "fp32", 1, side, side) for model in MODELS for engine in engines]
        for side in sides
    }


def by_batch(batches: Sequence[int], engines: Sequence[str], side: int) -> dict[int, list[Configuration]]:
    """Return the configurations of each batch size."""
    return {
        batch: [Configuration(model, engine, "fp32", batch, side, side) for model in MODELS for engine in engines]
        for batch in batches
    }


def slopes(rows: Sequence[dict[str, Any]], power: int) -> list[dict[str, Any]]:
    """Return the exponents of time and of the memory that inference adds, in the amount to a power."""
    found = []
    for model, engine in dict.fromkeys((row["model"], row["engine"]) for row in rows):
        own = [row for row in rows if (row["model"], row["engine"]) == (model, engine)]
        amounts = [row["amount"] ** power for row in own]
        times, memory = ([row[key] for row in own] for key in ("milliseconds", "inference_memory_mib"))
        found.append(
            {
                "model": model,
                "engine": engine,
                "time": exponent(amounts, times),
                "memory": exponent(amounts, [max(value, 1.0) for value in memory]),
            }
        )
    return found


def throughput(side: int, batch: int, threads: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Return images per second of iFormer-S in OpenVINO with each hint, number of threads and type."""
    model = network(Configuration(OURS, "openvino", "fp32", 1, side, side))
    images = torch.randn(1, 3, side, side)
    with quiet():
        graph = to_openvino(channels_first(prepare(model, images)), images)
    kinds = [
        {"precision": precision, "hint": hint, "threads": count}
        for precision in ("fp32", "bf16")
        for count in threads
        for hint in ("latency", "throughput")
    ]
    turns = [_queue(graph, images, batch, **kind) for kind in kinds]
    for turn in turns:
        turn()  # warm up
    seconds = in_rounds(turns, range(rounds))
    return [
        {**kind, "images_per_second": round(batch / median(times), 2)}
        for kind, times in zip(kinds, seconds, strict=True)
    ]


def _queue(
    graph: Any, images: torch.Tensor, count: int, precision: str, hint: str, threads: int
) -> Callable[[], list[float]]:
    """Return a function that times ``count`` images in as many requests at once as the hint asks for."""
    openvino = engines.require("openvino")
    properties = {
        "PERFORMANCE_HINT": hint.upper(),
        "INFERENCE_PRECISION_HINT": engines.OPENVINO_TYPES[precision],
        "INFERENCE_NUM_THREADS": threads,
    }
    queue = openvino.AsyncInferQueue(openvino.Core().compile_model(graph, "CPU", properties))
    pixels = images.numpy()

    def turn() -> list[float]:
        start = perf_counter()
        for _ in range(count):
            queue.start_async([pixels])
        queue.wait_all()
        return [perf_counter() - start]

    return turn


def trade_off(names: Sequence[str], engine: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Return the published top-1 of models and their measured latency, for images of the size of that top-1."""
    ours = {row.model: (float(row.accuracies[0]), row.size[0]) for row in TABLE_1.rows if row.model in OF_THE_PAPER}
    published = {name: value for name, value in {**PUBLISHED, **ours}.items() if name in names}
    chosen = [Configuration(name, engine, "fp32", 1, side, side) for name, (_, side) in published.items()]
    measured = run(chosen, rounds, threads)["variants"]
    return [{"top1": published[row["model"]][0], **row} for row in measured]


def draw_growth(rows: Sequence[dict[str, Any]], amount: str, file: Path) -> None:
    """Draw time and memory over an amount of work in logarithms; the last engine has solid lines."""
    names = list(dict.fromkeys(row["engine"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure((8, 3.4), layout="constrained")
        for axes, key, unit in zip(
            figure.subplots(1, 2), ("milliseconds", "inference_memory_mib"), ("ms", "MiB added"), strict=True
        ):
            for model, colour in MODELS.items():
                for engine in names:
                    own = [row for row in rows if (row["model"], row["engine"]) == (model, engine)]
                    style = "-" if engine == names[-1] else "--"
                    points = ([row["amount"] for row in own], [row[key] for row in own])
                    axes.plot(
                        *points, style, color=colour, marker="o", markersize=3, label=f"{_short(model)}, {engine}"
                    )
            ticks = sorted({row["amount"] for row in rows})
            axes.set(xscale="log", yscale="log", xlabel=amount, ylabel=unit)
            axes.set_xticks(ticks, map(str, ticks))
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.legend(fontsize=7)
    save_figure(figure, file)


def draw_trade_off(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw published top-1 over measured latency."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((7, 4.2), layout="constrained")
        axes = figure.subplots()
        for row in rows:
            ours = row["model"] in OF_THE_PAPER
            point = (row["milliseconds"], row["top1"])
            axes.plot(*point, "o", color=BLUE if ours else "0.5", markersize=6 if ours else 4)
            name = re.sub(r"_(patch\d+|window\d+|224|tf|rw)", "", row["model"].partition(".")[0])
            name += "" if row["height"] == 224 else f" @{row['height']}"
            left = ((point[0] - each["milliseconds"], abs(point[1] - each["top1"])) for each in rows)
            crowded = any(0 < along < 30 and across < 0.2 for along, across in left)
            axes.annotate(name, point, (5, -8 if crowded else 3), textcoords="offset points", fontsize=7)
        axes.margins(x=0.2)
        axes.set(xlabel=f"ms for an image, {rows[0]['engine']} fp32", ylabel="published top-1, ImageNet-1K (%)")
    save_figure(figure, file)


def _short(model: str) -> str:
    return model.rpartition(":")[2]


def section(results: dict[str, Any], folder: str) -> str:
    """Return the section of the page in Markdown; its figures are in ``folder``."""
    parts = [
        "## How cost grows",
        f"Random weights, fp32. {about(results)} The exponent is that of a power law: 1 means in proportion. Memory is "
        "what inference adds to the process. The models of one side, and of one batch size, are measured in the same "
        "rounds.",
    ]
    for name, what in (("side", "pixels"), ("batch", "images")):
        if name in results:
            rows = [
                [_short(each["model"]), each["engine"], f"{each['time']:.2f}", f"{each['memory']:.2f}"]
                for each in results[name]["slopes"]
            ]
            parts.append(markdown(["Model", "Engine", f"time, exponent in {what}", "memory, the same"], rows))
            parts.append(f"![Time and memory against the {name}]({folder}/{name}.png)")
    if "throughput" in results:
        rows = [
            [each["precision"], str(each["threads"]), each["hint"], f"{each['images_per_second']:.1f}"]
            for each in results["throughput"]
        ]
        parts.append("iFormer-S in OpenVINO, single images in as many requests at once as the hint asks for:")
        parts.append(markdown(["Type", "Threads", "Hint", "images/s"], rows))
    if "trade_off" in results:
        rows = [
            [each["model"], str(each["height"]), f"{each['top1']:.1f}", f"{each['milliseconds']:.1f}"]
            for each in sorted(results["trade_off"], key=lambda each: each["milliseconds"])
        ]
        parts.append(
            "Published top-1 against measured latency, at the size of the published figure: timm's table of results, "
            "and the paper's Table 1 for iFormer."
        )
        parts.append(markdown(["Model", "Side", "top-1, %", "ms"], rows))
        parts.append(f"![Published accuracy against measured latency]({folder}/trade_off.png)")
    return "\n\n".join(parts)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and write the results and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["side", "batch", "throughput", "trade_off"])
    parser.add_argument("--sides", nargs="+", type=int, default=[224, 320, 448, 640, 800, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--engines", nargs="+", default=["eager", "openvino"])
    parser.add_argument("--models", nargs="+", default=[*PUBLISHED, *OF_THE_PAPER], help="models of the trade-off")
    parser.add_argument("--requests", type=int, default=64, help="images in a round of the throughput")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("docs/results/performance/scaling.json"))
    arguments = parser.parse_args(given)
    rounds, threads, folder = arguments.rounds, arguments.threads, arguments.output.parent
    side = arguments.sides[0]
    torch.set_num_threads(threads)
    results: dict[str, Any] = {**provenance(0), "rounds": rounds}
    results["versions"] |= {name: version(name) for name in ("onnxruntime", "openvino") if name in arguments.engines}
    grown = {
        "side": (partial(by_side, arguments.sides, arguments.engines), 2, "side of the image, pixels"),
        "batch": (partial(by_batch, arguments.batches, arguments.engines, side), 1, "images in a batch"),
    }
    for name, (chosen, power, label) in grown.items():
        if name in arguments.parts:
            rows = growth(chosen(), rounds, threads)
            results[name] = {"rows": rows, "slopes": slopes(rows, power)}
            draw_growth(rows, label, folder / f"{name}.png")
    if "throughput" in arguments.parts:
        results["throughput"] = throughput(side, arguments.requests, range(1, threads + 1), rounds)
    if "trade_off" in arguments.parts:
        results["trade_off"] = trade_off(arguments.models, arguments.engines[-1], rounds, threads)
        draw_trade_off(results["trade_off"], folder / "trade_off.png")
    write_json(arguments.output, results)


if __name__ == "__main__":
    main()

"""The benchmark measures what it says, and shows all of it."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import performance
from iformer.benchmark import page as benchmark_page
from iformer.benchmark.configurations import ENGINES, Configuration, combinations, network
from iformer.benchmark.memory import peak_of
from iformer.benchmark.rounds import in_rounds, multiply_adds, run
from tests.conftest import Command


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    chosen = [
        Configuration("iformer_nano", "fused", "fp32", 1, 32, 32),
        Configuration("iformer_nano", "openvino", "fp32", 2, 32, 32),
    ]
    yield run(chosen, 2, 1)
    torch.set_num_threads(threads)


def test_results(results: dict[str, Any]) -> None:
    assert [(row["engine"], row["batch"]) for row in results["variants"]] == [("fused", 1), ("openvino", 2)]
    for row in results["variants"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["milliseconds"] <= high
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["milliseconds"], rel=0.02)
        work = row["batch"] * row["multiply_adds"]
        at_peak = 1e-6 * work / results["matrix_product_gmacs_per_second"]["fp32"]
        assert row["share_of_peak"] == pytest.approx(at_peak / row["milliseconds"], rel=0.05, abs=2e-3)
        assert row["preparation_seconds"] > 0
        assert row["first_inference_seconds"] > 0
        assert row["inference_memory_mib"] < row["peak_memory_mib"] < 4000
    assert {"command", "machine", "versions"} <= set(results)
    assert "openvino" in results["versions"]


def test_views(results: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=150)
    console.print(*benchmark_page.render(results))
    text = console.export_text()
    assert "iformer_nano" in text
    assert "openvino" in text
    assert results["machine"][:20] in text
    benchmark_page.draw(results, tmp_path / "new" / "latency.svg")
    assert (tmp_path / "new" / "latency.svg").stat().st_size > 1000


def test_multiply_adds_are_those_of_the_paper() -> None:
    counted = multiply_adds(Configuration("iformer_small", "eager", "fp32", 1, 224, 224))
    assert counted == pytest.approx(4.85e9, rel=0.02)


def test_a_size_that_a_model_does_not_take(iformer: Command) -> None:
    options = ("--model", "swin_tiny_patch4_window7_224", "--engines", "eager", "--size", "64", "64")
    status, _, err = iformer("benchmark", *options)
    assert status == 2
    error = err.strip().splitlines()[-1]
    assert error.startswith("iformer: error: swin_tiny_patch4_window7_224, eager fp32, batch 1: ")
    assert "224" in error


def test_passes_over_what_an_engine_does_not_have() -> None:
    chosen = combinations(["iformer_nano"], list(ENGINES), ["bf16", "int8"])
    assert {(configuration.engine, configuration.precision) for configuration in chosen} == {
        ("eager", "bf16"), ("fused", "bf16"), ("compile", "bf16"), ("onnxruntime", "int8"),
        ("openvino", "bf16"), ("openvino", "int8"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--model", "iformer_huge"), "iformer_huge: no such file or folder, and no model of timm"),
        (("--model", "nowhere:build"), "model nowhere:build: No module named 'nowhere'"),
        (("--engines", "eager,tensorrt"), "engine is 'tensorrt', expected one of eager, fused"),
        (("--precisions", "int4"), "precision is 'int4', expected one of bf16"),
        (("--engines", "eager", "--precisions", "int8"), "engines eager offer none of the precisions int8 on cpu"),
        (("--device", "tpu"), "device is 'tpu', expected cpu"),
        (("--task", "captioning"), "task is 'captioning', expected one of classification, segmentation, detection"),
        (("--task", "detection", "--model", "resnet_fifty"), "timm has no resnet_fifty"),
        (
            ("--task", "segmentation", "--model", "torchvision.models.detection:maskrcnn_resnet50_fpn"),
            "task is segmentation, but torchvision.models.detection:maskrcnn_resnet50_fpn returns MaskRCNN",
        ),
        (("--task", "detection", "--engines", "compile"), "engines compile offer none of the precisions fp32 on cpu"),
        (("--size", "64", "8"), "size is (64, 8), expected the images' height and width"),
        (("--images", "nowhere"), "nowhere: no such file or folder"),
        (("--images", ".", "--engines", "onnxruntime"), "images: predict computes in PyTorch, expected eager"),
    ],
)
def test_mistakes(option: tuple[str, ...], message: str, iformer: Command) -> None:
    status, _, err = iformer("benchmark", *option)
    assert status == 2
    assert message in err.strip().splitlines()[-1]


@pytest.fixture
def measured(results: dict[str, Any]) -> dict[str, Any]:
    """What a run of `make bench` would return, with figures that are easy to check."""
    document = json.loads(json.dumps(results))
    template = document["variants"][0]
    speeds = dict.fromkeys(performance.chosen_configurations(), 10.0)
    for configuration in speeds:
        if configuration.model == performance.NAIVE:
            speeds[configuration] = 30.0
        elif (
            configuration.model == performance.OURS
            and configuration.engine == "openvino"
            and configuration.precision == "int8"
        ):
            speeds[configuration] = 4.0
    document["variants"] = [
        {**template, **vars(configuration), "milliseconds": milliseconds, "multiply_adds": 10**9}
        for configuration, milliseconds in speeds.items()
    ]
    return document


def test_the_page(measured: dict[str, Any]) -> None:
    memory = {
        "naive, eager": {"peak": 2000.0, "inference": 1000.0},
        "ours, fused": {"peak": 1500.0, "inference": 300.0},
    }
    ratios = performance.ratios(measured, memory)
    assert [value for what, value in ratios.items() if "naive" in what] == [3.0, 3.0, 0.75]
    assert next(value for what, value in ratios.items() if "int8" in what) == 2.5
    results = {**measured, "ratios": ratios, "backbone_memory_mib": memory}
    page = performance.section(results, "results")
    assert "| NaiveIFormer | eager | fp32 | 1 | 30.0 |" in page
    assert "times the naive model's speed | 3.00 |" in page
    assert measured["machine"] in page
    assert "](results/latency.png)" in page


def test_the_order_differs_from_round_to_round() -> None:
    order: list[str] = []

    def turn(name: str) -> list[float]:
        order.append(name)
        return [float(len(order))]

    seconds = in_rounds([partial(turn, name) for name in "abcd"], range(400))
    assert [len(each) for each in seconds] == [400] * 4
    assert sorted(itertools.chain(*seconds)) == [*range(1, 1601)]
    assert all({*order[first : first + 4]} == {*"abcd"} for first in range(0, 1600, 4))
    places = Counter((name, number % 4) for number, name in enumerate(order))
    assert min(places.values()) > 70  # of about 100: what comes at regular intervals meets all alike


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory before is known on Linux only")
def test_memory_is_that_of_the_work() -> None:
    little, much = (peak_of("tests.benchmark.work:take", mebibytes) for mebibytes in (1, 300))
    assert much.added == pytest.approx(300, abs=30)
    assert little.added < 30
    assert much.highest > much.before


def test_the_naive_backbone_takes_detection_sizes() -> None:
    naive = performance.naive_backbone()
    assert naive.pos_embed1.shape == (1, 200, 320, 96)
    assert naive.pos_embed4.shape == (1, 25, 40, 384)
    assert network(Configuration(performance.NAIVE, "eager", "fp32", 1, 224, 224)).training is False

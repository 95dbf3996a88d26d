"""The benchmark measures what it says, and shows all of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import performance
from iformer.cli import main
from iformer.deployment import benchmark_page
from iformer.deployment.benchmark import combinations, measure_alone, multiply_adds, run
from iformer.deployment.variants import ENGINES, Variant, network
from tests.models.conftest import _seed_and_threads  # noqa: F401


@pytest.fixture(scope="module")
def results() -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    yield run(combinations(["iformer_nano"], ["fused", "openvino"], ["fp32"], [1, 2], 32), 2, 1, memory=False)
    torch.set_num_threads(threads)


def test_results(results: dict[str, Any]) -> None:
    assert [(row["engine"], row["batch"]) for row in results["variants"]] == [
        ("fused", 1), ("openvino", 1), ("fused", 2), ("openvino", 2),
    ]  # fmt: skip
    for row in results["variants"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["milliseconds"] <= high
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / row["milliseconds"], rel=0.02)
        work = row["batch"] * results["multiply_adds"]["iformer_nano"]
        at_peak = 1e-6 * work / results["matrix_product_gmacs_per_second"]["fp32"]
        assert row["share_of_peak"] == pytest.approx(at_peak / row["milliseconds"], rel=0.05, abs=2e-3)
    assert {"command", "machine", "versions"} <= set(results)


def test_views(results: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=150)
    console.print(benchmark_page.render(results))
    text = console.export_text()
    assert "iformer_nano" in text
    assert "openvino" in text
    assert results["machine"][:20] in text
    benchmark_page.draw(results, tmp_path / "new" / "latency.svg")
    assert (tmp_path / "new" / "latency.svg").stat().st_size > 1000


def test_multiply_adds_are_those_of_the_paper() -> None:
    counted = multiply_adds(Variant("iformer_small", "eager", "fp32", 1, 224, 224))
    assert counted == pytest.approx(4.85e9, rel=0.02)


def test_alone() -> None:
    figures = measure_alone(Variant("iformer_nano", "eager", "fp32", 1, 32, 32), 1)
    assert set(figures) == {
        "preparation_seconds", "first_inference_seconds", "peak_memory_mib", "inference_memory_mib",
    }  # fmt: skip
    assert 0 <= figures["inference_memory_mib"] < figures["peak_memory_mib"] < 4000


def test_passes_over_what_an_engine_does_not_have() -> None:
    chosen = combinations(["iformer_nano"], list(ENGINES), ["bf16", "int8"])
    assert {(variant.engine, variant.precision) for variant in chosen} == {
        ("eager", "bf16"), ("fused", "bf16"), ("compile", "bf16"), ("onnxruntime", "int8"),
        ("openvino", "bf16"), ("openvino", "int8"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--model", "iformer_huge"), "timm has no iformer_huge"),
        (("--model", "nowhere:build"), "model nowhere:build: No module named 'nowhere'"),
        (("--engines", "eager,tensorrt"), "engine is 'tensorrt', expected one of eager, fused"),
        (("--precisions", "int4"), "precision is 'int4', expected one of bf16"),
        (("--engines", "eager", "--precisions", "int8"), "engines eager have none of the precisions int8 on cpu"),
        (("--device", "tpu"), "device is 'tpu', expected cpu"),
    ],
)
def test_mistakes(
    option: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["iformer", "benchmark", *option])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_page(results: dict[str, Any]) -> None:
    """What `make bench` writes, from figures that are easy to check."""
    document = json.loads(json.dumps(results))
    template = document["variants"][0]
    speeds = dict.fromkeys(performance.chosen_variants(), 10.0)
    for variant in speeds:
        if variant.model == performance.NAIVE:
            speeds[variant] = 30.0
        elif variant.model == performance.OURS and variant.engine == "openvino" and variant.precision == "int8":
            speeds[variant] = 4.0
    document["variants"] = [
        {**template, **vars(variant), "milliseconds": milliseconds} for variant, milliseconds in speeds.items()
    ]
    document["multiply_adds"] = {variant.model: 10**9 for variant in speeds}
    memory = {"naive": 1000.0, "ours": 500.0}
    aims = performance.targets(document, memory)
    assert [(aim["reached"], aim["met"]) for aim in aims if "naive" in aim["what"]] == [
        (3.0, True), (3.0, True), (0.5, False),
    ]  # fmt: skip
    assert next(aim["reached"] for aim in aims if "int8" in aim["what"]) == 2.5
    page = performance.page({**document, "aims": aims, "backbone_memory_mib": memory}, "picture.svg")
    assert "| NaiveIFormer | eager | fp32 | 1 | 30.0 |" in page
    assert document["machine"] in page


def test_the_naive_backbone_takes_detection_sizes() -> None:
    naive = performance.naive_backbone()
    assert naive.pos_embed1.shape == (1, 200, 320, 96)
    assert naive.pos_embed4.shape == (1, 25, 40, 384)
    assert network(Variant(performance.NAIVE, "eager", "fp32", 1, 224, 224)).training is False

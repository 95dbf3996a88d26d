"""Prediction, export and the benchmark on a GPU."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from iformer.benchmark.configurations import Configuration
from iformer.benchmark.rounds import run as benchmark
from iformer.common.images import find_images
from iformer.deployment import formats
from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor
from iformer.training.launcher import run
from tests.conftest import Command
from tests.gpu.conditions import real
from tests.test_devices import models
from tests.training.tiny import recipe

pytestmark = [pytest.mark.gpu, real]


def found_by(model: saved.Model, device: str, folder: Path, precision: str = "fp32") -> list[list[float]]:
    made = predictor(model, Options(output=None, device=device, precision=precision, top=9))
    results = list(predictions(model, made, find_images([folder])))
    by_name = [{each["name"]: each["probability"] for each in result["classes"]} for result in results]
    return [[each[name] for name in sorted(each)] for each in by_name]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    (tmp_path / "photographs").mkdir()
    for number in range(3):
        Image.effect_noise((70 + 8 * number, 60), 80).convert("RGB").save(tmp_path / "photographs" / f"{number}.png")
    return tmp_path / "photographs"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.002), ("bf16", 0.05), ("fp16", 0.01)])
def test_probabilities_are_those_of_the_cpu(precision: str, tolerance: float, photographs: Path) -> None:
    expected = found_by(models()["classification"], "cpu", photographs)
    found = found_by(models()["classification"], "cuda", photographs, precision)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=tolerance)


def test_a_model_that_was_trained_on_a_gpu_predicts_on_the_cpu(
    photographs: Path, tmp_path: Path, iformer: Command
) -> None:
    changes = {"trainer__accelerator": "gpu", "trainer__devices": 1, "trainer__precision": "bf16-mixed"}
    run("fit", ["--config", str(recipe(tmp_path, **changes))])
    file = tmp_path / "model.onnx"
    status, _, told = iformer("export", tmp_path / "run", "--format", "onnx", "--output", file)
    assert status == 0, told
    expected = found_by(saved.resolve(tmp_path / "run"), "cuda", photographs)
    for model in (saved.resolve(tmp_path / "run"), saved.resolve(file)):
        found = found_by(model, "auto" if model.exported else "cpu", photographs)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=0.005)


def test_an_onnx_file_runs_on_the_gpu(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is the one for CPUs; onnxruntime-gpu has CUDAExecutionProvider")
    model = models()["classification"]
    images = torch.randn(1, *model.config["input_size"])
    formats.write(model, tmp_path / "model.onnx", "onnx", "fp32", images)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CUDAExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = model.network(images)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-2, atol=1e-2)  # its convolutions use TF32


def test_what_the_benchmark_measures_runs() -> None:
    chosen = [
        *(Configuration("iformer_nano", engine, "fp16", 2, 32, 32, "cuda") for engine in ("eager", "fused", "compile")),
        *(
            Configuration("iformer_nano", "eager", precision, 2, 32, 32, "cuda", training=True)
            for precision in ("fp32", "bf16", "fp16")
        ),
        Configuration("iformer_nano", "compile", "bf16", 2, 32, 32, "cuda", training=True),
    ]
    results = benchmark(chosen, 1)
    assert len(results["variants"]) == len(chosen)
    assert all(0 <= row["share_of_peak"] < 1 for row in results["variants"])
    assert all(0 < row["peak_memory_mib"] < 2000 for row in results["variants"])
    assert torch.cuda.get_device_name(0) in results["machine"]

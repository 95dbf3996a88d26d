"""What ``make gpu`` measures: the whole of it on the CPU with the smallest models, and its page."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.naive_iformer import NaiveIFormer
from iformer.benchmark.configurations import Configuration
from iformer.benchmark.rounds import multiply_adds
from iformer.models.presets import PRESETS

WORK = gpu.Work(
    device="cpu",
    sizes=(("nano", ("tests.benchmark.work:without_memory", "resnet10t")),),
    image=(32, 32), scene=(64, 64), training=(2,), inference=(), scenes=(1, ()),
    precision="fp32", precisions=("fp32",), compiled=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(["--rounds", "1", "--folder", str(folder / "parts"), "--docs", str(folder / "docs")], WORK)
    return folder


def test_steps_on_the_cpu(measured: Path) -> None:
    results = json.loads((measured / "docs" / "results" / "gpu.json").read_text())
    training, detector = results["training_nano_2"], results["detector_training_nano_1"]
    (row,) = training["variants"]
    assert (row["model"], row["batch"], row["training"]) == ("resnet10t", 2, True)
    assert row["multiply_adds"] == 3 * multiply_adds(Configuration("resnet10t", "eager", "fp32", 1, 32, 32))
    assert row["images_per_second"] == pytest.approx(2e3 / row["milliseconds"], rel=0.01)
    (lost,) = training["failed"]
    assert "CUDA out of memory" in lost["reason"]
    (row,) = detector["variants"]
    assert row["multiply_adds"] > 1e9
    assert detector["failed"] == []


def test_the_page_of_what_was_measured(measured: Path) -> None:
    text = (measured / "docs" / "gpu.md").read_text()
    assert "| mask_rcnn resnet10t | eager | fp32 | 1 |" in text
    assert "| without_memory | eager | fp32 | 2 | torch.OutOfMemoryError: CUDA out of memory. Tried to" in text
    assert "no figures" not in text


def test_only_what_is_not_there_is_measured(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = measured / "parts" / "training_nano_2.json"
    results = json.loads(part.read_text())
    asked: list[list[Configuration]] = []

    def run(group: list[Configuration], *_: object, **__: object) -> dict[str, Any]:
        asked.append(group)
        return {**results}

    monkeypatch.setattr(gpu, "run", run)
    gpu.measure(WORK, measured / "parts", 1)
    assert asked == []
    part.write_text(json.dumps({**results, "versions": {**results["versions"], "torch": "1.0"}}))
    gpu.measure(WORK, measured / "parts", 1)
    assert asked == [gpu.groups(WORK)["training_nano_2"]]
    part.unlink()
    gpu.measure(WORK, measured / "parts", 1)
    assert len(asked) == 2


def test_a_part_can_be_measured_alone(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--folder", str(tmp_path / "parts"), "--docs", str(tmp_path)]
    (tmp_path / "parts").mkdir()
    of_pages = []
    for name in "training_nano_2", "detector_training_nano_1":
        shutil.copy(measured / "parts" / f"{name}.json", tmp_path / "parts")
        gpu.main(["--rounds", "1", *folders, "--only", name], WORK)
        of_pages.append([*json.loads((tmp_path / "results" / "gpu.json").read_text())])
    assert of_pages == [["training_nano_2"], ["training_nano_2", "detector_training_nano_1"]]  # and what was before
    with pytest.raises(SystemExit):
        gpu.main(["--only", "training_nano_3", *folders], WORK)
    assert "invalid choice: 'training_nano_3'" in capsys.readouterr().err


def test_the_work_is_that_of_the_paper_beside_its_peers() -> None:
    groups = gpu.groups(gpu.Work())
    assert len({(name, each) for name, group in groups.items() for each in group}) == sum(map(len, groups.values()))
    training = {each.model for each in groups["training_large_128"]}
    assert training == {"benchmarks.gpu:naive_large", "iformer_large", "convnext_base", "swin_base_patch4_window7_224"}
    assert {each.engine for each in groups["inference_small_fp16_256"]} == {"eager", "fused", "compile"}
    assert all((each.height, each.width) == (800, 1280) for each in groups["detector_training_base_2"])
    assert {each.device for group in groups.values() for each in group} == {"cuda"}


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_naive_models_have_the_parameters_of_ours(size: str) -> None:
    naive = getattr(gpu, f"naive_{size}")
    with torch.device("meta"):
        assert isinstance(naive(), NaiveIFormer)
        assert naive().norm.weight.shape == (PRESETS[f"iformer_{size}"]["dims"][-1],)


def test_the_page_in_the_repository_is_what_the_code_writes() -> None:
    docs = Path(gpu.__file__).parents[1] / "docs"
    file = docs / "results" / "gpu.json"
    assert (docs / "gpu.md").read_text() == gpu.page(json.loads(file.read_text()) if file.is_file() else {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gpu.main(["--docs", str(tmp_path), "--folder", str(tmp_path)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("make gpu: error: needs an NVIDIA GPU that torch ")
    assert not list(tmp_path.iterdir())

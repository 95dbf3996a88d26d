"""Exported files compute what the model does, say what their user has to know, and run without this package."""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.common.images import read_image
from iformer.deployment import engines
from iformer.deployment.formats import compare, write
from iformer.models import saved
from iformer.models.class_folders import class_labels
from tests.conftest import Command
from tests.networks import TWO_STAGES, draw
from tests.training.tiny import MODEL as NARROW

NAMES = ["cat", "dog", "frog"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    nano = draw(timm.create_model("iformer_nano", num_classes=3, **{**TWO_STAGES, "dims": (32, 64)}).eval())
    nano.pretrained_cfg["label_names"] = NAMES
    return nano


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of three small images each."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images")
    for name in NAMES:
        (root / name).mkdir()
        for index in range(3):
            coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((60, 50)).save(root / name / f"{index}.jpg")
    return root


@pytest.fixture(scope="module")
def images(model: nn.Module, folder: Path) -> Tensor:
    prepare = saved.of_classifier(model).prepare
    return torch.stack([prepare(read_image(path)) for path in sorted(folder.rglob("*.jpg"))])


Exported = Callable[[str, str], tuple[Path, dict[str, float]]]


@pytest.fixture(scope="module")
def exported(model: nn.Module, images: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Files of the model by format and precision, each made once, and what was said about them."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def file(kind: str, precision: str) -> tuple[Path, dict[str, float]]:
        path = folder / precision / f"model{engines.FORMATS[kind]}"
        return path, write(saved.of_classifier(model), path, kind, precision, images)

    return file


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        *[("onnx", precision) for precision in ("fp32", "fp16", "int8")],
        *[("openvino", precision) for precision in ("fp32", "bf16", "fp16", "int8")],
        *[("torch-export", precision) for precision in ("fp32", "bf16", "fp16")],
    ],
)
def test_every_format(model: nn.Module, images: Tensor, exported: Exported, kind: str, precision: str) -> None:
    file, result = exported(kind, precision)
    tolerance = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1e-1, "int8": 3e-1}[precision]
    assert result["relative_difference"] <= tolerance
    again = compare(model, engines.open_file(file, precision), images)
    assert again["relative_difference"] == pytest.approx(result["relative_difference"], abs=1e-6)


def test_int8_leaves_attention_in_floating_point(exported: Exported) -> None:
    graph = pytest.importorskip("onnx").load(exported("onnx", "int8")[0]).graph
    source = {output: node.op_type for node in graph.node for output in node.output}
    kinds = [(node.op_type, [source.get(name) for name in node.input]) for node in graph.node]
    assert not any("DequantizeLinear" in inputs for kind, inputs in kinds if kind == "MatMul")
    assert sum(inputs[:2] == 2 * ["DequantizeLinear"] for kind, inputs in kinds if kind in ("Conv", "Gemm")) > 10


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_any_size(model: nn.Module, images: Tensor, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"nano{engines.FORMATS[kind]}"
    write(saved.of_classifier(model), file, kind, "fp32", images[:2], dynamic=True)
    run = engines.open_file(file)
    for shape in [(1, 3, 32, 32), (3, 3, 47, 61)]:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-4)


def test_metadata(model: Any, exported: Exported) -> None:
    onnx = pytest.importorskip("onnx")
    openvino = pytest.importorskip("openvino")
    found: list[dict[str, Any]] = []
    for kind in engines.FORMATS:
        file, _ = exported(kind, "fp32")
        if kind == "onnx":
            found.append({entry.key: entry.value for entry in onnx.load(file).metadata_props})
        elif kind == "openvino":
            read = openvino.Core().read_model(file)
            found.append({key: read.get_rt_info([key]).astype(str) for key in found[0]})
        else:
            extra = dict.fromkeys(found[0], "")
            sample = torch.export.load(file, extra_files=extra).example_inputs
            assert not sample[0][0].any()  # nothing of the images that it was checked with
            found.append(extra)
    assert found[0] == found[1] == found[2]
    assert json.loads(found[0]["class_names"]) == NAMES
    how = json.loads(found[0]["preprocessing"])
    expected = model.pretrained_cfg
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct"):
        assert tuple(how[key]) == expected[key] if isinstance(how[key], list) else how[key] == expected[key]
    assert found[0]["precision"] == "fp32"


@pytest.fixture(scope="module")
def trained(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    saved.save(model, folder, NAMES)
    return folder


def test_command(trained: Path, folder: Path, tmp_path: Path, iformer: Command) -> None:
    file = tmp_path / "new" / "nano.xml"
    options = ("--format", "openvino", "--precision", "int8", "--images", folder, "--labelled", folder, "--json")
    status, out, _ = iformer("export", trained, "--output", file, *options)
    assert status == 0
    result = json.loads(out)
    assert file.is_file()
    assert file.with_suffix(".bin").is_file()
    assert result["images"] == 9
    assert result["accuracy"]["images"] == 9
    assert 0 <= result["accuracy"]["file"]["top1"] <= 1
    assert {"largest_difference", "same_class", "command", "versions"} <= set(result)


def test_a_greyscale_model_and_an_image_that_is_none(folder: Path, tmp_path: Path, iformer: Command) -> None:
    grey = timm.create_model("iformer_nano", num_classes=3, in_chans=1, img_size=32, **NARROW)
    saved.save(grey, tmp_path / "grey", NAMES, input_size=(1, 32, 32), mean=(0.3,), std=(0.2,))
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images/cat/deeper").mkdir()
    (tmp_path / "images/cat/0.jpg").rename(tmp_path / "images/cat/deeper/0.jpg")
    (tmp_path / "images/cat/bad.jpg").write_bytes(b"no image")
    (tmp_path / "images/.ipynb_checkpoints").mkdir()
    shutil.copy(folder / "cat/0.jpg", tmp_path / "images/.ipynb_checkpoints")
    file = tmp_path / "grey.pt2"
    options = ("--format", "torch-export", "--images", tmp_path / "images", "--labelled", tmp_path / "images", "--json")
    status, out, err = iformer("export", tmp_path / "grey", "--output", file, *options)
    assert status == 0
    assert len(re.findall(r"^iformer: error: .*cat/bad\.jpg: not an image", err, re.MULTILINE)) == 1
    result = json.loads(out)
    assert (result["images"], result["accuracy"]["images"], len(result["unreadable"])) == (9, 9, 1)
    extra = {"preprocessing": ""}
    torch.export.load(file, extra_files=extra)
    how = json.loads(extra["preprocessing"])
    assert (how["input_size"], how["mean"], how["std"]) == ([1, 32, 32], [0.3], [0.2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "caffe"), "format is caffe, expected one of onnx, openvino, torch-export"),
        (("--precision", "int4"), "precision is int4, expected one of fp32, bf16, fp16, int8"),
        (("--precision", "int8"), "needs images to calibrate on"),
        (("--weights", "released"), "has weights of its own"),
        (("--labelled", str(Path(__file__).parents[2] / "docs")), "is not a class of the model, expected folders of"),
        (("--precision", "bf16"), "ONNX Runtime has no such kernels"),
        (("--images", "nowhere"), "nowhere: no such file or folder"),
        (("--output", "model.pt"), "model.pt: a file of format onnx must end in .onnx"),
        (("--output", "/proc/model.onnx"), "/proc/model.onnx: cannot be written"),
    ],
)
def test_mistakes(
    trained: Path,
    arguments: tuple[str, ...],
    message: str,
    iformer: Command,
) -> None:
    status, _, err = iformer("export", trained, *arguments)
    assert status == 2
    error = err.strip().splitlines()[-1]
    assert error.startswith("iformer: error: ")
    assert message in error


def test_other_models_that_have_no_graph(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(ValueError, match="cannot be exported for images of 32x32 pixels"):
        write(replace(saved.of_classifier(model), network=Picky()), tmp_path / "a.pt2", "torch-export", "fp32", images)
    assert not list(tmp_path.iterdir())


def test_labels_of_imagenet(tmp_path: Path) -> None:
    (tmp_path / "n01443537").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "n01443537" / "fish.png")
    imagenet = saved.of_classifier(timm.create_model("iformer_nano", num_classes=1000))
    assert [label for _, label in class_labels(imagenet, tmp_path)] == [1]


def test_the_documents_example_runs_without_this_package(model: nn.Module, folder: Path, exported: Exported) -> None:
    page = Path(__file__).parents[2] / "docs" / "deployment.md"
    file, _ = exported("onnx", "fp32")
    program = re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert program
    picture = folder / "cat" / "0.jpg"
    forbidden = "import sys\nsys.modules.update(dict.fromkeys(('iformer', 'timm', 'torch')))\n"
    done = subprocess.run(
        [sys.executable, "-c", forbidden + program[1].replace("photo.jpg", str(picture))],
        cwd=file.parent,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    with torch.no_grad():
        expected = NAMES[int(model(saved.of_classifier(model).prepare(read_image(picture))[None]).argmax())]
    assert expected in done.stdout


@pytest.mark.parametrize("kind", list(engines.FORMATS))
def test_a_disk_that_is_full(
    kind: str, trained: Path, tmp_path: Path, iformer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = f"model{engines.FORMATS[kind]}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status, _, err = iformer("export", trained, "--format", kind, "--output", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    (line,) = filter(None, err.splitlines())
    assert line.startswith(f"iformer: error: {file}: cannot be written (")
    assert list(tmp_path.iterdir()) == []

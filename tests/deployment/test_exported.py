"""``iformer predict`` on an exported file finds what the model finds that it was exported from.

So do the files of detectors, see tests/detection/test_predict.py.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from iformer.deployment import engines
from iformer.deployment.export import export
from iformer.models import saved
from iformer.segmentation.model import build as build_segmenter
from tests.conftest import Command
from tests.networks import SCENES, SEGMENTERS, draw
from tests.training.tiny import MODEL as NARROW

FILES = [(kind, False) for kind in engines.FORMATS] + [("torch-export", True)]
"""Formats, and whether the file takes any size; what dynamic files of the other formats compute is seen elsewhere."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a classifier, a segmenter, and of five pictures in ``photos``, the first three of one size."""
    root = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    nano = draw(timm.create_model("iformer_nano", num_classes=3, img_size=32, **NARROW))
    saved.save(nano, root / "classifier", ["cat", "dog", "frog"], input_size=(3, 32, 32), crop_pct=0.9)
    segmenter = {**SCENES, "network": SEGMENTERS["semantic_fpn"], "crop": (48, 64), "flip_test": True}
    saved.save_assembled(draw(build_segmenter(**segmenter["network"])), root / "segmenter", "segmentation", segmenter)
    (root / "photos").mkdir()
    random = np.random.default_rng(0)
    for index, size in enumerate([(64, 48)] * 3 + [(70, 52), (90, 40)]):
        coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(root / "photos" / f"{index}.png")
    return root


Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Files of the models by task and format, each made once."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def file(task: str, kind: str, dynamic: bool = False) -> Path:
        path = folder / f"{task}_{dynamic}{engines.FORMATS[kind]}"
        export(str(trained / task), kind, dynamic=dynamic, output=path, images=trained / "photos")
        return path

    return file


def predicted(iformer: Command, model: Path, photos: Any, folder: Path) -> Any:
    status, out, err = iformer("predict", *photos, "--model", model, "--output", folder, "--json")
    assert status == 0, err
    return json.loads(out)


@pytest.mark.parametrize(("kind", "dynamic"), FILES)
def test_a_classifier(
    kind: str, dynamic: bool, trained: Path, exported: Exported, tmp_path: Path, iformer: Command
) -> None:
    photos = sorted((trained / "photos").iterdir())
    expected = predicted(iformer, trained / "classifier", photos, tmp_path)
    found = predicted(iformer, exported("classifier", kind, dynamic), photos, tmp_path)
    for one, other in zip(expected, found, strict=True):
        assert [entry["name"] for entry in one["classes"]] == [entry["name"] for entry in other["classes"]]
        probabilities = [[entry["probability"] for entry in each["classes"]] for each in (one, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-3)


@pytest.mark.parametrize(("kind", "dynamic"), [file for file in FILES if file != ("torch-export", False)])
def test_a_segmenter(
    kind: str, dynamic: bool, trained: Path, exported: Exported, tmp_path: Path, iformer: Command
) -> None:
    photos = sorted((trained / "photos").iterdir())
    predicted(iformer, trained / "segmenter", photos, tmp_path / "expected")
    predicted(iformer, exported("segmenter", kind, dynamic), photos, tmp_path / "found")
    for photo in photos:
        name = f"{photo.stem}_labels.png"
        with Image.open(tmp_path / "expected" / name) as one, Image.open(tmp_path / "found" / name) as other:
            assert one.size == other.size
            same = (np.asarray(one) == np.asarray(other)).mean()
            assert same > (0.999 if dynamic or one.size == (64, 48) else 0.5)  # others are resized to the file's size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--features", "pooled"), "gives results only; give the model that it was exported from"),
        (("--precision", "bf16"), "was exported in fp32; export it with --precision bf16"),
        (("--weights", "random"), "has weights of its own; give no others"),
        (("--device", "cuda"), "device is cuda, "),
    ],
)
def test_what_a_file_cannot_do_is_one_line(
    options: tuple[str, str], message: str, trained: Path, exported: Exported, tmp_path: Path, iformer: Command
) -> None:
    photo, file = trained / "photos/0.png", exported("classifier", "onnx")
    status, _, err = iformer("predict", photo, "--model", file, "--output", tmp_path, *options)
    assert status == 2
    (line,) = err.splitlines()
    assert message in line


@pytest.mark.parametrize("kind", list(engines.FORMATS))
def test_a_damaged_file_is_one_line(
    kind: str, trained: Path, exported: Exported, tmp_path: Path, iformer: Command
) -> None:
    whole = exported("classifier", kind)
    file = tmp_path / f"cut{whole.suffix}"
    file.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    if kind == "openvino":
        assert f"{file.with_suffix('.bin')}: no such file" in refused(iformer, trained, file)
        shutil.copy(whole.with_suffix(".bin"), file.with_suffix(".bin"))
    assert f"{file}: damaged, or not a file for" in refused(iformer, trained, file)
    file.unlink()
    assert f"{file}: no such file" in refused(iformer, trained, file)


def refused(iformer: Command, trained: Path, file: Path) -> str:
    status, _, err = iformer("predict", trained / "photos/0.png", "--model", file)
    assert status == 2
    (line,) = err.splitlines()
    return line


def test_a_file_of_another_program_is_one_line(
    trained: Path, exported: Exported, tmp_path: Path, iformer: Command
) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported("classifier", "onnx"))
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    line = refused(iformer, trained, tmp_path / "other.onnx")
    assert line.endswith("other.onnx: has no task in its metadata; expected a file that iformer export has written")


def test_an_engine_that_is_not_installed_is_one_line(
    trained: Path, exported: Exported, iformer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = exported("classifier", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed; run pip install" in refused(iformer, trained, file)


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "FILE"),
        ("analyze", "photos", "--model", "FILE"),
        ("benchmark", "--model", "FILE"),
        ("fit", "--config", "cifar10", "--model.init_args.pretrained", "FILE"),
    ],
)
def test_other_verbs_ask_for_the_model_itself(
    arguments: tuple[str, ...], trained: Path, exported: Exported, iformer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    file = str(exported("classifier", "onnx"))
    status, _, err = iformer(*[file if argument == "FILE" else argument for argument in arguments])
    assert status == 2
    line = err.strip().splitlines()[-1]
    assert f"{file}: an exported file, which only predict runs; give the model that it was exported from" in line

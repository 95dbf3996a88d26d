"""Prediction for files and folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from iformer.common.images import find_images
from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor
from tests.conftest import Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images at two levels, and a file that is none."""
    random = np.random.default_rng(0)
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/d.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "images/notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("iformer_nano", num_classes=3).eval()
    model.head.fc.weight.data.mul_(3)  # else all classes are about as probable
    return model


@pytest.fixture
def run(model: Any, tmp_path: Path, iformer: Command) -> Command:
    """``iformer predict ...`` with a saved model."""
    saved.save(model, tmp_path / "run", ["x", "y", "z"])
    return lambda *arguments: iformer("predict", *arguments, "--checkpoint", tmp_path / "run")


def test_folders_are_searched_and_sorted(folder: Path) -> None:
    found = [str(path.relative_to(folder)) for path in find_images([folder / "sub/d.png", folder])]
    assert found == ["sub/d.png", "a.JPG", "b.png", "sub/c.webp", "sub/d.png"]


def test_batches_change_nothing(model: Any, folder: Path) -> None:
    files = find_images([folder])
    resolved = saved.of_classifier(model)
    classifier = predictor(resolved, Options(top=3, batch_size=3))
    together = list(predictions(resolved, classifier, files))
    alone = [next(predictions(resolved, classifier, [file])) for file in files]
    for one, other in zip(together, alone, strict=True):
        assert one["image"] == other["image"]
        assert [entry["name"] for entry in one["classes"]] == [entry["name"] for entry in other["classes"]]
        probabilities = [entry["probability"] for entry in one["classes"]]
        assert probabilities == pytest.approx([entry["probability"] for entry in other["classes"]], abs=2e-4)
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert len({json.dumps(result["classes"]) for result in together}) == 4


def test_an_unreadable_file_in_a_folder_is_passed_over(run: Any, folder: Path) -> None:
    (folder / "b.png").write_bytes(b"nonsense")
    status, out, err = run(folder, "--json", "--batch-size", 2)
    results = json.loads(out)
    assert status == 0
    assert [Path(result["image"]).name for result in results] == ["a.JPG", "b.png", "c.webp", "d.png"]
    assert [sorted(result) for result in results].count(["classes", "image"]) == 3
    assert "b.png: not an image" in results[1]["error"]
    assert "b.png: not an image" in err


def test_an_unreadable_file_that_was_named_fails_after_the_others(run: Any, folder: Path) -> None:
    (folder / "b.png").write_bytes(b"nonsense")
    status, out, err = run(folder / "b.png", folder / "a.JPG", "--top", 1)
    assert status == 2
    assert "a.JPG" in out
    assert "b.png" not in out
    assert err.count("\n") == 1
    assert "b.png: not an image" in err


def test_nothing_to_predict(run: Any, folder: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "absent")[::2] == (2, f"iformer: error: {tmp_path}/absent: no such file or folder\n")
    (tmp_path / "empty").mkdir()
    status, _, err = run(tmp_path / "empty")
    assert status == 2
    assert "empty: a folder without images" in err
    for file in find_images([folder]):
        file.write_bytes(b"")
    assert run(folder)[0] == 2


def test_classes_by_random_weights_come_with_a_warning(iformer: Command, run: Any, folder: Path) -> None:
    told = "iformer: warning: the weights of iformer_nano are random: its results mean nothing\n"
    status, out, err = iformer("predict", folder / "a.JPG", "--model", "iformer_nano", "--weights", "random", "--json")
    assert (status, err) == (0, told)
    assert len(json.loads(out)) == 1
    assert run(folder / "a.JPG", "--weights", "random")[2] == told  # of a saved model too
    assert run(folder / "a.JPG")[2] == ""

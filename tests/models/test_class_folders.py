"""The labels of images in class folders."""

from pathlib import Path

import pytest
from PIL import Image

from iformer.models.class_folders import class_labels
from iformer.models.saved import Model

MODEL = Model("tiny", "classification", None, ("ant", "bee"), {}, "")


def test_classes_are_the_first_level_of_folders_and_hidden_files_are_none(tmp_path: Path) -> None:
    for name in ("ant/day1/a.png", "bee/b.png", "bee/.ipynb_checkpoints/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    found = [(path.name, label) for path, label in class_labels(MODEL, tmp_path)]
    assert found == [("a.png", 0), ("b.png", 1)]
    (tmp_path / "cow").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cow/d.png")
    with pytest.raises(ValueError, match="cow is not a class of the model"):
        class_labels(MODEL, tmp_path)

"""Prediction for image files of every kind, and the legend of the overlay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from iformer.models import saved
from iformer.segmentation import pictures
from iformer.segmentation.model import build
from tests.networks import SCENES
from tests.segmentation.conftest import segment

NETWORK = {"architecture": "semantic_fpn", "backbone": "iformer_nano", "num_classes": 3, "neck_channels": 8,
           "head_channels": 8}  # fmt: skip
CONFIG = {**SCENES, "network": NETWORK}


@pytest.mark.parametrize(
    ("mode", "size", "name"),
    [("L", (50, 40), "a.png"), ("CMYK", (50, 40), "a.jpg"), ("RGB", (1, 1), "a.png"), ("L", (1, 60), "a.png")],
)
@pytest.mark.parametrize("resize", [None, (40, 160)])
def test_images_of_every_mode_and_size(
    mode: str, size: tuple[int, int], name: str, resize: tuple[int, int] | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    saved.save_assembled(build(**NETWORK), tmp_path / "run", "segmentation", {**CONFIG, "resize": resize})
    Image.new(mode, size).save(tmp_path / name)
    (result,) = segment(tmp_path / "run", [tmp_path / name], tmp_path / "out")
    with Image.open(result["labels"]) as labels:
        assert (labels.mode, labels.size) == ("P", size)
    with Image.open(result["overlay"]) as overlay:
        assert min(overlay.size) > 200
    assert sum(entry["share"] for entry in result["classes"]) == pytest.approx(1, abs=1e-3)


def test_the_legend_names_the_classes_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    labels = np.zeros((20, 30), np.uint8)
    labels[:15] = 2
    pictures.draw_overlay(np.zeros((20, 30, 3), np.uint8), labels, CONFIG, tmp_path / "a.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["blue  75.0%", "red  25.0%"]
    assert [patch.get_facecolor()[:3] for patch in legend.get_patches()] == [(0, 0, 250 / 255), (250 / 255, 0, 0)]


def test_an_image_that_fails_is_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    saved.save_assembled(build(**NETWORK), tmp_path / "run", "segmentation", CONFIG)
    Image.new("RGB", (50, 40)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (20000, 1)).save(tmp_path / "line.png")
    paths = [tmp_path / name for name in ("cut.png", "line.png", "whole.png")]
    cut, line, whole = segment(tmp_path / "run", paths, tmp_path / "out")
    assert "cut.png: " in cut["error"]
    assert "\n" not in cut["error"]
    assert "classes" in line or "line.png: " in line["error"]
    assert whole["classes"]

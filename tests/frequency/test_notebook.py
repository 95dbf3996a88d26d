"""The notebook, run without Jupyter on a small stand-in for the demo's data and checkpoint."""

import json
from pathlib import Path

import matplotlib
import pytest
import timm
import torch

from iformer.classification.fashion_mnist import FashionMNISTData
from iformer.models import saved

NOTEBOOK = Path(__file__).parents[2] / "docs/notebooks/frequency_analysis.ipynb"


def test_it_runs_from_top_to_bottom(
    small_fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "data").mkdir()
    small_fashion_mnist.rename(tmp_path / "data/fashion_mnist")
    torch.manual_seed(0)
    model = timm.create_model("iformer_nano", num_classes=10, in_chans=1, img_size=28)
    saved.save(model, tmp_path / "runs/demo", FashionMNISTData.class_names, mean=(0.3,), std=(0.3,))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with matplotlib.rc_context():
        for cell in json.loads(NOTEBOOK.read_text())["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(line for line in cell["source"] if not line.startswith("%")), names)
    out = capsys.readouterr().out
    assert "a checkerboard: 1.000" in out
    assert "iformer_nano, untrained" in out

"""Where a GPU's memory is not enough, one line says so, and what to change."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from iformer.models import saved
from tests.conftest import Command
from tests.gpu.conditions import real
from tests.training.tiny import recipe

pytestmark = [pytest.mark.gpu, real]


@pytest.fixture
def hardly_any_memory() -> Iterator[None]:
    torch.cuda.init()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_training_says_what_to_change(hardly_any_memory: None, tmp_path: Path, iformer: Command) -> None:
    large = {"data__init_args__batch_size": 512, "data__init_args__length": 512}  # for torch to ask for more memory
    options = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]
    status, _, told = iformer("fit", "--config", recipe(tmp_path, **large), *options)
    assert status == 2
    (line,) = [line for line in told.splitlines() if line.startswith("iformer: error:")]
    assert "out of memory" in line
    assert "lower data.init_args.batch_size (512)" in line


def test_prediction_says_so(hardly_any_memory: None, tmp_path: Path, iformer: Command) -> None:
    saved.save(timm.create_model("iformer_small", num_classes=3), tmp_path / "model", ["a", "b", "c"])
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    status, _, told = iformer("predict", tmp_path / "image.png", "--model", tmp_path / "model", "--device", "cuda")
    assert status == 2
    assert "out of memory" in told.splitlines()[-1]
    assert "Traceback" not in told

"""A search run on a few images, which trains in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from iformer.training.launcher import run

NETWORK: dict[str, Any] = {
    "depths": [1, 1, 1, 1], "dims": [8, 8, 12, 12], "num_heads": [2, 2, 3, 3], "attention_heads": [1, 1, 2, 2],
    "drop_path_rate": 0.1, "img_size": 32,
}  # fmt: skip


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test of two classes: bright above, or bright below."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 12)):
        for label, name in enumerate(("above", "below")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
                pixels[16 * label : 16 * label + 16] += 60
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def search_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "run"
    arguments = {
        "data.init_args.root": images,
        "data.init_args.val_share": 0.25,
        "data.init_args.batch_size": 12,
        "data.init_args.hflip": 0.0,
        "model.init_args.model_args": json.dumps(NETWORK),
        "model.init_args.num_classes": 2,
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
    }
    run("fit", ["--config=search/cifar10", *(f"--{key}={value}" for key, value in arguments.items())])
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["data"]["init_args"]["val_split"] == "train"
    return folder

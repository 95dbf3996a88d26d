"""Some hundred training steps of every recipe, with a tiny network on odd data."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from iformer.models import saved
from iformer.models.backbone import create
from iformer.training.launcher import run
from tests.detection.conftest import MODEL as DETECTOR
from tests.networks import NARROW
from tests.soak.recipes import alike, data_changes, settings, task
from tests.training.tiny import MODEL

pytestmark = pytest.mark.soak

STEPS = 200


def tiny_network(name: str) -> list[str]:
    """iformer_nano, thinner still, with what the recipe says of drop path and the like."""
    recipe = settings(name)["model"]["init_args"]
    arguments = recipe.get("model_args", {})
    match task(name):
        case "fashion_mnist":
            return []
        case "classification":
            changed, key = {**arguments, **MODEL, "img_size": 32}, "model"
        case "detection":
            own = {key: value for key, value in arguments.items() if key not in ("min_size", "max_size")}
            sizes = [48, 64, 80] if isinstance(arguments["min_size"], list) else 64
            backbone = {**arguments["backbone_args"], **DETECTOR["backbone_args"]}
            changed, key = {**own, **DETECTOR, "min_size": sizes, "backbone_args": backbone}, "backbone"
        case _:
            widths = (
                {"channels": 8} if recipe.get("architecture") == "upernet" else {"neck_channels": 8, "head_channels": 8}
            )
            changed, key = {**arguments, **NARROW, **widths}, "backbone"
    fresh = ["--model.init_args.pretrained=false"] if recipe.get("pretrained") else []
    classes = ["--model.init_args.num_classes=2"] if key == "model" else []
    return [f"--model.init_args.{key}=iformer_nano", f"--model.init_args.model_args={changed}", *classes, *fresh]


def step(name: str) -> list[Any]:
    """What a training step of a recipe depends on, once its network is a tiny one."""
    recipe = settings(name)
    return [tiny_network(name), recipe["model"]["init_args"] | {"model": "", "model_args": {}}, recipe["trainer"]]


@pytest.mark.parametrize("name", alike(step))
def test_every_loss_is_finite(name: str, tmp_path: Path, small_fashion_mnist: Path) -> None:
    changes = data_changes(name, tmp_path / "data", small_fashion_mnist, count=120, workers=0)
    taught = []
    if "distillation" in settings(name)["model"]["init_args"]:
        saved.save(create("iformer_nano", num_classes=2, **MODEL), tmp_path / "teacher", ["x", "y"])
        taught = [f"--model.init_args.distillation.teacher={tmp_path / 'teacher'}"]
    run(
        "fit",
        [
            f"--config={name}",
            *(f"--data.init_args.{key}={'null' if value is None else value}" for key, value in changes.items()),
            f"--data.init_args.batch_size={2 if task(name) == 'detection' else 4}",
            *tiny_network(name),
            *taught,
            f"--trainer.default_root_dir={tmp_path / 'run'}",
            "--trainer.accelerator=cpu",
            f"--trainer.max_steps={STEPS}",
            "--trainer.limit_val_batches=0",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
        ],
    )
    with open(tmp_path / "run" / "metrics.csv") as metrics:
        losses = [float(row["loss"]) for row in csv.DictReader(metrics) if row["loss"]]
    assert len(losses) == STEPS
    assert all(map(math.isfinite, losses))

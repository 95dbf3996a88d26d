"""Settings that make no sense end in one line that names key and value, before anything is read or trained."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchvision.datasets import FakeData

from iformer.classification.data import ImageData
from iformer.classification.task import ClassificationTask
from iformer.detection.data import CocoData
from iformer.detection.model import build
from iformer.segmentation.data import SegmentationData
from iformer.training.checkpoints import RunCheckpoint
from iformer.training.launcher import run
from iformer.training.optimization import AdamWCosine, AdamWSteps
from tests.training.tiny import recipe

WINGS = {
    "finetune": ["--model.init_args.model=iformer_nano"],
    "segmentation_folder": ["--model.init_args.backbone=iformer_nano", "--data.init_args.class_names=[a,b]"],
    "coco/mask_rcnn_iformer_small_1x": ["--model.init_args.backbone=iformer_nano"],
}
FINETUNE, SEGMENTATION, DETECTION = WINGS


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (FINETUNE, "model.init_args.optimization.weight_decay", "-1"),
        (FINETUNE, "model.init_args.optimization.layer_decay", "2"),
        (FINETUNE, "model.init_args.optimization.base_batch", "0"),
        (FINETUNE, "model.init_args.optimization.lr", "nan"),
        (FINETUNE, "model.init_args.optimization.warmup_epochs", "-1"),
        (FINETUNE, "model.init_args.optimization.per", "year"),
        (FINETUNE, "model.init_args.mixup", "-1"),
        (FINETUNE, "model.init_args.label_smoothing", "2"),
        (FINETUNE, "model.init_args.model_args.drop_path_rate", "2"),
        (FINETUNE, "model.init_args.num_classes", "0"),
        (FINETUNE, "data.init_args.crop_pct", "0"),
        (FINETUNE, "data.init_args.eval_batch_size", "0"),
        (FINETUNE, "data.init_args.num_workers", "-1"),
        (FINETUNE, "data.init_args.scale", "[1.0, 0.1]"),
        (FINETUNE, "data.init_args.image_size", "0"),
        (FINETUNE, "data.init_args.std", "[0, 0, 0]"),
        (FINETUNE, "checkpoint.keep", "0"),
        (FINETUNE, "seed_everything", "-1"),
        (FINETUNE, "trainer.gradient_clip_val", "-1"),
        (FINETUNE, "trainer.accumulate_grad_batches", "0"),
        (FINETUNE, "trainer.check_val_every_n_epoch", "0"),
        (FINETUNE, "trainer.devices", "many"),
        (FINETUNE, "trainer.devices", "[0, 0]"),
        (FINETUNE, "trainer.precision", "64-bits"),
        (FINETUNE, "trainer.max_epochs", "-5"),
        (FINETUNE, "trainer.limit_train_batches", "-1"),
        (SEGMENTATION, "data.init_args.ratios", "[2.0, 0.5]"),
        (SEGMENTATION, "data.init_args.crop", "[0, 10]"),
        (SEGMENTATION, "data.init_args.palette", "[[300, 1, 2]]"),
        (SEGMENTATION, "model.init_args.window", "[0, 0]"),
        (SEGMENTATION, "model.init_args.model_args.drop_path_rate", "2"),
        (DETECTION, "model.init_args.model_args.min_size", "0"),
        (DETECTION, "model.init_args.model_args.min_size", "2000"),
        (DETECTION, "model.init_args.optimization.factor", "0"),
        (DETECTION, "model.init_args.optimization.drops", "[0]"),
        (DETECTION, "data.init_args.batch_size", "0"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, key: str, value: str, tmp_path: Path) -> None:
    arguments = [*WINGS[name], "--model.init_args.pretrained=false", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=re.escape(key.rpartition(".")[2])) as error:
        run("fit", ["--config", name, f"--{key}={value}", "--trainer.accelerator=cpu", *arguments])
    assert "\n" not in str(error.value)
    assert re.findall(r"[\w.-]+", value)[0] in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (AdamWCosine, {"weight_decay": -1}),
        (AdamWSteps, {"factor": 0}),
        (ImageData, {"crop_pct": 0}),
        (ImageData, {"hflip": 2}),
        (CocoData, {"limit": 0}),
        (SegmentationData, {"root": "", "class_names": ["a", "b"], "ratios": (2.0, 1.0)}),
        (ClassificationTask, {"model": "iformer_nano", "label_smoothing": 2}),
        (build, {"backbone": "iformer_nano", "min_size": 900, "max_size": 800}),
        (RunCheckpoint, {"keep": 0}),
    ],
)
def test_python_is_told_too(make: Callable[..., Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        make(**arguments)


@pytest.mark.parametrize("value", ["null", "~"])
def test_null_for_nested_optional_settings(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("base_batch", "layer_decay")
    arguments = [f"--model.init_args.optimization.{key}={value}" for key in keys]
    with pytest.raises(SystemExit):
        run("fit", ["--config", "finetune", *arguments, "--model.init_args.optimization.lr", "0.5", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimization"]
    assert [settings[key] for key in (*keys, "lr")] == [None, None, 0.5]


def test_channels_of_data_and_model_are_compared(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for i in range(4):
            FakeData(1, (3, 32, 32))[0][0].save(tmp_path / "train" / label / f"{i}.png")
    grey = ["--data.init_args.in_chans=1", "--data.init_args.mean=[0.5]", "--data.init_args.std=[0.5]"]
    task = ["--model.init_args.model=iformer_nano", "--model.init_args.pretrained=false",
            "--model.init_args.num_classes=2", f"--trainer.default_root_dir={tmp_path / 'run'}"]  # fmt: skip
    with pytest.raises(ValueError, match=r"in_chans is 1, but the model takes images of 3 channels"):
        run("fit", ["--config", "finetune", f"--data.init_args.root={tmp_path}", "--data.init_args.image_size=32",
                    "--data.init_args.batch_size=2", *grey, *task])  # fmt: skip


def test_a_recipe_may_be_that_of_an_earlier_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which wrote the settings of all commands into a run's recipe.yaml, each under its name."""
    old = {"fit": yaml.safe_load(recipe(tmp_path).read_text())}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(SystemExit):
        run("fit", ["--config", str(tmp_path / "recipe.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 4

"""Training, evaluation, resumption and recipes of detectors, through ``iformer fit`` and its siblings."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from iformer.detection.data import CocoData
from iformer.detection.task import DetectionTask
from iformer.models import locations
from iformer.training import checkpoints, recipes
from iformer.training.launcher import run
from tests.detection.conftest import MODEL
from tests.processes import start_ranks

NAMES = [name for name in recipes.names() if name.startswith("coco/")]
LOSSES = ["loss", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]


@pytest.fixture
def recipe(tmp_path: Path, data_arguments: dict) -> Path:
    settings = {
        "model": {
            "class_path": "iformer.detection.task.DetectionTask",
            "init_args": {
                "backbone": "iformer_nano",
                "num_classes": 3,
                "model_args": {**MODEL, "backbone_args": {**MODEL["backbone_args"], "drop_path_rate": 0.2}},
                "optimization": {"lr": 1e-3, "base_batch": None, "warmup_steps": 2, "drops": [1]},
            },
        },
        "data": {
            "class_path": "iformer.detection.data.CocoData",
            "init_args": {**data_arguments, "batch_size": 2, "eval_batch_size": 3},
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / "run"),
        },
        "checkpoint": {"every_n_steps": 1, "keep": 10},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_run_logs_each_loss_and_ap_and_leaves_a_detector(recipe: Path, tmp_path: Path) -> None:
    results = run("fit", ["--config", str(recipe)])
    assert {f"val_{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75", "ap_small")} <= set(
        results["metrics"]
    )
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == 6
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in LOSSES[1:]), rel=1e-4)
    # Warm-up from a thousandth, then a tenth after the first epoch.
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-6, 5.005e-4, 1e-3, 1e-4, 1e-4, 1e-4])
    _, config = locations.find(tmp_path / "run")
    assert (config["task"], config["class_names"]) == ("detection", ["car", "train", "zebra"])
    assert config["category_ids"] == [3, 7, 90]
    run("validate", ["--config", str(recipe), "--resume", "--verbose=false"])
    with open(tmp_path / "run" / "per_class.csv") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["car", "train", "zebra"]
    card = (tmp_path / "run/README.md").read_text()
    assert f"| `mask_ap` | {results['metrics']['val_mask_ap']:.4f} |" in card
    assert "3 classes: car, train, zebra." in card


def boxes(annotations: str) -> list[str]:
    """Arguments for a detector of boxes."""
    data = [f"--data.init_args.{split}_annotations={annotations}" for split in ("train", "val")]
    return ["--model.init_args.architecture=faster_rcnn", *data]


@pytest.mark.parametrize("annotations", ["boxes.json", "annotations.json"])
def test_a_detector_of_boxes_needs_no_masks(annotations: str, recipe: Path, boxes_only: str, tmp_path: Path) -> None:
    results = run("fit", ["--config", str(recipe), *boxes(annotations)])
    assert "val_box_ap" in results["metrics"]
    with open(tmp_path / "run" / "metrics.csv") as file:
        columns = csv.DictReader(file).fieldnames or []
    assert "loss_box_reg" in columns
    assert not [name for name in columns if "mask" in name]
    _, config = locations.find(tmp_path / "run")
    assert config["network"]["architecture"] == "faster_rcnn"
    run("validate", ["--config", str(recipe), *boxes(annotations), "--resume", "--verbose=false"])
    with open(tmp_path / "run" / "per_class.csv") as file:
        assert csv.DictReader(file).fieldnames == ["class", "box_ap", "box_ap50"]


def test_masks_cannot_be_learned_from_boxes(recipe: Path, boxes_only: str) -> None:
    with pytest.raises(ValueError, match=r"boxes.json: none of its 7 objects has a segmentation") as error:
        run("fit", ["--config", str(recipe), *boxes(boxes_only)[1:]])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", ["mask_rcnn", "faster_rcnn"])
def test_resumed_run_ends_with_the_same_weights(
    architecture: str, recipe: Path, boxes_only: str, tmp_path: Path
) -> None:
    kind = boxes(boxes_only) if architecture == "faster_rcnn" else []
    run("fit", ["--config", str(recipe), *kind, "--trainer.limit_val_batches=0"])
    whole = torch.load(checkpoints.newest(tmp_path / "run"), weights_only=False)
    resumed = tmp_path / "resumed" / "checkpoints"
    resumed.mkdir(parents=True)
    middle = tmp_path / "run" / "checkpoints" / "step-000000004.ckpt"  # in the second epoch
    (resumed / middle.name).write_bytes(middle.read_bytes())
    arguments = [f"--trainer.default_root_dir={tmp_path / 'resumed'}", "--trainer.limit_val_batches=0", "--resume"]
    run("fit", ["--config", str(recipe), *kind, *arguments])
    again = torch.load(checkpoints.newest(tmp_path / "resumed"), weights_only=False)
    assert again["global_step"] == whole["global_step"] == 6
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), name


def test_two_processes_train_and_evaluate_images_of_an_odd_number(recipe: Path, tmp_path: Path, coco: Path) -> None:
    arguments = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=1"]
    # Five images, one at a time: one rank has three batches, the other two.
    arguments += ["--data.init_args.limit=5", "--data.init_args.eval_batch_size=1", "--trainer.max_epochs=1"]
    ranks = start_ranks(2, recipe, *arguments)
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], (tmp_path / "stderr0").read_text()
    one = ["--data.init_args.limit=5", f"--ckpt_path={checkpoints.newest(tmp_path / 'run')}", "--verbose=false"]
    alone = run("validate", ["--config", str(recipe), *one])["metrics"]
    with open(tmp_path / "run" / "metrics.csv") as file:
        (together,) = [row for row in csv.DictReader(file) if row["val_box_ap"]]
    for name in ("val_box_ap", "val_mask_ap", "val_box_ap50"):
        assert float(together[name]) == pytest.approx(alone[name], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_takes_two_steps(name: str, data_arguments: dict, tmp_path: Path) -> None:
    settings = recipes.read(recipes.find(name))["model"]["init_args"]
    sizes = {key: MODEL[key] for key in ("channels", "min_size", "max_size", "box_batch_size_per_image")}
    if isinstance(settings["model_args"]["min_size"], list):
        sizes["min_size"] = [48, 64]
    backbone = {**settings["model_args"]["backbone_args"], **MODEL["backbone_args"]}
    arguments = [
        f"--config={name}",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.limit_val_batches=1",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        f"--model.init_args.model_args={ {**settings['model_args'], **sizes, 'backbone_args': backbone} }",
        "--model.init_args.num_classes=3",
        "--model.init_args.pretrained=false",
        *(f"--data.init_args.{key}={value}" for key, value in data_arguments.items()),
    ]
    run("fit", arguments)
    assert torch.load(checkpoints.newest(tmp_path), weights_only=False)["global_step"] == 2
    assert json.loads((tmp_path / "config.json").read_text())["task"] == "detection"


@pytest.mark.parametrize("name", [name for name in NAMES if "mask_rcnn" in name])
def test_recipes_follow_the_paper(name: str) -> None:
    settings = recipes.read(recipes.find(name))
    task, data = settings["model"]["init_args"], settings["data"]["init_args"]
    times = int(name[-2])  # 1x, 3x
    assert settings["trainer"]["max_epochs"] == 12 * times
    expected = {"lr": 1e-4, "base_batch": 16, "weight_decay": 0.05, "warmup_steps": 500, "warmup_factor": 0.001}
    assert task["optimization"] == {**expected, "drops": [8, 11] if times == 1 else [27, 33]}
    assert (task["model_args"]["max_size"], data["hflip"], task["pretrained"]) == (1333, 0.5, True)
    # Every key of the recipe is one of the classes'.
    assert set(task) <= set(DetectionTask.__init__.__annotations__)
    assert set(data) <= set(CocoData.__init__.__annotations__)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model.init_args.num_classes=5"], "num_classes is 5, but the data has 3 classes"),
        (["--data.init_args.train_annotations=missing.json"], "missing.json: no such file"),
        (["--model.init_args.backbone=iformer_smal"], "did you mean iformer_small?"),
        (["--model.init_args.model_args={'min_sise': 5}"], "no argument min_sise, did you mean min_size?"),
        (["--model.init_args.model_args={'num_classes': 3}"], "num_classes is an argument of the task"),
        (
            ["--model.init_args.backbone=vit_tiny_patch16_224", "--model.init_args.model_args={}"],
            "expected four, each twice the one before",
        ),
        (["--data.init_args.hflip=2"], "data.hflip: expected 1 or less, got 2"),
        (["--model.init_args.backbon=iformer_small"], "did you mean backbone?"),
    ],
)
def test_mistakes_are_named_in_one_line(arguments: list[str], told: str, recipe: Path) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        run("fit", ["--config", str(recipe), *arguments])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_images_without_annotations_train_alone() -> None:
    task = DetectionTask("iformer_nano", 3, model_args=MODEL)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "masks": torch.zeros(0, 48, 64, dtype=torch.uint8),
    }
    losses = task.model([torch.rand(3, 48, 64)] * 2, [empty, empty])
    loss = sum(losses.values())
    loss.backward()
    assert torch.isfinite(loss)
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0


def test_norms_and_position_embeddings_are_not_decayed() -> None:
    task = DetectionTask("iformer_nano", 3, model_args=MODEL)
    decayed, kept = sorted(
        task.optimization.parameter_groups(task.model), key=lambda group: group["weight_decay"], reverse=True
    )
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    assert {name for name in names.values() if "pos_embed" in name or "norm" in name} <= kept_names
    assert len([name for name in kept_names if "pos_embed" in name]) == 4
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])

"""Training, evaluation, resumption and prediction on small scenes."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from iformer.models import saved
from iformer.segmentation import inference
from iformer.segmentation.data import SegmentationData
from iformer.segmentation.task import SegmentationTask
from iformer.training import checkpoints
from iformer.training.launcher import run
from iformer.training.optimization import AdamWCosine
from tests.conftest import Command
from tests.processes import start_ranks
from tests.segmentation.conftest import COLOURS, FOLDERS, NAMES, scene
from tests.training.tiny import CPUSharding

PALETTE = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]


def recipe(scenes: Path, folder: Path, **changes: Any) -> Path:
    """A recipe for the scenes, written to ``folder``; ``changes`` are dotted keys with __ for the dots."""
    settings: dict[str, Any] = {
        "model": {
            "class_path": "iformer.segmentation.task.SegmentationTask",
            "init_args": {
                "backbone": "iformer_nano",
                "num_classes": 3,
                "model_args": {"stem_stride": 4, "neck_channels": 16, "head_channels": 16, "drop_path_rate": 0.1},
                "optimization": {"lr": 3e-3, "base_batch": None, "warmup_epochs": 0, "per": "step"},
            },
        },
        "data": {
            "class_path": "iformer.segmentation.data.SegmentationData",
            "init_args": {
                "root": str(scenes), "class_names": NAMES, "palette": PALETTE, "ignore_labels": [9],
                "crop": [48, 48], "batch_size": 2, "num_workers": 0, **FOLDERS,
            },
        },
        "trainer": {
            "max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False, "log_every_n_steps": 1,
        },
        "checkpoint": {"every_n_steps": 3, "keep": 100},
    }  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split("__")
        place = settings
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scenes.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def metrics(folder: Path, name: str) -> list[float]:
    with open(folder / "run" / "metrics.csv") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_it_learns_is_evaluated_and_predicts(scenes: Path, tmp_path: Path, iformer: Command) -> None:
    file = recipe(scenes, tmp_path, trainer__max_epochs=10, trainer__check_val_every_n_epoch=10)
    assert iformer("fit", f"--config={file}")[0] == 0
    (miou,) = metrics(tmp_path, "val_miou")
    assert miou > 0.8

    status, out, _ = iformer("test", f"--config={file}", "--resume")
    assert status == 0
    assert all(name in out for name in ("share", "iou", "accuracy", *NAMES))
    with open(tmp_path / "run/per_class.csv") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["class"] for row in rows] == NAMES
    assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(miou, abs=1e-3)
    assert min(Image.open(tmp_path / "run/pictures.png").size) > 300
    assert len((tmp_path / "run/confusion.csv").read_text().splitlines()) == 4
    card = (tmp_path / "run/README.md").read_text()
    assert f"| `miou` | {miou:.4f} |" in card  # of the validation images, which the test took too
    assert f"3 classes: {', '.join(NAMES)}." in card
    status, out, _ = iformer("validate", f"--config={file}", "--resume", "--json")
    document = json.loads(out)
    assert document["metrics"]["val_miou"] == pytest.approx(miou, abs=1e-5)
    assert [row["class"] for row in document["per_class"]] == NAMES

    # Another size than any seen, and in a folder with a file that is no image.
    image, labels = scene(83, 131, 99)
    (tmp_path / "new").mkdir()
    Image.fromarray(image).save(tmp_path / "new/street.jpg", quality=95)
    (tmp_path / "new/broken.png").write_text("no image")
    arguments = [tmp_path / "new", "--checkpoint", tmp_path / "run", "--output", tmp_path / "out"]
    status, out, err = iformer("predict", *arguments, "--json")
    assert status == 0
    assert "broken.png: not an image" in err
    result = next(result for result in json.loads(out) if "error" not in result)
    assert sum(entry["share"] for entry in result["classes"]) == pytest.approx(1, abs=1e-3)
    with Image.open(result["labels"]) as written:
        assert (written.mode, written.size) == ("P", (131, 83))
        assert written.getpalette()[:9] == [value for colour in PALETTE for value in colour]
        found = np.asarray(written)
    assert (found == labels)[labels != 9].mean() > 0.8
    assert result["classes"][0]["name"] == NAMES[np.bincount(found.flatten()).argmax()]
    with Image.open(result["overlay"]) as overlay:
        assert min(overlay.size) > 200
    status, out, _ = iformer("predict", *arguments, "--top", 1)
    assert "street_overlay.png" in out
    assert result["classes"][0]["name"] in out


def test_resumed_in_the_middle_of_an_epoch_it_ends_with_the_same_weights(scenes: Path, tmp_path: Path) -> None:
    run("fit", ["--config", str(recipe(scenes, tmp_path))])
    (tmp_path / "resumed/run" / checkpoints.FOLDER).mkdir(parents=True)
    name = "step-000000006.ckpt"  # of 8, 4 in an epoch
    (tmp_path / "resumed/run" / checkpoints.FOLDER / name).symlink_to(tmp_path / "run" / checkpoints.FOLDER / name)
    run("fit", ["--config", str(recipe(scenes, tmp_path / "resumed")), "--resume"])
    whole, resumed = (load_file(path / "run/model.safetensors") for path in (tmp_path, tmp_path / "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_two_processes_count_the_pixels_of_one(scenes: Path, tmp_path: Path) -> None:
    still = {
        "model__init_args__optimization__lr": 0.0,
        "model__init_args__optimization__min_lr": 0.0,
        "trainer__max_epochs": 1,
        "trainer__callbacks": [{"class_path": "tests.training.tiny.FrozenBatchNorm"}],
    }
    run("fit", ["--config", str(recipe(scenes, tmp_path / "alone", **still))])
    file = recipe(scenes, tmp_path / "two", **still)
    ranks = start_ranks(2, file, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=1")
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], (tmp_path / "two/stderr0").read_text()
    for name in ("val_miou", "val_mean_accuracy", "val_pixel_accuracy"):
        assert metrics(tmp_path / "two", name) == metrics(tmp_path / "alone", name)


def test_windows_and_flips_are_settings_of_an_evaluation(scenes: Path, tmp_path: Path) -> None:
    file = recipe(scenes, tmp_path)
    whole = run("validate", [f"--config={file}", "--verbose=false"])["metrics"]["val_miou"]
    covering = run("validate", [f"--config={file}", "--verbose=false", "--model.init_args.window=[99,99]"])
    assert covering["metrics"]["val_miou"] == whole
    options = ["--model.init_args.window=[32,32]", "--model.init_args.flip_test=true", "--verbose=false"]
    assert 0 <= run("validate", [f"--config={file}", *options])["metrics"]["val_miou"] <= 1


def test_predict_takes_the_window_and_the_flip_test_of_the_training(
    scenes: Path, tmp_path: Path, iformer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model__init_args__window": [32, 32], "model__init_args__flip_test": True}
    run("fit", ["--config", str(recipe(scenes, tmp_path, trainer__max_epochs=1, **settings))])
    asked = []
    whole = inference.logits

    def logits(network: Any, images: torch.Tensor, *arguments: Any) -> torch.Tensor:
        asked.append(arguments)
        return whole(network, images, *arguments)

    monkeypatch.setattr(inference, "logits", logits)
    image, _ = scene(50, 70, 99)
    Image.fromarray(image).save(tmp_path / "a.png")
    arguments = ["--checkpoint", tmp_path / "run", "--output", tmp_path / "out"]
    assert iformer("predict", tmp_path / "a.png", *arguments)[0] == 0
    assert ([*map(int, asked[0][0])], asked[0][1]) == ([32, 32], True)


def test_a_window_is_refused_where_the_model_is_sharded() -> None:
    task = SegmentationTask("iformer_nano", 3, model_args={"neck_channels": 8, "head_channels": 8}, window=(32, 32))
    task.trainer = SimpleNamespace(strategy=CPUSharding(), datamodule=None)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^model\.init_args\.window does not go with trainer\.strategy fsdp") as error:
        task.setup("validate")
    assert "\n" not in str(error.value)


def test_the_last_step_is_validated_in_the_middle_of_an_epoch(scenes: Path, tmp_path: Path) -> None:
    steps = {
        "trainer__max_epochs": -1, "trainer__max_steps": 6, "trainer__val_check_interval": 3,
        "trainer__check_val_every_n_epoch": None, "checkpoint__every_n_steps": 100,
    }  # fmt: skip
    run("fit", ["--config", str(recipe(scenes, tmp_path, **steps))])  # 4 steps in an epoch
    with open(tmp_path / "run/metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val_miou"]] == [2, 5]
    (tmp_path / "resumed/run" / checkpoints.FOLDER).mkdir(parents=True)
    name = "step-000000003.ckpt"  # as the first validation began, which is still to come
    (tmp_path / "resumed/run" / checkpoints.FOLDER / name).symlink_to(tmp_path / "run" / checkpoints.FOLDER / name)
    run("fit", ["--config", str(recipe(scenes, tmp_path / "resumed", **steps)), "--resume"])
    assert metrics(tmp_path / "resumed", "val_miou") == metrics(tmp_path, "val_miou")
    whole, resumed = (load_file(path / "run/model.safetensors") for path in (tmp_path, tmp_path / "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_label_maps_of_another_size_than_the_network_sees(scenes: Path, tmp_path: Path) -> None:
    file = recipe(scenes, tmp_path, data__init_args__resize=[40, 160])
    found = run("test", [f"--config={file}", "--verbose=false"])
    with open(tmp_path / "run/confusion.csv") as opened:
        counted = sum(int(value) for row in list(csv.reader(opened))[1:] for value in row[1:])
    maps = [np.asarray(Image.open(path)) for path in (scenes / "labels/val").iterdir()]
    assert counted == sum((labels != 9).sum() for labels in maps)
    assert found["metrics"]["test_loss"] > 0


def test_images_without_labels_cost_nothing(scenes: Path, tmp_path: Path) -> None:
    task = SegmentationTask("iformer_nano", 3, model_args={"neck_channels": 8, "head_channels": 8})
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    loss = task.training_step((torch.randn(2, 3, 32, 32), torch.full((2, 32, 32), 255, dtype=torch.uint8)), 0)
    loss.backward()
    assert loss == 0


def test_mistakes_are_named(scenes: Path, tmp_path: Path, iformer: Command) -> None:
    file = recipe(scenes, tmp_path, model__init_args__num_classes=5)
    assert "num_classes is 5, but the data has 3 classes" in iformer("fit", f"--config={file}")[2]
    file = recipe(scenes, tmp_path, model__init_args__architecture="unet")
    status, _, err = iformer("fit", f"--config={file}")
    assert status == 2
    assert "architecture" in err.splitlines()[-1]

    task = SegmentationTask("iformer_nano", 3, model_args={"neck_channels": 8, "head_channels": 8})
    saved.save_assembled(task.model, tmp_path / "odd", "segmentation", {"class_names": NAMES})
    Image.fromarray(COLOURS[None]).save(tmp_path / "a.png")
    status, _, err = iformer("predict", tmp_path / "a.png", "--checkpoint", tmp_path / "odd")
    assert status == 2
    assert "config.json: network: Field required" in err


@pytest.mark.parametrize("overlap", ["dice", "lovasz"])
def test_the_loss_may_weigh_classes_and_count_their_overlap(
    overlap: Any, scenes: Path, tmp_path: Path, iformer: Command
) -> None:
    args = {"neck_channels": 8, "head_channels": 8}
    plain = SegmentationTask("iformer_nano", 3, model_args=args)
    task = SegmentationTask("iformer_nano", 3, model_args=args, class_weights=[1.0, 2.0, 0.0], overlap_loss=overlap)
    for each in (plain, task):
        each.log = lambda *_, **__: None  # type: ignore[method-assign]
        each.forward = lambda _: logits  # type: ignore[method-assign]
    task.loss_weights = torch.tensor([1.0, 2.0, 0.0])
    labels = torch.tensor([[[0, 1, 255], [1, 2, 2]]], dtype=torch.uint8)
    logits = 20 * torch.nn.functional.one_hot(labels.long() % 253, 3).permute(0, 3, 1, 2).float()
    assert task.training_step((logits, labels), 0) == pytest.approx(0, abs=1e-5)  # all is right
    logits = torch.zeros(1, 3, 2, 3)
    expected = torch.tensor(3.0).log() * (1 + 2 + 2 + 0 + 0) / 5
    # Soft Dice of a third everywhere; Lovász loss of an equal error everywhere is that error.
    shares = torch.tensor([1, 2, 2])
    dice = (1 - 2 * shares / 3 / (5 / 3 + shares)).mean()
    found = task.training_step((logits, labels), 0) - expected
    assert 0.3 < found < 0.9
    if overlap == "dice":
        torch.testing.assert_close(found, dice)
    empty = torch.full((1, 2, 3), 255, dtype=torch.uint8)
    assert task.training_step((logits, empty), 0) == plain.training_step((logits, empty), 0) == 0


def test_balanced_weights_come_from_the_label_maps(scenes: Path, tmp_path: Path, iformer: Command) -> None:
    changes = {"model__init_args__class_weights": "balanced", "model__init_args__overlap_loss": "dice"}
    file = recipe(scenes, tmp_path, **changes, trainer__max_epochs=1)
    settings = yaml.safe_load(file.read_text())
    task = SegmentationTask(**{**settings["model"]["init_args"], "optimization": AdamWCosine(warmup_epochs=0)})
    data = SegmentationData(**settings["data"]["init_args"])
    data.setup("fit")
    maps = [np.asarray(Image.open(path)) for path in (scenes / "labels/train").iterdir()]
    counts = [sum(int((labels == label).sum()) for labels in maps) for label in range(3)]
    assert data.class_counts == counts
    task.trainer = SimpleNamespace(strategy=None, datamodule=data)  # type: ignore[assignment]
    task.setup("fit")
    assert task.loss_weights is not None
    assert (task.loss_weights * torch.tensor(counts)).sum() / sum(counts) == pytest.approx(1)
    assert iformer("fit", f"--config={file}")[0] == 0
    for setting, message in {
        "class_weights=[1,2]": "model.init_args.class_weights has 2 weights, expected one for each of 3 classes",
        "class_weights={gren: 2}": "class_weights names gren, which is none of the 3 classes; did you mean green?",
        "overlap_loss=iou": "overlap_loss",
    }.items():
        status, _, err = iformer("fit", f"--config={recipe(scenes, tmp_path / 'b')}", f"--model.init_args.{setting}")
        assert status == 2
        assert message in err.splitlines()[-1]

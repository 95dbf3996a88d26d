"""``iformer fit FOLDER`` on images with label maps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.models.saved import resolve
from iformer.training import folders
from tests.conftest import Command
from tests.networks import NARROW

SMALL = [
    f"--model.init_args.model_args.{key}={json.dumps(value)}"
    for key, value in {"backbone_args": NARROW, "neck_channels": 8, "head_channels": 8}.items()
]
TINY = ["--device", "cpu", "--workers", "0", "--trainer.enable_progress_bar=false"]
RIM = ["--data.init_args.ignore_labels=[9]"]


def told(iformer: Command, *arguments: object) -> str:
    """The error of a command that must fail."""
    status, _, err = iformer("fit", *arguments)
    assert status == 2
    return err.splitlines()[-1]


def test_one_line_trains(iformer: Command, scenes: Path, tmp_path: Path) -> None:
    (scenes / "classes.txt").write_text("red\ngreen\nblue\n")
    run = tmp_path / "run"
    options = ("--model", "iformer_nano", "--image-size", 32, "--epochs", 1, "--output", run)
    status, out, err = iformer("fit", scenes, *options, *RIM, *SMALL, *TINY)
    assert status == 0, err
    assert "images with label maps, 3 classes" in err
    assert "the value 9 in label maps stands for no class" in err
    assert "miou" in out
    found = resolve(run)
    assert (found.task, found.class_names) == ("segmentation", ("red", "green", "blue"))
    status, _, err = iformer("predict", scenes / "images/val", "--model", run, "--output", tmp_path / "p")
    assert status == 0, err


def test_classes_come_from_the_label_maps(iformer: Command, scenes: Path) -> None:
    status, out, _ = iformer("fit", scenes, "--check", "--json", *RIM)
    found = json.loads(out)
    assert status == 2  # the validation images of this fixture are training images
    assert "3 validation images are training images too" in found["faults"][0]
    assert list(found["label_maps_per_class"]) == ["class 0", "class 1", "class 2"]
    assert any("classes.txt" in note for note in found["notes"])
    assert found["recipe"]["model"]["init_args"]["num_classes"] == 3
    assert found["recipe"]["data"]["init_args"]["crop"] == [64, 64]  # no larger than the images


@pytest.mark.parametrize("masks", ["annotations", "masks"])
def test_other_names_of_folders_and_files(masks: str, scenes: Path) -> None:
    for split, name in (("train", "training"), ("val", "validation")):
        (scenes / name).mkdir()
        (scenes / "images" / split).rename(scenes / name / "images")
        (scenes / "labels" / split).rename(scenes / name / masks)
        for file in (scenes / name / masks).iterdir():
            file.rename(file.with_stem(f"{file.stem}_mask"))
    found = folders.prepare(scenes, folders.Options(), RIM).settings["data"]["init_args"]
    assert (found["val_images"], found["label_suffix"]) == ("validation/images", "_mask.png")


def test_an_unnamed_value_is_asked_for(iformer: Command, scenes: Path) -> None:
    (scenes / "classes.txt").write_text("red\ngreen\nblue\n")
    error = told(iformer, scenes)
    assert "hold 0, 1, 2, 9, but there are 3 classes from 0 up; say what 9 is" in error
    assert "--data.init_args.ignore_labels '[9]'" in error


def test_wrong_settings_are_named(iformer: Command, scenes: Path) -> None:
    assert "first_label" in told(iformer, scenes, "--data.init_args.first_label=x")
    assert "ignore_labels" in told(iformer, scenes, "--data.init_args.ignore_labels=9")


def test_masks_of_objects_need_a_value_of_their_own(iformer: Command, scenes: Path) -> None:
    for file in scenes.glob("labels/*/*.png"):
        labels = np.asarray(Image.open(file))
        Image.fromarray(np.where(labels == 1, 255, 0).astype(np.uint8)).save(file)
    assert "the label maps hold 0 besides 255, which stands for no class" in told(iformer, scenes)


def test_faults_stop_before_the_first_step(iformer: Command, scenes: Path) -> None:
    Image.new("RGB", (60, 60)).save(scenes / "labels/train/1.png")
    Image.new("L", (9, 9)).save(scenes / "labels/train/2.png")
    status, out, _ = iformer("fit", scenes, "--check", "--json", *RIM)
    wrong, _ = json.loads(out)["faults"]
    assert status == 2
    assert "1.png: a label map of mode RGB, expected greyscale or palette (and 1 more)" in wrong
    assert "1.png: a label map of mode RGB" in told(iformer, scenes, *RIM)
    (scenes / "labels/train/1.png").unlink()
    assert "1.png: no such label map" in told(iformer, scenes)


def test_a_missing_split_is_named(iformer: Command, scenes: Path) -> None:
    for kind in ("images", "labels"):
        shutil.rmtree(scenes / kind / "val")
    assert "no val images, expected images/val and labels/val" in told(iformer, scenes)
    for kind in ("images", "labels"):
        for file in (scenes / kind / "train").iterdir():
            file.rename(scenes / kind / file.name)
        (scenes / kind / "train").rmdir()
    assert "images and label maps without a split, expected images/train, labels/train" in told(iformer, scenes)

"""``iformer fit FOLDER`` on images with annotations in COCO's format."""

import json
import shutil
from pathlib import Path

import pytest

from iformer.models.saved import resolve
from iformer.training import folders
from tests.conftest import Command
from tests.detection.conftest import BACKBONE, annotations

SMALL = [
    f"--model.init_args.model_args.{key}={json.dumps(value)}"
    for key, value in {
        "backbone_args": BACKBONE,
        "channels": 16,
        "max_size": 96,
        "box_batch_size_per_image": 32,
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 50,
        "box_score_thresh": 0.0,
    }.items()
]
TINY = ["--device", "cpu", "--workers", "0", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]


def write(folder: Path, coco: Path, masks: bool = True) -> Path:
    """Write a training and a validation split of the six images, each with its file of annotations."""
    (folder / "annotations").mkdir(parents=True)
    content = annotations()
    for item in content["annotations"]:
        if not masks:
            del item["segmentation"]
    for split, images in (("train2017", content["images"][:4]), ("val2017", content["images"][4:])):
        (folder / split).mkdir()
        ids = {image["id"] for image in images}
        for image in images:
            shutil.copy(coco / "images" / image["file_name"], folder / split)
        objects = [item for item in content["annotations"] if item["image_id"] in ids]
        part = {**content, "images": images, "annotations": objects}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(part))
    return folder


@pytest.fixture
def traffic(coco: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "traffic", coco)


@pytest.mark.parametrize("masks", [True, False])
def test_one_line_trains(masks: bool, iformer: Command, coco: Path, tmp_path: Path) -> None:
    folder, run = write(tmp_path / "traffic", coco, masks), tmp_path / "run"
    options = ("--model", "iformer_nano", "--image-size", 64, "--epochs", 1, "--output", run)
    status, out, err = iformer("fit", folder, *options, *SMALL, *TINY)
    assert status == 0, err
    assert "training: 4 images, 48x64 to 64x48 pixels" in err
    assert ("boxes and masks: Mask R-CNN" if masks else "boxes and no masks: Faster R-CNN") in err
    assert f"iformer export {run}" in out
    found = resolve(run)
    assert (found.task, found.class_names) == ("detection", ("car", "train", "zebra"))
    assert found.config["network"]["architecture"] == ("mask_rcnn" if masks else "faster_rcnn")
    picture = folder / "val2017" / "16.png"
    status, out, err = iformer("predict", picture, "--model", run, "--output", tmp_path / "p", "--json")
    assert status == 0, err


def test_check_counts_objects(iformer: Command, traffic: Path) -> None:
    status, out, _ = iformer("fit", traffic, "--check", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["objects_per_class"]["train"] == {"train": 3, "val": 0}
    assert "no validation objects of train, zebra" in found["notes"]
    assert any("training leaves out 2 of 7 annotations: 1 crowd regions" in note for note in found["notes"])
    task = found["recipe"]["model"]["init_args"]
    assert (task["num_classes"], task["architecture"], task["pretrained"]) == (3, "mask_rcnn", True)
    assert task["optimization"]["warmup_steps"] == 2  # an epoch's


def test_a_schedule_of_other_length_has_the_same_shape(traffic: Path) -> None:
    for epochs, drops in ((36, [27, 33]), (12, [9, 11]), (1, [1])):
        chosen = folders.prepare(traffic, folders.Options(epochs=epochs)).settings
        assert chosen["model"]["init_args"]["optimization"]["drops"] == drops


def test_annotations_beside_their_images(traffic: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid")):
        (traffic / f"{split}2017").rename(traffic / name)
        (traffic / "annotations" / f"instances_{split}2017.json").rename(traffic / name / "_annotations.coco.json")
    data = folders.prepare(traffic, folders.Options()).settings["data"]["init_args"]
    assert (data["val_images"], data["val_annotations"]) == ("valid", "valid/_annotations.coco.json")


def test_missing_images_stop_before_the_first_step(iformer: Command, traffic: Path) -> None:
    (traffic / "train2017" / "11.png").unlink()
    status, out, _ = iformer("fit", traffic, "--check", "--json")
    assert status == 2
    assert "11.png: no such file, though" in json.loads(out)["faults"][0]
    status, _, err = iformer("fit", traffic, "--output", traffic / "run")
    assert status == 2
    assert "11.png: no such file, though" in err.splitlines()[-1]
    assert not (traffic / "run").exists()


def test_wrong_folders(iformer: Command, traffic: Path) -> None:
    def told() -> str:
        status, _, err = iformer("fit", traffic, "--check")
        assert status == 2
        return err.splitlines()[-1]

    for image in (traffic / "train2017").iterdir():
        image.unlink()
    assert "instances_train2017.json: none of its images, such as 11.png, is in " in told()
    (traffic / "annotations" / "instances_val2017.json").rename(traffic / "annotations" / "more_train.json")
    (traffic / "annotations" / "instances_train2017.json").rename(traffic / "annotations" / "other_train.json")
    assert "2 annotation files of the split train, expected one" in told()
    (traffic / "annotations" / "more_train.json").unlink()
    shutil.copy(traffic / "val2017" / "15.png", traffic / "train2017" / "11.png")
    assert "no annotation files of the split val, expected one, such as annotations/instances_val.json" in told()


def test_other_formats_are_named(iformer: Command, traffic: Path) -> None:
    shutil.rmtree(traffic / "annotations")
    (traffic / "labels" / "train").mkdir(parents=True)
    (traffic / "labels" / "train" / "11.txt").write_text("0 0.5 0.5 0.1 0.1")
    status, _, err = iformer("fit", traffic)
    assert status == 2
    assert "supervision converts YOLO's" in err

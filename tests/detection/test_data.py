import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from iformer.detection.annotations import read
from iformer.detection.data import AspectBatchSampler, CocoData, CocoImages
from tests.detection.conftest import annotations


@pytest.fixture
def data(data_arguments: dict) -> CocoData:
    data = CocoData(**data_arguments, hflip=0.0)
    data.setup("fit")
    return data


def images(folder: Path, training: bool, hflip: float = 0.0) -> CocoImages:
    return CocoImages(folder / "images", read(folder / "annotations.json"), training, hflip)


def changed(tmp_path: Path, coco: Path, change) -> dict:
    """Arguments of CocoData for the annotations after ``change``."""
    content = annotations()
    change(content)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    return {"root": str(coco), "train_images": "images", "train_annotations": str(tmp_path / "changed.json"),
            "val_images": "images", "val_annotations": "annotations.json", "num_workers": 0}  # fmt: skip


def test_category_ids_with_gaps_become_labels_and_back(data: CocoData, coco: Path) -> None:
    assert data.category_ids == (3, 7, 90)
    assert data.class_names == ("car", "train", "zebra")
    _, target = images(coco, training=False)[0]
    assert target["labels"].tolist() == [1, 3]
    assert [data.category_ids[label - 1] for label in target["labels"]] == [3, 90]


def test_polygons_and_run_lengths_are_what_pycocotools_reads(coco: Path, capsys: pytest.CaptureFixture) -> None:
    reference = COCO(coco / "annotations.json")
    for index, image_id in enumerate(reference.getImgIds()):
        _, target = images(coco, training=False)[index]
        expected = [reference.annToMask(item) for item in reference.loadAnns(reference.getAnnIds(image_id))]
        assert len(target["masks"]) == len(expected)
        for mask, other in zip(target["masks"].numpy(), expected, strict=True):
            assert np.array_equal(mask, other)
    assert "segmentation" not in capsys.readouterr().err


def test_training_leaves_out_crowds_and_boxes_of_no_size_and_evaluation_does_not(coco: Path) -> None:
    training, evaluation = images(coco, training=True), images(coco, training=False)
    assert training[2][1]["labels"].tolist() == [3]
    assert evaluation[2][1]["iscrowd"].tolist() == [1, 0]
    assert training[3][1]["boxes"].tolist() == [[8, 10, 28, 26]]
    assert len(evaluation[3][1]["boxes"]) == 2


def test_image_without_annotations_is_background(coco: Path) -> None:
    for training in (True, False):
        image, target = images(coco, training)[4]
        assert image.shape == (3, 48, 64)
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, 48, 64)


def test_flip_takes_boxes_and_masks_along(coco: Path) -> None:
    straight, flipped = images(coco, True)[0], images(coco, True, hflip=1.0)[0]
    assert torch.equal(flipped[0], straight[0].flip(-1))
    assert torch.equal(flipped[1]["masks"], straight[1]["masks"].flip(-1))
    assert flipped[1]["boxes"].tolist() == [[64 - 28, 10, 64 - 8, 26], [64 - 48, 20, 64 - 30, 40]]


def test_pixels_are_not_turned_upright(tmp_path: Path, coco: Path) -> None:
    content = {**annotations(), "images": annotations()["images"][:1], "annotations": annotations()["annotations"][:2]}
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.open(coco / "images" / "11.png").save(tmp_path / "11.png", exif=exif)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    image, _ = CocoImages(tmp_path, read(tmp_path / "annotations.json"), False, 0.0)[0]
    assert image.shape == (3, 48, 64)


def test_batches_are_all_wide_or_all_high_and_miss_nothing() -> None:
    wide = [bool(i % 3) for i in range(50)]
    sampler = AspectBatchSampler(wide, 4, seed=1)
    batches = [[key.sample for key in batch] for batch in sampler]
    assert len(batches) == len(sampler) == 12
    assert len({sample for batch in batches for sample in batch}) == 48
    mixed = [batch for batch in batches if len({wide[sample] for sample in batch}) > 1]
    assert len(mixed) <= 1
    sampler.set_epoch(1)
    assert [[key.sample for key in batch] for batch in sampler] != batches


def test_ranks_share_batches_of_one_shape_and_an_epoch_goes_on_in_its_middle() -> None:
    def sampler(rank: int, world: int, first: int = 0) -> list[list[int]]:
        wide = [bool(i % 3) for i in range(50)]
        made = AspectBatchSampler(wide, 4 // world, seed=1, rank=rank, world_size=world)
        made.start(2, first)
        return [[key.sample for key in batch] for batch in made]

    whole = sampler(0, 1)
    for one, left, right in zip(whole, sampler(0, 2), sampler(1, 2), strict=True):
        assert sorted(one) == sorted(left + right)
    assert sampler(0, 1, first=5) == whole[5:]


@pytest.mark.parametrize("name", ["limit", "batch_size", "eval_batch_size"])
def test_numbers_out_of_range_are_named(name: str, data_arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 0, expected 1 or more"):
        CocoData(**data_arguments, **{name: 0})


def test_limit_takes_the_first_images(data_arguments: dict) -> None:
    data = CocoData(**data_arguments, limit=2)
    data.setup("fit")
    assert sum(len(batch[0]) for batch in data.val_dataloader()) == 2
    assert sum(len(batch[0]) for batch in data.train_dataloader()) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content.pop("images"), "changed.json: not annotations in COCO's format (no key 'images')"),
        (lambda content: content["categories"].clear(), "6 images and 0 categories"),
        (lambda content: content["annotations"][2].update(category_id=4), "annotation 3 has category_id 4"),
        (lambda content: content["annotations"][2].update(image_id=4), "annotation 3 has image_id 4"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2]), "annotation 1 has no bbox of four numbers"),
        (lambda content: content["annotations"][0].update(bbox=None), "annotation 1 has no bbox of four numbers"),
        (lambda content: content["annotations"][0].update(bbox=list("1234")), "annotation 1 has no bbox of four"),
        (lambda content: content["annotations"].append(3), "an annotation is 3, expected keys and values"),
        (lambda content: content.update(images=["a.png"]), "changed.json: not annotations in COCO's format"),
        (
            lambda content: content["images"][1].pop("width"),
            "changed.json: not annotations in COCO's format (no key 'wi",
        ),
        (lambda content: content["images"][1].update(height=None), "12.png has width and height [48, None]"),
        (lambda content: content["images"][1].update(id=11), "6 images, but only 5 ids"),
        (lambda content: content["annotations"][0].pop("segmentation"), "annotation 1 has no segmentation"),
        (lambda content: content["categories"][1].update(name="bus"), "bus, car differ"),
        (lambda content: content["categories"].append({"id": 8, "name": "bus"}), "bus differ"),
    ],
)
def test_mistakes_in_annotations_are_named(change, told: str, tmp_path: Path, coco: Path) -> None:
    with pytest.raises(ValueError, match="json") as error:
        CocoData(**changed(tmp_path, coco, change)).setup("fit")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"val_annotations": "missing.json"}, "missing.json: no such file"),
        ({"train_images": "missing"}, "missing: no such folder"),
    ],
)
def test_missing_files_are_named(arguments: dict, told: str, data_arguments: dict) -> None:
    with pytest.raises(FileNotFoundError, match=told):
        CocoData(**{**data_arguments, **arguments}).setup("fit")


def test_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="not annotations in COCO's format"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("entry", "told"),
    [({"file_name": "missing.png"}, "missing.png: no such file, though"), ({"width": 65}, "64x48 pixels, but 65x48")],
)
def test_images_that_do_not_fit_are_named(entry: dict, told: str, workers: int, tmp_path: Path, coco: Path) -> None:
    arguments = changed(tmp_path, coco, lambda content: content["images"][0].update(entry))
    data = CocoData(**{**arguments, "num_workers": workers}, batch_size=6)
    data.setup("fit")
    with pytest.raises(ValueError, match="images/") as error:
        list(data.train_dataloader())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ({"size": [9, 9], "counts": [81]}, "run lengths of [9, 9] pixels, expected [48, 64]"),
        ({"size": [48, 64], "counts": [5]}, "decoded 5 pixels"),
        ([["a"] * 6], ""),
    ],
)
def test_damaged_masks_are_named(segmentation: object, told: str, workers: int, tmp_path: Path, coco: Path) -> None:
    change = {"segmentation": segmentation}
    arguments = changed(tmp_path, coco, lambda content: content["annotations"][0].update(change))
    data = CocoData(**{**arguments, "num_workers": workers}, batch_size=6)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"changed.json: annotation 1 has a segmentation that is none") as error:
        list(data.train_dataloader())
    assert told in str(error.value)
    assert "\n" not in str(error.value)

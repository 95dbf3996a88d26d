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
        (
            lambda content: content["annotations"].append(3),
            "annotations[8] is 3, expected an object with keys and values",
        ),
        (lambda content: content.update(images=["a.png"]), "changed.json: not annotations in COCO's format"),
        (
            lambda content: content["images"][1].pop("width"),
            "changed.json: not annotations in COCO's format (no key 'wi",
        ),
        (lambda content: content["images"][1].update(height=None), "12.png has width and height [48, None]"),
        (lambda content: content["images"][1].update(id=11), "6 images share 5 ids"),
        (
            lambda content: [item.pop("segmentation") for item in content["annotations"] if not item["iscrowd"]],
            "none of its 7 objects has a segmentation, from which Mask R-CNN learns masks; "
            "set model.init_args.architecture to faster_rcnn",
        ),
        (lambda content: content["categories"][1].update(name="bus"), ": bus, car"),
        (lambda content: content["categories"].append({"id": 8, "name": "bus"}), ": bus"),
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
    def change(content: dict) -> None:
        content["images"][0].update(entry)
        content["annotations"].pop(1)  # its run lengths would tell

    arguments = changed(tmp_path, coco, change)
    data = CocoData(**{**arguments, "num_workers": workers}, batch_size=6)
    data.setup("fit")
    with pytest.raises(ValueError, match="images/") as error:
        list(data.train_dataloader())
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ({"size": [9, 9], "counts": [81]}, "run lengths for [9, 9] pixels, expected [48, 64]"),
        ({"size": [48, 64], "counts": [5]}, "run lengths add up to 5"),
        ({"size": [48, 64], "counts": [-5, 3077]}, "run lengths add up to 3072, expected 3072 and none negative"),
        ({"size": [48, 64]}, "run lengths have no counts"),
        ({"counts": "abc"}, "run lengths for None pixels"),
        ([["a"] * 6], ""),
        ([[1, 2, 3, 4, 5, 6, 7]], "expected polygons of finite numbers x, y, x, y..."),
        ([[1, 2, 3, 4, 5, float("nan")]], "expected polygons of finite numbers x, y, x, y..."),
        ([[[1, 2], [3, 4, 5], [6, 7]]], "expected points of two numbers"),
        ([[1, 2, 3, 4, 5, None]], ""),
        ("polygon", "expected polygons or run lengths"),
        (True, "expected polygons or run lengths"),
        ([{"x": 1, "y": 2}], ""),
    ],
)
def test_damaged_masks_are_named(segmentation: object, told: str, tmp_path: Path, coco: Path) -> None:
    change = {"segmentation": segmentation}
    arguments = changed(tmp_path, coco, lambda content: content["annotations"][0].update(change))
    data = CocoData(**arguments)
    with pytest.raises(ValueError, match=r"changed.json: annotation 1 has an unreadable segmentation") as error:
        data.setup("fit")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_compressed_masks_are_named_by_the_worker_that_meets_them(tmp_path: Path, coco: Path) -> None:
    change = {"segmentation": {"size": [48, 64], "counts": "0"}}
    arguments = changed(tmp_path, coco, lambda content: content["annotations"][0].update(change))
    data = CocoData(**{**arguments, "num_workers": 1}, batch_size=6)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"changed.json: annotation 1 has an unreadable segmentation") as error:
        list(data.train_dataloader())
    assert "\n" not in str(error.value)


SQUARE = [8, 10, 28, 10, 28, 26, 8, 26]
POINTS = [[8, 10], [28, 10], [28, 26], [8, 26]]


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": POINTS},
        {"segmentation": [POINTS]},
        {"segmentation": [POINTS, [1, 2, 3, 4]]},
        {"segmentation": SQUARE},
        {"iscrowd": "0"},
        {"iscrowd": None},
        {"iscrowd": False},
        {"area": None},
        {"id": None},
        {"image_id": "11"},
        {"image_id": 11.0},
        {"category_id": "3"},
    ],
)
def test_what_is_plainly_meant_is_understood(change: dict, tmp_path: Path, coco: Path) -> None:
    arguments = changed(tmp_path, coco, lambda content: content["annotations"][0].update(change))
    expected = images(coco, True)[0][1]
    data = CocoData(**arguments, hflip=0.0)
    data.setup("fit")
    for training in (True, False):
        read_again = CocoImages(coco / "images", read(tmp_path / "changed.json"), training, 0.0)[0][1]
        for name, value in expected.items():
            assert torch.equal(read_again[name], value), name


@pytest.mark.parametrize("crowd", ["1", True, 1.0])
def test_a_crowd_is_one_however_it_is_written(crowd: object, tmp_path: Path, coco: Path) -> None:
    changed(tmp_path, coco, lambda content: content["annotations"][0].update(iscrowd=crowd))
    assert len(CocoImages(coco / "images", read(tmp_path / "changed.json"), True, 0.0)[0][1]["boxes"]) == 1


def test_ids_of_images_may_be_names(tmp_path: Path, coco: Path) -> None:
    def rename(content: dict) -> None:
        for entry in content["images"]:
            entry["id"] = f"image {entry['id']}"
        for item in content["annotations"]:
            item["image_id"] = f"image {item['image_id']}"

    changed(tmp_path, coco, rename)
    found = CocoImages(coco / "images", read(tmp_path / "changed.json"), True, 0.0)[0][1]
    assert torch.equal(found["boxes"], images(coco, True)[0][1]["boxes"])


def shares(content: dict) -> None:
    sizes = {entry["id"]: [entry["width"], entry["height"]] for entry in content["images"]}
    for item in content["annotations"]:
        item["bbox"] = [value / side for value, side in zip(item["bbox"], sizes[item["image_id"]] * 2, strict=True)]


def polygon_shares(content: dict) -> None:
    for item in content["annotations"]:
        item["segmentation"] = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shares, "every bbox lies between 0 and 1, like shares of the image's sides; expected pixels"),
        (polygon_shares, "every polygon lies between 0 and 1"),
        (
            lambda content: [item.update(iscrowd=1) for item in content["annotations"]],
            "nothing to learn from, all 8 annotations of its 6 images are left out: 8 crowd regions (iscrowd 1)",
        ),
        (
            lambda content: [item.update(bbox=[900, 900, 5, 5]) for item in content["annotations"]],
            "7 boxes of less than a pixel in the image, 1 crowd regions",
        ),
        (
            lambda content: [item.update(segmentation=[[1, 2, 3, 4]]) for item in content["annotations"]],
            "6 polygons of fewer than three points, 1 crowd regions (iscrowd 1), 1 boxes",
        ),
        (lambda content: content.update(annotations=[]), "nothing to learn from, its 6 images have no annotations"),
        (lambda content: content.update(annotations=None), "annotations is null, expected a list"),
        (lambda content: content.update(images={"1": 2}), 'images is {"1": 2}, expected a list'),
        (lambda content: content["annotations"][1].update(bbox=[1, 2, -3, 4]), "annotation 2 has bbox [1, 2, -3, 4]"),
        (lambda content: content["annotations"][1].update(bbox=[1, 2, float("nan"), 4]), "annotation 2 has bbox"),
        (lambda content: content["annotations"][1].update(iscrowd="maybe"), "annotation 2 has iscrowd maybe, expected"),
        (lambda content: content["annotations"][1].update(iscrowd=[]), "annotation 2 has iscrowd [], expected 0 or 1"),
        (lambda content: content["annotations"][1].update(area=float("nan")), "annotation 2 has area nan, expected a"),
        (lambda content: content["annotations"][1].update(area="12"), "annotation 2 has area 12, expected a number"),
        (lambda content: content["annotations"][1].update(category_id=[3]), "annotation 2 has category_id [3]"),
        (lambda content: content["annotations"][1].update(id=None, image_id=None), "annotations[1] has image_id None"),
        (lambda content: content["categories"].append({"id": "3", "name": "bus"}), "category 3 has two names, car and"),
        (lambda content: content["categories"][0].update(name=None), "a category has id 90 and name None, expected"),
        (lambda content: content["categories"][0].update(id="a"), "a category has id 'a' and name 'zebra', expected"),
        (lambda content: content["images"][1].update(file_name=None), "an image has id 12 and file_name None"),
        (lambda content: content["images"][1].update(width=float("nan")), "12.png has width and height [nan, 64]"),
        (lambda content: content["images"][1].update(id="11"), "6 images share 5 ids"),
    ],
)
def test_contradictions_and_sets_without_use_are_refused_when_they_are_read(
    change, told: str, tmp_path: Path, coco: Path
) -> None:
    with pytest.raises(ValueError, match=r"changed.json") as error:
        CocoData(**changed(tmp_path, coco, change)).setup("fit")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_how_much_is_left_out_is_said_once(tmp_path: Path, coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    CocoData(**changed(tmp_path, coco, lambda content: None)).setup("fit")
    (message,) = caplog.messages
    told = "1 crowd regions (iscrowd 1), 1 boxes of less than a pixel in the image"
    assert message == f"{tmp_path / 'changed.json'}: training leaves out 2 of 8 annotations: {told}"


def test_few_left_out_are_not_worth_a_word(tmp_path: Path, coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    def mostly_good(content: dict) -> None:
        content["annotations"] += content["annotations"][:1] * 40

    CocoData(**changed(tmp_path, coco, mostly_good)).setup("fit")
    assert not caplog.messages


@pytest.mark.parametrize("masks", [True, False])
def test_objects_without_a_mask_keep_their_boxes(masks: bool, tmp_path: Path, coco: Path) -> None:
    changed(tmp_path, coco, lambda content: content["annotations"][0].pop("segmentation"))
    whole = images(coco, True)[0][1]
    for training in (True, False):
        found = CocoImages(coco / "images", read(tmp_path / "changed.json", None, masks), training, 0.0, masks)[0][1]
        assert torch.equal(found["boxes"], whole["boxes"])
        assert torch.equal(found["labels"], whole["labels"])
        assert ("masks" in found) is ("masked" in found) is masks
        if masks:
            assert found["masked"].tolist() == [False, True]
            assert torch.equal(found["masks"], whole["masks"])  # a rectangle, like its box


def test_a_box_narrower_than_a_pixel_goes_with_all_that_is_said_of_it(tmp_path: Path, coco: Path) -> None:
    def change(content: dict) -> None:
        content["annotations"][5] |= {"bbox": [5, 5, 0.5, 12], "segmentation": [[5, 5, 9, 17, 5, 10]]}
        content["annotations"][6].pop("segmentation")

    changed(tmp_path, coco, change)
    found = CocoImages(coco / "images", read(tmp_path / "changed.json"), True, 0.0)[3][1]
    assert found["boxes"].tolist() == [[8, 10, 28, 26]]
    assert (found["masked"].tolist(), len(found["labels"]), len(found["masks"])) == ([False], 1, 1)


def test_how_many_have_no_mask_is_said(tmp_path: Path, coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = changed(tmp_path, coco, lambda content: content["annotations"][0].pop("segmentation"))
    arguments |= {"val_annotations": str(tmp_path / "changed.json")}
    CocoData(**arguments).setup("fit")
    told = f"{tmp_path / 'changed.json'}: 1 of 7 objects have no segmentation: "
    assert told + "they teach boxes and classes only" in caplog.messages
    assert told + "the AP of masks ignores them" in caplog.messages


def turned(folder: Path, coco: Path, orientation: int) -> torch.Tensor:
    """Save the first image with a note of ``orientation`` as it would be stored, and return its upright pixels."""
    upright = Image.open(coco / "images" / "11.png")
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 5: Image.Transpose.TRANSPOSE}
    exif = Image.Exif()
    exif[274] = orientation
    (folder / "images").mkdir(exist_ok=True)
    upright.transpose(undo[orientation]).save(folder / "images" / "11.png", exif=exif)
    return torch.from_numpy(np.asarray(upright).copy()).permute(2, 0, 1) / 255


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("orientation", [5, 6, 8])
def test_images_annotated_upright_are_turned(training: bool, orientation: int, tmp_path: Path, coco: Path) -> None:
    expected = turned(tmp_path, coco, orientation)
    image, target = CocoImages(tmp_path / "images", read(coco / "annotations.json"), training, 0.0)[0]
    assert torch.equal(image, expected)
    assert torch.equal(target["masks"], images(coco, training)[0][1]["masks"])


def test_a_size_that_fits_neither_way_is_refused(tmp_path: Path, coco: Path) -> None:
    turned(tmp_path, coco, 6)
    content = annotations()
    content["images"][0].update(width=65)
    content["annotations"].pop(1)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"11.png: 48x64 pixels, but 65x48 in"):
        CocoImages(tmp_path / "images", read(tmp_path / "a.json"), True, 0.0)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_of_the_validation_is_named_in_one_line(workers: int, tmp_path: Path, coco: Path) -> None:
    (tmp_path / "images").mkdir()
    for file in (coco / "images").iterdir():
        content = file.read_bytes()
        (tmp_path / "images" / file.name).write_bytes(content[:200] if file.name == "13.png" else content)
    arguments = changed(tmp_path, coco, lambda content: None)
    data = CocoData(**{**arguments, "val_images": str(tmp_path / "images"), "num_workers": workers})
    data.setup("validate")
    with pytest.raises(ValueError, match=r"^/.*images/13.png: ") as error:
        list(data.val_dataloader())
    assert "\n" not in str(error.value)

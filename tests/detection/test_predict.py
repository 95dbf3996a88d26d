"""``iformer predict`` with a detector, and its export."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.benchmark import memory
from iformer.deployment import detectors, engines
from iformer.detection.masks import from_run_lengths, pasted, run_lengths
from iformer.detection.model import Detector, build
from iformer.detection.pictures import draw
from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor
from tests.conftest import Command
from tests.detection.conftest import CONFIG
from tests.processes import exit_status


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector that finds something everywhere."""
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    model = build(**CONFIG["network"])
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    saved.save_assembled(model, folder, "detection", CONFIG)
    return folder


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector that finds boxes only, and some everywhere."""
    folder = tmp_path_factory.mktemp("boxes")
    torch.manual_seed(0)
    config = {**CONFIG, "network": {**CONFIG["network"], "architecture": "faster_rcnn"}}
    model = build(**config["network"])
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    saved.save_assembled(model, folder, "detection", config)
    return folder


def test_boxes_without_masks_are_coco_too(boxes: Path, coco: Path, tmp_path: Path, iformer: Command) -> None:
    image = coco / "images" / "11.png"
    status, out, _ = iformer("predict", image, "--checkpoint", boxes, "--output", tmp_path / "out", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["annotations"]
    for item in document["annotations"]:
        assert "segmentation" not in item
        assert item["area"] == pytest.approx(item["bbox"][2] * item["bbox"][3], abs=1)
    (tmp_path / "found.json").write_text(json.dumps(document))
    assert len(COCO(tmp_path / "found.json").anns) == len(document["annotations"])
    assert Image.open(document["images"][0]["picture"]).size == (64, 48)
    file = tmp_path / "found.parquet"
    status, *_ = iformer("predict", image, "--checkpoint", boxes, "--output", file)
    assert status == 0
    (row,) = pq.read_table(file).to_pylist()
    assert len(row["objects"]) == len(document["annotations"])
    assert set(row["objects"][0]) == {"name", "score", "category_id", "bbox", "area"}


def test_images_of_one_size_form_a_batch(trained: Path, coco: Path, tmp_path: Path) -> None:
    """The network takes those of one size together, and every image gets its own result, in its own place."""
    sizes = [(64, 48), (48, 64), (64, 48), (64, 48), (48, 64)]
    generator = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for file, (width, height) in zip(files, sizes, strict=True):
        Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).save(file)
    model = saved.resolve(str(trained))
    together, alone = (
        list(predictions(model, predictor(model, Options(output=None, batch_size=size)), files)) for size in (5, 1)
    )
    taken: list[int] = []
    model.network.register_forward_pre_hook(lambda network, arguments: taken.append(len(arguments[0])))
    list(predictions(model, predictor(model, Options(output=None, batch_size=5)), files))
    assert taken == [3, 2]
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours["image"], ours["height"], ours["width"]) == (theirs["image"], theirs["height"], theirs["width"])
        assert len(ours["objects"]) == len(theirs["objects"]) > 0
        for one, other in zip(ours["objects"], theirs["objects"], strict=True):
            assert (one["name"], one["score"]) == (other["name"], pytest.approx(other["score"], abs=2e-4))
            assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)


def test_json_is_coco_and_the_picture_is_drawn(trained: Path, coco: Path, tmp_path: Path, iformer: Command) -> None:
    images = [coco / "images" / "11.png", coco / "images" / "12.png"]
    status, out, _ = iformer("predict", *images, "--checkpoint", trained, "--output", tmp_path / "out", "--json")
    assert status == 0
    document = json.loads(out)
    (tmp_path / "found.json").write_text(json.dumps(document))
    found = COCO(tmp_path / "found.json")
    assert [entry["file_name"] for entry in document["images"]] == [str(image) for image in images]
    assert document["categories"] == [{"id": 3, "name": "car"}, {"id": 7, "name": "train"}, {"id": 90, "name": "zebra"}]
    assert document["annotations"]
    for item in document["annotations"]:
        entry = document["images"][item["image_id"] - 1]
        x, y, width, height = item["bbox"]
        assert 0 <= x <= x + width <= entry["width"] + 0.01
        assert 0 <= y <= y + height <= entry["height"] + 0.01
        assert found.annToMask(item).shape == (entry["height"], entry["width"])
        assert found.annToMask(item).sum() == item["area"]
        assert 0.3 <= item["score"] <= 1
    for entry in document["images"]:
        assert Image.open(entry["picture"]).size == (entry["width"], entry["height"])


def test_text_names_objects(trained: Path, coco: Path, tmp_path: Path, iformer: Command) -> None:
    image = coco / "images" / "11.png"
    arguments = ["--checkpoint", trained, "--output", tmp_path, "--threshold", 0.3]
    status, out, _ = iformer("predict", image, *arguments)
    assert status == 0
    assert any(name in out for name in CONFIG["class_names"])
    assert f"picture: {tmp_path / '11.jpg'}" in out


def test_same_names_get_pictures_of_their_own_and_bad_files_are_passed_over(
    trained: Path, coco: Path, tmp_path: Path, iformer: Command
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "11.png").write_bytes((coco / "images" / "11.png").read_bytes())
    (tmp_path / "b" / "bad.jpg").write_text("no image")
    pictures = tmp_path / "out"
    arguments = [tmp_path / "a", tmp_path / "b", "--checkpoint", trained, "--output", pictures, "--json"]
    status, out, err = iformer("predict", *arguments)
    assert status == 0
    assert sorted(path.name for path in pictures.iterdir()) == ["11.jpg", "11_2.jpg"]
    assert "bad.jpg: not an image" in json.loads(out)["errors"][0]["error"]
    assert "bad.jpg: not an image" in err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"class_names": ["car", "train"]}, "differ in number"),
        ({"network": {**CONFIG["network"], "num_classes": 5}}, "differ in number"),
        ({"network": {**CONFIG["network"], "channels": 8}}, "the weights do not fit config.json"),
        (
            {"network": {"architecture": "mask_rcnn", "backbone": "iformer_nano", "num_classes": 3, "no_such": 1}},
            "no argument no_such",
        ),
    ],
)
def test_damaged_checkpoints_are_named(trained: Path, tmp_path: Path, change: dict, told: str) -> None:
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"task": "detection", **CONFIG, **change}))
    with pytest.raises(ValueError, match=told) as error:
        saved.resolve(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_drawing_puts_boxes_masks_and_names_where_they_belong() -> None:
    image = torch.full((3, 200, 300), 128, dtype=torch.uint8)
    masks = torch.zeros(2, 200, 300, dtype=torch.bool)
    masks[0, 60:100, 60:140] = masks[1, 120:200, 200:300] = True
    boxes = torch.tensor([[60.0, 60.0, 140.0, 100.0], [200.0, 120.0, 300.0, 200.0]])
    picture = draw(image, boxes, masks, torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), ["car", "zebra"])
    drawn = np.asarray(picture).astype(int)
    changed = np.abs(drawn - 128).sum(2) > 0
    assert changed[80, 100]
    assert changed[199, 250]
    assert changed[60, 100]
    assert changed[50, 62]  # the name, above the box
    assert not changed[180, 50]
    assert (np.asarray(draw(image, boxes[:0], masks[:0], torch.tensor([]), torch.tensor([]), [])) == 128).all()


ALONE = """
import json, sys
import numpy, onnxruntime
assert "torch" not in sys.modules and "iformer" not in sys.modules
session = onnxruntime.InferenceSession(sys.argv[1])
image = numpy.load(sys.argv[2])
outputs = [output.name for output in session.get_outputs()]
boxes, labels, scores, *masks = session.run(outputs, {"image": image})
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
print(json.dumps({"boxes": boxes.tolist(), "scores": scores.tolist(), "names": [names[i - 1] for i in labels],
                  "outputs": outputs, "masks": [list(array.shape) for array in masks]}))
"""


@pytest.mark.parametrize("kind", ["trained", "boxes"])
def test_exported_detector_runs_without_this_package(
    kind: str, request: pytest.FixtureRequest, coco: Path, tmp_path: Path, iformer: Command
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder: Path = request.getfixturevalue(kind)
    image = torch.from_numpy(np.asarray(Image.open(coco / "images" / "12.png")).transpose(2, 0, 1) / np.float32(255))
    (tmp_path / "photos").mkdir()
    for name in ("11.png", "12.png"):
        (tmp_path / "photos" / name).write_bytes((coco / "images" / name).read_bytes())
    arguments = [folder, "--output", tmp_path / "detector.onnx", "--images", tmp_path / "photos", "--json"]
    status, out, _ = iformer("export", *arguments)
    assert status == 0
    told = json.loads(out)
    assert (told["file"], told["images"]) == (str(tmp_path / "detector.onnx"), 2)
    assert told["objects"] > 0
    assert told["largest_difference"] < 1e-3
    np.save(tmp_path / "image.npy", image.numpy())
    arguments = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "detector.onnx"), str(tmp_path / "image.npy")]
    found = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    with torch.inference_mode():
        (expected,) = saved.resolve(folder).network([image])
    assert len(found["scores"]) == len(expected["scores"]) > 0
    assert found["scores"] == pytest.approx(expected["scores"].tolist(), abs=1e-4)
    assert np.allclose(found["boxes"], expected["boxes"], atol=1e-2)
    assert found["outputs"] == ["boxes", "labels", "scores", "masks"][: len(expected)]
    if "masks" in expected:
        assert found["masks"] == [[*expected["labels"].shape, 1, 28, 28]]  # each inside its box
    assert set(found["names"]) <= set(CONFIG["class_names"])
    assert_same_objects(folder, tmp_path / "detector.onnx", coco, tmp_path, iformer)


def assert_same_objects(folder: Path, file: Path, coco: Path, tmp_path: Path, iformer: Command) -> None:
    """``iformer predict`` finds the same with a detector and with a file that was exported from it."""
    images = [coco / "images" / "11.png", coco / "images" / "12.png"]
    documents = []
    for model in (folder, file):
        status, out, _ = iformer("predict", *images, "--output", tmp_path / "out", "--json", "--model", model)
        assert status == 0
        documents.append(json.loads(out))
    assert documents[0]["categories"] == documents[1]["categories"]
    assert len(documents[0]["annotations"]) > 5
    for one, other in zip(*(document["annotations"] for document in documents), strict=True):
        assert set(one) == set(other)
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.1)
        assert one["area"] == pytest.approx(other["area"], rel=0.02, abs=4)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--format=torch-export", "a detector is not exported with --format torch-export and --precision fp32, but"),
        (
            "--precision=fp16",
            "a detector is not exported with --format onnx and --precision fp16, but --format onnx in",
        ),
        ("--labelled=.", "which should hold the annotations of the images in"),
        ("--size=32 32", "leave --size out, it is for segmenters"),
    ],
)
def test_export_refuses_what_detectors_have_not(option: str, told: str, trained: Path, iformer: Command) -> None:
    status, _, err = iformer("export", trained, *option.replace("=", " ").split())
    assert status == 2
    (line,) = err.splitlines()
    assert told in line


def test_export_refuses_other_files(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in"):
        detectors.write(saved.resolve(trained), tmp_path / "detector.pt", "onnx", "fp32", [torch.zeros(3, 32, 32)])


@pytest.mark.parametrize(("kind", "precision"), [("openvino", "fp32"), ("openvino", "int8"), ("onnx", "int8")])
def test_precision_and_ap_before_and_after(
    kind: str, precision: str, trained: Path, coco: Path, tmp_path: Path, iformer: Command
) -> None:
    (tmp_path / "annotations").mkdir()
    shutil.copy(coco / "annotations.json", tmp_path / "annotations/instances_set.json")
    shutil.copytree(coco / "images", tmp_path / "set")
    file = tmp_path / f"detector{engines.FORMATS[kind]}"
    images = ("--images", tmp_path / "set", "--labelled", tmp_path / "set")
    options = ("--format", kind, "--precision", precision, "--output", file, *images, "--json")
    status, out, err = iformer("export", trained, *options)
    assert status == 0, err
    told = json.loads(out)
    assert told["accuracy"]["images"] == 6
    eager, after = (told["accuracy"][name] for name in ("eager", "file"))
    assert set(eager) == set(after) == {"box_ap", "mask_ap"}
    if precision == "fp32":
        assert told["same_objects"] == 1
        assert after == pytest.approx(eager, abs=1e-3)
        assert_same_objects(trained, file, coco, tmp_path, iformer)
    (found,) = saved.resolve(file).network([torch.rand(3, 50, 70)])
    assert found["boxes"].shape == (len(found["scores"]), 4)


def test_an_export_that_finds_something_else_is_not_kept(
    trained: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = detectors.to_onnx

    def another(model: Detector, file: Path) -> None:
        other = copy.deepcopy(model)
        torch.nn.init.normal_(other.roi_heads.box_predictor.cls_score.weight, std=0.7)
        write(other, file)

    monkeypatch.setattr(detectors, "to_onnx", another)
    image = pil_to_tensor(Image.open(coco / "images" / "11.png")) / 255
    with pytest.raises(ValueError, match=r"detector\.onnx: not written, \d+ of the \d+ objects"):
        detectors.write(saved.resolve(trained), tmp_path / "detector.onnx", "onnx", "fp32", [image])
    assert list(tmp_path.iterdir()) == []


def test_masks_pasted_one_at_a_time_are_those_that_are_pasted_at_once(trained: Path, coco: Path) -> None:
    model = saved.resolve(trained).network
    images = [pil_to_tensor(Image.open(coco / "images" / name)) / 255 for name in ("11.png", "12.png")]
    with torch.inference_mode():
        at_once, apart = model(images), model(images, paste=False)
    for image, expected, found in zip(images, at_once, apart, strict=True):
        assert len(expected["boxes"])
        for name in ("boxes", "labels", "scores"):
            assert torch.equal(found[name], expected[name])
        masks = torch.stack(list(pasted(found, (image.shape[1], image.shape[2]))))
        assert torch.equal(masks, expected["masks"][:, 0] > 0.5)
        for mask in masks:
            assert torch.equal(from_run_lengths(run_lengths(mask)), mask)


def measure_peak(folder: Path, image: Path, most: int, answer: Path) -> None:
    """Write how many objects are found, of so many at most, and the highest memory in MiB of finding them."""
    model = saved.resolve(folder)
    heads = model.network.roi_heads
    heads.score_thresh, heads.nms_thresh, model.network.rpn.nms_thresh = 0.0, 1.0, 1.0
    heads.detections_per_img = most
    memory.forget()
    (result,) = predictions(model, predictor(model, Options(threshold=0.0, output=answer.parent / "out")), [image])
    answer.write_text(f"{len(result['objects'])} {memory.highest():.0f}")


def test_memory_does_not_grow_with_the_number_of_objects(trained: Path, tmp_path: Path) -> None:
    Image.effect_noise((1200, 900), 60).convert("RGB").save(tmp_path / "large.jpg")
    peaks = []
    for most in (1, 100):
        assert exit_status(measure_peak, trained, tmp_path / "large.jpg", most, tmp_path / "answer") == 0
        objects, peak = (tmp_path / "answer").read_text().split()
        assert int(objects) > most / 2
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 60  # MiB; a hundred masks of a byte a pixel would be 103


def test_an_image_of_extreme_proportions_is_one_line_and_the_others_go_on(
    trained: Path, coco: Path, tmp_path: Path, iformer: Command
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (20000, 1)).save(folder / "a_line.png")
    whole = (coco / "images" / "11.png").read_bytes()
    (folder / "b.png").write_bytes(whole)
    (folder / "c_cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "._b.png").write_bytes(b"not mine")
    status, out, err = iformer("predict", folder, "--checkpoint", trained, "--output", tmp_path / "out", "--json")
    assert status == 0
    document = json.loads(out)
    assert [Path(entry["file_name"]).name for entry in document["images"]] == ["b.png"]
    assert [Path(entry["image"]).name for entry in document["errors"]] == ["a_line.png", "c_cut.png"]
    assert all("\n" not in entry["error"] and entry["image"] in entry["error"] for entry in document["errors"])
    assert "Traceback" not in err


def test_a_detector_that_finds_nothing_draws_the_image_as_it_is(trained: Path, coco: Path, tmp_path: Path) -> None:
    model = saved.resolve(trained)
    model.network.roi_heads.score_thresh = 1.0
    detector = predictor(model, Options(output=tmp_path / "out"))
    (result,) = predictions(model, detector, [coco / "images" / "11.png"])
    assert result["objects"] == []
    assert Path(result["picture"]).is_file()

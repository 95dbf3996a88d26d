"""``iformer export`` of a segmenter: its file gives the logits of each pixel, and runs without this package."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.deployment import engines
from iformer.deployment.export import _sized
from iformer.deployment.formats import metadata
from iformer.models import saved
from iformer.segmentation.model import build
from tests.conftest import Command
from tests.networks import SCENES, SEGMENTERS, draw
from tests.segmentation.conftest import segment

SIZE = (48, 64)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two segmenters, and of three photographs in ``photos``."""
    root = tmp_path_factory.mktemp("segmenters")
    for architecture, network in SEGMENTERS.items():
        torch.manual_seed(0)
        config = {**SCENES, "network": network, "crop": SIZE}
        saved.save_assembled(draw(build(**network)), root / architecture, "segmentation", config)
    (root / "photos").mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        coarse = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60 + 4 * index, 48)).save(root / "photos" / f"{index}.png")
    return root


def check(file: Path, folder: Path, *shapes: tuple[int, ...]) -> None:
    run, model = engines.open_file(file), saved.resolve(folder).network
    for shape in shapes:
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("architecture", "kind"), [("semantic_fpn", "torch-export"), ("upernet", "onnx")])
def test_every_format(architecture: str, kind: str, trained: Path, tmp_path: Path, iformer: Command) -> None:
    file = tmp_path / f"file{engines.FORMATS[kind]}"
    options = ["--format", kind, "--output", file, "--images", trained / "photos"]
    status, out, _ = iformer("export", trained / architecture, *options, "--json")
    result = json.loads(out)
    assert not status
    assert (result["images"], result["same_class"]) == (3, 1)
    check(file, trained / architecture, (1, 3, *SIZE))


ANY_SIZE = (1, 3, *SIZE), (2, 3, 51, 97), (1, 3, 32, 32)  # the last has a map of a single pixel


def test_any_size(trained: Path, tmp_path: Path, iformer: Command) -> None:
    """In ONNX; in OpenVINO see below."""
    file = tmp_path / "file.onnx"
    assert not iformer("export", trained / "semantic_fpn", "--format", "onnx", "--output", file, "--dynamic")[0]
    check(file, trained / "semantic_fpn", *ANY_SIZE)


def test_a_coarsest_map_of_one_pixel(trained: Path, tmp_path: Path, iformer: Command) -> None:
    options = ("--format", "openvino", "--output", tmp_path / "file.xml", "--size", 32, 32)
    assert not iformer("export", trained / "semantic_fpn", *options)[0]


def test_the_files_user_is_told_what_predict_knows(trained: Path) -> None:
    about = metadata(_sized(saved.resolve(trained / "upernet"), "upernet", None), "fp32")
    told = {key: json.loads(about[key]) for key in ("class_names", "palette", "preprocessing")}
    assert told["class_names"] == SCENES["class_names"]
    assert told["palette"] == SCENES["palette"]
    assert told["preprocessing"]["input_size"] == [3, *SIZE]
    assert (told["preprocessing"]["mean"], told["preprocessing"]["std"]) == (SCENES["mean"], SCENES["std"])


def test_the_documents_example_segments_as_predict_does(trained: Path, tmp_path: Path, iformer: Command) -> None:
    page = Path(__file__).parents[2] / "docs" / "deployment.md"
    _, program, *_ = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    folder, photo = trained / "semantic_fpn", trained / "photos" / "2.png"
    options = ["--size", 48, 68, "--output", tmp_path / "camvid.onnx", "--images", photo]
    status, out, _ = iformer("export", folder, *options)
    assert not status
    assert out.endswith("on 1 images, same class for 100.00% of the pixels\n")
    Image.open(photo).save(tmp_path / "street.jpg")
    forbidden = "import sys\nsys.modules.update(dict.fromkeys(('iformer', 'timm', 'torch')))\n"
    done = subprocess.run([sys.executable, "-c", forbidden + program], cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    segment(folder, [tmp_path / "street.jpg"], tmp_path)
    with Image.open(tmp_path / "mask.png") as mask, Image.open(tmp_path / "street_labels.png") as labels:
        assert mask.size == labels.size == (68, 48)
        assert (np.asarray(mask) == np.asarray(labels)).mean() > 0.99
        assert mask.palette.getdata()[1][:9] == labels.palette.getdata()[1][:9]


@pytest.mark.parametrize("dynamic", [False, True])
def test_miou_before_and_after(dynamic: bool, trained: Path, scenes: Path, tmp_path: Path, iformer: Command) -> None:
    folder = tmp_path / "ignoring"
    shutil.copytree(trained / "semantic_fpn", folder)
    config = json.loads((folder / "config.json").read_text())
    config["label_maps"] = {"ignore_labels": [9]}  # the rim of the scenes
    (folder / "config.json").write_text(json.dumps(config))
    options = ["--labelled", scenes / "images/val", "--output", tmp_path / "file.xml", "--format", "openvino"]
    status, out, err = iformer("export", folder, *options, *["--dynamic"] * dynamic, "--json")
    assert not status, err
    accuracy = json.loads(out)["accuracy"]
    assert accuracy["images"] == 3
    assert accuracy["file"]["miou"] == pytest.approx(accuracy["eager"]["miou"], abs=1e-3)
    if dynamic:
        check(tmp_path / "file.xml", folder, *ANY_SIZE)
        results = segment(folder, sorted((scenes / "images/val").iterdir()), tmp_path)
        assert accuracy["eager"]["miou"] == pytest.approx(miou(results, scenes / "labels/val"), abs=1e-6)


def miou(results: list[dict[str, Any]], maps: Path) -> float:
    """The mIoU of label maps that predict has written, from the sets of their pixels."""
    found, truth = (
        np.concatenate([np.asarray(Image.open(file)).flatten() for file in files])
        for files in ([result["labels"] for result in results], sorted(maps.iterdir()))
    )
    known = truth != 9
    pairs = [((found == label) & known, (truth == label) & known) for label in range(3)]
    return float(np.mean([(one & other).sum() / (one | other).sum() for one, other in pairs if (one | other).any()]))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("semantic_fpn", ("--labelled", "."), "has no label maps; expected a folder like images/val"),
        ("semantic_fpn", ("--size", "0", "64"), "size is (0, 64), expected the images' height and width"),
        ("semantic_fpn", ("--precision", "int8"), "needs images to calibrate on"),
        ("semantic_fpn", ("--images", "nowhere"), "nowhere: no such file or folder"),
        ("upernet", ("--dynamic",), "the model pools to a grid, which in ONNX needs known sizes"),
    ],
)
def test_mistakes(
    architecture: str,
    options: tuple[str, ...],
    message: str,
    trained: Path,
    tmp_path: Path,
    iformer: Command,
) -> None:
    status, _, err = iformer("export", trained / architecture, "--output", tmp_path / "file.onnx", *options)
    assert status == 2
    (line,) = err.strip().splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_size_is_for_segmenters(iformer: Command) -> None:
    status, _, err = iformer("export", "iformer_nano", "--weights", "random", "--size", 32, 32)
    assert status == 2
    assert "size: iformer_nano has its own size" in err


def test_a_checkpoint_that_names_no_crop_needs_a_size(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((trained / "semantic_fpn" / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["crop"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the model has no size; give the images' height and width"):
        _sized(saved.resolve(folder), str(folder), None)
    assert _sized(saved.resolve(folder), str(folder), SIZE).config["input_size"] == (3, *SIZE)

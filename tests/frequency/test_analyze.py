"""`iformer analyze`, from the outside."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from iformer.common.images import read_image
from iformer.detection import model as detectors
from iformer.frequency.analyze import analyze, told_apart
from iformer.frequency.inputs import ImageFiles, class_index, open_model
from iformer.frequency.inputs import untrained as fresh
from iformer.models import saved
from iformer.segmentation import inference
from iformer.segmentation import model as segmenters
from tests.conftest import Command
from tests.detection.conftest import CONFIG as DETECTOR
from tests.networks import SCENES, SEGMENTERS, small

FIGURES = (
    "fig_1a_spectra",
    "fig_1b_relative_log_amplitude",
    "fig_4_branch_spectra_1",
    "fig_4_branch_spectra_2",
    "high_frequency_shares",
    "attention_distance",
    "receptive_field",
    "grad_cam",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and a file cut off."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = random.integers(0, 255, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    (tmp_path / "images/cut.png").write_bytes((tmp_path / "images/0.png").read_bytes()[:2000])
    return tmp_path / "images"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a classifier of three classes."""
    torch.manual_seed(1)
    model = timm.create_model("iformer_nano", num_classes=3)
    saved.save(model, tmp_path / "run", ["ant", "bee", "cat"], mean=(0.5,) * 3, std=(0.2,) * 3)
    return tmp_path / "run"


@pytest.fixture
def run(tmp_path: Path, iformer: Command) -> Command:
    """``iformer analyze ...`` into ``out``."""
    return lambda *arguments: iformer("analyze", *arguments, "--output", tmp_path / "out")


def test_trained_beside_untrained(run: Any, folder: Path, trained: Path, tmp_path: Path) -> None:
    status, out, err = run(folder, "--model", trained, "--untrained", "--target", "bee", "--cams", 3, "--json")
    assert status == 0
    assert err.count("cut.png: unreadable image") == 1
    results = json.loads(out)
    assert results == json.loads((tmp_path / "out/results.json").read_text())
    assert results["images"]["measured"] == 6
    assert list(results["images"]["unreadable"]) == [str(folder / "cut.png")]
    assert {"command", "seed", "versions", "machine"} <= results["provenance"].keys()

    one, other = results["models"]
    assert [one["model"], other["model"]] == ["iformer_nano, trained", "iformer_nano, untrained"]
    assert one["weights"] == str(trained)
    assert one["branches"] != other["branches"]
    assert len(one["blocks"]) == len(one["attention_distance_pixels"]) == 5
    assert len(one["branches"]) == 12
    assert all(0 <= block["high_frequency_share"]["mean"] <= 1 for block in one["blocks"])
    assert all(block["relative_log_amplitude"][0] == 0 for block in one["blocks"])
    assert all(title.startswith("bee, ") for title in one["grad_cam"])
    assert len(other["grad_cam"]) == 3

    for name in FIGURES:
        assert Image.open(tmp_path / f"out/{name}.png").width >= 900  # 8 cm at 300 dots per inch
        ET.parse(tmp_path / f"out/{name}.svg")
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert 'src="http' not in page
    assert "iformer_nano, untrained: share of high-frequency energy" in page
    pictures = re.findall(r"\]\((.+)\)$", (tmp_path / "out/report.md").read_text(), re.MULTILINE)
    assert sorted(pictures) == sorted(f"{name}.png" for name in FIGURES)


def test_the_terminal_shows_a_table_for_each_model_with_mixers(run: Any, folder: Path, trained: Path) -> None:
    status, out, _ = run(folder, "--checkpoint", trained, "--limit", 3, "--cams", 0)
    assert status == 0
    assert out.count("max-pooling") == 4 + 1
    assert "iformer_nano, trained: attention lowers the share in" in out
    assert "report.html" in out


def test_any_model_beside_ours(folder: Path, tmp_path: Path) -> None:
    network = small("swin_tiny_patch4_window7_224")
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 64, 64)}
    swin = replace(saved.of_classifier(network), name="Swin")
    images = ImageFiles(sorted(folder.glob("[0-9].png")), batch_size=4)
    results = analyze([swin, open_model("iformer_nano")], images, tmp_path / "out", cams=2)
    assert [model["model"] for model in results["models"]] == ["Swin", "iformer_nano, untrained"]
    assert results["models"][0]["branches"] == []
    assert (tmp_path / "out/fig_4_branch_spectra.svg").exists()  # of the one that has them
    assert len(results["models"][0]["receptive_field"]) == 4


def test_labelled_images_show_which_frequencies_classifiers_use(
    run: Any, folder: Path, trained: Path, tmp_path: Path
) -> None:
    for number, image in enumerate(sorted(folder.glob("[0-9].png"))):
        home = tmp_path / "labelled" / ("ant", "bee", "cat")[number % 3]
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, home)
    arguments = (
        "--model",
        trained,
        "--untrained",
        "--labelled",
        tmp_path / "labelled",
        "--frequencies",
        4,
        "--cams",
        0,
    )
    status, out, _ = run(*arguments, "--norm", 2, "--json")
    assert status == 0
    results = json.loads(out)
    assert results["images"]["measured"] == results["labelled"]["measured"] == 6
    for model in results["models"]:
        found = model["sensitivity"]
        assert found["low_pass"][-1]["value"] == found["accuracy"]["value"]
        assert all(point["low"] <= point["value"] <= point["high"] for point in found["low_pass"] + found["high_pass"])
        assert found["heat_map"]["norm"] == 2
        assert found["heat_map"]["row_periods"] == [-16, -8, 0, 8]
        assert np.shape(found["heat_map"]["error"]) == (4, 4)
        assert sum(band["frequencies"] for band in found["heat_map"]["bands"]) == 10
    for name in ("filtered_accuracy", "fourier_error", "fourier_heat_map"):
        assert Image.open(tmp_path / f"out/{name}.png").width >= 900
        assert f"({name}.png)" in (tmp_path / "out/report.md").read_text()
    assert "Which frequencies classifiers use" in (tmp_path / "out/report.html").read_text()

    (tmp_path / "labelled/dog").mkdir()
    shutil.copy(folder / "0.png", tmp_path / "labelled/dog")
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "dog is not a class of the model" in err


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    """The folder of a segmenter."""
    settings = {**SCENES, "network": SEGMENTERS["semantic_fpn"]}
    saved.save_assembled(
        segmenters.build(**SEGMENTERS["semantic_fpn"]), tmp_path / "segmenter", "segmentation", settings
    )
    return tmp_path / "segmenter"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """The folder of a detector."""
    settings = {**DETECTOR, "network": {**DETECTOR["network"], "min_size": 72, "max_size": 100}}
    network = detectors.build(**settings["network"])
    saved.save_assembled(network, tmp_path / "detector", "detection", settings)
    return tmp_path / "detector"


def test_backbones_are_looked_at_at_the_size_of_whole_images(
    run: Any, folder: Path, segmenter: Path, detector: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"whole/{number}.png")
    shutil.copy(folder / "1.png", tmp_path / "whole/small.png")
    status, out, err = run(tmp_path / "whole", "--model", segmenter, "--compare", detector, "--json")
    assert status == 0
    assert err.count("small.png: 41x50 pixels, expected 90x120 as of the first image") == 1
    one, other = json.loads(out)["models"]
    assert [one["images"], other["images"]] == [3, 3]
    assert (one["input_size"], one["blocks"][0]["size"]) == ([3, 90, 120], [23, 30])
    # The detector resizes to 72 x 96, of which the multiples of 32 are looked at. Its backbone begins with stride 2.
    assert (other["input_size"], other["blocks"][0]["size"]) == ([3, 64, 96], [32, 48])
    assert {each["branch"] for each in one["branches"]} == {"max-pooling", "convolution", "attention"}
    assert one["attention_distance_pixels"]
    assert one["grad_cam"] == []
    assert "Grad-CAM left out" in (tmp_path / "out/report.html").read_text()

    for arguments in (("--target", "red"), ("--labelled", tmp_path / "whole")):
        status, out, err = run(tmp_path / "whole", "--model", segmenter, *arguments)
        assert (status, out) == (2, "")
        assert "is the backbone of a whole network, expected a classifier" in err


def test_what_a_segmenters_backbone_takes_is_what_the_segmenter_gives_it(segmenter: Path, folder: Path) -> None:
    model, whole = open_model(str(segmenter)), saved.resolve(segmenter)
    image = read_image(folder / "0.png")
    seen: list[torch.Tensor] = []
    whole.network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inference.classes(whole, torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()))
    assert torch.equal(model.prepare(image), seen[0][0])


def test_what_a_detectors_backbone_takes_is_what_the_detector_gives_it(detector: Path) -> None:
    model, whole = open_model(str(detector)), saved.resolve(detector)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    seen: list[torch.Tensor] = []
    whole.network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        whole.network([torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255])
    assert torch.equal(
        model.prepare(Image.fromarray(pixels)), seen[0][0, :, :64, :64]
    )  # 72 and its padding are left out


def test_names_are_told_apart_by_as_much_of_a_path_as_it_takes(trained: Path) -> None:
    opened = open_model(str(trained))
    runs = ("all/seed_0", "all/seed_1", "attention/seed_0")
    names = [model.name for model in told_apart([replace(opened, weights=f"runs/study/{run}") for run in runs])]
    assert names == [f"iformer_nano, trained: {run}" for run in runs]
    assert told_apart([opened]) == [opened]


def test_images_are_spread_evenly() -> None:
    files = ImageFiles([Path(f"{number}") for number in range(100)])
    assert [int(path.name) for path in files.some(10).paths] == list(range(5, 100, 10))
    assert files.some(200).paths == files.paths
    files.unreadable[Path("5")] = "cut off"
    assert Path("5") not in files.some(100).paths


def test_classes_are_found_by_name_and_number(trained: Path) -> None:
    model = open_model(str(trained))
    assert [class_index(model, target) for target in ("ant", "2")] == [0, 2]
    with pytest.raises(ValueError, match="no class 'dog', expected 0 to 2 or one of: ant, bee, cat"):
        class_index(model, "dog")
    imagenet = saved.of_classifier(timm.create_model("convnext_atto", num_classes=1000))
    assert [class_index(imagenet, target) for target in ("Egyptian cat", "tench")] == [285, 0]


def test_a_checkpoints_file_means_its_folder(trained: Path) -> None:
    for model in (open_model("", trained / "model.safetensors"), open_model(str(trained / "config.json"))):
        assert (model.name, model.class_names) == ("iformer_nano, trained", ("ant", "bee", "cat"))
    assert fresh("", trained / "model.safetensors").name == "iformer_nano, untrained"


def test_untrained_weights_depend_on_the_seed_alone(trained: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        return fresh(name, seed=seed).network.stem.conv1.weight

    assert torch.equal(weights(str(trained), 0), weights(str(trained), 0))
    assert not torch.equal(weights(str(trained), 0), weights(str(trained), 1))
    assert torch.equal(weights("iformer_nano", 3), weights(str(trained), 3))
    assert not torch.equal(weights(str(trained), 0), open_model(str(trained)).network.stem.conv1.weight)


def test_mistakes_get_one_line(run: Any, folder: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for arguments, message in (
        ((folder,), "--model or --checkpoint must say"),
        (
            (folder, "--model", "iformer_nanno"),
            "iformer_nanno: no such file or folder, and no model of timm, did you mean iformer_nano?",
        ),
        ((folder, "--model", tmp_path / "other"), "config.json: no such file"),
        ((tmp_path / "none", "--model", trained), "none: no such file or folder"),
        ((folder, "--model", trained, "--target", "dog"), "no class 'dog'"),
        (
            (folder, "--model", "convnext_atto", "--checkpoint", trained),
            "a saved iformer_nano, expected one of",
        ),
        ((folder, "--model", trained, "--compare", trained), "compared with itself"),
        ((folder, "--model", trained, "--checkpoint", trained), "has weights of its own"),
        ((folder, "--checkpoint", tmp_path / "none.pth"), "none.pth: no such file or folder"),
        ((folder / "cut.png", "--model", trained), "cut.png: unreadable image"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1

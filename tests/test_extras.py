"""What works without the optional packages, and what is said where one is missing."""

import itertools
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

import iformer
from iformer.detection.model import build as build_detector
from iformer.models import locations, saved
from iformer.segmentation.model import build as build_segmenter
from iformer_command import extras
from tests import installations
from tests.detection.conftest import CONFIG as DETECTOR
from tests.networks import SCENES, SEGMENTERS
from tests.training.tiny import MODEL as NARROW

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs in class folders, and a saved model of each task."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("work")
    classifier = timm.create_model("iformer_nano", num_classes=2, img_size=32, **NARROW)
    saved.save(classifier, root / "classifier", ["cat", "dog"], input_size=(3, 32, 32))
    segmenter = {**SCENES, "network": SEGMENTERS["semantic_fpn"], "crop": (48, 64)}
    saved.save_assembled(build_segmenter(**segmenter["network"]), root / "segmenter", "segmentation", segmenter)
    saved.save_assembled(build_detector(**DETECTOR["network"]), root / "detector", "detection", DETECTOR)
    random = np.random.default_rng(0)
    for index in range(16):
        file = root / "photos" / ("train", "val")[index % 2] / ("cat", "dog")[index // 8] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
    return root


PHOTO = "photos/train/cat/0.png"

NEED = {
    "train,analysis": [["demo"]],
    "train": [["fit", "photos"], ["validate", "--config", "cifar10"], ["compare", "--config", "cifar10"]],
    "detection": [["predict", PHOTO, "--model", "detector"]],
    "segmentation": [["predict", PHOTO, "--model", "segmenter"]],
    "analysis": [["analyze", "photos", "--model", "classifier"], ["tables", "--figure", "figure.png"]],
    "deploy": [
        ["export", "classifier", "--images", "photos"],
        ["benchmark", "--model", "classifier", "--engines", "eager,openvino", "--rounds", "1"],
    ],
    "search": [["search", "--checkpoint", "run", "--budget", "macs<=1M"]],
    "parquet": [["predict", "photos", "--model", "classifier", "--output", "results.parquet"]],
}
"""Commands that need an extra, as they stand in the folder ``work``."""


def test_the_base_installation_predicts_and_publishes_and_says_what_else_needs(work: Path, tmp_path: Path) -> None:
    base = installations.install(tmp_path / "base", ())
    needing = [(extra, command) for extra, commands in NEED.items() for command in commands]
    predict = ["predict", PHOTO, "--model", "classifier", "--json"]
    publish = ["publish", "classifier", "someone/pets", "--dry-run", "--json"]
    works = [predict, publish]
    predicted, published, *refused = installations.run(base, [*works, *(command for _, command in needing)], work)
    assert (predicted.status, published.status) == (0, 0), predicted.err + published.err
    assert {each["name"] for each in json.loads(predicted.out)[0]["classes"]} == {"cat", "dog"}
    assert {each["name"] for each in json.loads(published.out)["files"]} == {"README.md", *locations.FILES}
    for (extra, command), ended in zip(needing, refused, strict=True):
        line = rf"iformer: error: \S+ is not installed; run pip install 'iformer-inception\[{extra}\]'\n"
        assert ended.status == 2, command
        assert re.fullmatch(line, ended.err), (command, ended.err)


@pytest.mark.package
@pytest.mark.parametrize("extra", ["detection", "segmentation", "analysis", "deploy", "parquet"])
def test_an_extra_is_all_that_its_commands_need(extra: str, work: Path, tmp_path: Path) -> None:
    installation = installations.install(tmp_path / extra, [extra])
    for command, ended in zip(NEED[extra], installations.run(installation, NEED[extra], work), strict=True):
        assert ended.status == 0, (command, ended.err)


@pytest.mark.package
def test_training_needs_the_extra_train_and_where_there_are_objects_another(work: Path, tmp_path: Path) -> None:
    installation = installations.install(tmp_path / "train", ["train"])
    fit = ["fit", "photos", "--model", "iformer_nano", "--weights", "random", "--epochs", "1", "--workers", "0"]
    commands = [fit, ["validate", "--config", "coco/tiny"]]
    trained, objects = installations.run(installation, commands, work)
    assert trained.status == 0, trained.err
    assert objects == (2, "", f"iformer: error: {extras.not_installed('faster_coco_eval', 'detection')}\n")


def test_the_workflow_and_the_badges_say_what_is_supported() -> None:
    pythons = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert set(re.findall(r'python: "(3\.\d+)"', workflow)) == set(pythons)
    readme = (ROOT / "README.md").read_text()
    assert all(badge.split("%20%7C%20") == pythons for badge in re.findall(r"badge/Python-(.+?)-", readme))
    for oldest in re.findall(r"badge/PyTorch-(.+?)%20or%20newer-", readme):
        assert f"torch>={oldest}" in PROJECT["dependencies"]


def test_the_oldest_versions_are_those_that_are_tested() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE))
    optional = [lines for extra, lines in PROJECT["optional-dependencies"].items() if extra not in ("all", "dev")]
    for line in itertools.chain(PROJECT["dependencies"], *optional):
        requirement = Requirement(line)
        bounds = [each.version for each in requirement.specifier if each.operator == ">="]
        if bounds:  # and not another extra of this project
            assert Version(pins[canonicalize_name(requirement.name)]) == Version(bounds[0]), line


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == iformer.__version__
    assert f"## {iformer.__version__} " in (ROOT / "CHANGELOG.md").read_text()

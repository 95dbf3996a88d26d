"""Models for the explorer: a classifier, one of a single channel, a detector and a segmenter, all of a few channels."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from iformer.detection.model import build as build_detector
from iformer.explorer.workbench import Workbench
from iformer.models import saved
from iformer.segmentation.model import build as build_segmenter
from tests.detection.conftest import CONFIG as DETECTOR
from tests.networks import NARROW, SCENES, SEGMENTERS, draw

CLASSES = ["ant", "bee", "cat <b>", "dog"]


@dataclass(frozen=True)
class Folders:
    """The folders of saved models, and the files of pictures."""

    colour: str
    grey: str
    detector: str
    segmenter: str
    photo: str
    broken: str
    huge: str


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    here = tmp_path_factory.mktemp("explorer")
    torch.manual_seed(0)
    for name, channels in (("colour", 3), ("grey", 1)):
        network = draw(
            timm.create_model("iformer_nano", num_classes=4, in_chans=channels, img_size=32, **NARROW)
        ).eval()
        statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
        saved.save(network, here / name, CLASSES, input_size=(channels, 32, 32), **statistics)
    detector = {**DETECTOR, "network": {**DETECTOR["network"], "box_score_thresh": 0.0}}
    saved.save_assembled(build_detector(**detector["network"]), here / "detector", "detection", detector)
    network = SEGMENTERS["semantic_fpn"]
    saved.save_assembled(
        build_segmenter(**network), here / "segmenter", "segmentation", {**SCENES, "network": network, "crop": [32, 32]}
    )
    random = np.random.default_rng(0)
    photo = random.integers(0, 90, (60, 80, 3), np.uint8)
    photo[10:40, 20:60, 0] += 150
    Image.fromarray(photo).save(here / "photo.png")
    (here / "broken.png").write_bytes((here / "photo.png").read_bytes()[:3000])
    Image.new("1", (9000, 9000)).save(here / "huge.png")
    names = ("colour", "grey", "detector", "segmenter", "photo.png", "broken.png", "huge.png")
    return Folders(*(str(here / name) for name in names))


@pytest.fixture(scope="session")
def bench(folders: Folders) -> Iterator[Workbench]:
    with closing(Workbench([folders.colour, folders.grey, folders.detector, folders.segmenter])) as opened:
        yield opened

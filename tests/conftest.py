"""Fixtures of several test files."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from iformer.classification import fashion_mnist
from iformer.deployment.fuse import fuse
from iformer_command import cli
from tests.networks import draw
from tests.segmentation.conftest import scene

DATA = Path(__file__).parent / "data"

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def iformer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``iformer ARGUMENTS``: its exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["iformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    """The same numbers in every run; and one thread, for on small maps several only wait for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Build a model of few channels that has all that the presets have; keyword arguments as for ``create_model``.

    Its weights are drawn anew, unless ``pretrained`` is asked for. It is fused in tests that are ``plain_and_fused``.
    """
    finish = fuse if getattr(request, "param", "plain") == "fused" else lambda model: model

    def build(**kwargs: Any) -> Any:
        shape = {
            "img_size": 64,
            "num_classes": 7,
            "depths": (1, 1, 2, 1),
            "dims": (16, 32, 48, 64),
            "num_heads": (2, 4, 4, 4),
            "attention_heads": (1, 2, 2, 3, 4),
        }
        model = timm.create_model("iformer_small", **{**shape, **kwargs}).eval()
        return finish(model if kwargs.get("pretrained") else draw(model))

    return build


def released_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The reference's value of a tensor of the release, drawn from a generator that its name seeds."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = random.normal(0, 0.1, shape)
    elif "layer_scale" in name:
        value = random.uniform(0.2, 1.0, shape)
    elif "pos_embed" in name:
        value = random.normal(0, 0.5, shape)
    elif len(shape) == 1:
        unit = "norm" in name and name.endswith("weight")
        value = random.normal(0, 0.2, shape) + (1.0 if unit else 0.0)
    else:
        value = random.normal(0, 1.2 / np.prod(shape[1:]) ** 0.5, shape)
    return value.astype(np.float32)


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """What the released iFormer-S computes (tests/data/README.md)."""
    facts = json.loads((DATA / "iformer_small_224.json").read_text())
    with np.load(DATA / "iformer_small_224.npz") as arrays:
        return facts | {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def released(reference: dict[str, Any]) -> dict[str, Tensor]:
    """The reference's state dict of iFormer-S, in the released format."""
    return {
        name: torch.from_numpy(released_weight(name, tuple(shape))) for name, shape in reference["state_dict"].items()
    }


@pytest.fixture(scope="session")
def released_file(released: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file, as the authors saved theirs."""
    path = tmp_path_factory.mktemp("released") / "iformer_small.pth"
    torch.save(released, path)
    return path


@pytest.fixture
def small_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a learnable stand-in for Fashion-MNIST, whose checksums the package takes for the right ones.

    Class k is a bright square at one of ten places, on noise.
    """
    folder = tmp_path / "fashion"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 2000), ("t10k", 100)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = random.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = 3 + 12 * (label // 5), 1 + 5 * (label % 5)
            image[row : row + 10, column : column + 5] += 180
        contents = {
            f"{split}-images-idx3-ubyte.gz": np.array([2051, count, 28, 28], ">i4").tobytes() + images.tobytes(),
            f"{split}-labels-idx1-ubyte.gz": np.array([2049, count], ">i4").tobytes() + labels.tobytes(),
        }
        for name, content in contents.items():
            (folder / name).write_bytes(gzip.compress(content))
            monkeypatch.setitem(fashion_mnist.FASHION_MNIST, name, hashlib.sha256(content).hexdigest())
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Folders ``images/{train,val}`` and ``labels/{train,val}``; eight and three images, of different sizes."""
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "labels"):
            (tmp_path / "scenes" / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels = scene(60 + 5 * i, 70 + 3 * i, i)
            Image.fromarray(image).save(tmp_path / "scenes/images" / split / f"{i}.png")
            Image.fromarray(labels).save(tmp_path / "scenes/labels" / split / f"{i}.png")
    return tmp_path / "scenes"

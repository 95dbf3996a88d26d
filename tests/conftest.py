"""What several test files need."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from iformer.classification import fashion_mnist


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

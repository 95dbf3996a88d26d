"""The datamodule of the demo, Fashion-MNIST, and the download of its files."""

import gzip
import hashlib
import shutil
import socket
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import FashionMNIST
from torchvision.datasets.utils import download_url

from iformer.common.ranges import Count, NotNegativeInt, checked
from iformer.training.data import DataModule
from iformer.training.resumable import ResumableBatchSampler, SampleKey, run_seed, seed_from

# SHA-256 of the uncompressed content of each file (the mirrors and Debian compress it differently).
FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class FashionMNISTData(DataModule):
    """Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist): 28x28 greyscale, 10 classes.

    Batches are normalised float32 images ``(N, 1, 28, 28)`` and labels ``(N,)``. All images are kept in memory as
    bytes, and shifts and flips are applied to a whole batch at once, which takes very little time on a laptop.

    Args:
        data_dir: The folder of the four files; they are downloaded into it if it has none of them.
        batch_size: Number of images in a batch.
        shift: Number of pixels by which training images are shifted at most; useful in runs of many epochs.
        limit: Number of training images and of test images to use; None for all.
    """

    class_names = tuple(FashionMNIST.classes)
    has_test = True
    mean, std = 0.2860, 0.3530
    validation_images = 3000

    @checked
    def __init__(
        self,
        data_dir: str | Path = "data/fashion_mnist",
        batch_size: Count = 128,
        shift: NotNegativeInt = 0,
        limit: Annotated[int, Field(ge=10)] | None = None,
    ) -> None:
        super().__init__()
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.shift = shift
        self.limit = limit

    @property
    def data_config(self) -> dict[str, Any]:
        """The preprocessing of images for a trained model, with the keys of timm's ``pretrained_cfg``."""
        return {"input_size": (1, 28, 28), "mean": (self.mean,), "std": (self.std,)}

    @property
    def class_counts(self) -> list[int]:
        """The number of training images of each class, after :meth:`setup`."""
        counts: list[int] = self.train[1].bincount(minlength=len(self.class_names)).tolist()
        return counts

    def prepare_data(self) -> None:
        """Download the files if necessary, see :func:`fetch_fashion_mnist`."""
        fetch_fashion_mnist(self.data_dir)

    def setup(self, stage: str | None = None) -> None:
        """Read the files; the last training images are used for validation."""
        images, labels = self._read("train")
        validation = min(self.validation_images, len(labels) // 5)
        self.train = images[:-validation], labels[:-validation]
        self.validation = images[-validation:], labels[-validation:]
        self.test = self._read("t10k")

    def _read(self, split: str) -> tuple[Tensor, Tensor]:
        """Return the uint8 images ``(N, 1, 28, 28)`` and the labels ``(N,)`` of a split."""
        images = np.frombuffer(_content(self.data_dir / f"{split}-images-idx3-ubyte.gz"), np.uint8, offset=16)
        labels = np.frombuffer(_content(self.data_dir / f"{split}-labels-idx1-ubyte.gz"), np.uint8, offset=8)
        return torch.tensor(images).view(-1, 1, 28, 28)[: self.limit], torch.tensor(labels)[: self.limit].long()

    def normalize(self, images: Tensor) -> Tensor:
        """Convert bytes to normalised float32 values."""
        return (images.float() / 255 - self.mean) / self.std

    def _loader(self, data: tuple[Tensor, Tensor], training: bool) -> DataLoader:
        images, labels = data
        batch_size = min(self.batch_size, len(labels))
        batches = ResumableBatchSampler(
            len(labels), batch_size, run_seed(), *self.rank, shuffle=training, drop_last=training
        )
        if training and self.trainer is not None:
            batches.begin_with(self.trainer)
        dataset = _Batches(images, labels, self, augment=training)
        # batch_size=None: the sampler yields the keys of a whole batch, and the dataset returns that batch.
        return DataLoader(dataset, sampler=batches, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        """Return a loader of shuffled, augmented batches that begins at the trainer's position."""
        return self._loader(self.train, training=True)

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation images."""
        return self._loader(self.validation, training=False)

    def test_dataloader(self) -> DataLoader:
        """Return a loader of the 10,000 test images, or of the first ``limit``."""
        return self._loader(self.test, training=False)


class _Batches(Dataset):
    """Images in memory, indexed by the keys of a whole batch."""

    def __init__(self, images: Tensor, labels: Tensor, data: FashionMNISTData, augment: bool) -> None:
        self.images, self.labels, self.data, self.augment = images, labels, data, augment

    def __getitem__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor]:
        indices = [key.sample for key in keys]
        images = self.images[indices]
        if self.augment:
            torch.manual_seed(seed_from(run_seed(), *keys[0]))
            images = shift_and_flip(images, self.data.shift)
        return self.data.normalize(images), self.labels[indices]


def shift_and_flip(images: Tensor, pixels: int) -> Tensor:
    """Shift each image of a batch ``(N, C, H, W)`` by up to ``pixels``, and mirror it with probability 1/2."""
    n, _, height, width = images.shape
    padded = F.pad(images, [pixels] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    dy, dx = torch.randint(2 * pixels + 1, (2, n))
    shifted = windows[torch.arange(n), :, dy, dx]
    mirror = torch.rand(n, 1, 1, 1) < 0.5
    return torch.where(mirror, shifted.flip(3), shifted)


def fetch_fashion_mnist(folder: Path) -> None:
    """Download the four files of Fashion-MNIST into ``folder`` if they are not there.

    First torchvision's mirror is tried, then the package of Debian and Ubuntu, which is unpacked without installing it.

    Raises:
        ConnectionError: Neither source could be reached; the message says what else to do.
        NotADirectoryError: ``folder`` is a file.
        FileNotFoundError: Only some of the files are there.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: not a folder, expected a folder for the four files of Fashion-MNIST")
    absent = [name for name in FASHION_MNIST if not (folder / name).is_file()]
    if not absent:
        return
    if len(absent) < len(FASHION_MNIST) or any((folder / name).exists() for name in absent):
        raise FileNotFoundError(
            f"{folder / absent[0]}: no such file, though other files of Fashion-MNIST are there; "
            "expected all four of them, or none, so that they are downloaded"
        )
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    # Files are verified before they are moved into the folder, so that an interruption leaves no incomplete ones.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for number, source in enumerate((_from_mirror, _from_debian_package)):
            try:
                found = source(Path(temporary, str(number)))
                for name in FASHION_MNIST:
                    _content(found / name)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                problems.append(str(error).splitlines()[0])
                continue
            for name in FASHION_MNIST:
                (found / name).replace(folder / name)
            return
    raise ConnectionError(
        f"Fashion-MNIST could not be fetched ({'; '.join(problems)}). "
        f"Put {', '.join(FASHION_MNIST)} into a folder and name it with --data-dir"
    )


def _content(path: Path) -> bytes:
    """Return the uncompressed content of a file of Fashion-MNIST.

    Raises:
        ValueError: The content has a wrong checksum.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile):
        content = b""
    if hashlib.sha256(content).hexdigest() != FASHION_MNIST[path.name]:
        raise ValueError(f"{path}: damaged (wrong checksum); delete it to have it fetched again")
    return content


def _from_mirror(folder: Path) -> Path:
    """Download the files from torchvision's first mirror into ``folder``, and return it."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)  # in seconds; without a limit, a firewall that drops packets would block this forever
    try:
        for name, md5 in FashionMNIST.resources:
            download_url(f"{FashionMNIST.mirrors[0]}{name}", folder, name, md5)
    finally:
        socket.setdefaulttimeout(timeout)
    return folder


def _from_debian_package(folder: Path) -> Path:
    """Copy the files of the installed package of Debian and Ubuntu, or download and unpack it; this needs no root."""
    if DEBIAN_FOLDER.is_dir():
        return Path(shutil.copytree(DEBIAN_FOLDER, folder))
    if shutil.which("apt-get") is None:
        raise OSError("no apt-get to download the package of Debian and Ubuntu")
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    # Separate package lists are used, because the system's may be missing or old, and only root can update them.
    apt = ["apt-get", "--quiet", "-o", f"Dir::State::Lists={lists.resolve()}", "-o", f"Dir::Cache={folder.resolve()}"]
    for command in ([*apt, "update"], [*apt, "download", DEBIAN_PACKAGE]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    package = next(folder.glob(f"{DEBIAN_PACKAGE}*.deb"))
    subprocess.run(["dpkg-deb", "--extract", package, folder], check=True, capture_output=True)
    return folder / DEBIAN_FOLDER.relative_to("/")

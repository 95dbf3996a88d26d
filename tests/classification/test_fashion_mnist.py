"""Fashion-MNIST."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from iformer.classification import fashion_mnist
from iformer.classification.fashion_mnist import FashionMNISTData, fetch_fashion_mnist, shift_and_flip
from iformer.training.resumable import ResumableBatchSampler


def test_shift_and_flip_keeps_pixels_and_draws_per_image() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 3] = 1
    torch.manual_seed(0)
    moved = shift_and_flip(image.expand(500, 1, 9, 9), pixels=2)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(500))
    positions = {tuple(position.tolist()) for position in moved[:, 0].nonzero()[:, 1:]}
    assert positions == {(row, column) for row in range(2, 7) for column in [*range(1, 6), *range(3, 8)]}


def test_fashion_mnist_batches(small_fashion_mnist: Path) -> None:
    module = FashionMNISTData(small_fashion_mnist, batch_size=32)
    module.prepare_data()
    module.setup()
    assert [len(split[1]) for split in (module.train, module.validation, module.test)] == [1600, 400, 100]
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (32, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    seen = torch.cat([batch for _, batch in module.test_dataloader()])
    assert torch.equal(seen, module.test[1])


def test_ranks_share_an_epoch(small_fashion_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FashionMNISTData(small_fashion_mnist, batch_size=32)
    module.setup()
    monkeypatch.setattr(ResumableBatchSampler, "begin_with", lambda self, trainer: self.start(0))
    seen: dict[str, list[int]] = {"train": [], "test": []}
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        for split, loader in (("train", module.train_dataloader()), ("test", module.test_dataloader())):
            seen[split] += [key.sample for keys in loader.sampler for key in keys]
    assert sorted(seen["train"]) == list(range(1600))
    assert sorted(seen["test"]) == list(range(100))


def test_a_damaged_file_is_named(small_fashion_mnist: Path) -> None:
    file = small_fashion_mnist / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    module = FashionMNISTData(small_fashion_mnist)
    with pytest.raises(ValueError, match=r"t10k-images.*damaged"):
        module.setup()


class TestFetching:
    def test_what_is_there_is_used(self, small_fashion_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fashion_mnist, "_from_mirror", lambda folder: pytest.fail("must not be asked"))
        fetch_fashion_mnist(small_fashion_mnist)

    def test_the_second_source_is_tried(
        self, small_fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(folder: Path) -> Path:
            raise OSError("no route to host")

        monkeypatch.setattr(fashion_mnist, "_from_mirror", unreachable)
        monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", small_fashion_mnist)  # as if the package were installed
        fetch_fashion_mnist(tmp_path / "new")
        assert {file.name for file in (tmp_path / "new").iterdir()} == set(fashion_mnist.FASHION_MNIST)

    def test_wrong_content_leaves_nothing_behind(
        self, small_fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (small_fashion_mnist / "train-labels-idx1-ubyte.gz").write_bytes(b"not what was asked for")
        monkeypatch.setattr(fashion_mnist, "_from_mirror", lambda folder: small_fashion_mnist)
        monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
        monkeypatch.setattr(fashion_mnist.shutil, "which", lambda name: None)
        with pytest.raises(ConnectionError, match=r"wrong checksum.*no apt-get.*--data-dir"):
            fetch_fashion_mnist(tmp_path / "new")
        assert list((tmp_path / "new").iterdir()) == []

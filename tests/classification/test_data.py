"""Reading image files, and Fashion-MNIST."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.classification import data
from iformer.classification.data import FashionMNISTData, fetch_fashion_mnist, read_image, shift_and_flip


@pytest.fixture
def photo() -> Image.Image:
    """A red left half and a blue right half, 40 wide and 30 high."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("mode", "name"), [("RGB", "a.png"), ("P", "a.png"), ("CMYK", "a.jpg"), ("RGBA", "a.png"), ("RGB", "a.webp")]
)
def test_every_mode_is_read_as_rgb(photo: Image.Image, tmp_path: Path, mode: str, name: str) -> None:
    photo.convert(mode).save(tmp_path / name)
    pixels = np.asarray(read_image(tmp_path / name)).astype(int)
    assert pixels.shape == (30, 40, 3)
    assert pixels[15, 5, 0] > 200 > 60 > pixels[15, 5, 2]
    assert pixels[15, 35, 2] > 200 > 60 > pixels[15, 35, 0]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / "a.png")
    row = np.asarray(read_image(tmp_path / "a.png", channels=1))[0].astype(int)
    assert np.abs(row - np.arange(256)).max() <= 1


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_taken_sideways_is_turned_upright(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.size == (30, 40)
    top, bottom = image.getpixel((15, 5)), image.getpixel((15, 35))
    assert top[0] > 200
    assert bottom[2] > 200


def test_unreadable_files_are_named(photo: Image.Image, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:2000])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name in ("cut.jpg", "text.jpg", "empty.png"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")


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


def test_a_damaged_file_is_named(small_fashion_mnist: Path) -> None:
    file = small_fashion_mnist / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    module = FashionMNISTData(small_fashion_mnist)
    with pytest.raises(ValueError, match=r"t10k-images.*damaged"):
        module.setup()


class TestFetching:
    def test_what_is_there_is_used(self, small_fashion_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data, "_from_mirror", lambda folder: pytest.fail("must not be asked"))
        fetch_fashion_mnist(small_fashion_mnist)

    def test_the_second_source_is_tried(
        self, small_fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(folder: Path) -> Path:
            raise OSError("no route to host")

        monkeypatch.setattr(data, "_from_mirror", unreachable)
        monkeypatch.setattr(data, "DEBIAN_FOLDER", small_fashion_mnist)  # as if the package were installed
        fetch_fashion_mnist(tmp_path / "new")
        assert {file.name for file in (tmp_path / "new").iterdir()} == set(data.FASHION_MNIST)

    def test_wrong_content_leaves_nothing_behind(
        self, small_fashion_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (small_fashion_mnist / "train-labels-idx1-ubyte.gz").write_bytes(b"not what was asked for")
        monkeypatch.setattr(data, "_from_mirror", lambda folder: small_fashion_mnist)
        monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "absent")
        monkeypatch.setattr(data.shutil, "which", lambda name: None)
        with pytest.raises(ConnectionError, match=r"wrong checksum.*no apt-get.*--data-dir"):
            fetch_fashion_mnist(tmp_path / "new")
        assert list((tmp_path / "new").iterdir()) == []

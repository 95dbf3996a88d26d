"""Reading image files."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from iformer.common.images import UnreadableImageError, find_images, read_image


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


def test_a_photo_and_its_label_map_are_read_as_they_are_stored(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", upright=False).size == (40, 30)
    labels = Image.new("P", (40, 30), 7)
    labels.putpalette([9, 9, 9] * 256)
    labels.save(tmp_path / "a.png", exif=exif)
    stored = read_image(tmp_path / "a.png", channels=None, upright=False)
    assert (stored.size, stored.getpixel((0, 0))) == ((40, 30), 7)


def test_damaged_exif_data_are_passed_over(photo: Image.Image, tmp_path: Path) -> None:
    entries = [(0x0112, 3, b"\6\0\0\0"), (0x011A, 2, b"abc\0")]  # sideways; a resolution that is text
    packed = b"".join(struct.pack("<HHL", tag, kind, 4 if kind == 2 else 1) + value for tag, kind, value in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + packed + bytes(4)
    photo.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened, pytest.raises(TypeError):
        ImageOps.exif_transpose(opened)
    assert read_image(tmp_path / "a.jpg").size == (30, 40)


def test_unreadable_files_are_named(photo: Image.Image, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:2000])
    buffer = io.BytesIO()
    photo.save(buffer, "AVIF")
    head, mark, data = buffer.getvalue().partition(b"mdat")
    (tmp_path / "zeros.avif").write_bytes(head + mark + bytes(len(data)))
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name in ("cut.jpg", "zeros.avif", "text.jpg", "empty.png"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")


def test_no_other_format_is_opened_whatever_the_file_is_called(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    for kind in ("EPS", "PCX", "TGA", "ICO"):
        picture.save(tmp_path / "a.jpg", kind)
        with pytest.raises(UnreadableImageError, match=r"a\.jpg: not an image that Pillow can read as one of PNG"):
            read_image(tmp_path / "a.jpg")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png: not a file"):
        read_image(tmp_path / "a.png")


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.filterwarnings("ignore:.*(stretched|taken for 12 bits)")
@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.float32),
        (RAMP * 255).astype(np.float32),
        (RAMP * 7 - 3).astype(np.float32),
        (RAMP * 255).astype(np.int32),
        (RAMP * 65535).astype(np.int32),
        (RAMP * 100_000).astype(np.int32),
        (RAMP * 4095).astype(np.uint16),
        (RAMP * 65535).astype(np.uint16),
    ],
    ids=["float-1", "float-255", "float-negative", "int-255", "int-65535", "int-100000", "12-bit", "16-bit"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_ramp_of_any_type_is_a_ramp(values: np.ndarray, channels: int, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "ramp.tif")
    found = np.asarray(read_image(tmp_path / "ramp.tif", channels), dtype=float).reshape(8, 8, channels)
    assert np.abs(found - 255 * RAMP[..., None]).max() <= 1.5


def test_constant_and_broken_floats(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf], [0.5, 1.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif", 1)).tolist() == [[0, 0], [128, 255]]
    Image.fromarray(np.full((4, 4), -7.0, np.float32)).save(tmp_path / "b.tif")
    with pytest.warns(UserWarning, match=r"b\.tif: values from -7 to -7 are stretched"):
        assert np.asarray(read_image(tmp_path / "b.tif", 1)).max() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_lab(channels: int, tmp_path: Path) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    converted = ImageCms.applyTransform(Image.new("RGB", (8, 8), "gray"), to_lab)
    assert converted is not None
    converted.save(tmp_path / "lab.tif")
    found = np.asarray(read_image(tmp_path / "lab.tif", channels)).astype(int)
    assert abs(found - 128).max() < 12


def test_hidden_files_are_passed_over_and_links_followed_once(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "@eaDir/a.png", "real/b.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "set" / name)
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "real" / "loop").symlink_to(tmp_path / "set")
    found = find_images([tmp_path / "set"])
    assert [str(path.relative_to(tmp_path / "set")) for path in found] == ["a.png", "linked/c.png", "real/b.png"]

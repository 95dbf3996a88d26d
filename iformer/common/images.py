"""Finding image files, and reading every kind of them."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow opens and people have in folders; timm's readers know the first three by themselves.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")


class UnreadableImageError(ValueError):
    """A file that is no image, or is cut off. The message is one line and names it.

    Torch makes a worker's exception anew, with its whole traceback as the message; the last line of that is ours.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().splitlines()[-1].partition(f"{type(self).__name__}: ")[2] or message)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The files among ``paths`` and, sorted, the image files in the folders among them and in their subfolders.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no image file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise ValueError(f"{path}: a folder without images ({', '.join(EXTENSIONS)})")
            found += inside
        else:
            found.append(path)
    return found


def read_image(path: str | Path, channels: int | None = 3, upright: bool = True) -> Image.Image:
    """Read an image file upright, as RGB (``channels=3``) or greyscale (``channels=1``).

    Where labels belong to the pixels as they are stored, ``upright=False`` does not turn them, whatever the camera has
    noted; ``channels=None`` reads a label map, whose values are given as they are stored.

    Greyscale, palette, CMYK, transparent and 16-bit files are converted; transparency is laid on white.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableImageError: The file is no image, or is cut off.
    """
    try:
        with open(path, "rb") as file:
            return decode_image(file, path, channels, upright)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from None


def decode_image(file: IO[bytes], name: str | Path, channels: int | None = 3, upright: bool = True) -> Image.Image:
    """:func:`read_image` for an open file, which errors call ``name``."""
    try:
        with Image.open(file) as opened:
            greatest = _greatest(opened)
            opened.load()
            if upright:
                _turn_upright(opened)
    except UnidentifiedImageError:
        raise UnreadableImageError(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # Pillow's plugins raise whatever damage makes them stumble over
        raise UnreadableImageError(f"{name}: unreadable image ({error})") from None
    image: Image.Image = opened
    if channels is None:
        return image if greatest == 255 else image.point([round(value * greatest / 255) for value in range(256)])
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode.startswith("I"):  # 16 bits per pixel, which convert() would clip instead of scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _greatest(opened: Image.Image) -> int:
    """The greatest value of a greyscale file of fewer than 8 bits, which Pillow makes 255; and 255 for other files.

    Args:
        opened: Not loaded yet.
    """
    tiles = getattr(opened, "tile", [])
    if opened.mode != "L" or not tiles:
        return 255
    codec, _, _, arguments = tiles[0]
    if codec.startswith("ppm"):
        return arguments[1]
    stored = arguments if isinstance(arguments, str) else arguments[0]
    return {"L;2": 3, "L;4": 15}.get(stored[:3], 255)


def _turn_upright(image: Image.Image) -> None:
    """Turn an image as its EXIF data says, if they can be read: the pixels are worth having without."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)  # most are upright already and need no copy

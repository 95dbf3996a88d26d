"""Finding image files, and reading every kind of them."""

import contextlib
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# What Pillow opens and people have in folders; timm's readers know the first three by themselves.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
# Only these are ever opened, whatever a file is called: for others, EPS say, Pillow starts other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")

UNSTATED = 17  # a file of 16-bit integers does not say how many of the bits it uses
_SYSTEM_NAMES = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")


class UnreadableImageError(ValueError):
    """A file that is no image, or is cut off. The message is one line and names it.

    Torch makes a worker's exception anew, with its whole traceback as the message; the last line of that is ours.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().splitlines()[-1].partition(f"{type(self).__name__}: ")[2] or message)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a program, such as ``._a.jpg`` and ``@eaDir``."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def image_files(folder: str | Path) -> Iterator[Path]:
    """Yield the image files in ``folder`` and its subfolders, by their names' endings.

    Links to folders are followed, but never into a folder that they stand in; hidden and system files and folders
    (:func:`is_hidden`) are passed over.
    """

    def walk(place: str, above: frozenset[str]) -> Iterator[Path]:
        here = os.path.realpath(place)
        if here in above:
            return
        for entry in os.scandir(place):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from walk(entry.path, above | {here})
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield Path(entry.path)

    return walk(str(folder), frozenset())


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The files among ``paths`` and, sorted, the image files in the folders among them, see :func:`image_files`.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no image file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir():
            inside = sorted(image_files(path))
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

    Greyscale, palette, CMYK, Lab, transparent and 16-bit files are converted; transparency is laid on white. Values of
    more than 16 bits and of other ranges become 8 bits as :func:`_to_bytes` says.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableImageError: The file is no image of a format in ``FORMATS``, or is cut off.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise UnreadableImageError(f"{path}: not a file")
        with open(path, "rb") as file:
            return decode_image(file, path, channels, upright)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from None


def decode_image(file: IO[bytes], name: str | Path, channels: int | None = 3, upright: bool = True) -> Image.Image:
    """:func:`read_image` for an open file, which errors call ``name``."""
    try:
        with Image.open(file, formats=FORMATS) as opened:
            greatest = _greatest(opened)
            bits = _stated_bits(opened)
            opened.load()
            if upright:
                _turn_upright(opened)
        if channels is None:
            return opened if greatest == 255 else opened.point([round(v * greatest / 255) for v in range(256)])
        return _converted(opened, {1: "L", 3: "RGB"}[channels], bits, name)
    except UnidentifiedImageError:
        readable = ", ".join(FORMATS)
        raise UnreadableImageError(f"{name}: not an image that Pillow can read as one of {readable}") from None
    except Exception as error:  # Pillow's plugins raise whatever damage makes them stumble over
        raise UnreadableImageError(f"{name}: unreadable image ({error})") from None


def _converted(image: Image.Image, mode: str, bits: int, name: str | Path) -> Image.Image:
    """``image`` in ``mode``, L or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):  # which convert() would clip instead of scale
        image = Image.fromarray(_to_bytes(np.asarray(image), bits, name))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode not in (mode, "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")  # Lab and others know RGB only
    return image if image.mode == mode else image.convert(mode)


def _to_bytes(values: np.ndarray, bits: int, name: str | Path) -> np.ndarray:
    """Greyscale values of a wide type as bytes.

    Integers of 16 bits cover the range of their type, or of the bits that the file states; in a TIFF that states none
    and has no value above 4095, they are the 12 bits of many cameras and microscopes. Other values, if none is negative
    and none is above 1, 255 or 65535, cover the first of these ranges that holds them. All others are stretched from
    their least to their greatest value. A warning tells what had to be guessed. What is not a number is black.
    """
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if bits == UNSTATED and high < 4096:
        warnings.warn(f"{name}: no value above 4095, taken for 12 bits", stacklevel=2)
        bits = 12
    if bits:
        low, high = 0.0, float(2 ** min(bits, 16) - 1)
    elif low >= 0 and (ceiling := next((limit for limit in (1, 255, 65535) if high <= limit), None)):
        low, high = 0.0, float(ceiling)
    else:
        warnings.warn(f"{name}: values from {low:g} to {high:g} are stretched to black and white", stacklevel=2)
    return np.rint((values - low) / max(high - low, 1e-300) * 255).clip(0, 255).astype(np.uint8)


def _stated_bits(opened: Image.Image) -> int:
    """Bits of the range that a file of 16-bit integers covers, or ``UNSTATED``; 0 for files of other types."""
    if not opened.mode.startswith("I;16"):
        return 16 if opened.mode == "I" and opened.format == "PNG" else 0
    if opened.format != "TIFF":
        return 16
    greatest = opened.tag_v2.get(281, 0)  # type: ignore[attr-defined]  # MaxSampleValue
    greatest = int(greatest[0] if isinstance(greatest, tuple) else greatest)
    return greatest.bit_length() if greatest > 255 else UNSTATED


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

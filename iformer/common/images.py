"""Finding image files, and reading every kind of image."""

import contextlib
import glob
import io
import itertools
import lzma
import os
import re
import stat
import sys
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Extensions that Pillow opens and that are common in folders of images; timm's readers know only the first three.
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
# Only these formats are ever opened, whatever a file is called: for others, such as EPS, Pillow starts other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")

TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)

UNSTATED = 17  # stands for a file of 16-bit integers that does not say how many of the bits it uses
_SYSTEM_NAMES = ("__macosx", "thumbs.db", "desktop.ini", "@eadir")


class UnreadableImageError(ValueError):
    """A file is not an image, or is truncated. The message is one line and names the file.

    Torch raises a worker's exception again with the whole traceback as its message; only the last line of that is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().splitlines()[-1].partition(f"{type(self).__name__}: ")[2] or message)


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a hidden or system file or folder, such as ``._a.jpg`` or ``@eaDir``."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def image_files(folder: str | Path) -> Iterator[Path]:
    """Yield the files in ``folder`` and its subfolders that have the extension of an image, sorted by their paths.

    Links to folders are followed, except for those that lead to a folder that contains them. Hidden and system files
    and folders (see :func:`is_hidden`) are skipped.
    """

    def walk(place: str, above: frozenset[str]) -> Iterator[Path]:
        here = os.path.realpath(place)
        if here in above:
            return
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from walk(entry.path, above | {here})
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield Path(entry.path)

    return walk(str(folder), frozenset())


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files among ``paths``, and the image files of the folders among them (:func:`image_files`).

    Raises:
        FileNotFoundError: A file or folder does not exist.
        ValueError: A folder contains no image file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.is_dir():
            inside = list(image_files(path))
            if not inside:
                raise ValueError(f"{path}: a folder without images ({', '.join(EXTENSIONS)})")
            found += inside
        else:
            found.append(path)
    return found


class Packed(NamedTuple):
    """An image file inside a tar file.

    Attributes:
        name: The path of the tar file, and behind a slash that of the image in it.
        content: The image file's bytes.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


class Damaged(NamedTuple):
    """A file that cannot be searched for images.

    Attributes:
        name: The path of the file.
        reason: Why it cannot be searched, in one line that names the file.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return self.name


ImageFile = Path | Packed | Damaged


def stream_images(places: Iterable[str], part: tuple[int, int] = (0, 1)) -> Iterator[ImageFile]:
    """Yield image files one after another, however many there are.

    Args:
        places: Files; folders, whose image files are taken in the order of their paths; patterns such as ``'a/*.jpg'``,
            with ``**`` for any folders; tar files, compressed or not, and so WebDataset shards, whose image files are
            taken in their order; and ``-`` for a list of files on standard input, one in a line. A tar file that is
            damaged or has no images gives a :class:`Damaged`.
        part: The number of a process, from 0, and how many processes share the images: file ``i`` goes to process
            ``i % count``, a tar file as a whole.

    Raises:
        FileNotFoundError: A file or folder does not exist, other than those that standard input names.
        ValueError: A folder contains no image file, or a pattern fits none.
    """
    number, count = part
    for path in itertools.islice(_files(places), number, None, count):
        if TAR.search(path.name) and path.is_file():
            yield from _packed(path)
        else:
            yield path


def count_images(places: Iterable[str], part: tuple[int, int] = (0, 1)) -> int | None:
    """Return how many images :func:`stream_images` will yield; None if that is known only in the end."""
    places = list(places)
    if "-" in places:
        return None
    number, count = part
    files = 0
    for path in itertools.islice(_files(places), number, None, count):
        if TAR.search(path.name):
            return None
        files += 1
    return files


def _files(places: Iterable[str]) -> Iterator[Path]:
    """Yield the files in ``places``, see :func:`stream_images`."""
    for place in places:
        path = Path(place)
        if place == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)  # a name may end in a space
            yield from (Path(line) for line in lines if line)
        elif path.is_dir():
            yield from _some(image_files(path), f"{place}: a folder without images ({', '.join(EXTENSIONS)})")
        elif path.exists():
            yield path
        elif glob.has_magic(place):
            found = sorted(Path(file) for file in glob.glob(place, recursive=True))
            yield from _some((file for file in found if file.is_file()), f"{place}: no file fits this pattern")
        else:
            raise FileNotFoundError(f"{place}: no such file or folder")


Item = TypeVar("Item")


def _some(items: Iterable[Item], message: str) -> Iterator[Item]:
    """Yield ``items``; raise ValueError where there is none."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise ValueError(message)


def _packed(file: Path) -> Iterator[Packed | Damaged]:
    empty = True
    try:
        with tarfile.open(file, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                hidden = any(is_hidden(part) for part in name.parts if part != ".")
                if member.isfile() and not hidden and name.suffix.lower() in EXTENSIONS:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    yield Packed(f"{file}/{name}", content.read())
                    empty = False
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        yield Damaged(str(file), f"{file}: a damaged tar file ({error})")
    else:
        if empty:
            yield Damaged(str(file), f"{file}: a tar file without images ({', '.join(EXTENSIONS)})")


def read_item(item: ImageFile, channels: int) -> Image.Image:
    """Read what :func:`stream_images` yields, as :func:`read_image` does."""
    if isinstance(item, Damaged):
        raise UnreadableImageError(item.reason)
    if isinstance(item, Packed):
        return decode_image(io.BytesIO(item.content), item.name, channels)
    return read_image(item, channels)


def read_image(path: str | Path, channels: int | None = 3, upright: bool = True) -> Image.Image:
    """Read an image file upright, as RGB (``channels=3``) or greyscale (``channels=1``).

    With ``upright=False`` the image is not rotated as its EXIF data says, for labels that belong to the pixels as they
    are stored. With ``channels=None`` the file is read as a label map, whose values are returned as they are stored.

    Greyscale, palette, CMYK, Lab, transparent and 16-bit files are converted, and transparent images are placed on
    white. Values of 16 bits and more, and values of other ranges, are converted to 8 bits as :func:`_to_bytes`
    describes.

    Raises:
        FileNotFoundError: The file does not exist.
        UnreadableImageError: The file is not an image of a format in ``FORMATS``, or is truncated.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise UnreadableImageError(f"{path}: not a file")
        with open(path, "rb") as file:
            return decode_image(file, path, channels, upright)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror}") from None


def decode_image(file: IO[bytes], name: str | Path, channels: int | None = 3, upright: bool = True) -> Image.Image:
    """Read an image from an open file as :func:`read_image` does; errors call the file ``name``."""
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
    except Exception as error:  # Pillow's plugins raise exceptions of any kind for damaged files
        raise UnreadableImageError(f"{name}: unreadable image ({error})") from None


def _converted(image: Image.Image, mode: str, bits: int, name: str | Path) -> Image.Image:
    """Return ``image`` converted to ``mode``, L or RGB."""
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would clip these values instead of scaling them
        image = Image.fromarray(_to_bytes(np.asarray(image), bits, name))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    if image.mode not in (mode, "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")  # Lab and others convert to RGB only
    return image if image.mode == mode else image.convert(mode)


def _to_bytes(values: np.ndarray, bits: int, name: str | Path) -> np.ndarray:
    """Convert greyscale values of a wide type to bytes.

    Integers of 16 bits are scaled from the range of their type, or of the number of bits that the file states. If a
    TIFF file states none and no value is above 4095, its values are taken for the 12 bits of many cameras and
    microscopes. Other values that are not negative are scaled from the smallest range that contains them: 0 to 1, 0 to
    255 or 0 to 65535. All others are stretched from their minimum to their maximum. A warning says where the range had
    to be guessed. Values that are not finite become black.
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
    """Return how many bits a file of 16-bit integers uses, or ``UNSTATED``; 0 for files of other types."""
    if not opened.mode.startswith("I;16"):
        return 16 if opened.mode == "I" and opened.format == "PNG" else 0
    if opened.format != "TIFF":
        return 16
    greatest = opened.tag_v2.get(281, 0)  # type: ignore[attr-defined]  # MaxSampleValue
    greatest = int(greatest[0] if isinstance(greatest, tuple) else greatest)
    return greatest.bit_length() if greatest > 255 else UNSTATED


def _greatest(opened: Image.Image) -> int:
    """Return the maximum value of a greyscale file of fewer than 8 bits, and 255 for all other files.

    Pillow scales the values of such a file so that its maximum becomes 255.

    Args:
        opened: The opened image, whose pixels have not been loaded yet.
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
    """Rotate an image in place as its EXIF data says; an image whose EXIF data cannot be read is left as it is."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)  # most images are upright already and need no copy

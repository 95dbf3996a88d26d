"""Pictures on the page: reading what a user gives, pictures that come along, and pictures as text for HTML."""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from iformer.common.images import FORMATS, decode_image
from iformer_command.terminal import printable

LARGEST_FILE = 20 * 2**20
"""The most bytes that a picture's file may have."""

MOST_PIXELS = 50_000_000
"""The most pixels that a picture may have: those of a good camera."""

LONGEST_SIDE = 1280
"""The longest side in pixels with which a picture is kept."""

LARGE_PNG = 150_000
"""The bytes from which on a picture is sent to the page as a JPEG. Diagrams and enlarged pixels are smaller as PNG."""

HEAT, SPECTRA = "inferno", "viridis"
"""matplotlib's colour maps of evidence and of spectra, as in :mod:`iformer.frequency.figures`."""


@dataclass(frozen=True)
class Picture:
    """A picture that a user has given.

    Attributes:
        name: The name of its file, without folders.
        image: The upright RGB image, whose longest side has at most :data:`LONGEST_SIDE` pixels.
        digest: What tells it from other pictures.
        note: A sentence about what was changed; empty if nothing was.
    """

    name: str
    image: Image.Image
    digest: str
    note: str = ""


def read(file: str | None) -> Picture:
    """Read a picture.

    Raises:
        ValueError: There is none, it is not readable as an image, or it is too large. The message is for the page.
    """
    if not file:
        raise ValueError("Drop a picture on the left, paste one, or choose an example.")
    path = Path(file)
    name = printable(path.name)
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"{name}: {size / 2**20:.0f} MiB; expected at most {LARGEST_FILE / 2**20:.0f} MiB")
        content = path.read_bytes()
    except OSError:
        raise ValueError(f"{name}: the picture is no longer here; please give it again") from None
    _require_small(content, name)
    image = decode_image(io.BytesIO(content), name)
    width, height = image.size
    note = ""
    if max(width, height) > LONGEST_SIDE:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        note = f"Reduced from {width} × {height} to {image.width} × {image.height} pixels."
    return Picture(name, image, hashlib.sha256(content).hexdigest(), note)


def _require_small(content: bytes, name: str) -> None:
    """Raise ValueError if an image file has too many pixels, before they are decoded."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: too many pixels; expected at most {MOST_PIXELS / 1e6:.0f} million") from None
    except Exception:  # what cannot be opened is refused by decode_image, whose message says what can
        return
    if width * height > MOST_PIXELS:
        raise ValueError(f"{name}: {width} × {height} pixels; expected at most {MOST_PIXELS / 1e6:.0f} million of them")


def data_uri(image: Image.Image, lossless: bool = False) -> str:
    """Return an image as an address that holds it: as a PNG, unless that is large and need not be ``lossless``."""
    file = io.BytesIO()
    image.save(file, kind := "png", compress_level=3)
    if file.tell() > LARGE_PNG and not lossless:
        file = io.BytesIO()
        image.convert("RGB").save(file, kind := "jpeg", quality=92)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def text_uri(text: str, kind: str = "application/json") -> str:
    """Return a text as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def from_values(values: np.ndarray) -> Image.Image:
    """Return values from 0 to 1, ``(H, W, 3)`` or ``(H, W, 1)``, as an RGB image."""
    values = np.asarray(values, np.float32)
    if values.shape[2] == 1:
        values = values.repeat(3, 2)
    return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def coloured(values: np.ndarray, colours: str) -> Image.Image:
    """Return values ``(H, W)`` from 0 to 1 in a colour map of matplotlib."""
    return Image.fromarray((matplotlib.colormaps[colours](values)[..., :3] * 255).round().astype(np.uint8))


def shown(values: np.ndarray) -> Image.Image:
    """Return values from 0 to 1, ``(H, W, C)``, as an RGB image of a size for the page.

    A small one is enlarged as it is, so that its pixels can be seen, and a map that is laid over it is smooth.
    """
    image = from_values(values)
    smaller, longer = min(image.size), max(image.size)
    if longer > 640:
        image.thumbnail((640, 640), Image.Resampling.BOX)
    elif smaller < 224:
        factor = -(-224 // smaller)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image


def blended(picture: Image.Image, heat: np.ndarray, strength: float) -> Image.Image:
    """Return a picture under a heat map.

    Args:
        picture: The picture.
        heat: The heat map ``(h, w)`` from 0 to 1, which is resized smoothly to the picture.
        strength: The share of the heat map, from 0 to 1.
    """
    smooth = Image.fromarray(np.asarray(heat, np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    return Image.blend(picture, coloured(np.asarray(smooth).clip(0, 1), HEAT), strength)


def examples(folder: Path, clothes_first: bool = False) -> list[Path]:
    """Write the pictures that come along into a folder, and return their files, the first of which is shown first.

    The portrait of Grace Hopper is a work of the US Navy in the public domain, which comes with matplotlib. The others
    are drawn here.
    """
    portrait = Image.open(Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")).convert("RGB")
    drawn = {"portrait.jpg": portrait, "boot.png": boot(), "shirt.png": shirt(), "rings.png": rings()}
    files = []
    for name, image in drawn.items():
        image.save(folder / name)
        files.append(folder / name)
    return files[1:] + files[:1] if clothes_first else files


def rings(side: int = 320) -> Image.Image:
    """Return a zone plate: rings whose frequency grows from 0 in the centre to π at the middle of each edge."""
    places = np.arange(side) - (side - 1) / 2
    squares = places[:, None] ** 2 + places**2
    wave = 0.5 + 0.5 * np.cos(np.pi * squares / side)
    colours = np.stack([wave, 0.25 + 0.6 * wave, 0.55 + 0.3 * wave], -1)
    return from_values(colours)


def shirt(side: int = 280) -> Image.Image:
    """Return a bright T-shirt on black, as in Fashion-MNIST."""
    half = [(12, 5), (9, 3), (2, 7), (5, 13), (8, 11), (8, 26)]
    mirrored = [(28 - x, y) for x, y in reversed(half)]
    return _drawn(side, half + mirrored, [(10, 12, 18, 12), (10, 15, 18, 15)])


def boot(side: int = 280) -> Image.Image:
    """Return a bright ankle boot on black, as in Fashion-MNIST."""
    points = [(3, 8), (12, 7), (13, 13), (20, 15), (26, 18), (26, 22), (12, 22), (11, 21), (8, 22), (3, 22), (2, 15)]
    return _drawn(side, points, [(3, 20, 26, 20), (12, 10, 8, 11), (13, 13, 9, 14)])


def _drawn(side: int, outline: list[tuple[int, int]], lines: list[tuple[int, int, int, int]]) -> Image.Image:
    """Return a bright shape on black, whose coordinates are those of a picture of 28 pixels."""
    scale = side / 28
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    pen.polygon([(x * scale, y * scale) for x, y in outline], fill=(205, 205, 205))
    for line in lines:
        pen.line([value * scale for value in line], fill=(130, 130, 130), width=round(scale))
    shade = np.linspace(0.8, 1.1, side)[:, None, None] * np.asarray(image, np.float32)
    return Image.fromarray(shade.clip(0, 255).astype(np.uint8))

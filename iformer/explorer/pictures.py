"""Pictures on the page: reading what a user gives, and pictures as text for HTML."""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

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
        raise ValueError("There is no picture: drop, upload or paste one, or choose an example.")
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
    """Return a picture under a heat map, through which it is seen where the map is low.

    Args:
        picture: The picture.
        heat: The heat map ``(h, w)`` from 0 to 1, which is resized smoothly to the picture.
        strength: How strong the map is, from 0 to 1; from a half on its hottest places hide the picture.
    """
    resized = Image.fromarray(np.asarray(heat, np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    smooth = np.asarray(resized).clip(0, 1)
    opacity = Image.fromarray((255 * (2 * strength * smooth).clip(0, 1)).round().astype(np.uint8))
    return Image.composite(coloured(smooth, HEAT), picture, opacity)

"""The pictures that come along with the explorer: all but one are drawn here."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from iformer.explorer.pictures import from_values

Points = Sequence[tuple[float, float]]


def write(folder: Path, first: str) -> list[Path]:
    """Write the pictures into a folder, and return their files.

    The portrait of Grace Hopper is a work of the US Navy in the public domain, which comes with matplotlib.

    Args:
        folder: The folder.
        first: The picture that comes first: portrait, boot, shirt, street or rings.
    """
    portrait = Image.open(Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")).convert("RGB")
    images = {"portrait": portrait, "boot": boot(), "shirt": shirt(), "street": street(), "rings": rings()}
    files = []
    for name in sorted(images, key=lambda name: name != first):
        files.append(folder / f"{name}.{'jpg' if name in ('portrait', 'street') else 'png'}")
        images[name].save(files[-1])
    return files


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
    return _clothing(side, half + mirrored, [(10, 12, 18, 12), (10, 15, 18, 15)])


def boot(side: int = 280) -> Image.Image:
    """Return a bright ankle boot on black, as in Fashion-MNIST."""
    points = [(3, 8), (12, 7), (13, 13), (20, 15), (26, 18), (26, 22), (12, 22), (11, 21), (8, 22), (3, 22), (2, 15)]
    return _clothing(side, points, [(3, 20, 26, 20), (12, 10, 8, 11), (13, 13, 9, 14)])


def _clothing(side: int, outline: Points, lines: Sequence[tuple[int, int, int, int]]) -> Image.Image:
    """Return a bright shape on black, whose coordinates are those of a picture of 28 pixels."""
    scale = side / 28
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    pen.polygon([(x * scale, y * scale) for x, y in outline], fill=(205, 205, 205))
    for line in lines:
        pen.line([value * scale for value in line], fill=(130, 130, 130), width=round(scale))
    shade = np.linspace(0.8, 1.1, side)[:, None, None] * np.asarray(image, np.float32)
    return Image.fromarray(shade.clip(0, 255).astype(np.uint8))


STREET: Sequence[tuple[tuple[int, int, int], Points]] = (
    ((112, 104, 98), [(0, 0), (30, 20), (42, 37), (42, 52), (0, 80)]),  # buildings
    ((128, 112, 100), [(100, 5), (66, 30), (58, 38), (58, 52), (100, 75)]),
    ((92, 92, 96), [(44, 50), (56, 50), (95, 100), (5, 100)]),  # road and pavements
    ((150, 146, 140), [(0, 78), (43, 50), (45, 50), (8, 100), (0, 100)]),
    ((150, 146, 140), [(100, 74), (57, 50), (55, 50), (93, 100), (100, 100)]),
    ((70, 52, 40), [(71.2, 40), (72.8, 40), (73, 62), (71, 62)]),  # trunk
    ((40, 70, 140), [(30, 66), (33, 60), (44, 60), (46, 66), (47, 72), (29, 72)]),  # car
    ((30, 36, 46), [(32.5, 65.5), (34, 61), (43, 61), (44.5, 65.5)]),
    ((50, 40, 60), [(84.5, 55), (87.5, 55), (88, 68), (87, 82), (86, 70), (85.5, 82), (84, 68)]),  # pedestrian
)
"""Colours and corners, in per cent of the width and the height, of what stands in the street."""


def street(width: int = 480, height: int = 360) -> Image.Image:
    """Return a street with buildings, a tree, a car and a pedestrian, for segmenters and detectors."""
    random = np.random.default_rng(1)
    image = Image.new("RGB", (width, height), (196, 214, 232))
    pen = ImageDraw.Draw(image)

    def oval(x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        across, down = x * width / 100, y * height / 100
        pen.ellipse([across - radius, down - radius, across + radius, down + radius], fill=colour)

    for colour, corners in STREET:
        pen.polygon([(x * width / 100, y * height / 100) for x, y in corners], fill=colour)
    for row in range(3):
        for column in range(5):
            x, y = 3 + 7 * column, 17.5 + 5.5 * column + row * (16 - 2.2 * column)
            box = (x * width / 100, y * height / 100, (x + 3.5) * width / 100, (y + 8 - column) * height / 100)
            pen.rectangle(box, fill=(60, 66, 76))
    for _ in range(500):
        green = int(random.integers(50, 110))
        leaf = (int(green * 0.6), green, int(green * 0.45))
        oval(random.normal(72, 6), random.normal(34, 8), random.uniform(2, 7), leaf)
    for x in (32, 44):
        oval(x, 72, 9, (20, 20, 22))
    oval(86, 51.5, 7, (200, 160, 130))
    grain = np.asarray(image, np.float32) + random.normal(0, 3, (height, width, 1))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))

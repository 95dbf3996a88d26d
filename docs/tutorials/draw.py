"""Draws the data of the tutorials: coloured shapes on noisy backgrounds, in each form that `iformer fit` takes.

    python draw.py photos    # one shape in an image, in a folder for each class
    python draw.py few       # the same with other classes, and few images of each
    python draw.py objects   # up to three shapes in an image, with annotations in COCO's format
    python draw.py scenes    # up to three shapes in an image, with label maps

The last word is the folder to write into and says which form it gets. Beside it, FOLDER.png shows some of the images.
They are the same each time.
"""

import argparse
import colorsys
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = {"disc": 24, "square": 4, "triangle": 3}
"""The classes, and how many corners they have."""
FEW = {"pentagon": 5, "needle": 2}
"""The classes of the small set."""
HUES = {"disc": 0.0, "square": 0.3, "triangle": 0.6, "pentagon": 0.15, "needle": 0.8}
"""The usual hue of each class; that of a shape is somewhere near."""

Polygon = list[tuple[float, float]]
Shape = tuple[str, Polygon]
"""The name of a class, and the corners."""


def background(side: int) -> Image.Image:
    """Return an image of coarse clouds and fine grain."""
    noise = np.random.default_rng(random.randrange(2**32))
    clouds = Image.fromarray(noise.uniform(60, 180, (4, 4, 3)).astype(np.uint8)).resize((side, side))
    pixels = np.asarray(clouds) * 0.6 + 50 + noise.normal(0, 18, (side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def shape(name: str, side: int, radii: tuple[float, float]) -> Shape:
    """Return a shape with a radius in this range, turned at random and whole inside an image of this side."""
    radius = random.uniform(*radii)
    x, y = (random.uniform(radius, side - radius) for _ in range(2))
    corners = {**SHAPES, **FEW}[name]
    start = random.uniform(0, 2 * math.pi)
    angles = [start + 2 * math.pi * k / corners for k in range(corners)]
    if corners == 2:  # a line has no inside: a needle is a thin rectangle
        angles = [angle + turn for angle in angles for turn in (-0.2, 0.2)]
    return name, [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def paint(side: int, shapes: list[Shape]) -> Image.Image:
    """Return an image with these shapes, later ones over earlier ones."""
    image = background(side)
    for name, polygon in shapes:
        hue = random.gauss(HUES[name], 0.07) % 1
        colour = colorsys.hsv_to_rgb(hue, random.uniform(0.5, 1), random.uniform(0.5, 1))
        ImageDraw.Draw(image).polygon(polygon, fill=tuple(round(255 * part) for part in colour))
    return image


def several(side: int, radii: tuple[float, float]) -> list[Shape]:
    """Return one to three shapes."""
    return [shape(name, side, radii) for name in random.choices(list(SHAPES), k=random.randint(1, 3))]


def write_classes(folder: Path, classes: dict[str, int], counts: dict[str, int]) -> None:
    """Write images of 32 pixels into a folder for each split and class."""
    for split, name in itertools.product(counts, classes):
        (folder / split / name).mkdir(parents=True)
        for number in range(counts[split]):
            paint(32, [shape(name, 32, (8, 14))]).save(folder / split / name / f"{number:03}.png")


def write_objects(folder: Path) -> None:
    """Write images of 320 pixels, with a file of annotations in COCO's format for each split."""
    for split, count in (("train", 80), ("valid", 20)):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            shapes = several(320, (47, 80))
            paint(320, shapes).save(folder / split / f"{number:03}.png")
            images.append({"id": number, "file_name": f"{number:03}.png", "width": 320, "height": 320})
            annotations += [annotation(number, each) for each in shapes]
        for number, each in enumerate(annotations):
            each["id"] = number
        categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(document))


def annotation(image: int, shape: Shape) -> dict[str, object]:
    """Return what COCO's format says of a shape in the image of this number."""
    name, polygon = shape
    xs, ys = zip(*polygon, strict=True)
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    return {
        "image_id": image,
        "category_id": list(SHAPES).index(name) + 1,
        "bbox": [min(xs), min(ys), width, height],
        "area": width * height,
        "segmentation": [[value for corner in polygon for value in corner]],
        "iscrowd": 0,
    }


def write_scenes(folder: Path) -> None:
    """Write images of 64 pixels, and label maps with 0 for the background and a number for each class."""
    for split, count in (("train", 80), ("val", 20)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            shapes = several(64, (10, 18))
            labels = Image.new("L", (64, 64))
            for name, polygon in shapes:
                ImageDraw.Draw(labels).polygon(polygon, fill=list(SHAPES).index(name) + 1)
            paint(64, shapes).save(folder / "images" / split / f"{number:03}.png")
            labels.save(folder / "labels" / split / f"{number:03}.png")
    (folder / "classes.txt").write_text("\n".join(["background", *SHAPES]) + "\n")


def write_overview(folder: Path) -> None:
    """Write FOLDER.png: two rows of images, evenly spread over the training images."""
    files = sorted(file for file in folder.rglob("*.png") if "train" in file.parts and "labels" not in file.parts)
    sheet = Image.new("RGB", (8 * 100 + 4, 2 * 100 + 4), "white")
    for place in range(16):
        image = Image.open(files[place * len(files) // 16]).resize((96, 96))
        sheet.paste(image, (4 + place % 8 * 100, 4 + place // 8 * 100))
    sheet.save(folder.with_suffix(".png"))


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write into, called photos, few, objects or scenes")
    folder = parser.parse_args().folder
    random.seed(0)
    match folder.name:
        case "photos":
            write_classes(folder, SHAPES, {"train": 80, "val": 20, "test": 20})
        case "few":
            write_classes(folder, FEW, {"train": 10, "val": 20})
        case "objects":
            write_objects(folder)
        case "scenes":
            write_scenes(folder)
        case _:
            parser.error(f"{folder}: expected a folder called photos, few, objects or scenes")
    write_overview(folder)


if __name__ == "__main__":
    main()

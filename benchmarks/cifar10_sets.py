"""Sets of images made from CIFAR-10, on which what the tasks offer can be tried: several labels, and unequal classes.

    python -m benchmarks.cifar10_sets tiles data/cifar10 data/cifar10_tiles
    python -m benchmarks.cifar10_sets thinned data/cifar10 data/cifar10_thinned

``tiles`` puts four images into one of 64 x 64 pixels, each image into one tile, and lists the classes in it as the
tile's labels in ``train.csv``, ``val.csv`` (a tenth of the training images) and ``test.csv``. ``thinned`` keeps all
images of the first class for training and, falling exponentially from class to class, a hundredth of the last (as in
Cui et al., "Class-Balanced Loss", 2019); the test images are all there. Both are the same on every machine.
"""

import argparse
import csv
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from iformer.common.images import find_images, read_image


def tiles(source: Path, target: Path, seed: int = 0) -> None:
    """Write tiles of the images in ``source/train`` and ``source/test``, and the lists of their labels."""
    for split in ("train", "test"):
        files = find_images([source / split])
        order = np.random.default_rng(seed).permutation(len(files))
        rows = []
        (target / split).mkdir(parents=True, exist_ok=True)
        for number in track(range(len(files) // 4), f"Tiles for {split}"):
            four = [files[index] for index in order[4 * number : 4 * number + 4]]
            pixels = [np.asarray(read_image(file)) for file in four]
            tile = np.vstack([np.hstack(pixels[:2]), np.hstack(pixels[2:])])
            name = f"{split}/{number:05}.jpg"
            Image.fromarray(tile).save(target / name, quality=95)
            rows.append([name, " ".join(sorted({file.parent.name for file in four}))])
        held_out = len(rows) // 10 if split == "train" else 0
        _write_list(target / f"{split}.csv", rows[held_out:])
        if held_out:
            _write_list(target / "val.csv", rows[:held_out])


def _write_list(file: Path, rows: list[list[str]]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([["file", "labels"], *rows])


def thinned(source: Path, target: Path, ratio: float = 100.0, seed: int = 0) -> None:
    """Copy the class folders of ``source`` with ever fewer training images, the last class's being one in ``ratio``."""
    classes = sorted(folder for folder in (source / "train").iterdir() if folder.is_dir())
    for number, folder in enumerate(track(classes, "Thinning")):
        files = find_images([folder])
        count = max(1, round(len(files) * ratio ** (-number / (len(classes) - 1))))
        (target / "train" / folder.name).mkdir(parents=True, exist_ok=True)
        for index in sorted(np.random.default_rng((seed, number)).permutation(len(files))[:count]):
            shutil.copy(files[index], target / "train" / folder.name)
    shutil.copytree(source / "test", target / "test", dirs_exist_ok=True)


def main() -> None:
    """Make the set that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("tiles", "thinned"))
    parser.add_argument("source", type=Path, help="CIFAR-10 as folders train/ and test/ with a folder for each class.")
    parser.add_argument("target", type=Path, help="The folder to write into.")
    arguments = parser.parse_args()
    {"tiles": tiles, "thinned": thinned}[arguments.kind](arguments.source, arguments.target)


if __name__ == "__main__":
    main()

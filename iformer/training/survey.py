"""What a folder of training data holds: images and objects of each class, sizes, and what is wrong with it."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any, TypeVar

from PIL import Image
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from iformer.common.batches import batches
from iformer_command.terminal import printable

LOOKED_AT = 20_000  # the number of images of a split that are decoded, evenly spread
BEGINNING = 2048  # the bytes at the beginning of files of equal length that are compared first
ROWS = 40  # the number of classes that a table shows, the rarest first if there are more
Item = TypeVar("Item")

IN_WORDS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Images:
    """What the image files themselves show.

    Attributes:
        sizes: The width and height in pixels of the images that were decoded, by split.
        unreadable: A line about each image that cannot be decoded, by split.
        shared: Pairs of files with the same content, the first a training and the second a validation image.
        repeated: The number of training images that are the same as an earlier one.
    """

    sizes: dict[str, dict[Path, tuple[int, int]]]
    unreadable: dict[str, list[str]]
    shared: list[tuple[Path, Path]]
    repeated: int


def spread(items: Sequence[Item]) -> Sequence[Item]:
    """Return at most ``LOOKED_AT`` of some items, evenly spread."""
    count = min(len(items), LOOKED_AT)
    return [items[place * len(items) // count] for place in range(count)]


def look_at(files: Mapping[str, Sequence[Path]]) -> Images:
    """Decode the images of each split, at most ``LOOKED_AT`` of them, and compare the contents of all files.

    The progress is shown on standard error.
    """
    sizes: dict[str, dict[Path, tuple[int, int]]] = {}
    unreadable: dict[str, list[str]] = {}
    for split, paths in files.items():
        some = spread(paths)
        sizes[split], unreadable[split] = {}, []
        what = f"Looking at {IN_WORDS[split]} images"
        for batch in batches(some, _size, batch_size=64, description=what, workers=os.cpu_count() or 1):
            sizes[split] |= {Path(str(sample.path)): sample.image for sample in batch if not sample.error}
            unreadable[split] += [sample.error for sample in batch if sample.error]
    shared, repeated = [], 0
    for same in _alike([(split, path) for split, paths in files.items() for path in paths]):
        train, val = ([path for split, path in same if split == name] for name in IN_WORDS)
        repeated += max(0, len(train) - 1)
        shared += [(train[0], path) for path in val if train]
    return Images(sizes, unreadable, shared, repeated)


def _size(image: Image.Image) -> tuple[int, int]:
    return image.size


def _alike(files: Sequence[tuple[str, Path]]) -> list[list[tuple[str, Path]]]:
    """Return the groups of files with the same content; most files differ in length or beginning and are not read."""
    groups = [list(files)]
    for key in (_length, _beginning, _content):
        groups = [same for group in groups for same in _divided(group, key) if len(same) > 1]
    return groups


def _divided(files: Sequence[tuple[str, Path]], key: Callable[[Path], int | bytes]) -> Iterable[list[tuple[str, Path]]]:
    groups: dict[int | bytes, list[tuple[str, Path]]] = defaultdict(list)
    for split, path in files:
        groups[key(path)].append((split, path))
    return groups.values()


def _length(path: Path) -> int:
    return path.stat().st_size


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(BEGINNING)


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@dataclass(frozen=True)
class Survey:
    """What a wing found in a folder of training data.

    Attributes:
        kind: The kind of the data, in words.
        counted: What ``counts`` counts: images, objects or label maps.
        class_names: The names of the classes.
        counts: The count of each class, by split (``train`` and ``val``).
        files: The image files, by split.
        images: What the image files show.
        notes: What is worth knowing and no fault, a line each.
        wrong: What is missing or contradictory so that training could not read it, a line each.
        tolerated: The share of unreadable images that training passes over.
        settings: Settings of a recipe, nested, that follow from what was found.
        has_test: Whether there are test images too.
    """

    kind: str
    counted: str
    class_names: Sequence[str]
    counts: dict[str, list[int]]
    files: dict[str, list[Path]]
    images: Images
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    tolerated: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    has_test: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """The short and the long side in pixels of the usual training image, its medians; 0 if none can be read."""
        found = [sorted(size) for size in self.images.sizes["train"].values()] or [[0, 0]]
        return median_low(size[0] for size in found), median_low(size[1] for size in found)

    @property
    def faults(self) -> list[str]:
        """What is missing, broken or doubled, a line for each kind of fault."""
        lines = [_first_of(self.wrong)] if self.wrong else []
        for split, errors in self.images.unreadable.items():
            if errors:
                of = len(errors) + len(self.images.sizes[split])
                lines.append(f"{len(errors)} of {of} {IN_WORDS[split]} images cannot be read: {_first_of(errors)}")
        if shared := self.images.shared:
            train, val = shared[0]
            lines.append(
                f"{len(shared)} validation images are training images too, so that the validation flatters: "
                f"{_first_of([f'{val} is {train}', *map(str, shared[1:])])}"
            )
        return lines

    @property
    def obstacle(self) -> str:
        """Why training cannot begin, in one line; empty if it can."""
        if self.wrong:
            return _first_of(self.wrong)
        for split, errors in self.images.unreadable.items():
            images = len(errors) + len(self.images.sizes[split])
            if len(errors) > self.tolerated * images:
                passed = f", more than the {self.tolerated:.0%} that training passes over" if self.tolerated else ""
                return (
                    f"{len(errors)} of {images} {IN_WORDS[split]} images cannot be read{passed}; "
                    f"repair or remove them: {_first_of(errors)}"
                )
        return ""

    def document(self) -> dict[str, Any]:
        """Return the survey as plain values for JSON."""
        return {
            "kind": self.kind,
            "images": {split: len(files) for split, files in self.files.items()},
            f"{self.counted.replace(' ', '_')}_per_class": {
                name: {split: counts[label] for split, counts in self.counts.items()}
                for label, name in enumerate(self.class_names)
            },
            "sizes": {split: _range(list(sizes.values())) for split, sizes in self.images.sizes.items()},
            "notes": self._remarks(),
            "faults": self.faults,
        }

    def render(self) -> list[RenderableType]:
        """Return the survey for a terminal: the images, a table of the classes, remarks and faults."""
        lines = [f"{self.kind}, {len(self.class_names)} classes"]
        for split, files in self.files.items():
            sizes = _in_words(_range(list(self.images.sizes[split].values())))
            lines.append(f"{IN_WORDS[split]}: {len(files):,} images{sizes}")
        table = Table("class", box=None)
        for split in self.counts:
            table.add_column(f"{IN_WORDS[split]} {self.counted}", justify="right")
        for label in self._shown():
            cells = [self.class_names[label], *(f"{counts[label]:,}" for counts in self.counts.values())]
            table.add_row(*(Text(printable(cell)) for cell in cells))
        more = len(self.class_names) - ROWS
        below = [*([f"and {more} classes with more"] if more > 0 else []), *self._remarks()]
        return [
            *(Text(printable(line)) for line in lines),
            table,
            *(Text(printable(line)) for line in below),
            *(Text(printable(f"warning: {line}"), style="yellow") for line in self.faults),
        ]

    def _shown(self) -> list[int]:
        labels = range(len(self.class_names))
        train = self.counts["train"]
        return list(labels) if len(labels) <= ROWS else sorted(labels, key=lambda label: train[label])[:ROWS]

    def _remarks(self) -> list[str]:
        found = list(self.notes)
        for split, counts in self.counts.items():
            if lacking := [name for name, count in zip(self.class_names, counts, strict=True) if not count]:
                more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
                found.append(f"no {IN_WORDS[split]} {self.counted} of {', '.join(lacking[:5])}{more}")
        if self.images.repeated:
            found.append(f"{self.images.repeated} training images are copies of others")
        for split, files in self.files.items():
            seen = len(self.images.sizes[split]) + len(self.images.unreadable[split])
            if seen < len(files):
                found.append(f"{seen:,} of the {len(files):,} {IN_WORDS[split]} images were opened, evenly spread")
        return found


def _range(sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the smallest and the largest of some sizes by area, once if they are equal."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return list(dict.fromkeys([*ordered[:1], *ordered[-1:]]))


def _in_words(sizes: list[tuple[int, int]]) -> str:
    return f", {' to '.join(f'{width}x{height}' for width, height in sizes)} pixels" if sizes else ""


def _first_of(lines: Sequence[str]) -> str:
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")

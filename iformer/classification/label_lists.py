"""The datamodule of images with several labels: from CSV files, or from a column of a Hugging Face dataset."""

import csv
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from timm.data import create_reader
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from iformer.classification.data import ImageData
from iformer.classification.sources import SPLITS, available_splits
from iformer.common.ranges import checked


class MultiLabelData(ImageData):
    """Images of which each may have several labels, or none: from CSV files, or from Hugging Face datasets.

    Batches are normalised float32 images ``(N, C, H, W)`` and uint8 labels ``(N, K)``, 1 where an image has the label.

    A split is the file ``NAME.csv`` in ``root``, with a column of files, relative to ``root``, and a column of labels,
    which are the first two if the columns have no names. A single CSV file of another name holds all images, of which a
    share is used for validation. The classes are the labels of the training images in their natural order, or those of
    ``class_file``.

    Order, augmentation and resumption are those of :class:`ImageData`.

    Args:
        root: The folder with the CSV files, to which their paths are relative; or the cache of Hugging Face datasets.
        reader: The kind of source: 'csv', or 'hfds/NAME' for the Hugging Face dataset NAME (or a local folder).
        label_column: Name of the column of labels: of CSV files, or of a Hugging Face dataset, where it holds lists of
            names or of the numbers of classes.
        file_column: Name of the CSV files' column of paths.
        separator: The text between two labels in CSV files.
        options: Further arguments of :class:`ImageData`, but for ``class_sampling``.

    Raises:
        ValueError: An argument is out of range.
    """

    readers = ("csv",)

    @checked
    def __init__(
        self,
        root: str = "",
        reader: str = "csv",
        label_column: str = "labels",
        file_column: str = "file",
        separator: str = " ",
        **options: Any,
    ) -> None:
        super().__init__(root, reader, **options)
        if options.get("class_sampling") is not None:
            raise ValueError(
                f"class_sampling is {options['class_sampling']}, expected null where images have several labels"
            )
        if not separator:
            raise ValueError("separator is '', expected the text between two labels")
        self.label_column, self.file_column, self.separator = label_column, file_column, separator

    @property
    def class_counts(self) -> list[int]:
        """The number of training images that have each label, after :meth:`setup`."""
        _, labels, indices = self._parts["train"]
        return np.asarray(labels)[indices].sum(0, dtype=np.int64).tolist()

    def _open(self, kind: str, name: str | None) -> None:
        """Open a split; the first split that is opened determines the classes, unless a class file does."""
        reader = self._listed(name) if self.settings.reader == "csv" else self._column(name or "train")
        known = self.settings.class_file or "the training images"
        self.class_names = self.class_names or tuple(reader.classes or _sorted(reader.labels))
        if len(self.class_names) < 2:
            raise ValueError(f"{reader.place}: {len(self.class_names)} labels, expected at least two different ones")
        numbers = {label: number for number, label in enumerate(self.class_names)}
        matrix = torch.zeros(len(reader), len(numbers), dtype=torch.uint8)
        for index, labels in enumerate(reader.labels):
            for label in labels:
                if label not in numbers:
                    near = difflib.get_close_matches(label, numbers, n=1)
                    raise ValueError(
                        f"{reader.where(index)}: {label} is not among the {len(numbers)} classes of {known}"
                        + (f", did you mean {near[0]}?" if near else "")
                    )
                matrix[index, numbers[label]] = 1
        if self.settings.class_file and kind == "train" and not matrix.any(0).all():
            empty = self.class_names[int(matrix.any(0).int().argmin())]
            raise ValueError(f"{self.settings.class_file}: no image in {reader.place} has the label {empty}")
        self._parts[kind] = reader, matrix, list(range(len(reader)))

    def _keep_apart(self) -> None:
        """Take a share of the images of each label for validation, of the rarest label first, whatever the seed."""
        reader, labels, _ = self._parts["train"]
        matrix = np.asarray(labels)
        order = np.random.default_rng(0).permutation(len(matrix))
        free, apart = np.ones(len(matrix), bool), list[int]()
        has = [matrix[:, label] > 0 for label in matrix.sum(0, dtype=np.int64).argsort(kind="stable")]
        for wanted in [*has, matrix.sum(1) == 0]:
            images = order[(wanted & free)[order]].tolist()
            free[images] = False
            apart += images[: min(max(1, round(self.settings.val_share * len(images))), max(0, len(images) - 1))]
        self._parts["val"] = reader, labels, sorted(apart)
        self._parts["train"] = reader, labels, sorted(set(range(len(matrix))) - set(apart))
        if not apart:
            raise ValueError(f"{reader.place}: too few images to keep some apart for validation; name val_split")

    def _listed(self, name: str | None) -> "ListedImages":
        """Return the images of a CSV file, or of the only one in ``root`` if it has no name."""
        root = Path(self.settings.root)
        if name is None:
            there = available_splits(str(root), "csv")
            if len(there) != 1:
                expected = " or ".join(f"{split}.csv" for split in SPLITS["train"])
                raise ValueError(f"{root}: expected {expected}, there are: {', '.join(there) or 'no CSV files'}")
            name = there[0]
        return ListedImages(root / f"{name}.csv", self.file_column, self.label_column, self.separator)

    def _column(self, split: str) -> Any:
        """Return timm's reader of a Hugging Face dataset, with the ``labels`` of its images, their names and places."""
        reader, column = self.settings.reader, self.label_column
        place = f"{reader.partition('/')[2]}, split {split}"
        try:
            opened: Any = create_reader(reader, root=self.settings.root or None, split=split, target_key=column)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{place}: cannot be read as a set of images ({reason})") from error
        if column not in opened.dataset.column_names:
            there = ", ".join(opened.dataset.column_names)
            raise ValueError(f"{place}: no column {column}, there are: {there} (data.init_args.label_column)")
        opened.place, opened.where = place, lambda index: f"{place}, row {index}"
        opened.classes = list(opened.class_to_idx) or list(self.class_names)
        rows = opened.dataset.select_columns([column])
        opened.labels = [
            self._names(row[column], opened.classes, opened.where(number)) for number, row in enumerate(rows)
        ]
        return opened

    def _names(self, value: Any, classes: Sequence[str], where: str) -> list[str]:
        """Return the names in a cell of a dataset: a list of names, of numbers of ``classes``, or text like in CSV."""
        if isinstance(value, str):
            return _split(value, self.separator)
        if value is not None and not isinstance(value, list):
            raise ValueError(f"{where}: {self.label_column} is {value!r}, expected a list of labels")
        names = []
        for each in value or []:
            if isinstance(each, int) and classes and not 0 <= each < len(classes):
                raise ValueError(f"{where}: label {each}, but there are {len(classes)} classes")
            names.append(classes[each] if isinstance(each, int) and classes else str(each))
        return names


class ListedImages(Reader):
    """A reader of the images that a CSV file lists with their labels.

    Args:
        file: The CSV file, to whose folder its paths are relative.
        file_column: The name of the column of paths.
        label_column: The name of the column of labels.
        separator: The text between two labels.

    Attributes:
        place: The file's name, for messages.
        classes: The names of the classes, where the source has them: here none.
        paths: The path of each image.
        labels: The labels of each image.

    Raises:
        ValueError: The file is no such list, or lists an image twice; the message names the line.
        FileNotFoundError: An image does not exist; the message names it, and the line.
    """

    classes: Sequence[str] = ()

    def __init__(self, file: Path, file_column: str, label_column: str, separator: str) -> None:
        super().__init__()
        self.place, self.root = str(file), str(file.parent)
        self.paths: list[Path] = []
        self.labels: list[list[str]] = []
        self.lines: list[int] = []
        rows = _rows(file)
        path, label = self._columns(rows[0][1], file_column, label_column)
        named = not (file.parent / rows[0][1][path]).is_file()
        seen: dict[Path, int] = {}
        for line, row in rows[named:]:
            where = f"{file}, line {line}"
            if len(row) <= max(path, label):
                raise ValueError(f"{where}: {len(row)} columns, expected a file and its labels, which may be empty")
            image = file.parent / row[path].strip()
            if not image.is_file():
                raise FileNotFoundError(f"{where}: {image}: no such file")
            if (first := seen.setdefault(image, line)) != line:
                raise ValueError(
                    f"{where}: {image} stands in line {first} already; expected one line with all its labels"
                )
            self.paths.append(image)
            self.labels.append(_split(row[label], separator))
            self.lines.append(line)
        if not self.paths:
            raise ValueError(f"{file}: lists no images")

    def _columns(self, first: Sequence[str], file_column: str, label_column: str) -> tuple[int, int]:
        """Return the numbers of the two columns, by their names or, if the first row is an image's, the first two."""
        names = [name.strip() for name in first]
        if len(names) > 1 and Path(self.root, names[0]).is_file():
            return 0, 1
        for key, name in (("file_column", file_column), ("label_column", label_column)):
            if name not in names:
                raise ValueError(
                    f"{self.place}: no column {name}, there are: {', '.join(names)} (data.init_args.{key}); "
                    "expected file,labels"
                )
        return names.index(file_column), names.index(label_column)

    def where(self, index: int) -> str:
        """Return the place of an image in the list, for messages."""
        return f"{self.place}, line {self.lines[index]}"

    def __getitem__(self, index: int) -> tuple[IO[bytes], list[str]]:
        return open(self.paths[index], "rb"), self.labels[index]

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.paths[index].name if basename else str(self.paths[index])


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV file that are not blank, with the numbers of their lines."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{file}: lists no images")
    return rows


def _split(text: str, separator: str) -> list[str]:
    return [label for part in text.split(separator) if (label := part.strip())]


def _sorted(labels: Iterable[Sequence[str]]) -> list[str]:
    return sorted({label for each in labels for label in each}, key=natural_key)

"""Files of many results, written as they come: JSON lines, CSV or Parquet. They go on where they were interrupted."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from iformer.common.files import naming, write_json, written
from iformer.common.pages import csv_cell

SUFFIXES = (".jsonl", ".csv", ".parquet", ".npy")
"""The endings of files of results."""

PART = 4096  # rows of a part of a Parquet file: what a kill may cost

Schema = Mapping[str, Any]
"""The columns of a result: Python's types by name; a list of a type, or of a mapping, for nested ones."""


class Results(Protocol):
    """A file of results that is being written.

    Attributes:
        count: The number of results that it holds.
    """

    count: int

    def write(self, result: Mapping[str, Any]) -> None:
        """Add a result.

        Raises:
            OSError: It could not be written; names the file.
        """


@contextmanager
def open_results(file: Path, schema: Schema, about: Mapping[str, Any], resume: bool = False) -> Iterator[Results]:
    """Open a file to write results into.

    ``NAME.about.json`` beside it says where the results come from. In JSON lines, each line is a result. In CSV, lists
    are in JSON. A Parquet file appears when it is complete; its parts are kept until then. NumPy's format is for
    ``features`` of one length: a row for each image, of NaN where it could not be read; ``NAME.txt`` names the images,
    one in a line.

    Args:
        file: The file, which ends in ``.jsonl``, ``.csv``, ``.parquet`` or ``.npy``.
        schema: The columns.
        about: Facts about the results; those under ``settings`` must be the same to resume.
        resume: Go on with the file of an earlier process.

    Raises:
        ValueError: The file has another ending, or was written with other settings.
        FileExistsError: It is there, and is not to be resumed.
        OSError: It could not be written; names the file.
    """
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file}: expected a name that ends in {', '.join(SUFFIXES)}")
    sidecar, parts = file.with_name(f"{file.name}.about.json"), file.with_name(f".{file.name}.parts")
    if not resume and (file.exists() or parts.exists()):
        raise FileExistsError(f"{file}: there are results already; go on with --resume, or name another file")
    if resume and sidecar.is_file():
        before = json.loads(sidecar.read_text())["settings"]
        changed = [name for name, value in about["settings"].items() if before.get(name) != value]
        if changed:
            name = changed[0]
            now = about["settings"][name]
            raise ValueError(f"{file}: was written with {name} {before.get(name)}, and cannot be resumed with {now}")
    if file.suffix == ".npy" and list(schema) != ["features"]:
        raise ValueError(f"{file}: holds pooled features only, expected another format")
    write_json(sidecar, about)
    if file.suffix == ".npy":
        results: Any = _Rows(file)
    elif file.suffix == ".parquet":
        results = _Parquet(file, parts, schema)
    else:
        results = _Lines(file, schema)
    try:
        yield results
    except BaseException:
        results.close(complete=False)
        raise
    results.close(complete=True)


class _Lines:
    """Rows of text; a row that was being written when the process was killed is cut off."""

    def __init__(self, file: Path, schema: Schema) -> None:
        self.file, self.schema, self.is_csv = file, schema, file.suffix == ".csv"
        with naming(file):
            with open(file, "a+b") as opened:
                opened.seek(0)
                rows, end = _complete_rows(opened, self.is_csv)
                opened.truncate(end)
            self.opened = open(file, "ab")  # noqa: SIM115  (closed by close)
        self.count = max(0, rows - self.is_csv)
        if self.is_csv and not rows:
            self.opened.write(_csv_row(["image", "error", *_csv_values(schema, {}, names=True)]))

    def write(self, result: Mapping[str, Any]) -> None:
        if self.is_csv:
            values = [result["image"], result.get("error"), *_csv_values(self.schema, result)]
            row = _csv_row(values)
        else:
            row = json.dumps(result).encode() + b"\n"
        with naming(self.file):
            self.opened.write(row)
        self.count += 1

    def close(self, complete: bool) -> None:
        with naming(self.file):
            self.opened.close()


def _csv_values(schema: Schema, result: Mapping[str, Any], names: bool = False) -> Iterator[Any]:
    """Yield the values of a row, or the names of the columns: of a list of mappings the first one, then all in JSON."""
    for column, kind in schema.items():
        value = result.get(column)
        if isinstance(kind, list) and isinstance(kind[0], Mapping):
            first = value[0] if value else {}
            plain = [name for name, inner in kind[0].items() if inner in (str, int, float)]
            yield from plain if names else (first.get(name) for name in plain)
        yield column if names else json.dumps(value) if isinstance(value, list) else value


def _csv_row(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(csv_cell(value) for value in values)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _complete_rows(opened: IO[bytes], quoted: bool) -> tuple[int, int]:
    """Return how many rows are complete, and where the last of them ends; a line break between quotes ends none."""
    rows = end = place = quotes = 0
    for line in opened:
        place += len(line)
        quotes += line.count(b'"') if quoted else 0
        if line.endswith(b"\n") and quotes % 2 == 0:
            rows, end = rows + 1, place
    return rows, end


class _Rows:
    """A NumPy file of float32 rows, whose header is written anew at the end, and the names of the images."""

    def __init__(self, file: Path) -> None:
        self.file, self.index = file, file.with_name(f"{file.name}.txt")
        self.count = self.width = 0
        self.unread: list[str] = []  # images before the first with features, whose number is not known yet
        for each in (self.file, self.index):
            each.touch()
        self.rows, self.names = open(self.file, "r+b"), open(self.index, "r+b")  # noqa: SIM115  (closed by close)
        if self.file.stat().st_size:
            np.lib.format.read_magic(self.rows)
            (_, self.width), _, _ = np.lib.format.read_array_header_1_0(self.rows)
        start, size = self.rows.tell(), self.file.stat().st_size
        written_rows = (size - start) // (4 * self.width) if self.width else 0
        end = 0
        for line in self.names if self.width else ():
            if not line.endswith(b"\n") or self.count == written_rows:
                break
            end, self.count = end + len(line), self.count + 1
        self.names.seek(end)
        self.names.truncate()
        self.rows.seek(start + 4 * self.width * self.count)
        self.rows.truncate()

    def write(self, result: Mapping[str, Any]) -> None:
        with naming(self.file):
            if "features" in result and not self.width:
                self.width = len(result["features"])
                self._header(0)
                for name in self.unread:
                    self._row(name, [math.nan] * self.width)
            if self.width:
                self._row(result["image"], result.get("features", [math.nan] * self.width))
            else:
                self.unread.append(result["image"])
        self.count += 1

    def _row(self, name: str, features: list[float]) -> None:
        self.rows.write(np.array(features, "<f4").tobytes())
        self.names.write(name.encode("utf-8", "backslashreplace").replace(b"\n", b"\\n") + b"\n")

    def _header(self, count: int) -> None:
        # NumPy leaves room for the number of rows to grow, so that the header's length stays the same.
        about = {"descr": "<f4", "fortran_order": False, "shape": (count, self.width)}
        np.lib.format.write_array_header_1_0(self.rows, about)

    def close(self, complete: bool) -> None:
        with naming(self.file):
            if self.width:
                self.rows.seek(0)
                self._header(self.count)
            self.rows.close()
            self.names.close()


class _Parquet:
    """Parts of ``PART`` rows, each complete or absent, that become one file in the end."""

    def __init__(self, file: Path, folder: Path, schema: Schema) -> None:
        import pyarrow as pa  # here, because the other formats do without it
        import pyarrow.parquet as pq

        self.file, self.folder, self.pa, self.pq = file, folder, pa, pq
        self.schema = arrow_schema(schema)
        folder.mkdir(parents=True, exist_ok=True)
        self.parts = sorted(folder.glob("*.parquet"))
        self.count = pq.read_metadata(file).num_rows if file.exists() else PART * len(self.parts)
        self.rows: list[Mapping[str, Any]] = []

    def write(self, result: Mapping[str, Any]) -> None:
        self.rows.append(result)
        self.count += 1
        if len(self.rows) == PART:
            part = self.folder / f"{len(self.parts):08}.parquet"
            with written(part) as temporary:
                self.pq.write_table(self._table(), temporary)
            self.parts.append(part)
            self.rows = []

    def _table(self) -> Any:
        return self.pa.Table.from_pylist([_encodable(row) for row in self.rows], self.schema)

    def close(self, complete: bool) -> None:
        if not complete:
            return
        if not self.file.exists():
            with written(self.file) as temporary, self.pq.ParquetWriter(temporary, self.schema) as writer:
                for part in self.parts:
                    writer.write_table(self.pq.read_table(part))
                if self.rows:
                    writer.write_table(self._table())
        for part in self.parts:
            part.unlink()
        self.folder.rmdir()


def _encodable(value: Any) -> Any:
    """Return a value in whose text the bytes of file names that are no text are written as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {name: _encodable(inner) for name, inner in value.items()}
    return [_encodable(inner) for inner in value] if isinstance(value, list) else value


def arrow_schema(schema: Schema) -> Any:
    """Return pyarrow's schema of a Parquet file of results with these columns."""
    import pyarrow as pa

    def kind_of(kind: Any) -> Any:
        if isinstance(kind, list):
            return pa.list_(kind_of(kind[0]))
        if isinstance(kind, Mapping):
            return pa.struct([(name, kind_of(inner)) for name, inner in kind.items()])
        return {str: pa.string(), float: pa.float64(), int: pa.int64()}[kind]

    columns = {"image": str, "error": str, **schema}
    return pa.schema([(name, kind_of(kind)) for name, kind in columns.items()])

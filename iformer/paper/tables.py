"""The paper's tables of parameters and multiply-adds, measured again.

The measured figures are never stored: every call builds the models on the meta device, where they take no memory, and
counts. The accuracies are the paper's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any, Literal

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from iformer.common.provenance import provenance
from iformer.detection.model import Detector
from iformer.detection.model import build as build_detector
from iformer.paper.complexity import CONVENTIONS, Complexity, Convention, build, count
from iformer.paper.published import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, PaperTable, Row
from iformer.segmentation.model import build as build_segmenter

Agreement = Literal["agrees", "cut off", "differs", "stand-in"]

MARKS: dict[Agreement, str] = {"agrees": "", "cut off": "↓", "differs": "≠", "stand-in": "~"}
LEGEND: dict[Agreement, str] = {
    "cut off": "the paper's figure is ours with further digits cut off, while rounding gives another",
    "differs": "the figures disagree at the paper's precision",
    "stand-in": "a relative of the paper's model, shown for scale only",
}


@dataclass(frozen=True)
class Comparison:
    """A figure of the paper beside ours in the same unit, millions or billions.

    Attributes:
        paper: The paper's figure as printed.
        ours: The measured figure.
        stand_in: Whether the measured model is only a relative of the paper's.
    """

    paper: str
    ours: Decimal
    stand_in: bool = False

    @property
    def difference(self) -> Decimal:
        """The measured figure minus the paper's."""
        return self.ours - Decimal(self.paper)

    @property
    def agreement(self) -> Agreement:
        """Whether the two figures agree at the paper's precision."""
        paper = Decimal(self.paper)
        if self.stand_in:
            return "stand-in"
        if self.ours.quantize(paper, ROUND_HALF_UP) == paper:
            return "agrees"
        return "cut off" if self.ours.quantize(paper, ROUND_DOWN) == paper else "differs"

    def texts(self) -> tuple[str, str, str]:
        """Return the paper's figure, ours, and the difference with its mark as text."""
        return self.paper, f"{self.ours:.3f}", f"{self.difference:+.3f} {MARKS[self.agreement]}".rstrip()


@dataclass(frozen=True)
class MeasuredRow:
    """A row of the paper and the figures measured from its model.

    Attributes:
        paper: The paper's row.
        parameters: The parameters in millions.
        multiply_adds: The multiply-adds in billions, counted by the convention of the paper's table.
        conventions: The measured multiply-adds in billions by each convention.
    """

    paper: Row
    parameters: Comparison
    multiply_adds: Comparison
    conventions: dict[Convention, Decimal]


@dataclass(frozen=True)
class MeasuredTable:
    """A table of the paper with its measured figures.

    Attributes:
        paper: The paper's table.
        convention: The convention by which the table counts multiply-adds.
        rows: The rows that could be measured.
        not_measured: The paper's names of the models that could not be measured.
    """

    paper: PaperTable
    convention: Convention
    rows: tuple[MeasuredRow, ...]
    not_measured: tuple[str, ...]


def _classifier(row: Row) -> Complexity:
    return count(build(row.model, **row.model_args), (3, *row.size))


class _DetectorCost(nn.Module):
    """The parts of a detector that the toolbox behind Table 3 counted: 1000 boxes and 100 masks for any image."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, images: Tensor) -> None:
        pyramid = self.detector.backbone(images)
        self.detector.rpn.head(list(pyramid.values()))
        heads, channels = self.detector.roi_heads, self.detector.backbone.out_channels
        heads.box_predictor(heads.box_head(images.new_zeros(1000, channels, 7, 7)))
        heads.mask_predictor(heads.mask_head(images.new_zeros(100, channels, 14, 14)))


def _detector(row: Row) -> Complexity:
    with torch.device("meta"):
        model = _DetectorCost(build_detector("mask_rcnn", row.model, num_classes=80, backbone_args=row.model_args))
    return count(model, (3, *row.size))


def _segmenter(row: Row) -> Complexity:
    arguments: dict[str, Any] = {"architecture": "semantic_fpn", **row.model_args}
    with torch.device("meta"):
        model = build_segmenter(backbone=row.model, num_classes=150, **arguments)
    return count(model, (3, *row.size))


# The convention and the measurement of each table.
_TABLES: dict[int, tuple[PaperTable, Convention, Callable[[Row], Complexity]]] = {
    1: (TABLE_1, "complete", _classifier),
    2: (TABLE_2, "complete", _classifier),
    3: (TABLE_3, "layers", _detector),
    4: (TABLE_4, "layers", _segmenter),
    5: (TABLE_5, "complete", _classifier),
}


def tables(which: str = "all") -> list[MeasuredTable]:
    """Measure table ``which`` of the paper, or all of its tables of parameters and multiply-adds.

    Raises:
        ValueError: There is no such table.
    """
    if which == "all":
        return [_measure(number) for number in _TABLES]
    if which not in map(str, _TABLES):
        raise ValueError(f"table is {which!r}, expected {', '.join(map(str, _TABLES))} or all")
    return [_measure(int(which))]


def _measure(number: int) -> MeasuredTable:
    paper, convention, measure = _TABLES[number]
    rows = []
    for row in paper.rows:
        if row.model:
            complexity = measure(row)
            counts = {name: Decimal(complexity.multiply_adds(name)) / 10**9 for name in CONVENTIONS}
            rows.append(
                MeasuredRow(
                    row,
                    Comparison(row.parameters, Decimal(complexity.parameters) / 10**6, row.stand_in),
                    Comparison(row.multiply_adds, counts[convention], row.stand_in),
                    counts,
                )
            )
    return MeasuredTable(paper, convention, tuple(rows), tuple(row.method for row in paper.rows if not row.model))


def document(measured: Iterable[MeasuredTable]) -> dict[str, Any]:
    """Return the measured tables as one JSON document, with figures in full precision."""
    return {
        "units": {"parameters": "M", "multiply_adds": "G", "paper_accuracy": "%"},
        "tables": [
            {
                "table": table.paper.number,
                "title": table.paper.title,
                "convention": table.convention,
                "rows": [_row_document(table.paper, row) for row in table.rows],
                "not_measured": list(table.not_measured),
            }
            for table in measured
        ],
        **provenance(0),
    }


def _row_document(table: PaperTable, row: MeasuredRow) -> dict[str, Any]:
    def figures(comparison: Comparison) -> dict[str, Any]:
        return {
            "paper": float(comparison.paper),
            "ours": float(comparison.ours),
            "difference": float(comparison.difference),
            "agreement": comparison.agreement,
        }

    accuracies = zip(table.accuracies, row.paper.accuracies, strict=True)
    return {
        "method": row.paper.method,
        "model": row.paper.model,
        "image_size": list(row.paper.size),
        "parameters": figures(row.parameters),
        "multiply_adds": figures(row.multiply_adds),
        "multiply_adds_by_convention": {name: float(value) for name, value in row.conventions.items()},
        "paper_accuracy": {name: None if value == "-" else float(value) for name, value in accuracies},
        "note": row.paper.note,
    }


def render(measured: Iterable[MeasuredTable]) -> Group:
    """Return the measured tables for a terminal, about 110 columns wide."""
    parts: list[Table | Text] = []
    for table in measured:
        parts += [_terminal_table(table), *(Text(line, style="dim") for line in notes(table)), Text()]
    legend = "\n".join(f"{MARKS[agreement]}  {meaning}" for agreement, meaning in LEGEND.items())
    return Group(*parts, Text(legend, style="dim"))


def _terminal_table(table: MeasuredTable) -> Table:
    title = f"Table {table.paper.number}. {table.paper.title} ({table.convention} count)"
    view = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    view.add_column("\nMethod", no_wrap=True)
    view.add_column("\ntimm model", overflow="fold")
    view.add_column("\npx", justify="right")
    for quantity in ("Params M", "MACs G"):
        view.add_column("\npaper", justify="right")
        view.add_column(f"{quantity}\nours", justify="right")
        view.add_column("\ndiff.")
    for convention in other_conventions(table):
        view.add_column(f"MACs G\n{convention}", justify="right")
    for accuracy in table.paper.accuracies:
        view.add_column(f"paper's\n{accuracy}", justify="right")
    for row in table.rows:
        style = "bold" if row.paper.model.startswith("iformer") else None
        view.add_row(*cells(table, row), style=style)
    return view


def other_conventions(table: MeasuredTable) -> list[Convention]:
    """Return the further conventions in which a table's multiply-adds are shown.

    There are none if the paper counts everything, because a count without attention would say less.
    """
    return [] if table.convention == "complete" else ["complete"]


def cells(table: MeasuredTable, row: MeasuredRow) -> list[str]:
    """Return the cells of a row: method, model, image, three cells for each quantity, other counts, accuracies."""
    paper = row.paper
    height, width = paper.size
    return [
        paper.method,
        paper.model,
        f"{height}" if height == width else f"{height}x{width}",
        *row.parameters.texts(),
        *row.multiply_adds.texts(),
        *(f"{row.conventions[convention]:.3f}" for convention in other_conventions(table)),
        *paper.accuracies,
    ]


def notes(table: MeasuredTable) -> list[str]:
    """Return each note once, after the names of its rows, and then a line about the rows that were not measured."""
    methods = defaultdict(list)
    for row in table.rows:
        if row.paper.note:
            methods[row.paper.note].append(row.paper.method)
    lines = [f"{', '.join(names)}: {note}" for note, names in methods.items()]
    if table.not_measured:
        lines.append(f"Not in timm, so not measured: {', '.join(table.not_measured)}.")
    return lines

"""The documentation's page about the measured tables."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from iformer.common.provenance import provenance
from iformer.paper.complexity import CONVENTIONS, KINDS, build, count
from iformer.paper.tables import LEGEND, MARKS, MeasuredTable, cells, notes, other_conventions


def markdown(measured: Sequence[MeasuredTable]) -> str:
    """Return the page in Markdown: how multiply-adds are counted, the tables, and where the figures disagree."""
    versions = provenance(0)["versions"]
    releases = ", ".join(f"{name} {versions[name]}" for name in ("iformer-inception", "timm", "torch"))
    lines = [
        "# The paper's tables, measured",
        "",
        "`iformer tables --markdown` wrote this page. All figures of ours were measured when it ran, on the models",
        f"themselves ({releases}). The accuracies are the paper's.",
        "",
        *_conventions(),
        *_marks(),
    ]
    for table in measured:
        lines += _table(table)
    return "\n".join(lines)


def _conventions() -> list[str]:
    small = build("iformer_small")
    sizes = [(224, 224), (384, 384), (800, 1280), (512, 2048)]
    counts = {f"{height}x{width}": count(small, (3, height, width)) for height, width in sizes}
    native = counts["224x224"]
    both = [
        [size, *(_giga(complexity.multiply_adds(convention)) for convention in CONVENTIONS)]
        for size, complexity in counts.items()
    ]
    by_stage = [
        [stage or "all", *map(_giga, native.by_kind(module=stage).values()), _giga(native.multiply_adds(module=stage))]
        for stage in (*native.stages(), "")
    ]
    return [
        "## What is counted",
        "",
        "The paper's FLOPs are multiply-adds. It counts them in two ways:",
        "",
        "- **complete** (Tables 1, 2 and 5): convolutions, linear layers, the two products of attention, 5 for each",
        "  element that a LayerNorm takes, 2 for a BatchNorm, and 1 for each value that nearest upsampling writes.",
        "- **layers** (Tables 3 and 4): the same without the products of attention, which a counter that looks at",
        "  layers does not see.",
        "",
        "Attention grows with the square of the number of pixels, so on large images the two are far apart. iFormer-S,",
        "in G:",
        "",
        *_grid(["image", *CONVENTIONS], both),
        "",
        "Where iFormer-S spends them at 224x224, in G. What the authors' release writes as 1x1 convolutions are linear",
        "layers here:",
        "",
        *_grid(["", *KINDS, "all"], by_stage),
        "",
    ]


def _marks() -> list[str]:
    return [
        "## How to read the tables",
        "",
        "Each difference is ours less the paper's, with a mark where the two disagree at the paper's precision:",
        "",
        "- no mark: the paper's figure is ours, rounded.",
        *(f"- {MARKS[agreement]}: {meaning}." for agreement, meaning in LEGEND.items()),
        "",
        "Unexplained are figures of models that the paper compares with: those models do not have them in timm, and",
        "the paper does not say how they were counted.",
        "",
    ]


def _table(table: MeasuredTable) -> list[str]:
    header = ["method", "timm model", "pixels", "parameters (M): paper", "ours", "difference"]
    header += ["multiply-adds (G): paper", "ours", "difference"]
    header += [f"{convention} count" for convention in other_conventions(table)]
    header += [f"paper's {accuracy}" for accuracy in table.paper.accuracies]
    return [
        f"## Table {table.paper.number}: {table.paper.title}",
        "",
        f"Convention: {table.convention}.",
        "",
        *_grid(header, [cells(table, row) for row in table.rows]),
        "",
        *(f"- {line}" for line in (*_verdicts(table), *notes(table))),
        "",
    ]


def _verdicts(table: MeasuredTable) -> list[str]:
    """Return the lines that say how many figures agree, and which do not and why."""
    figures = defaultdict(list)
    for row in table.rows:
        for comparison, unit in ((row.parameters, "M"), (row.multiply_adds, "G")):
            unexplained = comparison.agreement == "differs" and not row.paper.note
            verdict = "unexplained" if unexplained else comparison.agreement
            figures[verdict].append(f"{row.paper.method} ({comparison.ours:.3f} {unit}, paper {comparison.paper})")
    judged = sum(len(names) for verdict, names in figures.items() if verdict != "stand-in")
    lines = [f"Rounded: {len(figures['agrees'])} of {judged} figures of the paper are ours, rounded."]
    for verdict, heading in (
        ("cut off", "Cut off, where rounding gives another digit"),
        ("differs", "Different, see the notes below"),
        ("unexplained", "Unexplained"),
    ):
        if figures[verdict]:
            lines.append(f"{heading}: {', '.join(figures[verdict])}.")
    return lines


def _giga(multiply_adds: int) -> str:
    return f"{multiply_adds / 1e9:.3f}"


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table with names aligned to the left and numbers to the right."""
    rule = ["---" if name in ("", "image", "method", "timm model") else "---:" for name in header]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]

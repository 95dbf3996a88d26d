"""The results of a comparison: its JSON document, its tables, and its pages with figures."""

import base64
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from iformer.common import pages
from iformer.common.files import write_json
from iformer.common.plotting import save_figure
from iformer.common.provenance import provenance
from iformer.comparison import figures, statistics
from iformer.comparison.statistics import Difference

SCORES = {"accuracy": "top-1 accuracy", "box_ap": "AP of boxes", "map": "mean average precision", "miou": "mIoU"}
"""The tasks' main metrics in words."""

CLASS_SCORES = {"accuracy": "accuracy", "box_ap": "box_ap", "map": "average_precision", "miou": "iou"}
"""The columns of the tables of classes that say the same of one class."""

MOST_CLASSES = 200
"""The most classes that the pages show."""

NOTES = {
    "score": "the metric on the validation images at the end of training, in per cent: the mean over the seeds and its "
    "95 % confidence interval (Student's t)",
    "classes": "the same score of each class by itself, the mean over the seeds",
    "difference": "the mean difference from the first variant in percentage points, paired by seed, with its 95 % "
    "confidence interval, which belongs to this comparison alone",
    "p": "the p-value of the paired t-test, corrected for the number of comparisons by Holm's method; a difference can "
    "be told where it is below 0.05",
    "seeds needed": "with so many seeds, a paired t-test at 5 %, divided by the number of comparisons, finds a "
    "difference of the size seen in 80 % of all cases, if the scores vary as they did here",
    "multiply-adds": "of matrix products and convolutions, for one image",
    "latency": "of one image, the median of interleaved rounds, with random weights",
    "images/s": "in training, with the loading of the images; the median of each run, averaged over the runs",
    "memory": "the highest resident memory of a training process, or on a GPU the GPU's, over all runs",
    "curves": "means over the seeds; bands reach from the lowest to the highest",
}

SCORE_HEADER = ("variant", "seeds", "score", "difference", "p", "what can be told")
COST_HEADER = ("variant", "parameters (M)", "multiply-adds (M)", "latency (ms)", "training images/s", "memory (MiB)")


def document(results: Mapping[str, Sequence[Mapping[str, Any]]], latencies: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of ``compare.json``.

    Args:
        results: The contents of the result files of each variant's runs, the reference first.
        latencies: What :func:`iformer.comparison.costs.latencies` returns.
    """
    scores = {name: {run["seed"]: run["value"] for run in runs} for name, runs in results.items()}
    found = statistics.differences(scores)
    comparisons = sum(each.p is not None for each in found.values())
    reference = next(iter(results))
    metric = results[reference][0]["metric"]
    variants = []
    for name, runs in results.items():
        score = statistics.estimate([run["value"] for run in runs])
        variants.append(
            {
                "name": name,
                "scores": [{"seed": run["seed"], "value": run["value"]} for run in runs],
                "mean": score.mean,
                "margin": score.margin,
                "difference": _difference(found.get(name), scores, name, reference, comparisons),
                **{key: runs[0][key] for key in ("image_size", "parameters", "multiply_adds")},
                "latency": latencies["variants"][name],
                "images_per_second": _mean([run["images_per_second"] for run in runs]),
                "peak_memory_mib": max(run["peak_memory_mib"] for run in runs),
                "classes": _classes([run["per_class"] for run in runs], CLASS_SCORES.get(metric, metric)),
                "curve": _band([run["curve"] for run in runs]),
                "training_loss": _band([run["training_loss"] for run in runs]),
                "command": runs[0]["command"],
                "machines": sorted({run["machine"] for run in runs}),
            }
        )
    return {
        "metric": metric,
        "reference": reference,
        "comparisons": comparisons,
        "variants": variants,
        "latency_measured": {key: value for key, value in latencies.items() if key != "variants"},
        "definitions": NOTES,
        "provenance": provenance(0),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that there are; short runs log no images/s."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if known else None


def _classes(tables: Sequence[Sequence[Mapping[str, Any]]], column: str) -> dict[str, float | None]:
    """Return the mean over the runs of each class's score; None for a class that no run could be judged by."""
    scores: dict[str, list[float]] = {}
    for row in itertools.chain.from_iterable(tables):
        known = scores.setdefault(row["class"], [])
        if row.get(column) is not None:
            known.append(row[column])
    return {name: sum(known) / len(known) if known else None for name, known in scores.items()}


def _difference(
    found: Difference | None, scores: Mapping[str, Mapping[int, float]], name: str, reference: str, comparisons: int
) -> dict[str, Any] | None:
    if found is None:
        return None
    seeds = sorted(scores[name].keys() & scores[reference].keys())
    return {
        "by_seed": [scores[name][seed] - scores[reference][seed] for seed in seeds],
        "mean": found.estimate.mean,
        "margin": found.estimate.margin,
        "p": found.p,
        "p_corrected": found.corrected,
        "told": found.told,
        "seeds_needed": None if found.told else found.seeds_needed(comparisons),
    }


def _band(curves: Sequence[Sequence[Sequence[float]]]) -> list[dict[str, float]]:
    """Return the mean, lowest and highest value of each epoch over the runs that have it."""
    values: dict[float, list[float]] = {}
    for curve in curves:
        for epoch, value in curve:
            values.setdefault(epoch, []).append(value)
    return [
        {"epoch": epoch, "mean": sum(found) / len(found), "lowest": min(found), "highest": max(found)}
        for epoch, found in sorted(values.items())
    ]


def verdict(variant: Mapping[str, Any]) -> str:
    """Return what can be told about a variant, in words."""
    difference = variant["difference"]
    if difference is None:
        return "no seed in common with the first variant"
    points = f"{abs(100 * difference['mean']):.2f}"
    if difference["told"]:
        return f"{'better' if difference['mean'] > 0 else 'worse'} by {points} points"
    if difference["margin"] is None:
        return "cannot be told from one seed"
    if difference["p"] is None:
        return "cannot be told: the differences are equal, to the last image"
    if difference["p"] == 1:
        return "no difference seen"
    needed, seen = difference["seeds_needed"], len(difference["by_seed"])
    seeds = f"more than {statistics.MOST_SEEDS:,}" if needed is None else f"about {max(needed, seen + 1)}"
    return f"cannot be told: a difference of {points} points would need {seeds} seeds"


def score_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of scores, with the columns of :data:`SCORE_HEADER`.

    Args:
        results: The document.
    """
    rows: list[tuple[str, ...]] = []
    for variant in results["variants"]:
        first = variant["name"] == results["reference"]
        difference = variant["difference"]
        corrected = difference and difference["p_corrected"]
        rows.append(
            (
                variant["name"],
                str(len(variant["scores"])),
                _with_margin(variant["mean"], variant["margin"]),
                _with_margin(difference["mean"], difference["margin"], "+") if difference else "",
                "" if corrected is None else "<0.001" if corrected < 0.001 else f"{corrected:.3f}",
                "the others are compared with it" if first else verdict(variant),
            )
        )
    return rows


def _with_margin(mean: float, margin: float | None, sign: str = "") -> str:
    return f"{100 * mean:{sign}.2f}" + ("" if margin is None else f" ± {100 * margin:.2f}")


def cost_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of costs, with the columns of :data:`COST_HEADER`.

    Args:
        results: The document.
    """
    return [
        (
            variant["name"],
            f"{variant['parameters'] / 1e6:.3f}",
            f"{variant['multiply_adds'] / 1e6:,.1f}",
            ", ".join(f"{engine} {found['milliseconds']:.2f}" for engine, found in variant["latency"].items()),
            "" if variant["images_per_second"] is None else f"{variant['images_per_second']:,.1f}",
            f"{variant['peak_memory_mib']:,}",
        )
        for variant in results["variants"]
    ]


def class_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of classes: the name of a class, and its score in each variant in per cent.

    Args:
        results: The document.
    """
    columns = [variant["classes"] for variant in results["variants"]]
    names = dict.fromkeys(itertools.chain.from_iterable(columns))
    scores = [[column.get(name) for column in columns] for name in names]
    return [
        (name, *("" if score is None else f"{100 * score:.2f}" for score in row))
        for name, row in zip(names, scores, strict=True)
    ]


def draw(results: Mapping[str, Any]) -> dict[str, tuple[str, Figure]]:
    """Return the figures by the names of their files, each with its caption."""
    variants, score = results["variants"], score_name(results)
    drawn = {}
    if any(variant[key] for variant in variants for key in ("curve", "training_loss")):  # short runs log neither
        drawn["curves"] = (
            "Score and training loss over the epochs: means over the seeds, and bands from the lowest to the highest.",
            figures.curves(variants, score),
        )
    if any(variant["difference"] for variant in variants):
        drawn["differences"] = (
            f"Differences from {results['reference']}: each seed's as a dot, and the mean with its 95 % interval.",
            figures.differences(variants, results["reference"]),
        )
    multiply_adds = {variant["name"]: variant["multiply_adds"] / 1e6 for variant in variants}
    costs = {"multiply_adds": ("multiply-adds of an image (M)", multiply_adds)}
    for engine in dict.fromkeys(engine for variant in variants for engine in variant["latency"]):
        found = {
            each["name"]: each["latency"][engine]["milliseconds"] for each in variants if engine in each["latency"]
        }
        costs[f"latency_{engine}"] = (f"latency of an image, {engine} (ms)", found)
    for name, (words, values) in costs.items():
        caption = f"Score, with 95 % intervals, against the {words}."
        drawn[f"score_{name}"] = (caption, figures.score_against(variants, values, score, words))
    return drawn


def score_name(results: Mapping[str, Any]) -> str:
    """Return the metric in words."""
    return SCORES.get(results["metric"], results["metric"])


def write(output: Path, results: dict[str, Any]) -> None:
    """Write ``compare.json``, the figures, ``README.md``, and ``compare.html``, which needs no other file.

    Raises:
        OSError: A file could not be written; the message names it.
    """
    write_json(output / "compare.json", results)
    pictures = []
    for name, (caption, figure) in draw(results).items():
        picture = output / f"{name}.png"
        save_figure(figure, picture)
        data = base64.b64encode(picture.read_bytes()).decode()
        pictures.append({"caption": caption, "file": picture.name, "data": data, "width": figure.get_figwidth()})
    score = score_name(results)
    tables = {"Scores": (SCORE_HEADER, score_rows(results)), "Costs": (COST_HEADER, cost_rows(results))}
    if 1 < len(classes := class_rows(results)) <= MOST_CLASSES:
        tables["Classes"] = (("class", *(variant["name"] for variant in results["variants"])), classes)
    for page, template in (("compare.html", "comparison.html.j2"), ("README.md", "comparison.md.j2")):
        pages.write_page(
            output / page,
            template,
            title=f"{score[0].upper()}{score[1:]} of {len(results['variants'])} variants",
            results=results,
            tables=tables,
            pictures=pictures,
            machines=sorted({machine for variant in results["variants"] for machine in variant["machines"]}),
        )

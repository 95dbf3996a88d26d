"""``iformer analyze``: an analysis of models on images, written as figures, pages and numbers."""

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from iformer.common import pages
from iformer.common.files import write_json
from iformer.common.plotting import label, short
from iformer.common.provenance import provenance
from iformer.frequency import figures, layers, receptive_field
from iformer.frequency.figures import Evidence
from iformer.frequency.grad_cam import class_layer, grad_cam
from iformer.frequency.inputs import ImageFiles, class_index, displayed
from iformer.frequency.layers import BRANCHES, Layer
from iformer.frequency.measurement import UNTOLD, BranchInStage, Mean, Measurement, measure
from iformer.models.saved import Model

RECEPTIVE_FIELD_IMAGES = 32

CAPTIONS = {
    "fig_1a_spectra": "Fourier spectra of blocks (Fig. 1a): log(1 + amplitude), averaged over channels and images, "
    "relative to the largest value. The centre is frequency 0; π is a change of sign from pixel to pixel.",
    "fig_1b_relative_log_amplitude": "Relative log amplitude of each block (Fig. 1b): the log amplitude along the half "
    "diagonal of the spectrum, minus its value at frequency 0.",
    "fig_4_branch_spectra": "Fourier spectra of the outputs of the Inception mixers' branches (Fig. 4), averaged "
    "over the blocks of each stage.",
    "high_frequency_shares": "Share of high-frequency energy before (hollow) and after (filled) each branch.",
    "attention_distance": "Mean distance between a position and the positions that it attends to, in the "
    "low-frequency branch of each block.",
    "receptive_field": "Effective receptive field of the centre of each stage's last map: the magnitude of its "
    "gradient with respect to the image.",
    "grad_cam": "Grad-CAM (Fig. 5): the places where models find evidence for a class.",
}

DEFINITIONS = {
    "high-frequency share": "share of a map's energy (squared Fourier amplitudes without the mean) at frequencies "
    "above pi / 2 in at least one direction, which a map of half the size cannot hold; energies are summed "
    "over channels, shares averaged over images and the blocks of a stage (95 % confidence intervals over images)",
    "verdict": "whether the share differs between a branch's input and output, image by image, with 95 % confidence: "
    "'raises' means high-pass and 'lowers' low-pass; maps below 4x4 hold no low frequency besides their mean, and one "
    "image gives no confidence interval",
    "points": "input is the input of a branch, operator the output of its max-pooling, depthwise convolution or "
    "attention, and output the output of the branch, with its linear layer and GELU",
    "log amplitude at π": "relative log amplitude at the highest frequency of the half diagonal; -15.9, the logarithm "
    "of single precision's resolution, means that there is nothing at this frequency",
}


@dataclass(frozen=True)
class Analysis:
    """The results of the analysis of one model."""

    model: Model
    measurement: Measurement
    fields: dict[Layer, Tensor]
    evidence: Evidence | None
    stages: Sequence[BranchInStage]


def analyze(
    models: Sequence[Model],
    images: ImageFiles,
    output: Path,
    target: str | None = None,
    cams: int = 4,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure models on images and write figures (PNG and SVG), two pages with all of them, and ``results.json``.

    The pages are ``report.html``, which needs no other file, and ``report.md``, which needs the PNGs.

    Args:
        models: The models, the one to be explained first; see :func:`iformer.frequency.inputs.open_model`.
        images: The image files; unreadable files are skipped and named in the results.
        output: The output folder, which is created if necessary.
        target: The name or number of the class that Grad-CAM explains; None means the class that each model predicts.
        cams: The number of images for which Grad-CAM is shown; 0 shows none.
        seed: The seed of fresh weights, which is recorded in the results.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: No image can be read, two models share a name, or a model has no feature maps or lacks the class.
        OSError: ``output`` cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    models = _told_apart(models)
    if target is not None:
        for model in models:
            class_index(model, target)  # a wrong class is found now rather than after minutes
    found = [_analyze(model, images, target, cams) for model in models]
    drawn = draw({each.model.name: each for each in found})
    for name, figure in drawn.items():
        figures.save(figure, output / name)
    results: dict[str, Any] = {
        "images": {
            "measured": found[0].measurement.images,
            "available": images.available,
            "choice": "evenly spread over the sorted files",
            "unreadable": {str(path): message for path, message in images.unreadable.items()},
            "receptive_field_images": min(RECEPTIVE_FIELD_IMAGES, found[0].measurement.images),
        },
        "models": [_document(each) for each in found],
        "definitions": DEFINITIONS,
        "provenance": provenance(seed),
    }
    write_json(output / "results.json", results)
    _write_pages(output, results, drawn)
    return results


def _write_pages(output: Path, results: Mapping[str, Any], drawn: Mapping[str, Figure]) -> None:
    """Write the results as ``report.html`` and ``report.md``, with the figures that were saved."""
    pictures = [
        {
            "caption": next(caption for start, caption in CAPTIONS.items() if name.startswith(start)),
            "data": base64.b64encode((output / f"{name}.png").read_bytes()).decode(),
            "width": figure.get_figwidth(),
            "file": f"{name}.png",
        }
        for name, figure in drawn.items()
    ]
    for kind in ("html", "md"):
        pages.write_page(
            output / f"report.{kind}",
            f"analysis.{kind}.j2",
            title="What the models see: " + " and ".join(model["model"] for model in results["models"]),
            results=results,
            header=HEADER,
            tables={model["model"]: rows(model) for model in results["models"] if model["branches"]},
            claims=claims(results),
            pictures=pictures,
        )


def _told_apart(models: Sequence[Model]) -> list[Model]:
    """Return the models, renamed by their weights too where several share a name."""
    names = [model.name for model in models]
    told = [
        replace(each, name=f"{each.name}: {Path(each.weights).name}") if names.count(each.name) > 1 else each
        for each in models
    ]
    if len({each.name for each in told}) < len(told):
        raise ValueError(f"{names[-1]} is compared with itself")
    return told


def _analyze(model: Model, images: ImageFiles, target: str | None, cams: int) -> Analysis:
    measurement = measure(model.network, images.batches(model))
    few = images.some(RECEPTIVE_FIELD_IMAGES)
    fields = receptive_field.receptive_fields(model.network, layers.last(measurement.blocks), few.batches(model))
    evidence = None
    if cams and model.class_names:
        batch = torch.cat(list(images.some(cams).batches(model)))
        evidence = explain(model, batch, None if target is None else class_index(model, target))
    return Analysis(model, measurement, fields, evidence, measurement.stages())


def explain(model: Model, images: Tensor, target: int | None = None) -> Evidence:
    """Return Grad-CAM maps of images for one class, or for the class that the model predicts for each.

    Args:
        model: The classifier.
        images: The normalised images ``(N, C, H, W)``.
        target: The number of the class; None means the class that the model predicts for each image.
    """
    with torch.inference_mode():
        probabilities = model.probabilities(model.network(images))
    classes = probabilities.argmax(-1) if target is None else torch.full((len(images),), target)
    maps = grad_cam(model.network, class_layer(model.network, images), images, classes)
    titles = [
        f"{short(model.class_names[index])}, {100 * row[index]:.0f}\xa0%"
        for index, row in zip(classes.tolist(), probabilities, strict=True)
    ]
    return Evidence(displayed(model, images), maps, titles)


def draw(found: Mapping[str, Analysis]) -> dict[str, Figure]:
    """Return the figures that have something to show, by the names of their files."""
    measurements = {name: each.measurement for name, each in found.items()}
    mixers = {name: each.stages for name, each in found.items() if each.stages}
    drawn = {
        "fig_1a_spectra": figures.layer_spectra(measurements),
        "fig_1b_relative_log_amplitude": figures.relative_log_amplitudes(measurements),
    }
    for number, (name, stages) in enumerate(mixers.items(), 1):
        figure = figures.branch_spectra(stages)
        if len(mixers) > 1:
            figure.suptitle(label(name, 60), fontsize=7)
        drawn["fig_4_branch_spectra" + (f"_{number}" if len(mixers) > 1 else "")] = figure
    if any(each.verdict != "map too small" for each in itertools.chain(*mixers.values())):
        drawn["high_frequency_shares"] = figures.branch_shares(mixers)
    if any(measurement.distances for measurement in measurements.values()):
        drawn["attention_distance"] = figures.attention_distances(measurements)
    drawn["receptive_field"] = figures.receptive_fields({name: each.fields for name, each in found.items()})
    if evidence := {name: each.evidence for name, each in found.items() if each.evidence}:
        drawn["grad_cam"] = figures.class_activation(evidence)
    return drawn


def _document(found: Analysis) -> dict[str, Any]:
    """Return what ``results.json`` says about one model."""
    return {
        "model": found.model.name,
        "weights": found.model.weights,
        "input_size": list(found.model.config["input_size"]),
        "blocks": [
            {
                "layer": layer.name,
                "label": layer.label,
                "size": list(each.size),
                "channels": each.channels,
                "high_frequency_share": _mean(Mean.of(each.high_frequency_shares)),
                "frequency_in_pi": _numbers(each.frequencies),
                "relative_log_amplitude": _numbers(each.relative_log_amplitude),
            }
            for layer, each in found.measurement.blocks.items()
        ],
        "branches": [
            {
                "stage": each.stage,
                "branch": each.branch,
                "size": list(each.size),
                "high_frequency_share": {point: _mean(share) for point, share in each.shares.items()},
                "change": _mean(each.change),
                "verdict": each.verdict,
                "log_amplitude_at_pi": {point: _number(value) for point, value in each.highest.items()},
            }
            for each in found.stages
        ],
        "attention_distance_pixels": [
            {"label": layer.label, "heads": _numbers(each.pixels), "uniform": _number(each.uniform)}
            for layer, each in found.measurement.distances.items()
        ],
        "receptive_field": [
            {
                "label": layer.label,
                **{f"area_holding_{share:.0%}": receptive_field.area_holding(field, share) for share in (0.5, 0.9)},
            }
            for layer, field in found.fields.items()
        ],
        "grad_cam": list(found.evidence.titles) if found.evidence else [],
    }


def _number(value: float) -> float | None:
    """Return a rounded number, or None for infinity and NaN, which JSON cannot hold."""
    return round(value, 6) if math.isfinite(value) else None


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _mean(mean: Mean) -> dict[str, float | None]:
    return {"mean": _number(mean.value), "margin": _number(mean.margin)}


HEADER = ("stage", "branch", "input", "operator", "output", "change", "verdict", "at π: input", "output")


def rows(model: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of a model's branches, with the columns of :data:`HEADER`.

    Shares are in per cent and changes in percentage points.

    Args:
        model: The entry of the model in the results.
    """

    def percent(mean: Mapping[str, float | None], sign: str = "") -> str:
        if small or mean["mean"] is None:
            return "-"
        margin = "" if mean["margin"] is None else f" ± {100 * mean['margin']:.1f}"
        return f"{100 * mean['mean']:{sign}.1f}{margin}"

    table = []
    for each in model["branches"]:
        small = each["verdict"] == "map too small"
        shares, highest = each["high_frequency_share"], each["log_amplitude_at_pi"]
        table.append(
            (
                f"{each['stage']} ({each['size'][0]}x{each['size'][1]})",
                each["branch"],
                *(percent(shares[point]) for point in ("input", "operator", "output")),
                percent(each["change"], "+"),
                each["verdict"],
                *("-" if highest[point] is None else f"{highest[point]:+.2f}" for point in ("input", "output")),
            )
        )
    return table


def claims(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each model with Inception mixers: in how many stages its branches act as the paper says."""
    lines = []
    for model in results["models"]:
        parts = []
        for branch, verdict in zip(reversed(BRANCHES), ("lowers", "raises", "raises"), strict=True):
            verdicts = [each["verdict"] for each in model["branches"] if each["branch"] == branch]
            verdicts = [each for each in verdicts if each not in UNTOLD]
            if verdicts:
                parts.append(f"{branch} {verdict} the share in {verdicts.count(verdict)} of {len(verdicts)} stages")
        if parts:
            lines.append(f"{model['model']}: {', '.join(parts)}.")
    return lines

"""``iformer analyze``: an analysis of models on images, written as figures, pages and numbers."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from iformer.common.files import write_json
from iformer.common.plotting import label, short
from iformer.common.provenance import provenance
from iformer.frequency import figures, layers, page, receptive_field, sensitivity_figures
from iformer.frequency.figures import Evidence
from iformer.frequency.grad_cam import class_layer, grad_cam
from iformer.frequency.inputs import ImageFiles, class_index, displayed
from iformer.frequency.layers import Layer
from iformer.frequency.measurement import BranchInStage, Mean, Measurement, measure
from iformer.frequency.sensitivity import CUT_OFFS, LabelledImages, Sensitivity, Share
from iformer.models.saved import Model

RECEPTIVE_FIELD_IMAGES = 32


@dataclass(frozen=True)
class Analysis:
    """The results of the analysis of one model."""

    model: Model
    measurement: Measurement
    fields: dict[Layer, Tensor]
    evidence: Evidence | None
    stages: Sequence[BranchInStage]
    sensitivity: Sensitivity | None


def analyze(
    models: Sequence[Model],
    images: ImageFiles,
    output: Path,
    target: str | None = None,
    cams: int = 4,
    seed: int = 0,
    labelled: LabelledImages | None = None,
) -> dict[str, Any]:
    """Measure models on images and write figures (PNG and SVG), two pages with all of them, and ``results.json``.

    The pages are ``report.html``, which needs no other file, and ``report.md``, which needs the PNGs.

    Args:
        models: The models, the one to be explained first; see :func:`iformer.frequency.inputs.open_model`.
        images: The image files; unreadable files are skipped and named in the results.
        output: The output folder, which is created if necessary.
        target: The name or number of the class that Grad-CAM explains; None means the class that each model predicts.
        cams: The number of images for which Grad-CAM is shown; 0 shows none.
        seed: The seed of fresh weights, which is recorded in the results, and of the basis vectors' signs.
        labelled: The labelled images on which it is measured which frequencies classifiers use; None measures nothing.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: No image can be read, two models share a name, a model has no feature maps or lacks the class, or
            none has classes where they are needed.
        OSError: ``output`` cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    models = told_apart(models)
    _require_classes(models, target, labelled)
    found = [_analyze(model, images, target, cams, labelled, seed) for model in models]
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
        "labelled": _labelled(labelled, found) if labelled else None,
        "models": [_document(each) for each in found],
        "definitions": page.DEFINITIONS,
        "provenance": provenance(seed),
    }
    write_json(output / "results.json", results)
    page.write(output, results, drawn)
    return results


def _require_classes(models: Sequence[Model], target: str | None, labelled: LabelledImages | None) -> None:
    """Raise ValueError for a wrong class now rather than after minutes."""
    classifiers = [model for model in models if model.class_names]
    if not classifiers and (target is not None or labelled):
        what = "target" if labelled is None else str(labelled.folder)
        raise ValueError(f"{what}: {models[0].name} is the backbone of a whole network, expected a classifier")
    for model in classifiers:
        if target is not None:
            class_index(model, target)
        if labelled:
            labelled.labels(model)


def _labelled(labelled: LabelledImages, found: Sequence[Analysis]) -> dict[str, Any]:
    """Return what ``results.json`` says about the labelled images."""
    measured = [each.sensitivity for each in found if each.sensitivity]
    return {
        "folder": str(labelled.folder),
        "measured": measured[0].images,
        "heat_map_images": len(measured[0].heat_map.unperturbed),
        "available": labelled.images.available,
        "unreadable": {str(path): message for path, message in labelled.images.unreadable.items()},
    }


def told_apart(models: Sequence[Model]) -> list[Model]:
    """Return the models, renamed by their weights too where several share a name.

    Of a path, as many of the last parts are taken as tell the models of this name apart.

    Raises:
        ValueError: Two models have the same name and the same weights.
    """
    told = list(models)
    for name, count in Counter(model.name for model in models).items():
        if count == 1:
            continue
        paths = {place: Path(model.weights).parts for place, model in enumerate(models) if model.name == name}
        longest = max(map(len, paths.values()))
        enough = [n for n in range(1, longest + 1) if len({path[-n:] for path in paths.values()}) == count]
        if not enough:
            raise ValueError(f"{name} is compared with itself")
        for place, path in paths.items():
            told[place] = replace(models[place], name=f"{name}: {'/'.join(path[-enough[0] :])}")
    return told


def _analyze(
    model: Model, images: ImageFiles, target: str | None, cams: int, labelled: LabelledImages | None, seed: int
) -> Analysis:
    measurement = measure(model.network, images.batches(model))
    few = images.some(RECEPTIVE_FIELD_IMAGES)
    fields = receptive_field.receptive_fields(model.network, layers.last(measurement.blocks), few.batches(model))
    evidence = None
    if cams and model.class_names:
        batch = torch.cat(list(images.some(cams).batches(model)))
        evidence = explain(model, batch, None if target is None else class_index(model, target))
    sensitivity = labelled.measure(model, seed) if labelled and model.class_names else None
    return Analysis(model, measurement, fields, evidence, measurement.stages(), sensitivity)


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
    if sensitivities := {name: each.sensitivity for name, each in found.items() if each.sensitivity}:
        drawn["filtered_accuracy"] = sensitivity_figures.filtered_accuracy(sensitivities)
        drawn["fourier_error"] = sensitivity_figures.errors_by_radius(sensitivities)
        drawn["fourier_heat_map"] = sensitivity_figures.heat_maps(sensitivities)
    return drawn


def _document(found: Analysis) -> dict[str, Any]:
    """Return what ``results.json`` says about one model."""
    return {
        "model": found.model.name,
        "task": found.model.task,
        "weights": found.model.weights,
        "images": found.measurement.images,
        "input_size": [found.model.channels, *found.measurement.image_size],
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
        "sensitivity": _sensitivity(found.sensitivity) if found.sensitivity else None,
    }


def _sensitivity(found: Sensitivity) -> dict[str, Any]:
    """Return what ``results.json`` says about the frequencies that a classifier uses."""
    heat_map = found.heat_map
    return {
        "accuracy": _share(found.accuracy),
        **{
            kind: [{"cut_off_in_pi": round(at, 6), **_share(each)} for at, each in zip(CUT_OFFS, shares, strict=True)]
            for kind, shares in (("low_pass", found.low_pass), ("high_pass", found.high_pass))
        },
        "heat_map": {
            "norm": round(heat_map.norm, 6),
            "error_unperturbed": _share(Share.averaged(heat_map.unperturbed)),
            "bands": [
                {"above_pi": each.low, "to_pi": round(each.high, 6), "frequencies": each.frequencies}
                | _share(each.error)
                for each in heat_map.bands()
            ],
            "row_periods": list(heat_map.rows),
            "column_periods": list(heat_map.columns),
            "error": [_numbers(row) for row in heat_map.errors],
        },
    }


def _share(share: Share) -> dict[str, float | None]:
    return {"value": _number(share.value), "low": _number(share.low), "high": _number(share.high)}


def _number(value: float) -> float | None:
    """Return a rounded number, or None for infinity and NaN, which JSON cannot hold."""
    return round(value, 6) if math.isfinite(value) else None


def _numbers(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _mean(mean: Mean) -> dict[str, float | None]:
    return {"mean": _number(mean.value), "margin": _number(mean.margin)}

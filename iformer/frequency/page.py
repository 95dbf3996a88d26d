"""The pages of an analysis: its tables, captions and definitions."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from iformer.common import pages
from iformer.frequency.layers import BRANCHES
from iformer.frequency.measurement import UNTOLD

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
    "filtered_accuracy": "Accuracy on labelled images of which an ideal filter keeps the frequencies up to a radius, "
    "or those above it, with 95 % confidence intervals (Wilson). High-pass filters take the image's mean too.",
    "fourier_error": "Error rate when a Fourier basis vector of one frequency is added to labelled images, averaged "
    "over bands of radii, with 95 % confidence intervals (bootstrap over images; Wilson for counts). Dashed: with "
    "nothing added.",
    "fourier_heat_map": "Fourier heat maps of the error rate (Yin et al., NeurIPS 2019): each point stands for the "
    "basis vector that is added. The centre is frequency 0; π is a change of sign from pixel to pixel.",
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

ACCURACY_HEADER = ("model", "all", "low-pass π/4", "low-pass π/2", "high-pass π/4", "high-pass π/2")
ERROR_HEADER = ("model", "nothing added", "frequency 0", "0 to π/8", "3π/8 to π/2", "7π/8 to π")

SENSITIVITY = {
    "accuracy": "on the labelled images with all frequencies, with those up to a radius (low-pass), and with those "
    "above it (high-pass); with 95 % confidence intervals (Wilson)",
    "error rate": "on the labelled images as they are, and with one Fourier basis vector added, averaged over those "
    "whose radius is in a range; with 95 % confidence intervals (bootstrap over images; Wilson for counts)",
}


def write(output: Path, results: Mapping[str, Any], drawn: Mapping[str, Figure]) -> None:
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
            notes=notes(results),
            sensitivity={
                "accuracy": (ACCURACY_HEADER, accuracy_rows(results)),
                "error rate": (ERROR_HEADER, error_rows(results)),
            }
            if results["labelled"]
            else {},
            meanings=SENSITIVITY,
            pictures=pictures,
        )


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


def accuracy_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each classifier measured on labelled images, with the columns of :data:`ACCURACY_HEADER`."""
    table = []
    for model in results["models"]:
        if found := model["sensitivity"]:
            points = [(kind, cut_off) for kind in ("low_pass", "high_pass") for cut_off in (0.25, 0.5)]
            filtered = [_at(found[kind], "cut_off_in_pi", cut_off) for kind, cut_off in points]
            table.append((model["model"], _percent(found["accuracy"]), *filtered))
    return table


def error_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each classifier measured on labelled images, with the columns of :data:`ERROR_HEADER`."""
    table = []
    for model in results["models"]:
        if found := model["sensitivity"]:
            errors = [_at(found["heat_map"]["bands"], "to_pi", radius) for radius in (0, 0.125, 0.5, 1)]
            table.append((model["model"], _percent(found["heat_map"]["error_unperturbed"]), *errors))
    return table


def _at(points: Iterable[Mapping[str, Any]], key: str, radius: float) -> str:
    return next((_percent(point) for point in points if point[key] == radius), "-")


def _percent(share: Mapping[str, Any]) -> str:
    interval = "" if share["low"] is None else f" ({100 * share['low']:.1f} to {100 * share['high']:.1f})"
    return f"{100 * share['value']:.1f}{interval}"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each model of which something is left out, which says why."""
    lines = []
    for model in results["models"]:
        if model["task"] != "classification":
            left = "Grad-CAM" if results["labelled"] is None else "Grad-CAM and accuracies"
            lines.append(
                f"{model['model']}: the backbone at the size that the whole network takes; {left} left out, "
                "since a backbone has no scores of classes."
            )
    return lines

"""Pictures of label maps: overlays with a legend, and grids of images, labels and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from iformer.common.plotting import label as shown_name
from iformer.common.plotting import quiet_fonts, save_figure
from iformer.segmentation.transforms import IGNORE

UNLABELLED = (0, 0, 0)


def coloured(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the colours ``(H, W, 3)`` of uint8 for classes ``(H, W)``, black where there is no label."""
    table = np.tile(np.array(UNLABELLED, np.uint8), (IGNORE + 1, 1))
    table[: len(palette)] = palette
    return table[labels]


def draw_overlay(image: np.ndarray, labels: np.ndarray, config: dict[str, Any], file: Path) -> None:
    """Draw the image under the classes' colours, with a legend of the classes in it, the largest first.

    Args:
        image: The image ``(H, W, 3)`` of uint8.
        labels: The class of each pixel, ``(H, W)``.
        config: The model's configuration, with ``class_names`` and ``palette``.
        file: The file to write.
    """
    present = np.bincount(labels.flatten(), minlength=len(config["class_names"]))
    shown = [int(label) for label in np.argsort(-present) if present[label]]
    height, width = image.shape[:2]
    scale = 8 / max(height, width)
    rows = max(4, int(max(2.4, height * scale) / 0.22))  # the rows of the legend that fit beside the image
    figure = Figure((width * scale + 2.2 * -(-len(shown) // rows), max(2.4, height * scale)), layout="constrained")
    axes = figure.subplots()
    blended = 0.5 * image + 0.5 * coloured(labels, config["palette"])
    axes.imshow(blended.round().astype(np.uint8))
    axes.set_axis_off()
    _legend(figure, shown, config, present / present.sum(), ncols=-(-len(shown) // rows))
    with quiet_fonts():  # at the image's own size, unless it is a huge panorama
        figure.savefig(file, dpi=min(max(100, round(max(height, width) / 8)), 1000))


def _legend(figure: Figure, shown: Sequence[int], config: dict[str, Any], shares: Any, ncols: int) -> None:
    handles = [
        Patch(
            facecolor="#{:02x}{:02x}{:02x}".format(*config["palette"][label]),
            edgecolor="black",
            label=shown_name(config["class_names"][label]) + (f"  {shares[label]:.1%}" if shares is not None else ""),
        )
        for label in shown
    ]
    figure.legend(
        handles=handles,
        loc="outside right upper" if shares is not None else "outside lower center",
        ncols=max(1, ncols),
        fontsize=9,
        frameon=False,
    )


def draw_grid(shown: Sequence[tuple[Tensor, Tensor, Tensor]], config: dict[str, Any], file: Path) -> None:
    """Draw a grid with a row of image, labels and predicted labels for each sample.

    Args:
        shown: The samples, each a normalised image ``(3, H, W)``, its labels ``(h, w)`` and its predicted labels.
        config: The model's configuration, with ``class_names``, ``palette``, ``mean`` and ``std``.
        file: The file to write.
    """
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    ratio = max(labels.shape[0] / labels.shape[1] for _, labels, _ in shown)
    figure = Figure((10, 3.3 * ratio * len(shown) + 1), layout="constrained")
    grid = figure.subplots(len(shown), 3, squeeze=False)
    present: set[int] = set()
    for row, (image, labels, found) in zip(grid, shown, strict=True):
        row[0].imshow((image * std + mean).clamp(0, 1).permute(1, 2, 0).float())
        row[1].imshow(coloured(labels.numpy(), config["palette"]))
        row[2].imshow(coloured(np.where(labels == IGNORE, IGNORE, found), config["palette"]))
        present |= {*labels.unique().tolist(), *found.unique().tolist()} - {IGNORE}
        for axes in row:
            axes.set_axis_off()
    for axes, title in zip(grid[0], ("image", "labels (black: none)", "predicted"), strict=True):
        axes.set_title(title)
    _legend(figure, sorted(present)[:40], config, None, ncols=6)
    save_figure(figure, file, dpi=120)

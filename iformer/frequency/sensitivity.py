"""Which frequencies a classifier uses: its accuracy on filtered images, and its Fourier heat map.

The heat map follows "A Fourier perspective on model robustness in computer vision" (Yin et al., NeurIPS 2019): the
error rate when one Fourier basis vector is added to the images, for each frequency.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import stats
from torch import Tensor

from iformer.common.images import ImageFile
from iformer.frequency.fourier import basis_vector, low_pass, radii
from iformer.frequency.inputs import ImageFiles
from iformer.models.class_folders import class_labels
from iformer.models.saved import Model
from iformer_command.terminal import markup

CUT_OFFS = (0, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1, 5 / 4, math.sqrt(2))
"""The radii of the filters in units of pi; the last one is that of the corners."""

BANDS = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1, math.sqrt(2))
"""The edges of the bands of radii over which the heat map is averaged; frequency 0 is a band of its own."""

HEAT_MAP_IMAGES = 256
"""The number of images of the heat map, each of which passes the network once for every frequency."""

ROOT_MEAN_SQUARE = 1 / 8
"""The default strength of a basis vector: 4 at 32x32 pixels, the norm that Yin et al. take for CIFAR-10."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Share:
    """A share of images and the ends of its 95 % confidence interval, which are NaN where one image gives none."""

    value: float
    low: float
    high: float

    @classmethod
    def counted(cls, hits: int, total: int) -> "Share":
        """Return the share of hits with Wilson's interval."""
        interval = stats.binomtest(hits, total).proportion_ci(method="wilson")
        return cls(hits / total, interval.low, interval.high)

    @classmethod
    def averaged(cls, values: Tensor) -> "Share":
        """Return the mean of a value of each image ``(images,)``, with the percentiles of a bootstrap over images.

        Where each value is 0 or 1, they are counted.
        """
        sample = values.double().numpy()
        if len(sample) < 2:
            return cls(float(sample.mean()), math.nan, math.nan)
        if np.isin(sample, (0, 1)).all():
            return cls.counted(int(sample.sum()), len(sample))
        interval = stats.bootstrap(
            (sample,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0
        ).confidence_interval
        return cls(float(sample.mean()), float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Band:
    """The error rate for the frequencies whose radius is above ``low`` and at most ``high``, in units of pi."""

    low: float
    high: float
    frequencies: int
    error: Share


@dataclass(frozen=True)
class HeatMap:
    """The errors of a classifier when a basis vector of each frequency is added.

    Attributes:
        size: The height and width of the images.
        norm: The L2 norm of what is added to each channel, of values from 0 to 1.
        rows: The frequencies of the map's rows, in periods from top to bottom.
        columns: The frequencies of the map's columns, in periods from left to right.
        wrong: Whether the classifier errs on each image ``(images,)``, by frequency. Opposite frequencies have the same
            basis vector, and one of them stands for both.
        unperturbed: The same for the images as they are.
    """

    size: tuple[int, int]
    norm: float
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    wrong: dict[tuple[int, int], Tensor]
    unperturbed: Tensor

    @property
    def errors(self) -> Tensor:
        """The error rates ``(rows, columns)``."""
        rates = {frequency: wrong.double().mean().item() for frequency, wrong in self.wrong.items()}
        return torch.tensor(
            [[rates[canonical((row, column), self.size)] for column in self.columns] for row in self.rows],
            dtype=torch.double,
        )

    def bands(self) -> list[Band]:
        """Return the error rate in each band of radii that holds frequencies, with an interval over images."""
        height, width = self.size
        radius = radii(height, width)
        found = []
        for low, high in itertools.pairwise((-1, *BANDS)):
            inside = [
                wrong
                for (row, column), wrong in self.wrong.items()
                if low < radius[row + height // 2, column + width // 2] * (1 - 1e-9) <= high
            ]
            if inside:
                error = Share.averaged(torch.stack(inside).double().mean(0))
                found.append(Band(max(low, 0), high, len(inside), error))
        return found


@dataclass(frozen=True)
class Sensitivity:
    """Which frequencies a classifier uses.

    Attributes:
        images: The number of labelled images.
        low_pass: The accuracy on images without the frequencies above each of :data:`CUT_OFFS`.
        high_pass: The accuracy on images without the frequencies up to each of :data:`CUT_OFFS`.
        heat_map: The errors when basis vectors are added, on :data:`HEAT_MAP_IMAGES` of the images at most.
    """

    images: int
    low_pass: tuple[Share, ...]
    high_pass: tuple[Share, ...]
    heat_map: HeatMap

    @property
    def accuracy(self) -> Share:
        """The accuracy on the images as they are, which is that with all frequencies."""
        return self.low_pass[-1]


@dataclass
class LabelledImages:
    """The labelled images on which classifiers are measured, and how.

    Attributes:
        folder: The folder of class folders, see :func:`iformer.models.class_folders.class_labels`.
        images: The images that are taken from it.
        norm: The L2 norm of the basis vectors in each channel, of values from 0 to 1; None for one whose root mean
            square is :data:`ROOT_MEAN_SQUARE`.
        frequencies: The number of rows and columns of the heat map; all frequencies if the image has no more.
    """

    folder: Path
    images: ImageFiles
    norm: float | None = None
    frequencies: int = 32

    def labels(self, model: Model) -> dict[ImageFile, int]:
        """Return the label of each image in the folder.

        Raises:
            ValueError: A folder is not named like a class of the model.
        """
        return dict(class_labels(model, self.folder))

    def measure(self, model: Model, seed: int = 0) -> Sensitivity:
        """Measure a classifier.

        Args:
            model: The classifier.
            seed: The seed of the signs with which basis vectors are added.

        Raises:
            ValueError: No image can be read, or a folder is not named like a class of the model.
        """
        labels = self.labels(model)
        low, high, total = count_hits(model.network, self.images.labelled(model, labels))
        chosen = list(self.images.some(HEAT_MAP_IMAGES).labelled(model, labels))
        images, targets = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        norm = self.norm or ROOT_MEAN_SQUARE * math.sqrt(images[0, 0].numel())
        heat_map = measure_heat_map(
            model.network,
            images,
            targets,
            norm,
            model.config["std"],
            self.frequencies,
            seed,
            self.images.batch_size,
            markup(f"Perturbing for {model.name}"),
        )
        return Sensitivity(
            total,
            tuple(Share.counted(hits, total) for hits in low),
            tuple(Share.counted(hits, total) for hits in high),
            heat_map,
        )


@torch.inference_mode()
def count_hits(network: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[int], list[int], int]:
    """Return how many filtered images a classifier gets right, for low-pass and high-pass filters of each cut-off.

    Args:
        network: The classifier in evaluation mode.
        batches: Batches of normalised images ``(N, C, H, W)`` and their labels ``(N,)``.

    Returns:
        The numbers with the low-pass and with the high-pass filters of :data:`CUT_OFFS`, and the number of images.
    """
    low, high, total = [0] * len(CUT_OFFS), [0] * len(CUT_OFFS), 0
    for images, labels in batches:
        total += len(images)
        for place, cut_off in enumerate(CUT_OFFS):
            kept = low_pass(images, cut_off)
            low[place] += int((network(kept).argmax(1) == labels).sum())
            high[place] += int((network(images - kept).argmax(1) == labels).sum())
    return low, high, total


@torch.inference_mode()
def measure_heat_map(
    network: Any,
    images: Tensor,
    labels: Tensor,
    norm: float,
    std: Iterable[float],
    frequencies: int = 32,
    seed: int = 0,
    batch_size: int = 32,
    description: str = "",
) -> HeatMap:
    """Measure the errors of a classifier when a basis vector of each frequency is added to images.

    The vector is added to every channel with a sign of its own, which is drawn at random for each image and frequency.
    Values are not clipped, so that nothing else is added.

    Args:
        network: The classifier in evaluation mode.
        images: The normalised images ``(N, C, H, W)``.
        labels: The labels ``(N,)``.
        norm: The L2 norm of what is added to each channel, before normalisation.
        std: The standard deviations by which the channels were divided.
        frequencies: The number of rows and columns of the map; it has all frequencies if the image has no more.
        seed: The seed of the signs.
        batch_size: The number of images that pass the network at a time.
        description: The text beside the progress bar; there is none without it.
    """
    height, width = images.shape[2:]
    size = (height, width)
    rows, columns = spread(height, frequencies), spread(width, frequencies)
    generator = torch.Generator().manual_seed(seed)
    strength = norm / torch.tensor(list(std)).view(-1, 1, 1)

    def errs(strengths: Tensor, vector: Tensor) -> Tensor:
        parts = zip(images.split(batch_size), strengths.split(batch_size), strict=True)
        return torch.cat([network(part + by * vector).argmax(1) for part, by in parts]) != labels

    distinct = sorted({canonical(each, size) for each in itertools.product(rows, columns)})
    wrong = {}
    for row, column in track(distinct, description, console=Console(stderr=True), disable=not description):
        signs = torch.randint(2, (*images.shape[:2], 1, 1), generator=generator) * 2.0 - 1
        wrong[row, column] = errs(signs * strength, basis_vector(height, width, row, column).float())
    return HeatMap(size, norm, rows, columns, wrong, errs(torch.zeros(len(images), 1, 1, 1), torch.zeros(size)))


def spread(side: int, count: int) -> tuple[int, ...]:
    """Return at most ``count`` frequencies of a side in pixels, evenly spread, with 0 at the place ``count // 2``."""
    count = min(count, side)
    return tuple(round((place - count // 2) * side / count) for place in range(count))


def canonical(frequency: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the one of a frequency and its opposite that stands for both."""

    def wrapped(sign: int) -> tuple[int, int]:
        row, column = (
            (sign * periods + side // 2) % side - side // 2 for periods, side in zip(frequency, size, strict=True)
        )
        return row, column

    return max(wrapped(1), wrapped(-1))

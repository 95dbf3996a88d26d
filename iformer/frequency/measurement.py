"""Measurement of a model in one pass over images: frequencies of blocks and branches, and attention distances."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from iformer.frequency import layers
from iformer.frequency.fourier import Frequencies, can_be_low
from iformer.frequency.layers import BRANCHES, Layer, Point, watched
from iformer.frequency.receptive_field import AttentionDistance
from iformer.models.inception_transformer import InceptionBlock

Verdict = Literal["raises", "lowers", "neither", "map too small", "one image"]
"""Whether a branch raises or lowers the share of high frequencies, or does neither with 95 % confidence.

The last two values say why this cannot be decided.
"""
UNTOLD = ("map too small", "one image")


@dataclass(frozen=True)
class Mean:
    """A mean over images and half the width of its 95 % confidence interval."""

    value: float
    margin: float

    @classmethod
    def of(cls, values: Tensor) -> "Mean":
        """Return the mean of values ``(images,)`` without NaNs, which come from images without any energy."""
        values = values[values.isfinite()].double()
        margin = 1.96 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(values.mean().item(), margin)


@dataclass(frozen=True)
class BranchInStage:
    """The frequencies of a branch, averaged over the blocks of a stage.

    Attributes:
        stage: The number of the stage, counted from 1.
        branch: The branch, one of ``layers.BRANCHES``.
        size: The height and width of the maps.
        shares: The share of high-frequency energy at each point of the branch.
        change: The change of the share from the branch's input to its output, image by image.
        highest: The relative log amplitude at the highest frequency, at each point of the branch.
        spectrum: The spectrum of the branch's output, ``(H, W)``.
    """

    stage: int
    branch: str
    size: tuple[int, ...]
    shares: dict[Point, Mean]
    change: Mean
    highest: dict[Point, float]
    spectrum: Tensor

    @property
    def verdict(self) -> Verdict:
        """Whether the branch raises or lowers the share of high frequencies, with 95 % confidence."""
        if not can_be_low(*self.size):
            return "map too small"
        if not math.isfinite(self.change.margin):
            return "one image"
        if not abs(self.change.value) > self.change.margin:
            return "neither"
        return "raises" if self.change.value > 0 else "lowers"


@dataclass(frozen=True)
class Measurement:
    """The measurement of a model on images.

    Attributes:
        image_size: The height and width of the images as the model took them.
        images: The number of images.
        blocks: The frequencies in the output of each block, in order of depth.
        branches: The frequencies at the three points of each branch of every Inception mixer.
        distances: The attention distances of every Inception mixer.
    """

    image_size: tuple[int, ...]
    images: int
    blocks: dict[Layer, Frequencies]
    branches: dict[Layer, Frequencies]
    distances: dict[Layer, AttentionDistance]

    def stages(self) -> list[BranchInStage]:
        """Return the branches averaged over the blocks of each stage; the list is empty without Inception mixers."""
        grouped: dict[tuple[int, str], dict[Point, list[Frequencies]]] = defaultdict(lambda: defaultdict(list))
        for layer, frequencies in self.branches.items():
            grouped[layer.stage, layer.branch][layer.point].append(frequencies)
        order = sorted(grouped, key=lambda key: (key[0], BRANCHES.index(key[1])))
        return [_average(stage, branch, grouped[stage, branch]) for stage, branch in order]


def _average(stage: int, branch: str, points: dict[Point, list[Frequencies]]) -> BranchInStage:
    shares = {
        point: torch.stack([each.high_frequency_shares for each in found]).nanmean(0) for point, found in points.items()
    }
    return BranchInStage(
        stage,
        branch,
        points["output"][0].size,
        {point: Mean.of(values) for point, values in shares.items()},
        Mean.of(shares["output"] - shares["input"]),
        {
            point: sum(each.relative_log_amplitude[-1].item() for each in found) / len(found)
            for point, found in points.items()
        },
        torch.stack([each.spectrum for each in points["output"]]).mean(0),
    )


@torch.inference_mode()
def measure(model: Any, batches: Iterable[Tensor]) -> Measurement:
    """Measure all blocks and branches of a model on images, without keeping features.

    Args:
        model: A timm model in evaluation mode.
        batches: Batches of images ``(N, C, H, W)`` of one size, normalised for the model.

    Raises:
        ValueError: There is no image, or the model has no blocks whose features are maps.
    """
    blocks, branches = layers.blocks(model), layers.branches(model)
    seen = {layer: Frequencies() for layer in (*blocks, *branches)}
    attention = {
        block: block.module.mixer.attn_branch
        for block in blocks
        if isinstance(block.module, InceptionBlock) and block.module.mixer.attn_branch is not None
    }
    distances = {block: AttentionDistance(branch) for block, branch in attention.items()}
    # These layers bear the names of their blocks, but their features are queries, keys and values.
    inside = {Layer(block.name, branch.qkv): block for block, branch in attention.items()}
    images = 0
    size: tuple[int, ...] = ()

    def see(layer: Layer, features: Any) -> None:
        if layer in inside:
            distances[inside[layer]].update(features, size)
        else:
            seen[layer].update(layer.maps(features, size))

    with watched([*seen, *inside], see):
        for batch in batches:
            images += len(batch)
            size = tuple(batch.shape[2:])
            model(batch)
    if not images:
        raise ValueError("frequencies: there are no images, expected at least one")
    for layer in blocks:
        if not seen[layer].size:
            raise ValueError(f"{type(model).__name__}: the layer {layer.name} does not run, so it has no maps")
    return Measurement(
        size, images, {layer: seen[layer] for layer in blocks}, {layer: seen[layer] for layer in branches}, distances
    )

"""The panel Branches: what max-pooling, convolution and attention of a block take and return, and where it attends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from iformer.explorer import html, pictures
from iformer.explorer.frequencies import normalised
from iformer.explorer.pictures import Picture
from iformer.explorer.workbench import Results, View, Workbench
from iformer.frequency import layers
from iformer.frequency.figures import COLOURS
from iformer.frequency.fourier import Frequencies, can_be_low
from iformer.frequency.inputs import displayed
from iformer.frequency.layers import BRANCHES, Layer, watched
from iformer.frequency.receptive_field import attention, queries_and_keys
from iformer.models.saved import Model

T = TypeVar("T")

ALL_HEADS = "all heads"

SHOWN = 96
"""The most rows and columns of a map that are shown."""

CHANNELS = 6
"""The number of a map's channels that are shown, those that vary most."""


@dataclass(frozen=True)
class Maps:
    """What is shown of a branch's input or output.

    Attributes:
        size: The height and width of the map.
        strength: The root mean square over channels of each position, from 0 to 1.
        channels: The channels that vary most, each from 0 to 1.
        spectrum: The mean over channels of log(1 + |F|).
        share: The share of high-frequency energy from 0 to 1; NaN where maps are constant.
        count: The number of channels.
    """

    size: tuple[int, int]
    strength: np.ndarray
    channels: Sequence[np.ndarray]
    spectrum: np.ndarray
    share: float
    count: int


@dataclass
class Seen:
    """What was seen in a block: the maps of its branches at their two ends, and its queries and keys."""

    stage: int
    number: int
    maps: dict[tuple[str, str], Maps] = field(default_factory=dict)
    queries: Tensor | None = None
    keys: Tensor | None = None
    grid: tuple[int, int] = (0, 0)


class Branches:
    """The branches of iFormers on pictures; one pass of the network answers all that is asked about one of them."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.passes: Results[tuple[Image.Image, list[Seen]]] = Results(bench, 2)

    def blocks(self, name: str) -> list[Layer]:
        """Return the blocks with Inception mixers of a model.

        Raises:
            ValueError: It has none. The message is for the page.
        """
        network = self.bench.models[name].network
        found = list(dict.fromkeys((layer.stage, layer.block) for layer in layers.branches(network)))
        if not found:
            raise ValueError(f"{name} has no Inception mixers, so no branches: this panel is for iFormers.")
        return [layer for layer in layers.blocks(network) if (layer.stage, layer.block) in found]

    def seen(self, name: str, picture: Picture) -> tuple[Image.Image, list[Seen]]:
        """Return a picture as a network takes it, and what was seen in each of its blocks.

        Raises:
            ValueError: The model has no Inception mixers.
        """
        model, blocks = self.bench.models[name], self.blocks(name)

        def compute() -> tuple[Image.Image, list[Seen]]:
            images = self.bench.inputs(name, picture)
            return pictures.shown(displayed(normalised(model), images)[0].numpy()), look(model, blocks, images)

        return self.passes.once((name, picture.digest), compute)

    def view(self, file: str | None, name: str, block: int) -> View:
        """Return the panel for a block, which is counted from 0 over the whole network.

        Raises:
            ValueError: There is no picture, or the model has no Inception mixers.
        """
        picture = self.bench.picture(file)
        _, blocks = self.seen(name, picture)
        chosen = _chosen(blocks, block)
        columns = [_column(chosen, branch) for branch in BRANCHES if (branch, "input") in chosen.maps]
        content = html.render("branches", columns=columns, stage=chosen.stage, number=chosen.number)
        parts = [
            ("All stages, on any pictures", html.command("iformer", "analyze", picture.name, "--model", name)),
            ("This block in Python", program(name, picture.name, chosen)),
        ]
        return View(content, html.same(*parts))

    def drawing(self, name: str, block: int) -> str:
        """Return the drawing of a network, each block with its shares of channels, in which one can be chosen.

        Raises:
            ValueError: The model has no Inception mixers.
        """
        blocks = self.blocks(name)
        drawn = []
        for place, layer in enumerate(blocks):
            mixer: Any = layer.module.mixer
            conv, pool, low = mixer.split_dims
            parts = zip(BRANCHES, (pool, conv, low), strict=True)
            shares = [(branch, COLOURS[branch], 100 * channels / (conv + pool + low)) for branch, channels in parts]
            words = ", ".join(f"{share:.0f} % {branch}" for branch, _, share in shares if share)
            drawn.append(
                {"place": place, "stage": layer.stage, "number": layer.block, "shares": shares, "words": words}
            )
        chosen = blocks.index(_chosen(blocks, block))
        stages = [list(group) for _, group in groupby(drawn, key=lambda each: each["stage"])]
        legend = [(branch, COLOURS[branch]) for branch in BRANCHES]
        return html.render("network", stages=stages, chosen=chosen, legend=legend)

    def heads(self, name: str, block: int) -> list[str]:
        """Return the choices of attention heads in a block."""
        blocks = self.blocks(name)
        mixer: Any = _chosen(blocks, block).module.mixer
        count = mixer.attn_branch.num_heads if mixer.attn_branch else 0
        return [ALL_HEADS, *(f"head {number}" for number in range(1, 1 + count))]

    def attention_view(
        self, file: str | None, name: str, block: int, place: tuple[float, float], head: str, strength: float
    ) -> str:
        """Return the picture with the attention of a position, coloured where it is more than an even share.

        Args:
            file: The picture's file.
            name: The model.
            block: The block, counted from 0 over the whole network.
            place: The position from the left and from the top, each from 0 to 1.
            head: The head, or :data:`ALL_HEADS` for their mean.
            strength: How strongly the attention covers the picture, from 0 to 1.

        Raises:
            ValueError: There is no picture, or the model has no Inception mixers.
        """
        picture = self.bench.picture(file)
        shown, blocks = self.seen(name, picture)
        chosen = _chosen(blocks, block)
        if chosen.queries is None:
            return html.note("This block has no attention: all of its heads are high frequency.")
        weights = attention_at(chosen, place, head) * chosen.grid[0] * chosen.grid[1]
        excess = np.log(weights.clip(1))  # as the network's own scores; often a single place has most of the attention
        overlay = pictures.blended(shown, excess / max(excess.max(), 1e-6), strength)
        row, column = position(chosen.grid, place)
        return html.render(
            "attention",
            picture=pictures.data_uri(overlay),
            left=100 * (column + 0.5) / chosen.grid[1],
            top=100 * (row + 0.5) / chosen.grid[0],
            grid=f"{chosen.grid[1]} × {chosen.grid[0]}",
            most=weights.max(),
        )


@torch.inference_mode()
def look(model: Model, blocks: list[Layer], images: Tensor) -> list[Seen]:
    """Return what is seen in blocks in one pass of a network over an image ``(1, C, H, W)``."""
    found = {(block.stage, block.block): Seen(block.stage, block.block) for block in blocks}
    watching = [layer for layer in layers.branches(model.network) if layer.point != "operator"]
    size = tuple(images.shape[2:])
    inside = {}
    for block in blocks:
        mixer: Any = block.module.mixer
        if mixer.attn_branch is not None:
            inside[Layer(block.name, mixer.attn_branch.qkv)] = (block, mixer.attn_branch.num_heads)

    def see(layer: Layer, features: Any) -> None:
        if layer in inside:
            block, heads = inside[layer]
            seen = found[block.stage, block.block]
            seen.grid = tuple(features.shape[1:3])
            seen.queries, seen.keys = (part.half().cpu() for part in queries_and_keys(features, heads))
        else:
            found[layer.stage, layer.block].maps[layer.branch, layer.point] = summary(layer.maps(features, size))

    with watched([*watching, *inside], see):
        model.network(images)
    return list(found.values())


def summary(maps: Tensor) -> Maps:
    """Return what is shown of maps ``(1, C, h, w)``."""
    frequencies = Frequencies()
    frequencies.update(maps)
    features = maps[0].float().cpu()
    strength = features.square().mean(0).sqrt()
    order = features.flatten(1).var(1).argsort(descending=True)[:CHANNELS]
    varied = features[order]
    return Maps(
        (maps.shape[2], maps.shape[3]),
        _small(_spread(strength)),
        [_small(_spread(channel)) for channel in varied],
        _small(frequencies.spectrum.cpu().float()),
        float(frequencies.high_frequency_shares[0]),
        len(features),
    )


def attention_at(seen: Seen, place: tuple[float, float], head: str) -> np.ndarray:
    """Return how much a position attends to each, ``(h, w)``, which sums to 1; arguments as in ``attention_view``."""
    assert seen.queries is not None
    assert seen.keys is not None
    row, column = position(seen.grid, place)
    index = row * seen.grid[1] + column
    weights = attention(seen.queries[:, :, index : index + 1].float(), seen.keys.float())[0, :, 0]
    number = int(head.rpartition(" ")[2]) if head != ALL_HEADS else 0
    chosen = weights[number - 1] if 0 < number <= len(weights) else weights.mean(0)
    return chosen.reshape(seen.grid).numpy()


def position(grid: tuple[int, int], place: tuple[float, float]) -> tuple[int, int]:
    """Return the row and the column of a place from the left and from the top, each from 0 to 1."""
    row, column = (min(int(share * side), side - 1) for share, side in zip(place[::-1], grid, strict=True))
    return max(row, 0), max(column, 0)


def program(name: str, file: str, seen: Seen) -> str:
    """Return a program that prints the shares of high frequencies in a block's branches."""
    return f"""from iformer.common.images import read_image
from iformer.frequency.inputs import open_model
from iformer.frequency.measurement import measure

model = open_model({name!r})
image = model.prepare(read_image({file!r}, model.channels))[None]
for layer, found in measure(model.network, [image]).branches.items():
    if (layer.stage, layer.block) == ({seen.stage}, {seen.number}):
        print(layer.branch, layer.point, found.high_frequency_shares.item())
"""


def _chosen(blocks: Sequence[T], block: int) -> T:
    """Return a block by its number; the first one if a network of fewer blocks has taken the place of another."""
    return blocks[block] if block < len(blocks) else blocks[0]


def grey(values: np.ndarray) -> Image.Image:
    """Return values ``(h, w)`` from 0 to 1 as a greyscale image."""
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _small(values: Tensor) -> np.ndarray:
    """Return values ``(h, w)`` averaged to at most :data:`SHOWN` rows and columns."""
    height, width = values.shape
    return F.adaptive_avg_pool2d(values[None], (min(height, SHOWN), min(width, SHOWN)))[0].numpy()


def _spread(values: Tensor) -> Tensor:
    """Return values stretched to 0 to 1; constant ones are 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def _column(seen: Seen, branch: str) -> dict[str, Any]:
    """Return what the template shows of a branch."""
    before, after = (seen.maps[branch, point] for point in ("input", "output"))
    height, width = before.size
    largest = max(before.spectrum.max(), after.spectrum.max()) or 1.0
    change = 100 * (after.share - before.share)
    return {
        "branch": branch,
        "colour": COLOURS[branch],
        "size": f"{width} × {height}",
        "points": [
            {
                "name": name,
                "file": f"stage_{seen.stage}_block_{seen.number}_{branch}_{name}",
                "count": maps.count,
                "map": pictures.data_uri(grey(maps.strength)),
                "channels": [pictures.data_uri(grey(each)) for each in maps.channels],
                "spectrum": pictures.data_uri(pictures.coloured(maps.spectrum / largest, pictures.SPECTRA)),
                "share": 100 * maps.share,
            }
            for name, maps in (("input", before), ("output", after))
        ],
        "change": change,
        "told": can_be_low(height, width) and bool(np.isfinite(change)),
    }

"""What ramps cost: multiply-adds and parameters, which are exact, and latency, which is put together from blocks.

The blocks of a stage are alike, and what one of them costs depends on its own heads only. The cost of every ramp
therefore follows from few networks: for each stage and each number of heads, one that differs from a given ramp in a
single block. Counts add up exactly. Latencies add up nearly; the few networks are measured side by side in interleaved
rounds, so that candidates are compared without the noise of a measurement each. What is found is measured itself.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from iformer.benchmark import configurations, rounds
from iformer.benchmark.configurations import Configuration
from iformer.common.files import write_json
from iformer.common.provenance import provenance
from iformer.models.backbone import create
from iformer.models.shared_ramps import Ramp, ramp_of
from iformer.search.budgets import Budget, shown

ENGINES = ("eager", "fused", "onnxruntime", "openvino")
"""The engines in which a latency may be measured, see :mod:`iformer.benchmark`."""

ROUNDS, TIMED = 20, 10
"""The number of interleaved rounds, and that of timed inferences of each network in a round, after one that is not."""

MOST_LISTED = 10_000_000
"""The largest space of which every ramp's cost is looked at."""


@dataclass(frozen=True)
class Space:
    """The ramps of a network: every number of heads in every block.

    Attributes:
        config: The contents of the ``config.json`` of the shared network.
        own: The network's own ramp, which is set by hand.
        num_heads: The number of heads of each stage.
        depths: The number of blocks of each stage.
    """

    config: Mapping[str, Any]
    own: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]

    @property
    def stage_of(self) -> list[int]:
        """The stage of each block."""
        return [stage for stage, depth in enumerate(self.depths) for _ in range(depth)]

    @property
    def most(self) -> tuple[int, ...]:
        """The greatest number of heads of each block."""
        return tuple(self.num_heads[stage] for stage in self.stage_of)

    @property
    def size(self) -> int:
        """The number of ramps."""
        size = 1
        for heads in self.most:
            size *= heads + 1
        return size

    def arguments(self, ramp: Ramp) -> dict[str, Any]:
        """Return the ``model_args`` of the network with a ramp."""
        return {**self.config.get("model_args", {}), "attention_heads": [*ramp]}

    def network(self, ramp: Ramp) -> Any:
        """Return the ordinary network with a ramp, without weights, on the meta device."""
        with torch.device("meta"):
            return ordinary(self.config, attention_heads=tuple(ramp)).eval()

    @property
    def image(self) -> tuple[int, int, int]:
        """The channels, height and width of an image."""
        channels, height, width = self.config["pretrained_cfg"]["input_size"]
        return int(channels), int(height), int(width)


def ordinary(config: Mapping[str, Any], **changes: Any) -> Any:
    """Return the ordinary network of a saved shared one, with fresh weights.

    Args:
        config: The contents of the shared network's ``config.json``.
        changes: Arguments of ``timm.create_model`` that take the place of those in ``config``.
    """
    arguments = {"num_classes": config["num_classes"], **config.get("model_args", {}), **changes}
    return create(config["architecture"], **arguments)


def space_of(config: Mapping[str, Any]) -> Space:
    """Return the ramps of a saved network, given the contents of its ``config.json``."""
    with torch.device("meta"):
        network = ordinary(config)
    return Space(config, ramp_of(network), network.num_heads, tuple(map(len, network.attention_heads)))


@dataclass(frozen=True)
class Costs:
    """The costs of all ramps of a space.

    Attributes:
        space: The space.
        own: The cost of the space's own ramp, by quantity.
        steps: For each quantity and stage, what a block with each number of heads costs beyond one with none.
    """

    space: Space
    own: Mapping[str, float]
    steps: Mapping[str, Sequence[Sequence[float]]]

    def of(self, ramp: Ramp) -> dict[str, float]:
        """Return the cost of a ramp, by quantity."""
        cost = dict(self.own)
        for stage, heads, before in zip(self.space.stage_of, ramp, self.space.own, strict=True):
            for quantity, steps in self.steps.items():
                cost[quantity] += steps[stage][heads] - steps[stage][before]
        return cost

    def least(self, quantity: str) -> list[int]:
        """Return the ramp that costs least."""
        return [int(np.argmin(self.steps[quantity][stage])) for stage in self.space.stage_of]

    def require_choice(self, budgets: Sequence[Budget]) -> int | None:
        """Return how many ramps are within the budgets; None if the space is too large to tell.

        Raises:
            ValueError: There is none, or only one.
        """
        for budget in budgets:
            ramp = self.least(budget.quantity)
            if budget.excess(self.of(ramp)) > 0:
                cost = shown(budget.quantity, self.of(ramp)[budget.quantity])
                raise ValueError(f"budget {budget.text}: no ramp is within it; the cheapest, {ramp}, takes {cost}")
        if self.space.size > MOST_LISTED:
            return None
        within = np.ones([heads + 1 for heads in self.space.most], dtype=bool)
        for budget in budgets:
            total = np.full((), self.of([0] * len(self.space.most))[budget.quantity])
            for stage, heads in zip(self.space.stage_of, self.space.most, strict=True):
                steps = np.asarray(self.steps[budget.quantity][stage])[: heads + 1]
                total = total[..., None] + steps - steps[0]
            within &= total <= budget.most
        count = int(within.sum())
        texts = ", ".join(budget.text for budget in budgets)
        if count == 0:
            raise ValueError(f"budget {texts}: no ramp is within all of them")
        if count == 1:
            raise ValueError(f"budget {texts}: one ramp only is within it, {np.argwhere(within)[0].tolist()}")
        return count


def counts(space: Space) -> Costs:
    """Return the multiply-adds and parameters of all ramps of a space, counted as ``iformer compare`` counts them."""

    def count(ramp: Ramp) -> dict[str, float]:
        network = space.network(ramp)
        images = torch.empty(1, *space.image, device="meta")
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return {"macs": rounds.count_multiply_adds(network, images), "params": parameters}

    return _put_together(space, {ramp: count(ramp) for ramp in _single_changes(space)})


def with_latency(costs: Costs, engine: str, file: Path, weights: str) -> Costs:
    """Return costs with the latencies of all ramps in an engine, which are kept in ``file``.

    Args:
        costs: The other costs.
        engine: The engine, one of :data:`ENGINES`.
        file: The file, which is written if it is not there.
        weights: What tells the search run from others.

    Raises:
        ValueError: ``file`` has the latencies of another engine, or another search run.
        OSError: The file could not be written.
    """
    ramps = _single_changes(costs.space)
    with FileLock(file.with_suffix(".lock")):  # other processes of the same search wait for the measurement
        if not file.is_file():
            milliseconds = measure(costs.space, ramps, engine)
            write_json(file, {"engine": engine, "weights": weights, "milliseconds": milliseconds, **provenance(0)})
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept["engine"] != engine:
        raise ValueError(f"{file}: latencies in {kept['engine']}, expected those in {engine}; name another --output")
    if kept.get("weights") != weights:
        raise ValueError(f"{file}: latencies of the ramps of another run; name another --output")
    milliseconds = kept["milliseconds"]
    latency = _put_together(costs.space, {ramp: {"latency": milliseconds[str([*ramp])]} for ramp in ramps})
    return Costs(costs.space, {**costs.own, **latency.own}, {**costs.steps, **latency.steps})


def measure(space: Space, ramps: Sequence[Ramp], engine: str) -> dict[str, float]:
    """Return the latency of one image for each ramp, in milliseconds: the median of interleaved rounds.

    Args:
        space: The space of the ramps.
        ramps: The ramps; the keys of the result are their lists as text.
        engine: The engine, one of :data:`ENGINES`.
    """
    _, height, width = space.image
    threads = torch.get_num_threads()
    turns = []
    with Progress(console=Console(stderr=True), refresh_per_second=1) as bar, TemporaryDirectory() as temporary:
        for number, ramp in enumerate(bar.track(ramps, description=f"Preparing in {engine}")):
            folder = Path(temporary, str(number))
            folder.mkdir()
            write_json(folder / "config.json", {**space.config, "model_args": space.arguments(ramp)})
            turns.append(
                _timed(configurations.runner(Configuration(str(folder), engine, "fp32", 1, height, width), threads))
            )
        seconds = rounds.in_rounds(turns, bar.track(range(ROUNDS), description="Measuring latencies"))
    return {str([*ramp]): round(1e3 * statistics.median(each), 4) for ramp, each in zip(ramps, seconds, strict=True)}


def _timed(call: Callable[[], object]) -> Callable[[], list[float]]:
    def times() -> list[float]:
        call()
        found = []
        for _ in range(TIMED):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found

    return times


def _single_changes(space: Space) -> list[tuple[int, ...]]:
    """Return the space's own ramp and those that differ from it in the first block of one stage."""
    ramps = {space.own: None}
    for stage, total in enumerate(space.num_heads):
        if space.depths[stage]:
            first = space.stage_of.index(stage)
            for heads in range(total + 1):
                ramps[(*space.own[:first], heads, *space.own[first + 1 :])] = None
    return [*ramps]


def _put_together(space: Space, costs: Mapping[tuple[int, ...], Mapping[str, float]]) -> Costs:
    """Return the costs of all ramps, given those of :func:`_single_changes`."""
    own = costs[space.own]
    steps: dict[str, list[list[float]]] = {quantity: [] for quantity in own}
    for stage, total in enumerate(space.num_heads):
        first = space.stage_of.index(stage) if space.depths[stage] else 0
        row = [costs.get((*space.own[:first], heads, *space.own[first + 1 :]), own) for heads in range(total + 1)]
        for quantity, found in steps.items():
            found.append([each[quantity] - row[0][quantity] for each in row])
    return Costs(space, own, steps)

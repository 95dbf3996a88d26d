"""The panel Ramp: how many heads of each block attend, and what that costs."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from iformer.benchmark.configurations import Configuration
from iformer.benchmark.process import MeasuredProcess
from iformer.benchmark.rounds import in_rounds
from iformer.explorer import html, pictures
from iformer.explorer.workbench import Results, View, Workbench
from iformer.models import saved
from iformer.models.presets import PRESETS
from iformer.models.timm_interface import by_stage, check_arguments
from iformer.paper.complexity import build, count

NAMES = tuple(name for name in PRESETS if not name.endswith("_384"))
"""The presets whose ramps can be taken as they are or changed."""

RECIPES = {
    name: "cifar10" if name == "iformer_nano" else f"{'ablation' if name.count('_') > 1 else 'imagenet1k'}/{name}"
    for name in NAMES
}
"""The recipe that trains each of them."""

ROUNDS, TIMES = 4, 5
"""How often, and how many times in a row, each of two networks is measured."""


@dataclass(frozen=True)
class Cost:
    """The parameters and multiply-adds of a network for one image of its preset's size."""

    parameters: int
    multiply_adds: int
    input_size: tuple[int, int, int]


class Ramp:
    """Ramps and their costs.

    Attributes:
        beginnings: The ramps that one can begin with, by name: a preset, and its ramp or one that a search has found.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.beginnings = {name: (name, own(name)) for name in NAMES} | found(bench.search)
        self.costs: Results[Cost] = Results(bench, 512)
        self.latencies: Results[tuple[float, float]] = Results(bench.measuring, 32)

    def cost(self, preset: str, heads: tuple[int, ...]) -> Cost:
        """Return what a preset costs with another ramp.

        Raises:
            ValueError: The ramp does not fit the preset; the message names the value.
        """
        check(preset, heads)

        def compute() -> Cost:
            network: Any = build(preset, attention_heads=heads)
            size = tuple(network.pretrained_cfg["input_size"])
            counted = count(network, size)
            return Cost(counted.parameters, counted.multiply_adds(), size)

        return self.costs.once((preset, heads), compute)

    def latency(self, preset: str, heads: tuple[int, ...]) -> tuple[float, float]:
        """Return the milliseconds per image of a preset with another ramp and of the preset, measured side by side.

        Raises:
            ValueError: The ramp does not fit the preset, or the networks could not be run.
            OSError: There is no room for their weights.
        """
        size = self.cost(preset, heads).input_size
        return self.latencies.once((preset, heads), lambda: measured(preset, heads, size))

    def view(self, preset: str, heads: Sequence[int]) -> View:
        """Return the panel without its sliders.

        Raises:
            ValueError: The ramp does not fit the preset.
        """
        ramp = tuple(heads)
        now, before = self.cost(preset, ramp), self.cost(preset, own(preset))
        rows = [
            figure("Parameters", now.parameters, before.parameters, 1e6, "M"),
            figure("Multiply-adds", now.multiply_adds, before.multiply_adds, 1e9, "G"),
        ]
        figures = {"model": preset, "attention_heads": ramp, **asdict(now)}
        content = html.render(
            "ramp",
            rows=rows,
            preset=preset,
            changed=ramp != own(preset),
            side=now.input_size[-1],
            saved=pictures.text_uri(json.dumps(figures, indent=2)),
        )
        return View(content, html.same(("Train it", recipe(preset, ramp)), ("Python", program(preset, ramp))))

    def latency_view(self, preset: str, heads: Sequence[int]) -> str:
        """Return the measured latency.

        Raises:
            ValueError: See :meth:`latency`.
            OSError: See :meth:`latency`.
        """
        now, before = self.latency(preset, tuple(heads))
        row = figure("Latency of one image", now, before, 1, "ms")
        return html.render("latency", row=row, threads=torch.get_num_threads(), preset=preset)

    def sliders(self, preset: str, heads: Sequence[int]) -> str:
        """Return the sliders, one for each block."""
        arguments = PRESETS[preset]
        stages = by_stage(tuple(heads), arguments["depths"])
        return html.render("sliders", stages=list(zip(stages, arguments["num_heads"], strict=True)))


def own(preset: str) -> tuple[int, ...]:
    """Return the ramp of a preset."""
    return tuple(PRESETS[preset]["attention_heads"])


def found(search: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the best ramps that ``iformer search`` has found for a preset, as in :attr:`Ramp.beginnings`.

    There are none if the folder holds no search of a preset.
    """
    try:
        results = json.loads((search / "search.json").read_text(encoding="utf-8"))
        preset, ramps = results["model"], [tuple(each["attention_heads"]) for each in results["front"]]
        for ramp in ramps:
            check(preset, ramp)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {f"{preset}, found {number}": (preset, ramp) for number, ramp in enumerate(ramps, 1)}


def check(preset: str, heads: Sequence[int]) -> None:
    """Raise ValueError if a ramp does not fit a preset; the message names the value."""
    if preset not in NAMES:
        raise ValueError(f"preset is {preset!r}, expected one of {', '.join(NAMES)}")
    arguments = PRESETS[preset]
    stages = len(arguments["depths"])
    check_arguments(
        arguments["depths"],
        arguments["dims"],
        arguments["num_heads"],
        heads,
        arguments.get("conv_ratio", 0.5),
        (1,) * stages,
        (None,) * stages,
    )


def figure(name: str, now: float, before: float, unit: float, sign: str) -> dict[str, Any]:
    """Return what the template shows of a figure beside that of the preset."""
    return {
        "name": name,
        "value": f"{now / unit:.2f}",
        "unit": sign,
        "before": f"{before / unit:.2f}",
        "change": 100 * (now / before - 1),
        "share": min(now / before / 2, 1.0),
    }


def measured(preset: str, heads: tuple[int, ...], size: tuple[int, int, int]) -> tuple[float, float]:
    """Return the median milliseconds of an image with a ramp and with the preset's own, in processes of their own."""
    _, height, width = size
    with ExitStack() as stack:
        turns = []
        for ramp in (heads, own(preset)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            network: Any = timm.create_model(preset, attention_heads=ramp)
            saved.save(network, folder, [f"class {index}" for index in range(network.num_classes)])
            configuration = Configuration(folder, "eager", "fp32", 1, height, width)
            process = stack.enter_context(closing(MeasuredProcess(configuration, torch.get_num_threads())))
            turns.append(lambda process=process: process.times(TIMES))
        now, before = in_rounds(turns, range(ROUNDS))
    return 1e3 * statistics.median(now), 1e3 * statistics.median(before)


def recipe(preset: str, heads: tuple[int, ...]) -> str:
    """Return the command that trains a preset with a ramp."""
    words = ["iformer", "fit", "--config", RECIPES[preset], "--data.init_args.root", "FOLDER"]
    return html.command(*words, "--model.init_args.model_args.attention_heads", json.dumps(list(heads)))


def program(preset: str, heads: tuple[int, ...]) -> str:
    """Return a program that makes a preset with a ramp."""
    return f"""import iformer
import timm

model = timm.create_model({preset!r}, attention_heads={heads})
"""

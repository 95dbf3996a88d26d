"""The presets and what each costs: the list behind ``iformer list``."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

from iformer.models.presets import PRESETS
from iformer.paper.complexity import build, count


@dataclass(frozen=True)
class Listing:
    """A preset: its timm name, image side in pixels, learned values, multiply-adds (complete count) and frequency ramp.

    ``attention_heads`` is the ramp: for each block of each stage, how many of the stage's ``num_heads`` are low
    frequency.
    """

    name: str
    image_size: int
    parameters: int
    multiply_adds: int
    attention_heads: tuple[tuple[int, ...], ...]
    num_heads: tuple[int, ...]

    @property
    def ramp(self) -> str:
        """The ramp in short, stage by stage: '7/10 x4 9/10 x5' is 7 of 10 heads in 4 blocks, then 9 of 10 in 5."""
        stages = [
            " ".join(f"{low}/{total} x{len(list(run))}" for low, run in groupby(heads))
            for heads, total in zip(self.attention_heads, self.num_heads, strict=True)
        ]
        return " | ".join(stages)


def presets() -> list[Listing]:
    """Measure every preset at its own image size."""
    listings = []
    for name in PRESETS:
        model: Any = build(name)
        input_size = model.pretrained_cfg["input_size"]
        complexity = count(model, input_size)
        multiply_adds = complexity.multiply_adds()
        listings.append(
            Listing(name, input_size[-1], complexity.parameters, multiply_adds, model.attention_heads, model.num_heads)
        )
    return listings


def document(listings: Iterable[Listing]) -> list[dict[str, Any]]:
    """The presets as a JSON document, in single parameters and multiply-adds."""
    return [asdict(listing) for listing in listings]


def render(listings: Iterable[Listing]) -> Table:
    """The presets for a terminal."""
    view = Table(box=None, padding=(0, 1), header_style="bold")
    view.add_column("Preset", no_wrap=True)
    for heading in ("px", "Params M", "MACs G"):
        view.add_column(heading, justify="right")
    view.add_column("Ramp: low-frequency heads of all, x blocks | next stage")
    for listing in listings:
        view.add_row(
            listing.name,
            str(listing.image_size),
            f"{listing.parameters / 1e6:.3f}",
            f"{listing.multiply_adds / 1e9:.3f}",
            listing.ramp,
        )
    return view

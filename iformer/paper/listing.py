"""The list of the presets and their costs that ``iformer list`` prints."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.table import Table

from iformer.models.presets import PRESETS
from iformer.paper.complexity import build, count


@dataclass(frozen=True)
class Listing:
    """A preset and what it costs.

    Attributes:
        name: The preset's name in timm.
        image_size: The side of its images in pixels.
        parameters: The number of parameters.
        multiply_adds: The number of multiply-adds for one image, by the complete count.
        attention_heads: The frequency ramp: for each block of each stage, the number of low-frequency heads.
        num_heads: The number of heads of each stage, high-frequency ones included.
    """

    name: str
    image_size: int
    parameters: int
    multiply_adds: int
    attention_heads: tuple[tuple[int, ...], ...]
    num_heads: tuple[int, ...]

    @property
    def ramp(self) -> str:
        """The ramp in short, stage by stage: '7/10 x4 9/10 x5' means 7 of 10 heads in 4 blocks, then 9 of 10 in 5."""
        stages = [
            " ".join(f"{low}/{total} x{len(list(run))}" for low, run in groupby(heads))
            for heads, total in zip(self.attention_heads, self.num_heads, strict=True)
        ]
        return " | ".join(stages)


def presets() -> list[Listing]:
    """Return every preset, measured at its own image size."""
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
    """Return the presets as a JSON document, with exact numbers of parameters and multiply-adds."""
    return [asdict(listing) for listing in listings]


def render(listings: Iterable[Listing]) -> Table:
    """Return the presets as a table for the terminal."""
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

"""What a ramp may cost: ``macs<=15M``, ``params<=0.95M``, ``latency<=2ms``, or ``latency<=1x``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

QUANTITIES: dict[str, dict[str, float]] = {
    "macs": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
}
"""The quantities, each with its units as multiples of the one that it is stated in: 1, 1 and milliseconds."""

RELATIVE = "x"
"""The unit of what the ramp that was set by hand takes."""


@dataclass(frozen=True)
class Budget:
    """A limit of what a ramp may cost.

    Attributes:
        quantity: ``macs``, the multiply-adds of one image; ``params``, the number of parameters; or ``latency``, that
            of one image in milliseconds.
        most: The highest value.
        text: The budget as the user gave it.
        relative: Whether ``most`` is a multiple of what the ramp that was set by hand takes.
    """

    quantity: str
    most: float
    text: str
    relative: bool = False

    def against(self, own: Mapping[str, float]) -> "Budget":
        """Return the budget as an absolute one, given the cost of the ramp that was set by hand."""
        return replace(self, most=self.most * own[self.quantity], relative=False) if self.relative else self

    def excess(self, cost: Mapping[str, float]) -> float:
        """Return by what share of the budget a cost exceeds it; 0 or less where it does not."""
        return cost[self.quantity] / self.most - 1


def read(texts: Sequence[str]) -> list[Budget]:
    """Return the budgets that a user gave.

    Raises:
        ValueError: A budget is not of the form ``macs<=15M``, or there are two of a quantity.
    """
    budgets = [_read(text) for text in texts]
    quantities = [budget.quantity for budget in budgets]
    for budget in budgets:
        if quantities.count(budget.quantity) > 1:
            raise ValueError(f"budget {budget.text}: there is another one of {budget.quantity}, expected one of each")
    return budgets


def _read(text: str) -> Budget:
    found = re.fullmatch(r"\s*(\w+)\s*<=\s*([\d.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found:
        raise ValueError(f"budget {text}: expected QUANTITY<=NUMBER, such as macs<=15M, params<=0.95M or latency<=2ms")
    quantity, number, unit = found.groups()
    if quantity not in QUANTITIES:
        raise ValueError(f"budget {text}: unknown quantity {quantity}, expected {', '.join(QUANTITIES)}")
    units = {**QUANTITIES[quantity], RELATIVE: 1.0}
    if unit not in units:
        known = ", ".join(unit or "no unit" for unit in units)
        raise ValueError(f"budget {text}: unknown unit {unit or 'none'}, expected {known}")
    try:
        most = float(number) * units[unit]
    except ValueError:
        most = 0.0
    if not most > 0:
        raise ValueError(f"budget {text}: {number} is no number above 0")
    return Budget(quantity, most, re.sub(r"\s", "", text), relative=unit == RELATIVE)


def shown(quantity: str, value: float) -> str:
    """Return a cost with its unit."""
    return f"{value:.3f} ms" if quantity == "latency" else f"{value / 1e6:.3f} M"

"""Weights of classes of unequal size: given by the user, or balanced by the number of training labels of each class."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

ClassWeights = Literal["balanced"] | list[float] | dict[str, float]
"""The weights of all classes in their order, or of some by their names, the others' being 1; or ``balanced``."""


def require_weights(key: str, weights: ClassWeights | None) -> None:
    """Check the weights that a user gives, as far as they can be checked without the data.

    Args:
        key: The name of the setting, for the message.
        weights: The weights.

    Raises:
        ValueError: A weight is negative or not finite, or all of a list are 0.
    """
    if weights is None or isinstance(weights, str):
        return
    for weight in weights.values() if isinstance(weights, Mapping) else weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"{key} has the weight {weight:g}, expected 0 or more")
    if not isinstance(weights, Mapping) and not any(weights):
        raise ValueError(f"{key} is {weights}, expected a weight above 0 for at least one class")


def weights_of(
    key: str, given: ClassWeights, names: Sequence[str], counts: Callable[[], Sequence[int] | None]
) -> list[float]:
    """Return the weight of each class.

    Balanced weights are inversely proportional to the number of training labels of a class, and 1 on average over these
    labels. A class without any gets the weight 0.

    Args:
        key: The name of the setting, for messages.
        given: The weights that the user gives.
        names: The names of the classes.
        counts: A function that returns the number of training labels of each class, or None if it cannot be told.

    Raises:
        ValueError: The weights do not fit the classes, or there are no numbers to balance.
    """
    if isinstance(given, str):
        found = counts()
        if found is None:
            raise ValueError(
                f"{key} is balanced, but this data does not tell how many labels a class has; give weights"
            )
        total, present = sum(found), sum(count > 0 for count in found)
        return [total / (present * count) if count else 0.0 for count in found]
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(names[:10])}"
                raise ValueError(f"{key} names {name}, which is none of the {len(names)} classes; {hint}")
        return [float(given.get(name, 1.0)) for name in names]
    if len(given) != len(names):
        raise ValueError(f"{key} has {len(given)} weights, expected one for each of {len(names)} classes")
    return [float(weight) for weight in given]

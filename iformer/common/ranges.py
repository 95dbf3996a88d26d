"""Ranges of settings, as types: jsonargparse checks them in recipes and arguments, pydantic in calls from Python."""

import dataclasses
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call

Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Size = tuple[Count, Count]


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"{values[0]} is more than {values[1]}, expected the smaller one first")
    return values


Range = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
ShareRange = Annotated[tuple[Factor, Factor], AfterValidator(_ascending)]

checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
"""Decorator of a constructor: arguments are of the types that it states, or it raises a ValueError."""


def require(key: str, value: Any, kind: Any) -> None:
    """Check a value that has no place of its own in a signature.

    Args:
        key: What it is called.
        value: The value.
        kind: A type, such as those of this file.

    Raises:
        ValueError: It is out of range; one line.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{key} is {value!r}, {in_words(error.errors(include_url=False)[0]['msg'])}") from error


def require_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their types; for its ``__post_init__``.

    Raises:
        ValueError: One is out of range; one line.
    """
    for field in dataclasses.fields(instance):
        require(field.name, getattr(instance, field.name), field.type)


def in_words(message: str) -> str:
    """Return what pydantic says of a value as part of a sentence."""
    return message.removeprefix("Value error, ").replace("Input should be", "expected")

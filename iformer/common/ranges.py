"""Ranges of settings, as types: jsonargparse checks them in recipes and arguments, pydantic in calls from Python."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, validate_call

Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
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

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def checked(constructor: Constructor) -> Constructor:
    """Decorate a constructor: arguments are of the types that it states, or it raises a ValueError of one line."""
    validated = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(constructor)

    @functools.wraps(constructor)
    def construct(*args: Any, **kwargs: Any) -> None:
        try:
            validated(*args, **kwargs)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            bound = inspect.signature(constructor).bind(*args, **kwargs).arguments  # a TypeError, if it does not fit
            name = str(first["loc"][0])
            raise ValueError(f"{name} is {bound.get(name)!r}, {in_words(first['msg'])}") from error

    return construct  # type: ignore[return-value]


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
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub(r"(greater|less) than or equal to (\S+)", _or_more, message)
    return message.partition(", unable to parse")[0]


def _or_more(found: re.Match[str]) -> str:
    return f"{found[2]} or {'more' if found[1] == 'greater' else 'less'}"

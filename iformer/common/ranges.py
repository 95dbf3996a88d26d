"""Types for the ranges of settings: jsonargparse checks them in recipes and arguments, pydantic in Python calls."""

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
    """Decorate a constructor so that it checks its arguments against their types.

    The constructor raises ValueError, with a message of one line, if an argument is not of its annotated type.
    """
    validated = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(constructor)

    @functools.wraps(constructor)
    def construct(*args: Any, **kwargs: Any) -> None:
        try:
            validated(*args, **kwargs)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            bound = inspect.signature(constructor).bind(*args, **kwargs).arguments  # TypeError if it does not fit
            name = str(first["loc"][0])
            raise ValueError(f"{name} is {bound.get(name)!r}, {in_words(first['msg'])}") from error

    return construct  # type: ignore[return-value]


def require(key: str, value: Any, kind: Any) -> None:
    """Check a value that is not an argument of a :func:`checked` constructor.

    Args:
        key: The name of the value, for the message.
        value: The value to check.
        kind: The type that the value must have, such as those of this file.

    Raises:
        ValueError: The value is out of range; the message is one line.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{key} is {value!r}, {in_words(error.errors(include_url=False)[0]['msg'])}") from error


def require_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their types; to be called in its ``__post_init__``.

    Raises:
        ValueError: A field is out of range; the message is one line.
    """
    for field in dataclasses.fields(instance):
        require(field.name, getattr(instance, field.name), field.type)


def in_words(message: str) -> str:
    """Return pydantic's message about a value as a part of a sentence."""
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub(r"(greater|less) than or equal to (\S+)", _or_more, message)
    return message.partition(", unable to parse")[0]


def _or_more(found: re.Match[str]) -> str:
    return f"{found[2]} or {'more' if found[1] == 'greater' else 'less'}"

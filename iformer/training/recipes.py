"""Recipes: YAML files with all settings of a run, either a user's or the packaged ones, which are found by name.

A recipe may be based on another: with ``base: imagenet1k/iformer_small`` it has all settings of that recipe, except for
those that it sets itself.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(str(files("iformer"))) / "recipes"


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.yaml"))


def find(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: A file, or the name of a packaged recipe.

    Raises:
        ValueError: There is no such file and no such recipe.
    """
    for path in (Path(name), RECIPES / f"{name.removesuffix('.yaml')}.yaml"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5) or names()
    raise ValueError(f"--config {name}: no such file or recipe; expected a YAML file or one of {', '.join(near)}")


def read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return all settings of a recipe, including those of the recipe that it is based on.

    Args:
        path: The recipe's file.
        above: The files of the recipes that are based on it.

    Raises:
        ValueError: The file is not YAML, does not hold settings, or is based on itself.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a recipe: it is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not a recipe: it holds {type(settings).__name__}, expected a mapping of settings")
    (first, *others) = settings.values() if settings else (None,)
    if not others and isinstance(first, dict) and "fit" in settings:
        settings = first  # earlier versions wrote the settings under the name of the command
    if "base" not in settings:
        return settings
    base = settings.pop("base")
    if not isinstance(base, str):
        raise ValueError(f"{path}: base is {base!r}, expected the name or the file of a recipe")
    beside = path.parent / base
    file = beside if beside.is_file() else find(base)
    if file.resolve() in (*above, path.resolve()):
        raise ValueError(f"{path}: base is {base}, which is itself based on this recipe")
    return merged(read(file, (*above, path.resolve())), settings)


def merged(base: Any, settings: Any) -> Any:
    """Return ``base`` updated with ``settings``; where they name another class, its settings replace the base's."""
    if not isinstance(base, dict) or not isinstance(settings, dict):
        return settings
    if settings.get("class_path", base.get("class_path")) != base.get("class_path"):
        return settings
    return {**base, **{key: merged(base.get(key), value) for key, value in settings.items()}}


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return the settings of a recipe by their dotted keys; an empty mapping is a value."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    return {name: value for key, inner in settings.items() for name, value in flat(inner, f"{prefix}{key}.").items()}


def of_arguments(arguments: Iterable[str]) -> dict[str, Any]:
    """Return the settings that ``--KEY VALUE`` or ``--KEY=VALUE`` make, nested as in a recipe."""
    settings: dict[str, Any] = {}
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        text = value if equals else next(rest, None)
        if not key.startswith("--") or text is None:
            raise ValueError(f"{argument}: expected --KEY VALUE, such as --trainer.max_epochs 10")
        settings = merged(settings, nested({key[2:]: _value(text)}))
    return settings


def _value(text: str) -> Any:
    """Return the value of an argument; 1e-3 is a number, which YAML takes for text."""
    return float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else yaml.safe_load(text)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted keys as nested mappings."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        for part in reversed(str(key).split(".")):
            value = {part: nested(value) if isinstance(value, dict) else value}
        result = merged(result, value)
    return result


def resolve(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the first recipe's name, and the arguments with the names of recipes replaced by their contents.

    Recipes come before all other arguments, which therefore override the recipes' settings wherever they stand.

    Args:
        arguments: The arguments of a command, including ``--config NAME``.

    Raises:
        ValueError: There is no such file and no such recipe, or the file is not a recipe.
    """
    found, recipes, others = [], [], []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key not in ("--config", "-c"):
            others.append(argument)
            if re.fullmatch(r"--(model|data)\.init_args\.\w+\.\w+", key):
                value = value if equals else next(rest, "")
                whole, _, field = key.rpartition(".")
                # jsonargparse would read null as the text None here; given as part of a dictionary it stays null.
                others[-1:] = [whole, json.dumps({field: None})] if value in ("null", "~") else [key, value]
            continue
        path = find(value if equals else next(rest, ""))
        found.append(str(path.relative_to(RECIPES).with_suffix("")) if RECIPES in path.parents else path.stem)
        recipes.append(f"--config={yaml.safe_dump(read(path), sort_keys=False)}")
    return (found or ["run"])[0], [*recipes, *others]

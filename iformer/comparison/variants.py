"""The variants of a recipe that are compared: named changes of its keys."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from iformer.common.files import write_text
from iformer.common.ranges import Count, require
from iformer.training import recipes
from iformer.training.task import Task

NAME = re.compile(r"\w[\w.+-]*")
"""The names that a variant may have: those that are good names of folders everywhere."""

MAY_DIFFER = (
    "seed_everything",
    "trainer.default_root_dir",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_progress_bar",
    "data.init_args.num_workers",
)
"""The keys that say where and on what a run is made, and not what is compared."""

ROOT = "data.init_args.root"
"""The key of the folder of the data, which may be at another place on another machine."""


@dataclass(frozen=True)
class Variant:
    """A variant of a recipe.

    Attributes:
        name: The variant's name, which is that of its folder too.
        settings: All settings of its recipe.
        seeds: The number of its seeds, which are 0, 1 and so on.
    """

    name: str
    settings: dict[str, Any]
    seeds: int

    @property
    def task(self) -> type[Task]:
        """The class of the variant's task.

        Raises:
            ValueError: The recipe names no such class.
        """
        return _task(self.settings, self.name)

    @property
    def epochs(self) -> int:
        """The number of epochs of a run, or 0 if the recipe counts in steps."""
        epochs = (self.settings.get("trainer") or {}).get("max_epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else 0

    def write(self, output: Path) -> Path:
        """Write the variant's recipe into its folder in ``output``, and return the file.

        Raises:
            ValueError: The folder has runs by another recipe, or of other data, or results without a recipe; the
                message names the first key that differs.
            OSError: The file could not be written.
        """
        file = output / self.name / "recipe.yaml"
        if file.is_file():
            before, now = (recipes.flat(settings) for settings in (recipes.read(file), self.settings))
            differing = [key for key in {**before, **now} if _differ(key, before.get(key), now.get(key))]
            if differing:
                key = differing[0]
                raise ValueError(
                    f"{file}: the runs there have {key} {before.get(key, 'unset')}, now it is {now.get(key, 'unset')}; "
                    "name another folder with --output, or remove this variant's"
                )
        elif any(file.parent.glob("seed_*.json")):
            raise ValueError(
                f"{file}: is missing beside results, which were copied without the recipe that they are of"
            )
        write_text(file, yaml.safe_dump(self.settings, sort_keys=False))
        return file


def read(config: str, variants: Path | None, models: str, seeds: int, arguments: Sequence[str] = ()) -> list[Variant]:
    """Return the variants to compare, the reference first.

    Args:
        config: The name or the file of the recipe.
        variants: A YAML file that maps the names of variants to the keys that differ from the recipe's, nested or
            dotted. ``seeds`` among them is the variant's own number of seeds.
        models: Names of timm models, separated by commas, if there is no such file.
        seeds: The number of seeds of variants that have no number of their own.
        arguments: Settings of all variants, ``--KEY VALUE`` as ``iformer fit`` takes them. They replace the recipe's;
            a variant's own replace them.

    Raises:
        ValueError: There is no such recipe, or the variants are not as described; the message names what is wrong.
        OSError: ``variants`` cannot be read.
    """
    if (variants is None) == (not models):
        raise ValueError("expected either --variants FILE or --models NAME,NAME,...")
    recipe = recipes.merged(recipes.read(recipes.find(config)), recipes.of_arguments(arguments))
    if variants is None:
        key = "backbone" if "backbone" in inspect.signature(_task(recipe, config)).parameters else "model"
        changes: dict[Any, Any] = {name: {f"model.init_args.{key}": name} for name in models.split(",")}
    else:
        changes = _from_file(variants)
    found = []
    for name, settings in changes.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(
                f"variant {name!r}: expected a name of letters, digits, '.', '_', '+' and '-', which is its folder's"
            )
        if not isinstance(settings, dict | None):
            raise ValueError(f"variant {name}: is {settings!r}, expected a mapping of the recipe's keys")
        settings = dict(settings or {})
        own = settings.pop("seeds", seeds)
        require(f"{name}.seeds", own, Count)
        found.append(Variant(name, recipes.merged(recipe, recipes.nested(settings)), own))
    metrics = {variant.name: variant.task.metric for variant in found}
    for name, metric in metrics.items():
        if metric != metrics[found[0].name]:
            first = found[0].name
            raise ValueError(
                f"variant {name}: is judged by {metric}, and {first} by {metrics[first]}: they are of different tasks"
            )
    if len(found) < 2:
        raise ValueError(f"{variants or '--models'}: {len(found)} variants, expected two or more to compare")
    return found


def _differ(key: str, before: Any, now: Any) -> bool:
    """Return whether a key makes a difference to what is compared; a folder that is not here is another machine's."""
    if key == ROOT and isinstance(before, str) and isinstance(now, str):
        return Path(before).exists() and Path(before).resolve() != Path(now).resolve()
    return bool(before != now) and key not in MAY_DIFFER


def _from_file(file: Path) -> dict[Any, Any]:
    try:
        changes = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: it is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(changes, dict):
        raise ValueError(f"{file}: holds {type(changes).__name__}, expected a mapping of variants' names to their keys")
    return changes


def _task(settings: Mapping[str, Any], where: str) -> type[Task]:
    path = (settings.get("model") or {}).get("class_path", "")
    try:
        found = resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: model.class_path is {path!r}, expected the class of a task") from error
    if not hasattr(found, "metric"):
        raise ValueError(f"{where}: {path} has no attribute metric, the name of the metric to compare by")
    return found

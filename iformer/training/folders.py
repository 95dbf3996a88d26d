"""Training on a folder of images: its task is recognised, and the recipe chosen from what the folder holds.

Each task has a module ``folders`` with three functions, as described by :class:`Wing`. They are found by the name of
the task.
"""

import difflib
import inspect
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from rich.console import RenderableType
from rich.text import Text

from iformer.training import checkpoints, recipes
from iformer.training.survey import Survey
from iformer_command.terminal import printable

TASKS = ("detection", "segmentation", "classification")
"""The tasks in the order in which they are asked; classification comes last, because it takes any folders."""

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The usual names of the splits."""

STEPS = 8  # the least number of steps in an epoch for which the recipe's batch is kept

EXPECTED = (
    "expected a folder of images for each class (CLASS/, or train/CLASS/ and val/CLASS/); or images and annotations in "
    "COCO's format (annotations/instances_train.json and instances_val.json); or images and label maps (images/train, "
    "labels/train, images/val, labels/val)"
)


@dataclass(frozen=True)
class Options:
    """What a user may ask of a run in short; None or '' leaves it to the recipe.

    Attributes:
        model: The name of a timm model, which is the backbone of a detector or segmenter.
        weights: The weights to begin with: ``released``, ``random``, or a file or folder.
        image_size: The size of the images in training, in pixels.
        epochs: The number of passes over the training images.
        batch_size: The number of images in a batch, on each device.
        lr: The learning rate after warm-up, whatever the batch.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: The number of processes that load images.
        output: The run's folder.
        seed: The seed of the run.
    """

    model: str = ""
    weights: str = ""
    image_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    device: str = ""
    workers: int | None = None
    output: Path | None = None
    seed: int | None = None


class Wing(Protocol):
    """The part that depends on the task: the functions of the module ``folders`` of each wing.

    Attributes:
        DATA: The datamodule.
    """

    DATA: type

    def recognise(self, folder: Path) -> dict[str, Any] | None:
        """Return the datamodule's arguments for a folder, or None if its data is not for this task.

        Raises:
            ValueError: The data is for this task, but something is missing; the message says what.
        """

    def survey(self, data: Mapping[str, Any]) -> Survey:
        """Read all that the datamodule's arguments name.

        Raises:
            ValueError: There is nothing to learn from; the message says why.
        """

    def recipe(self, survey: Survey, options: Options) -> dict[str, Any]:
        """Return a recipe for the data: its ``base``, and what follows from the survey, ``model`` and the sizes."""


@dataclass(frozen=True)
class Run:
    """A run on a folder that is ready to begin.

    Attributes:
        task: The name of the task.
        folder: The run's folder.
        survey: What the data holds.
        settings: The recipe that was chosen.
        arguments: Further arguments of the command, which override the recipe.
    """

    task: str
    folder: Path
    survey: Survey
    settings: dict[str, Any]
    arguments: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The name of the run's recipe."""
        return self.folder.resolve().name

    def document(self) -> dict[str, Any]:
        """Return what was found and chosen as plain values for JSON."""
        found = {"task": self.task, "output": str(self.folder), **self.survey.document()}
        return {**found, "recipe": recipes.merged(self.settings, _given(self.arguments))}

    def render(self) -> list[RenderableType]:
        """Return what was found and chosen for a terminal."""
        settings = recipes.merged(self.settings, _given(self.arguments))
        task = settings["model"]["init_args"]
        network = " over ".join(str(task[key]) for key in ("architecture", "backbone", "model") if key in task)
        weights = {True: "the released weights", False: "random weights"}.get(task["pretrained"], task["pretrained"])
        epochs, batch = settings["trainer"]["max_epochs"], settings["data"]["init_args"]["batch_size"]
        line = f"{self.task}: {network} from {weights}; epochs: {epochs}, batch: {batch}; into {self.folder}"
        return [*self.survey.render(), Text(printable(line))]

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint from which the run can go on."""
        return bool(checkpoints.available(self.folder))

    def require_trainable(self) -> None:
        """Raise ValueError, which says why, if training could not read the data."""
        if self.survey.obstacle:
            raise ValueError(self.survey.obstacle)

    def afterwards(self, metrics: Mapping[str, float]) -> list[str]:
        """Return the figures of the last validation, and the commands to go on with."""
        figures = (f"{name.removeprefix('val_')} {value:.4g}" for name, value in metrics.items() if name[:4] == "val_")
        folder, verb = shlex.quote(str(self.folder)), "test" if self.survey.has_test else "validate"
        return [
            f"Validation: {', '.join(figures)}",
            f"Predict:    iformer predict IMAGE... --model {folder}",
            f"Look:       iformer analyze IMAGE_OR_FOLDER... --model {folder}",
            f"Evaluate:   iformer {verb} --config {folder}/recipe.yaml --resume",
            f"Export:     iformer export {folder}",
        ]


def prepare(data: Path, options: Options, arguments: Sequence[str] = (), again: bool = False) -> Run:
    """Recognise the data in a folder, survey it and choose the recipe; nothing is written.

    Args:
        data: The folder.
        options: What the user asks for.
        arguments: Further arguments of the command, ``--KEY VALUE``, which override the recipe; those of the datamodule
            also say how to read the data.
        again: Whether the run's folder may hold checkpoints of an earlier run.

    Raises:
        ValueError: The folder holds no data of a known kind, an option is wrong, or an earlier run has used the run's
            folder; the message says what would be right.
        OSError: The folder does not exist.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder")
    asked = _given(arguments)
    elsewhere = asked.get("trainer", {}).get("default_root_dir")
    output = Path(elsewhere) if elsewhere else options.output or Path("runs", data.resolve().name)
    if checkpoints.available(output) and not again:
        raise ValueError(
            f"{output}: holds checkpoints of an earlier run; go on with --resume, or name another folder with --output"
        )
    given = recipes.nested({**_keys(options), "trainer.default_root_dir": str(output)})
    task, wing, found = _recognised(data)
    of_data = asked.get("data", {}).get("init_args", {})
    _require_known(of_data, wing.DATA)
    survey = wing.survey({**found, **of_data})
    chosen = wing.recipe(survey, options)
    base = recipes.read(recipes.find(chosen.pop("base")))
    settings = recipes.merged(base, {"data": {"init_args": found}})
    for more in (survey.settings, chosen, _batch(settings, survey), given):
        settings = recipes.merged(settings, more)
    return Run(task, output, survey, settings, arguments)


def _recognised(folder: Path) -> tuple[str, Wing, dict[str, Any]]:
    for task in TASKS:
        wing = cast("Wing", import_module(f"iformer.{task}.folders"))
        if (found := wing.recognise(folder)) is not None:
            return task, wing, found
    raise ValueError(f"{folder}: nothing to train on was recognised; {EXPECTED}")


def _require_known(arguments: Mapping[str, Any], datamodule: type) -> None:
    """Raise ValueError, which names the nearest one, if a datamodule has no such argument."""
    known = list(inspect.signature(datamodule).parameters)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f", did you mean data.init_args.{near[0]}?" if near else ""
            raise ValueError(f"unknown key data.init_args.{name}{meant}")


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of model, data and trainer that arguments of the command make."""
    given: list[str] = []
    for place, argument in enumerate(arguments):
        if re.match(r"--(model|data|trainer)\.[\w.]+(=|$)", argument):
            given += [argument] if "=" in argument else arguments[place : place + 2]
    return recipes.of_arguments(given)


def arguments(options: Options) -> list[str]:
    """Return those options that have the same keys in every recipe as arguments of a command by a recipe."""
    given = _keys(options).items()
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given]


def _keys(options: Options) -> dict[str, Any]:
    """Return the options that were given by their keys in a recipe."""
    given = {
        "trainer.max_epochs": options.epochs,
        "data.init_args.batch_size": options.batch_size,
        "data.init_args.num_workers": options.workers,
        "seed_everything": options.seed,
        "trainer.default_root_dir": str(options.output) if options.output else None,
        "model.init_args.optimization.lr": options.lr,
        **_device(options.device),
    }
    found = {key: value for key, value in given.items() if value is not None}
    # The rate stands for whatever the batch.
    return found if options.lr is None else {**found, "model.init_args.optimization.base_batch": None}


def _device(name: str) -> dict[str, Any]:
    if name in ("", "auto"):
        return {}
    if not (parts := re.fullmatch(r"(cpu|cuda|mps)|cuda:(\d+)", name)):
        raise ValueError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    kind = parts[1] or "cuda"
    devices: Any = [int(parts[2])] if parts[2] else 1
    return {"trainer.accelerator": {"cuda": "gpu"}.get(kind, kind), "trainer.devices": devices}


def _batch(settings: Mapping[str, Any], survey: Survey) -> dict[str, Any]:
    """Return the recipe's batch, made smaller where an epoch would have too few steps."""
    images = len(survey.files["train"])
    usual: int = settings["data"]["init_args"]["batch_size"]
    return {"data": {"init_args": {"batch_size": min(usual, max(2, images // STEPS), images)}}}

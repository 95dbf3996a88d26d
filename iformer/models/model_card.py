"""The model card of a saved model, ``README.md``, with the metadata that the Hugging Face Hub reads.

It is made of the folder's own files: ``config.json``, ``recipe.yaml``, and ``evaluations.json``, which
:mod:`iformer.training.evaluations` writes. The part between two marks is written anew each time. What a user has
written outside of it stays, and so do the metadata that a user has set.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from iformer.common.files import read_json, write_text
from iformer.common.pages import render
from iformer_command.terminal import printable

CARD, EVALUATIONS = "README.md", "evaluations.json"
BEGIN, END = "<!-- iformer: written by the command from here -->", "<!-- iformer: to here; other text stays -->"
PLACEHOLDER = "USER/NAME"
"""What the card calls the repository of a model that has not been published."""

CONFUSION = "confusion.png"
FIGURES = ("per_class.csv", "confusion.csv", CONFUSION)
"""The files of a test that belong to the card."""

UNKNOWN = "unknown"
"""The Hub's name for a licence that is not stated."""

METRIC_TYPES = {"map": "mean_average_precision", "miou": "mean_iou", "box_ap": "mean_average_precision"}
"""The Hub's names of those metrics that it calls otherwise."""


@dataclass(frozen=True)
class Kind:
    """What the card of a task's models says about them.

    Attributes:
        noun: The word for such a model.
        pipeline: The Hub's name of the task.
        library: The library that loads such a model from the Hub.
        limit: What such a model does with images that it was not trained for.
    """

    noun: str
    pipeline: str
    library: str
    limit: str


KINDS = {
    "classification": Kind(
        "image classifier",
        "image-classification",
        "timm",
        "It knows the classes above and no others: it names one of them for every image, also for an image of "
        "something else.",
    ),
    "detection": Kind(
        "object detector",
        "object-detection",
        "iformer",
        "It finds objects of the classes above and no others. A score is no probability that the object is there.",
    ),
    "segmentation": Kind(
        "semantic segmenter",
        "image-segmentation",
        "iformer",
        "It knows the classes above and no others: every pixel gets one of them, also where something else is.",
    ),
}
SEVERAL_LABELS = "It knows the labels above and no others. An image may have several of them, or none."


def write(folder: Path) -> None:
    """Write the card of the model in ``folder``; a ``README.md`` that is not such a card is left as it is.

    Raises:
        OSError: The card could not be written.
        ValueError: The card's metadata, which a user may have edited, are not valid.
    """
    if (text := card(folder)) != _read(folder / CARD):
        write_text(folder / CARD, text)


def card(folder: Path, repository: str = PLACEHOLDER, licence: str = "") -> str:
    """Return the card of the model in ``folder``, with what a user has written into an earlier one.

    Args:
        folder: The folder of a saved model.
        repository: The repository on the Hub that the card names in its commands.
        licence: The model's licence, by the Hub's name for it, such as ``apache-2.0``; '' for that of the earlier card,
            or ``unknown``.

    Raises:
        ValueError: The metadata of the earlier card are not valid.
    """
    earlier = _read(folder / CARD)
    generated = BEGIN in earlier and END in earlier
    if earlier and not generated and not licence:
        return earlier
    config, recipe, evaluations = read_json(folder / "config.json"), _recipe(folder), read_json(folder / EVALUATIONS)
    own = metadata(config, recipe, evaluations)
    old = parsed(earlier, folder / CARD)
    data = {**own, **old.data.to_dict()}
    data["license"] = licence or data["license"]
    if generated:
        data.pop("model-index", None)
        data |= {key: own[key] for key in own if key == "model-index"}
    body = _body(folder, config, recipe, evaluations, repository)
    text = old.text if earlier else f"{body}{REMARKS}"
    if generated:
        before, _, rest = text.partition(BEGIN)
        text = f"{before}{body}{rest.partition(END)[2]}"
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n{text.lstrip(chr(10))}"


def parsed(text: str, file: Path) -> ModelCard:
    """Return a card as its metadata and the rest.

    Raises:
        ValueError: The metadata are not valid; the message names ``file``.
    """
    try:
        return ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: its metadata are not valid ({' '.join(str(error).split())})") from error


def licence_of(card: ModelCard) -> str:
    """Return the licence that a card states, by the Hub's name for it; '' if it states none, or ``unknown``."""
    stated = str(card.data.get("license") or "")
    return "" if stated == UNKNOWN else stated


REMARKS = """

## Intended use

To be written by whoever publishes the model: what it is meant for and what not, and whose images it has learned from.
"""


def metadata(config: Mapping[str, Any], recipe: Mapping[str, Any], evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata that the Hub reads from the card, in its words.

    Args:
        config: The contents of ``config.json``.
        recipe: The contents of ``recipe.yaml``, or an empty mapping.
        evaluations: The contents of ``evaluations.json``, or an empty mapping.
    """
    kind, data = KINDS[_task(config)], _data(recipe)
    results = [
        EvalResult(
            task_type=kind.pipeline, dataset_type=re.sub(r"\W+", "-", data).strip("-").lower() or "images",
            dataset_name=data or "images", dataset_split=stage, metric_type=METRIC_TYPES.get(name, name),
            metric_name=name, metric_value=value,
        )
        for stage in ("validation", "test")
        for name, value in evaluations.get(stage, {}).get("metrics", {}).items()
        if name != "loss"
    ]  # fmt: skip
    init = recipe.get("model", {}).get("init_args", {}).get("pretrained")
    reader = str(recipe.get("data", {}).get("init_args", {}).get("reader") or "")
    return ModelCardData(
        license=UNKNOWN,
        library_name=kind.library,
        pipeline_tag=kind.pipeline,
        tags=[kind.library, "iformer", *([] if kind.library == "timm" else [_network(config)[0]])],
        datasets=[reader.removeprefix("hfds/")] if reader.startswith("hfds/") else None,
        base_model=init.removeprefix("hf-hub:").partition("@")[0] if str(init).startswith("hf-hub:") else None,
        model_name=_name(config),
        eval_results=results or None,
    ).to_dict()


def _body(
    folder: Path, config: Mapping[str, Any], recipe: Mapping[str, Any], evaluations: Mapping[str, Any], repository: str
) -> str:
    """Return the part of the card that is written by the command, with its marks."""
    kind, names = KINDS[_task(config)], _class_names(config)
    training = evaluations.get("training", {})
    stages = {stage: evaluations[stage] for stage in ("validation", "test") if stage in evaluations}
    text = render(
        "model_card.md.j2", html=False, name=_name(config), kind=kind, task=_task(config), data=_data(recipe),
        began=_began(recipe), classes=names[:50], more=len(names[50:]), preprocessing=_preprocessing(config),
        repository=repository, training=training, command=_public_words(training.get("command", "")),
        settings=_settings(recipe), stages=stages, validation=stages.get("validation", {}),
        commands=list(dict.fromkeys(_public_words(found["command"]) for found in stages.values())),
        metrics=list(dict.fromkeys(name for found in stages.values() for name in found["metrics"])),
        files=[name for name in FIGURES if (folder / name).is_file()] if "test" in stages else [], picture=CONFUSION,
        limit=SEVERAL_LABELS if config.get("thresholds") else kind.limit,
    )  # fmt: skip
    return f"{BEGIN}\n{text.strip()}\n{END}"


def _task(config: Mapping[str, Any]) -> str:
    return str(config.get("task", "classification"))


def _network(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the architecture and, for a network around one, of the backbone."""
    if "network" not in config:
        return [config["architecture"]]
    return [config["network"]["architecture"], config["network"]["backbone"]]


def _name(config: Mapping[str, Any]) -> str:
    return " over ".join(_network(config))


def _class_names(config: Mapping[str, Any]) -> list[str]:
    names = config.get("class_names") or config.get("label_names") or []
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def _preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how images are prepared, by the keys of ``config.json``."""
    keys = {
        "classification": ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"),
        "segmentation": ("resize", "window", "flip_test", "mean", "std"),
        "detection": ("min_size", "max_size"),
    }[_task(config)]
    stated = {"classification": config.get("pretrained_cfg"), "detection": config.get("network")}
    values = stated.get(_task(config)) or config
    found = {key: values[key] for key in keys if values.get(key) is not None}
    return {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in found.items()}


def _data(recipe: Mapping[str, Any]) -> str:
    """Return the name of the data: of a data set, or of the folder that holds it; '' if the recipe names none."""
    arguments = recipe.get("data", {}).get("init_args", {})
    reader = str(arguments.get("reader") or "")
    if reader.startswith("hfds/"):
        return printable(reader.removeprefix("hfds/"))
    folder = arguments.get("root") or arguments.get("data_dir") or ""
    return printable(Path(folder).name)


def _began(recipe: Mapping[str, Any]) -> str:
    """Return what the training began with."""
    arguments = recipe.get("model", {}).get("init_args", {})
    weights = arguments.get("pretrained", False)
    if isinstance(weights, bool):
        name = arguments.get("model") or arguments.get("backbone")
        return f"the released weights of {name}" if weights else "random weights"
    return str(_public(weights))


def _settings(recipe: Mapping[str, Any]) -> list[str]:
    """Return the settings of a run that say how it trained, without those that are not set, as lines of YAML."""
    kept = {key: recipe[key] for key in ("seed_everything", "model", "data", "trainer", "freeze") if recipe.get(key)}
    if "trainer" in kept:
        kept["trainer"] = {key: value for key, value in kept["trainer"].items() if key not in HIDDEN}
    shown = _public(_without_none(kept))
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None).splitlines() if shown else []


HIDDEN = ("default_root_dir", "logger", "callbacks", "plugins", "profiler")
"""Settings of the trainer that a card does not show: they say where a run writes, and may hold what is private."""


def _without_none(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: _without_none(value) for key, value in settings.items() if value is not None}


def _public(value: Any) -> Any:
    """Return settings in which an absolute path is its last part: where it is on a machine is nobody's business."""
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _public_words(command: str) -> str:
    """Return a command in which absolute paths are their last parts."""
    words = (word.rpartition("=") for word in shlex.split(command))
    return shlex.join(f"{key}{equals}{_public(value)}" for key, equals, value in words)


def _recipe(folder: Path) -> dict[str, Any]:
    """Return the settings of the run that has written the folder, or nothing if no run has."""
    text = _read(folder / "recipe.yaml")
    found = yaml.safe_load(text) if text else {}
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> str:
    """Return the text of a file, or '' if it does not exist."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""

"""One-line errors for a user's mistakes in recipes, arguments and checkpoints."""

import contextlib
import dataclasses
import difflib
import inspect
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from iformer.common.ranges import in_words
from iformer_command.terminal import reason


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn Lightning's and torch's errors for a user's mistake into a ValueError of one line, and keep Ctrl-C."""
    try:
        yield
    except MisconfigurationException as error:
        raise ValueError(" ".join(str(error).split())) from error
    except pickle.UnpicklingError as error:
        raise ValueError("the file is not a checkpoint, or holds more than weights and plain values") from error
    except RuntimeError as error:
        first, _, rest = str(error).partition("\n")
        if "does not have a deterministic implementation" in first:  # a test fails when torch says it in other words
            raise ValueError(
                f"trainer.deterministic is true, but {first.split()[0]} has no deterministic implementation; expected "
                "warn or false"
            ) from error
        if not first.startswith("Error(s) in loading state_dict"):
            raise
        raise ValueError(f"the checkpoint does not fit the model: {rest.strip().splitlines()[0].strip()}") from error
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning exits with status 1 on Ctrl-C
            raise KeyboardInterrupt from end
        raise


def out_of_memory(error: torch.OutOfMemoryError, verb: str, settings: Namespace) -> str:
    """Return what was asked of the GPU's memory and which settings of a run make it less, in one line.

    Args:
        error: The error, whose message has the figures.
        verb: ``fit``, ``validate`` or ``test``.
        settings: All settings of the run.
    """
    model, data, trainer = settings.model.init_args, settings.data.init_args, settings.trainer
    advice = []
    if verb != "fit":
        size = "eval_batch_size" if data.get("eval_batch_size") else "batch_size"
        advice.append(f"lower data.init_args.{size} ({data.get(size)})")
    else:
        advice.append(
            f"lower data.init_args.batch_size ({data.get('batch_size')}) and raise trainer.accumulate_grad_batches "
            f"({trainer.accumulate_grad_batches}) by the same factor"
        )
        if model.get("grad_checkpointing") is False:
            advice.append("set model.init_args.grad_checkpointing to true")
    if str(trainer.precision) in ("None", "32", "32-true"):
        advice.append("set trainer.precision to bf16-mixed")
    return f"{reason(error)} To need less, {', or '.join(advice)}"


def explain(message: str, known: Sequence[str]) -> str:
    """Return jsonargparse's message of many lines as one line: the key and what is wrong with it.

    jsonargparse raises the same exception for every mistake and describes the mistake only in its message.
    ``tests/training/test_ranges.py`` and ``test_recipes.py`` fail when the wording changes.

    Args:
        message: The message of jsonargparse's exception.
        known: The known keys, without the arguments of the classes that ``message`` names.
    """
    message = re.sub(r"\s+", " ", message)
    unknown = re.search(r"(?:[Oo]ption '|unrecognized arguments: )(?:--)?([\w.+-]+)", message)
    if unknown:
        names = [
            *known,
            *(name for path in re.findall(r"class_path '([\w.]+)'", message) for name in _parameters(path)),
        ]
        # Keys are compared by their last part too, because the message does not say where a nested class stands.
        parts = {name.rpartition(".")[2]: name for name in names} | {name: name for name in names}
        near = difflib.get_close_matches(unknown[1], parts, n=1, cutoff=0.6)
        return f"unknown key {unknown[1]}{f', did you mean {parts[near[0]]}?' if near else ' (see --help)'}"
    if missing := re.search(r"(?:No module named|has no attribute|Unexpected import path format).*?(?= - |$)", message):
        return f"class_path: {missing[0]}"
    if wrong := re.search(r"(Input should be .*?|Value error, .*?) \[type=.*?input_value=(.*?), input_type", message):
        where = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
        return f"{where}: {in_words(wrong[1])}, got {wrong[2].strip(chr(39))}"
    keys = re.findall(r'Parser key "([\w.]+)"', message)
    expected = re.search(r"Expected an? (?:<class '(\w+)'>|(.+?)(?:\. Got|;|$))", message)
    value = re.search(r"(?:Got|Given) value: (.*?)(?: - |$)", message)
    if keys and value and (choices := re.findall(r"Literal\[(.*?)\]", message)):
        known_values = ", ".join(dict.fromkeys(", ".join(choices).split(", ")))
        return f"{'.'.join(dict.fromkeys(keys))}: expected one of {known_values}, got {value[1][:80]}"
    if keys and expected and value:
        return f"{'.'.join(dict.fromkeys(keys))}: expected {expected[1] or expected[2]}, got {value[1][:80]}"
    return message if len(message) < 400 else f"{message[:400]}..."


def _parameters(path: str) -> list[str]:
    """Return the arguments of the class or function ``path``, and the fields of those that are dataclasses."""
    names = []
    for name, parameter in inspect.signature(resolve_name(path)).parameters.items():
        names.append(name)
        if dataclasses.is_dataclass(parameter.annotation):
            names += [f"{name}.{field.name}" for field in dataclasses.fields(parameter.annotation)]
    return names


def require_data(value: Any, key: str) -> None:
    """Raise ValueError if a dictionary below ``key``, such as ``model_args``, names a class to be instantiated."""
    if isinstance(value, Mapping | Namespace):
        items = vars(value) if isinstance(value, Namespace) else value
        if "class_path" in items:
            raise ValueError(f"{key}: names the class {items['class_path']}, expected plain values")
        for name, inner in items.items():
            require_data(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            require_data(inner, f"{key}[{number}]")

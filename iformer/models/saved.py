"""Checkpoints of this project: a folder with ``config.json`` and ``model.safetensors``, as on the Hugging Face Hub.

A classifier's folder is all that timm needs: ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Those of
detectors and segmenters name their task in ``config.json``, and what builds them.
"""

import copy
import difflib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from iformer.common.files import replaced
from iformer.models import released


def create(name: str, pretrained: bool | str = False, **arguments: Any) -> Any:
    """A timm model.

    Args:
        name: In timm's registry.
        pretrained: True for the released weights, or a file of a classifier's weights, or the folder of a run that
            trained one; position embeddings are resized to the model's, and a classifier of another number of classes
            begins anew.
        arguments: Of ``timm.create_model``.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ValueError(f"model: timm has no {name}{f', did you mean {near[0]}?' if near else ''}")
    if isinstance(pretrained, str):
        arguments = {**arguments, "pretrained_cfg_overlay": _weights(Path(pretrained))}
    try:
        with _missing_keys() as missing:
            model = timm.create_model(name, pretrained=bool(pretrained), **arguments)
    except (RuntimeError, TypeError, KeyError, AssertionError, IndexError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} with {arguments}: {message}") from error
    except OSError as error:
        if pretrained is not True:
            raise
        raise OSError(
            f"{name}: its weights could not be fetched ({getattr(error, 'reason', error)}); "
            "give the path of a local copy for `pretrained`"
        ) from error
    lacking = [key for key in missing if not key.startswith(_classifiers(name))]
    if isinstance(pretrained, str) and lacking:
        raise ValueError(
            f"{pretrained}: not a checkpoint of {name}: it lacks {len(lacking)} of its tensors, {lacking[0]} first"
        )
    return model


@contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """The tensors that timm does not find in a file, which it tells nobody but its log where it loads a part."""
    missing: list[str] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.match(r"Missing keys \((.*)\) discovered", record.getMessage()):
                missing.extend(found[1].split(", "))

    logger, reader = logging.getLogger("timm.models._builder"), Reader()
    level = logger.level
    logger.addHandler(reader)
    logger.setLevel(logging.INFO)
    try:
        yield missing
    finally:
        logger.setLevel(level)
        logger.removeHandler(reader)


def _classifiers(name: str) -> tuple[str, ...]:
    """How the names of the model's classifiers begin, which are not in every file."""
    names = getattr(timm.get_pretrained_cfg(name), "classifier", None) or ()
    return tuple(f"{module}." for module in ([names] if isinstance(names, str) else names))


def _weights(path: Path) -> dict[str, Any]:
    """What timm is to know of a file of weights, or of the folder of a run."""
    known = {}
    if path.is_dir():
        if (path / "config.json").is_file():
            known = json.loads((path / "config.json").read_text())
            if "task" in known:
                raise ValueError(f"{path}: a checkpoint for {known['task']}, expected a classifier's")
            known = {"num_classes": known["num_classes"]}
        path /= "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (weights to begin from)")
    return {"file": str(path), **known}


def save(model: nn.Module, folder: str | Path, class_names: Sequence[str], **data_config: Any) -> None:
    """Write a classifier into ``folder``. What was there before stays whole until the new files are complete.

    Args:
        model: A model made by timm.
        folder: Made if it is not there.
        class_names: One per class.
        data_config: Preprocessing that differs from the model's default: ``input_size``, ``mean``, ``std``...

    Raises:
        OSError: The files could not be written.
    """
    with replaced(Path(folder)) as temporary:
        save_for_hf(
            copy.deepcopy(model).to(memory_format=torch.contiguous_format),  # safetensors knows no other
            str(temporary),
            data_config=data_config,
            model_config={"label_names": list(class_names)},
            safe_serialization=True,
        )


def save_assembled(model: nn.Module, folder: str | Path, task: str, config: dict[str, Any]) -> None:
    """Write a detector or segmenter into ``folder``, as :func:`save` does a classifier.

    Args:
        model: The network.
        folder: Made if it is not there.
        task: ``detection`` or ``segmentation``.
        config: For ``config.json``: all that the task's ``predict`` needs to build the network again and to name its
            classes.

    Raises:
        OSError: The files could not be written.
    """
    state_dict = {key: value.contiguous() for key, value in model.state_dict().items()}
    with replaced(Path(folder)) as temporary:
        save_file(state_dict, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps({"task": task, **config}, indent=2))


def find(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a checkpoint and what its ``config.json`` says; ``task`` is ``classification`` if it does not.

    Args:
        path: The folder, or one of the two files in it.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        ValueError: ``path`` is another kind of file, or ``config.json`` is not JSON.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file() and path.name not in ("config.json", "model.safetensors"):
        raise ValueError(f"{path}: expected the folder of a checkpoint, or its config.json or model.safetensors")
    folder = path if path.is_dir() else path.parent
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such file (a checkpoint is config.json and model.safetensors)"
            )
    try:
        return folder, {"task": "classification", **json.loads((folder / "config.json").read_text())}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: not a checkpoint's ({error})") from error


def load(path: str | Path, pretrained: bool = True) -> nn.Module:
    """Read a classifier for inference.

    Args:
        path: Its folder, or one of the two files in it.
        pretrained: With its weights; without, the same network before it was trained.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        ValueError: The files do not belong together, or are damaged.
    """
    folder, config = find(path)
    if config["task"] != "classification":
        raise ValueError(f"{folder}: a checkpoint for {config['task']}, expected a classifier")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=pretrained)
    except (SafetensorError, RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a checkpoint of a known model ({str(error).splitlines()[0]})") from error
    return model.eval()


def load_assembled(model: nn.Module, folder: Path) -> nn.Module:
    """Read the weights that :func:`save_assembled` has written into ``model``, and put it into evaluation mode.

    Raises:
        ValueError: They do not fit, or the file is damaged.
    """
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: weights and config.json do not fit ({str(error).splitlines()[0]})") from error
    return model.eval()


def convert_official(source: str | Path, target: str | Path) -> str:
    """Rewrite a checkpoint of the authors' release as safetensors with our names; returns the preset that it fits.

    timm loads the result with ``pretrained_cfg_overlay=dict(file=target)``.

    Raises:
        FileNotFoundError: There is no ``source``.
        ValueError: ``source`` is not a released checkpoint, or ``target`` does not end in ``.safetensors``.
        OSError: ``target`` could not be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the file to write must end in .safetensors")
    state_dict = released.load(source)
    if not released.is_official(state_dict):
        raise ValueError(
            f"{source}: not a checkpoint of the iFormer release (its first key is {next(iter(state_dict))})"
        )
    state_dict = {key: value.contiguous() for key, value in released.convert(state_dict).items()}
    preset = _preset_of(state_dict)
    if preset is None:
        raise ValueError(f"{source}: its tensors fit none of the models that the authors released")
    with replaced(target.parent, named=target) as temporary:
        save_file(state_dict, temporary / target.name, metadata={"format": "pt", "architecture": preset})
    return preset


def _preset_of(state_dict: dict[str, Tensor]) -> str | None:
    """The released preset whose tensors have just these names and shapes."""
    shapes = {key: value.shape for key, value in state_dict.items()}
    for name in timm.list_models("iformer_*", module="presets", pretrained=True):
        model = timm.create_model(name, device="meta")
        if shapes == {key: value.shape for key, value in model.state_dict().items()}:
            return name
    return None

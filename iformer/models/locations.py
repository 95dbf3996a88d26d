"""Where a model is: a saved model's folder, one of the files in it, a repository of the Hub, or an exported file."""

from pathlib import Path
from typing import Any

import timm

from iformer.models import config

HUB = "hf-hub:"
"""The prefix of the name of a repository on the Hugging Face Hub, as in timm."""

FILES = ("config.json", "model.safetensors")
"""The files of a saved model."""


EXPORTED = (".onnx", ".xml", ".pt2")
"""The suffixes of exported files."""


def is_exported(reference: str) -> bool:
    """Return whether a reference stands for an exported file, which need not exist."""
    return Path(reference).suffix in EXPORTED and not Path(reference).is_dir()


def refuse_exported(reference: str) -> None:
    """Raise ValueError if a reference stands for an exported file where a network of PyTorch is needed."""
    if is_exported(reference):
        raise ValueError(
            f"{reference}: an exported file, which only predict runs; give the model that it was exported from"
        )


def is_saved(reference: str) -> bool:
    """Return whether a reference stands for a saved model, and not for a timm model or a file of weights."""
    if not reference:
        return False
    path = Path(reference)
    if path.is_file():
        return path.name == "config.json" or (path.name in FILES and (path.parent / "config.json").is_file())
    has_one = any((path / name).is_file() for name in FILES)
    return reference.startswith(HUB) or has_one or (path.is_dir() and not timm.is_model(reference))


def has_weights(reference: str) -> bool:
    """Return whether a saved model has weights, and is not the folder of a ``config.json`` alone."""
    path = Path(reference)
    return reference.startswith(HUB) or ((path if path.is_dir() else path.parent) / "model.safetensors").is_file()


def find(reference: str | Path, weights: bool = True) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a saved model and the contents of its ``config.json``.

    Args:
        reference: The folder, or one of the two files in it; or ``hf-hub:USER/NAME``, perhaps with ``@REVISION``, which
            is taken from the cache of the Hugging Face Hub or downloaded.
        weights: Whether the weights are needed too; without them, ``config.json`` suffices.

    Returns:
        The folder, and its configuration with the current keys, including the ``task``.

    Raises:
        FileNotFoundError: A file of the folder is missing.
        OSError: The Hub could not be reached.
        ValueError: ``reference`` is another kind of file, or ``config.json`` has a key or value that no saved network
            has.
    """
    path = _fetched(str(reference)[len(HUB) :]) if str(reference).startswith(HUB) else Path(reference)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file() and path.name not in FILES:
        raise ValueError(f"{path}: expected the folder of a saved model, or its config.json or model.safetensors")
    folder = path if path.is_dir() else path.parent
    for name in FILES if weights else FILES[:1]:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such file (a saved model is a folder with config.json and model.safetensors)"
            )
    return folder, config.read(folder / "config.json")


def find_classifier(reference: str, name: str = "") -> Path:
    """Return the folder of a saved classifier, as :func:`find` does.

    Args:
        reference: The saved model.
        name: The model of timm that it has to be, perhaps with the tag of its weights; '' for any.

    Raises:
        ValueError: It is a model for another task, or another network.
    """
    folder, settings = find(reference)
    if settings["task"] != "classification":
        raise ValueError(f"{reference}: a model for {settings['task']}, expected a classifier")
    if name and settings["architecture"] != name.partition(".")[0]:
        raise ValueError(f"{reference}: a saved {settings['architecture']}, expected one of {name}")
    return folder


def _fetched(name: str) -> Path:
    """Return the folder in the Hub's cache that holds the model of ``USER/NAME`` or ``USER/NAME@REVISION``.

    Only the two files of a saved model are downloaded, and only if they are not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise ValueError(f"{HUB}{name}: expected {HUB}USER/NAME or {HUB}USER/NAME@REVISION") from error
    except Exception as error:  # errors of any kind: those of httpx, of the Hub and of the operating system
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{HUB}{name}: could not be fetched ({reason}); give a local copy's folder") from error

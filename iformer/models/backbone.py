"""Creating timm's models with checked arguments, as classifiers or as backbones of detectors and segmenters."""

import difflib
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor

from iformer.common.ranges import ShareBelowOne, require
from iformer.models import locations, released


def create(name: str, pretrained: bool | str = False, **arguments: Any) -> Any:
    """Create a model from timm's registry.

    Args:
        name: The model's name.
        pretrained: True for the released weights; otherwise a file of a classifier's weights, or a saved classifier,
            given by its folder or as ``hf-hub:USER/NAME``. Position embeddings are resized to the model's. If the
            number of classes differs from the file's, the last layer is newly initialised and a warning says so.
        arguments: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit it.
        OSError: The weights cannot be read.
    """
    require_known(name)
    for rate in RATES & arguments.keys():
        require(rate, arguments[rate], ShareBelowOne | None)
    if isinstance(pretrained, str):
        return _with_weights(name, pretrained, arguments)
    try:
        return _created(name, pretrained, arguments)
    except OSError as error:
        if not pretrained:
            raise
        raise OSError(
            f"{name}: its weights could not be fetched ({getattr(error, 'reason', error)}); give a local copy: "
            "--weights FILE, in a recipe pretrained: FILE; or do without: --weights random, pretrained: false"
        ) from error


def require_known(name: str) -> None:
    """Raise ValueError, which names the nearest one, if timm has no model ``name``."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ValueError(f"model: timm has no {name}{f', did you mean {near[0]}?' if near else ''}")


def pretrained(name: str, weights: str) -> bool | str:
    """Return the argument ``pretrained`` of :func:`create` for the weights that a user names.

    Args:
        name: The model's name.
        weights: ``released``; ``random``; a file or folder, see :func:`create`; or '' for released ones if there are
            any.

    Raises:
        ValueError: There is no such model, or its weights were not released.
    """
    require_known(name)
    released_ones: bool = timm.is_model_pretrained(name)
    if weights == "released" and not released_ones:
        raise ValueError(f"--weights released: there are none of {name}; expected random or a file")
    return {"": released_ones, "released": True, "random": False}.get(weights, weights)


RATES = {"drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"}
"""Arguments of timm's models that are probabilities; most models do not check their range."""

OF_FEATURES = ("features_only", "out_indices", "output_stride", "feature_cls")
"""Arguments of ``timm.create_model`` that turn a classifier into a feature extractor."""


REFUSALS = (RuntimeError, TypeError, KeyError, AssertionError, IndexError)
"""What timm's models raise, besides ValueError, where arguments or weights do not fit."""


def _created(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """Return a model of timm; where its arguments are wrong, the error is a ValueError of one line."""
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except REFUSALS as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} with {arguments}: {message}") from error


def _with_weights(name: str, path: str, arguments: dict[str, Any]) -> Any:
    """Return a model with the weights of a file or of a saved classifier.

    timm ignores missing tensors where it loads only a part of a file, for a feature extractor or another number of
    classes. In these cases the whole classifier is therefore loaded strictly first, which finds missing tensors.

    Raises:
        ValueError: The weights do not belong to the model.
        OSError: The weights cannot be read.
    """
    file = _file(path)
    state_dict = released.load(file)
    classes = _classes(name, state_dict)
    load = partial(_loaded, name, path, {"file": str(file), "num_classes": classes}, state_dict.keys())
    wanted, features = arguments.get("num_classes", classes), bool(arguments.get("features_only"))
    if features or wanted != classes:
        whole = {key: value for key, value in arguments.items() if key not in OF_FEATURES} | {"num_classes": classes}
        with torch.random.fork_rng(devices=()):  # so that this check does not change the model's initial weights
            load(whole)
    if not features and wanted not in (0, classes):
        has = f"a classifier of {classes} classes" if classes else "no classifier"
        warnings.warn(f"{path}: has {has}; the classifier of {wanted} classes is newly initialised", stacklevel=3)
    return load(arguments)


def _file(path: str) -> Path:
    """Return the file of weights that a path stands for: itself, or that of a folder or of a saved classifier."""
    locations.refuse_exported(path)
    file = Path(path)
    if _has_config(path):
        file = locations.find_classifier(path) / "model.safetensors"
    elif file.is_dir():  # a folder of weights alone
        file = file / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file (expected the weights to start from)")
    return file


def _loaded(name: str, path: str, overlay: dict[str, Any], keys: Collection[str], arguments: dict[str, Any]) -> Any:
    """Return a model with weights, which timm finds by ``overlay``.

    Args:
        name: The model's name.
        path: What the user calls the weights.
        overlay: timm's ``pretrained_cfg_overlay``.
        keys: The names of the file's tensors.
        arguments: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: The weights do not fit. The message names the network that they are of, if that is known.
    """
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except (ValueError, *REFUSALS) as error:
        model = _created(name, False, arguments)  # raises the error where not the weights, but arguments are wrong
        if _has_config(path):
            locations.find_classifier(path, name)
        reason = " ".join(str(error).removeprefix(released.REFUSAL).split())[:300]
        if not isinstance(error, ValueError) and (lacking := [key for key in model.state_dict() if key not in keys]):
            reason = f"it lacks {len(lacking)} of the model's tensors, such as {lacking[0]}"
        raise ValueError(f"{path}: not a checkpoint of {name}: {reason}") from error


def _has_config(path: str) -> bool:
    """Return whether a path stands for a saved model, and not for a file or a folder of weights alone."""
    file = Path(path, "model.safetensors")
    return locations.is_saved(path) and not (file.is_file() and not file.with_name("config.json").is_file())


def _classes(name: str, state_dict: dict[str, Tensor]) -> int:
    """Return the number of classes of a file's classifier, under any of its usual names; 0 if the file has none."""
    names = getattr(timm.get_pretrained_cfg(name), "classifier", None) or ()
    for module in (*([names] if isinstance(names, str) else names), "head", "head.fc", "fc", "classifier"):
        if f"{module}.weight" in state_dict:
            return len(state_dict[f"{module}.weight"])
    return 0


# timm's models that accept one image size only unless they are told otherwise.
_SIZED = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")


def feature_maps(name: str, pretrained: bool | str, **arguments: Any) -> Any:
    """Create a timm model that returns its four coarsest feature maps, for images of any size if it supports that.

    Args:
        name: The model's name.
        pretrained: The weights, as in :func:`create`.
        arguments: Further arguments of ``timm.create_model``, including those of its feature extractors.
    """
    if is_model_in_modules(name, _SIZED):
        arguments = {"strict_img_size": False, **arguments}
    return create(name, pretrained, features_only=True, out_indices=(-4, -3, -2, -1), **arguments)


def refusal(features: Any, height: int, width: int) -> str:
    """Return why a backbone does not accept images of a size, as its own error says; '' if it accepts them."""
    training = features.training
    try:
        with torch.no_grad():
            features.eval()(torch.zeros(1, 3, height, width, device=next(features.parameters()).device))
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    finally:
        features.train(training)
    return ""

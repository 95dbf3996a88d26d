"""Checkpoints of this project: a folder with ``config.json`` and ``model.safetensors``, as on the Hugging Face Hub.

A classifier's folder is all that timm needs: ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Those of
detectors and segmenters name their task in ``config.json``, and what builds them.
"""

import copy
import difflib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from iformer.common.files import replaced
from iformer.common.ranges import ShareBelowOne, require
from iformer.models import config, released
from iformer.models.inception_transformer import InceptionTransformer


def create(name: str, pretrained: bool | str = False, **arguments: Any) -> Any:
    """Make a model of timm's registry.

    Args:
        name: The model's name.
        pretrained: True for the released weights, or a file of a classifier's weights, or the folder of a run that
            trained one. Position embeddings are resized to the model's. A classifier of another number of classes than
            the file's begins anew, with a warning.
        arguments: Arguments of ``timm.create_model``.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise ValueError(f"model: timm has no {name}{f', did you mean {near[0]}?' if near else ''}")
    for rate in RATES & arguments.keys():
        require(rate, arguments[rate], ShareBelowOne | None)
    if isinstance(pretrained, str):
        arguments = {**arguments, "pretrained_cfg_overlay": _weights(name, Path(pretrained), arguments)}
    try:
        return timm.create_model(name, pretrained=bool(pretrained), **arguments)
    except (RuntimeError, TypeError, KeyError, AssertionError, IndexError) as error:
        arguments.pop("pretrained_cfg_overlay", None)
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} with {arguments}: {message}") from error
    except OSError as error:
        if pretrained is not True:
            raise
        raise OSError(
            f"{name}: its weights could not be fetched ({getattr(error, 'reason', error)}); "
            "give the path of a local copy for `pretrained`"
        ) from error


RATES = {"drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"}
"""Arguments of timm's models that are probabilities; most models take any number for one."""

OF_FEATURES = ("features_only", "out_indices", "output_stride", "feature_cls")
"""Arguments of ``timm.create_model`` that make a feature extractor of a classifier."""


def _weights(name: str, path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what timm is to know of a file of weights, or of the folder of a run, for ``create_model``.

    timm passes over missing tensors where it loads a part of a file, for a feature extractor or another number of
    classes. So the whole classifier of the file is made first, strictly, and the part is taken from it.

    Raises:
        ValueError: The weights are not those of the model.
        OSError: They cannot be read.
    """
    file = path
    if path.is_dir():
        file = path / "model.safetensors"
        if (path / "config.json").is_file() and (task := find(path)[1]["task"]) != "classification":
            raise ValueError(f"{path}: a checkpoint for {task}, expected a classifier's")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file (weights to begin from)")
    state_dict = released.load(file)
    classes = _classes(name, state_dict)
    overlay = {"file": str(file), "num_classes": classes}
    wanted, features = arguments.get("num_classes", classes), bool(arguments.get("features_only"))
    if features or wanted != classes:
        whole = {key: value for key, value in arguments.items() if key not in OF_FEATURES} | {"num_classes": classes}
        try:
            with torch.random.fork_rng(devices=()):  # the model itself shall begin as without this one
                timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **whole)
        except RuntimeError as error:
            lacking = [key for key in timm.create_model(name, **whole).state_dict() if key not in state_dict]
            reason = f"it lacks {len(lacking)} of its tensors, {lacking[0]} first" if lacking else str(error)
            raise ValueError(f"{path}: not a checkpoint of {name}: {' '.join(reason.split())[:300]}") from error
    if not features and wanted not in (0, classes):
        has = f"a classifier of {classes} classes" if classes else "no classifier"
        warnings.warn(f"{path}: has {has}, so that the one of {wanted} begins anew", stacklevel=3)
    return overlay


def _classes(name: str, state_dict: dict[str, Tensor]) -> int:
    """Return the number of classes of a file's classifier, whatever it is called there; 0 where there is none."""
    names = getattr(timm.get_pretrained_cfg(name), "classifier", None) or ()
    for module in (*([names] if isinstance(names, str) else names), "head", "head.fc", "fc", "classifier"):
        if f"{module}.weight" in state_dict:
            return len(state_dict[f"{module}.weight"])
    return 0


OF_THE_RELEASE = ("tag", "license", "origin_url", "notes")
"""What timm's configuration says about the released weights, and not about those that someone has trained."""


def save(model: Any, folder: str | Path, class_names: Sequence[str], **data_config: Any) -> None:
    """Write a classifier into ``folder``. What was there before stays whole until the new files are complete.

    Args:
        model: A model made by timm.
        folder: Made if it is not there.
        class_names: One per class.
        data_config: Preprocessing that differs from the model's default: ``input_size``, ``mean``, ``std``...

    Raises:
        OSError: The files could not be written.
    """
    saved = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # safetensors knows no other
    saved.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in OF_THE_RELEASE}
    with replaced(Path(folder)) as temporary:
        model_config = {"label_names": list(class_names)}
        save_for_hf(saved, str(temporary), model_config=model_config, data_config=data_config, safe_serialization=True)
        written = json.loads((temporary / "config.json").read_text())
        written.get("model_args", {}).pop("num_classes", None)  # stands beside it, and transformers takes it once
        (temporary / "config.json").write_text(json.dumps(written, indent=2))


def save_assembled(model: nn.Module, folder: str | Path, task: str, settings: dict[str, Any]) -> None:
    """Write a detector or segmenter into ``folder``, as :func:`save` does a classifier.

    Args:
        model: The network.
        folder: Made if it is not there.
        task: ``detection`` or ``segmentation``.
        settings: For ``config.json``: all that the task's ``predict`` needs to build the network again and to name its
            classes.

    Raises:
        OSError: The files could not be written.
    """
    state_dict = {key: value.contiguous() for key, value in model.state_dict().items()}
    with replaced(Path(folder)) as temporary:
        save_file(state_dict, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps({"task": task, **settings}, indent=2))


def find(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a checkpoint and what its ``config.json`` says; ``task`` is ``classification`` if it does not.

    Args:
        path: The folder, or one of the two files in it.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        ValueError: ``path`` is another kind of file, or ``config.json`` holds what no saved network has.
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
    return folder, config.read(folder / "config.json")


def load(path: str | Path, pretrained: bool = True) -> nn.Module:
    """Read a classifier for inference.

    Args:
        path: Its folder, or one of the two files in it.
        pretrained: With its weights; without, the same network before it was trained.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        ValueError: The files do not belong together, or are damaged.
    """
    folder, settings = find(path)
    if settings["task"] != "classification":
        raise ValueError(f"{folder}: a checkpoint for {settings['task']}, expected a classifier")
    checked = config.ClassifierConfig.model_validate_json(config.checkable(json.dumps(settings)))
    arguments: dict[str, Any] = {"num_classes": checked.num_classes, **checked.model_args}
    about = {**checked.pretrained_cfg.model_dump(mode="json", exclude_none=True), "num_classes": checked.num_classes}
    if settings.get("label_names"):
        about["label_names"] = settings["label_names"]
    model = create(checked.architecture, pretrained_cfg=about, **arguments)
    if pretrained:
        state_dict = _load_file(folder)
        embedding = state_dict.get("stages.0.pos_embed")
        if isinstance(model, InceptionTransformer) and embedding is not None and embedding.ndim == 3:
            # Earlier versions wrote models at 384 pixels with a grid of that size.
            height, width = (side * model.stem_stride for side in embedding.shape[:2])
            if embedding.shape != model.stages[0].pos_embed.shape:
                model.set_input_size((height, width))
        _load_state_dict(model, state_dict, folder)
    return model.eval()


def _load_file(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'}: damaged ({error})") from error


def _load_state_dict(model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: weights and config.json do not fit ({reason})") from error


def load_assembled(model: nn.Module, folder: Path) -> nn.Module:
    """Read the weights that :func:`save_assembled` has written into ``model``, and put it into evaluation mode.

    Raises:
        ValueError: They do not fit, or the file is damaged.
    """
    _load_state_dict(model, _load_file(folder), folder)
    return model.eval()


def convert_official(source: str | Path, target: str | Path, model: str = "") -> tuple[str, str]:
    """Rewrite a checkpoint of the authors' release as safetensors with our names.

    timm loads the result with ``pretrained_cfg_overlay=dict(file=target)``.

    Args:
        source: The released file.
        target: The file to write.
        model: The preset that it is of. The weights for 224 and for 384 pixels have the same names and shapes, so that
            by default the name of the file decides between them.

    Returns:
        The preset, and what decided for it.

    Raises:
        FileNotFoundError: There is no ``source``.
        ValueError: ``source`` is not a released checkpoint, or it is not clear of which preset; or ``target`` does not
            end in ``.safetensors``.
        OSError: ``target`` could not be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the file to write must end in .safetensors")
    state_dict = released.load(source)
    if not released.is_official(state_dict):
        raise ValueError(
            f"{source}: not a checkpoint of the iFormer release (its first key is {next(iter(state_dict))})"
        )
    state_dict = {key: value.contiguous() for key, value in released.convert(state_dict).items()}
    preset, reason = _preset_of(state_dict, source, model)
    with replaced(target.parent, named=target) as temporary:
        save_file(state_dict, temporary / target.name, metadata={"format": "pt", "architecture": preset})
    return preset, reason


def _preset_of(state_dict: dict[str, Tensor], source: Path, model: str) -> tuple[str, str]:
    """Return the preset of released weights, and what decides for it: ``model``, the shapes, or the file's name."""
    shapes = _shapes(state_dict)
    fitting = {
        name.partition(".")[0]: name
        for name in timm.list_models("iformer_*", module="presets", pretrained=True)
        if _shapes(timm.create_model(name, device="meta").state_dict()) == shapes
    }
    if not fitting:
        raise ValueError(f"{source}: its tensors fit none of the models that the authors released")
    names = " and ".join(fitting)
    if model:
        if model.partition(".")[0] not in fitting:
            raise ValueError(f"{source}: its tensors fit {names}, not {model}")
        return fitting[model.partition(".")[0]], "which was asked for"
    at_384 = [name for name in fitting if name.endswith("_384")]
    at_224 = [name for name in fitting if name not in at_384]
    grid = state_dict["stages.0.pos_embed"].shape[0]
    if grid == 384 // 4:
        return fitting[at_384[0]], f"because its position embeddings have the grid of 384 pixels, {grid}x{grid}"
    if "384" in source.stem:
        return fitting[at_384[0]], f"because the file is called {source.name}; its tensors fit {names}"
    if "224" in source.stem or at_224[0] in source.stem:
        return fitting[at_224[0]], f"because the file is called {source.name}; its tensors fit {names}"
    raise ValueError(f"{source}: its tensors fit {names} alike, and its name does not tell; say which with --model")


def _shapes(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors; of position embeddings the channels only, as their grid is resized."""
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    return {key: shape[-1:] if key.endswith("pos_embed") else shape for key, shape in shapes.items()}

"""Checkpoints of this project: a folder with ``config.json`` and ``model.safetensors``, as on the Hugging Face Hub.

Such a folder is all that timm needs: ``timm.create_model("local-dir:FOLDER", pretrained=True)``.
"""

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from iformer.models import official_checkpoint


def save(model: nn.Module, folder: str | Path, class_names: Sequence[str], **data_config: Any) -> None:
    """Write ``model`` into ``folder``. What was there before stays whole until the new files are complete.

    Args:
        model: A model made by timm.
        folder: Made if it is not there.
        class_names: One per class.
        data_config: Preprocessing that differs from the model's default: ``input_size``, ``mean``, ``std``...

    Raises:
        OSError: The files could not be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        try:
            save_for_hf(
                copy.deepcopy(model).to(memory_format=torch.contiguous_format),  # safetensors knows no other
                temporary,
                data_config=data_config,
                model_config={"label_names": list(class_names)},
                safe_serialization=True,
            )
        except SafetensorError as error:
            raise OSError(f"{folder}: the checkpoint could not be written ({error})") from error
        for name in ("model.safetensors", "config.json"):
            (Path(temporary) / name).chmod(0o644)  # temporary files are private
            os.replace(Path(temporary) / name, folder / name)


def load(path: str | Path) -> nn.Module:
    """Read a checkpoint for inference. ``path`` is its folder, or one of the two files in it.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        ValueError: The files do not belong together, or are damaged.
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
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (SafetensorError, RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a checkpoint of a known model ({str(error).splitlines()[0]})") from error
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
    state_dict = official_checkpoint.load(source)
    if not official_checkpoint.is_official(state_dict):
        raise ValueError(
            f"{source}: not a checkpoint of the iFormer release (its first key is {next(iter(state_dict))})"
        )
    state_dict = {key: value.contiguous() for key, value in official_checkpoint.convert(state_dict).items()}
    preset = _preset_of(state_dict)
    if preset is None:
        raise ValueError(f"{source}: its tensors fit none of the models that the authors released")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        file = Path(temporary) / target.name
        try:
            save_file(state_dict, file, metadata={"format": "pt", "architecture": preset})
        except SafetensorError as error:
            raise OSError(f"{target}: could not be written ({error})") from error
        file.chmod(0o644)
        os.replace(file, target)
    return preset


def _preset_of(state_dict: dict[str, Tensor]) -> str | None:
    """The released preset whose tensors have just these names and shapes."""
    shapes = {key: value.shape for key, value in state_dict.items()}
    for name in timm.list_models("iformer_*", module="presets", pretrained=True):
        model = timm.create_model(name, device="meta")
        if shapes == {key: value.shape for key, value in model.state_dict().items()}:
            return name
    return None

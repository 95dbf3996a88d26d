"""Saving models, and finding the model that a name, a folder, a file or a Hub id stands for: :func:`resolve`.

A saved model is a folder with ``config.json`` and ``model.safetensors``, as on the Hugging Face Hub. timm itself can
load the folder of a classifier: ``timm.create_model("local-dir:FOLDER", pretrained=True)``. For detectors and
segmenters, ``config.json`` states the task and the arguments that build the network.
"""

import contextlib
import copy
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_input_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from iformer.common.files import replaced
from iformer.models import config, locations, released
from iformer.models.backbone import create
from iformer.models.inception_transformer import InceptionTransformer
from iformer.models.shared_ramps import is_shared, of_ramp

OF_THE_RELEASE = ("tag", "license", "origin_url", "notes")
"""Keys of timm's configuration that describe the released weights, and not weights that a user has trained."""

FRESH = "fresh, seed "
"""What the source of random weights begins with; their seed follows."""


def save(
    model: Any,
    folder: str | Path,
    class_names: Sequence[str],
    thresholds: Sequence[float] | None = None,
    **data_config: Any,
) -> None:
    """Write a classifier into ``folder``. Earlier files stay there until the new ones are complete.

    Args:
        model: A model created by timm.
        folder: The folder to write into; it is created if it does not exist.
        class_names: The names of the classes, in the order of the model's outputs.
        thresholds: The probability from which on an image has the label, for each class, if it may have several.
        data_config: Preprocessing that differs from the model's default, such as ``input_size``, ``mean`` and ``std``.

    Raises:
        OSError: The files could not be written.
    """
    saved = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # safetensors supports no other format
    saved.pretrained_cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in OF_THE_RELEASE}
    with replaced(Path(folder)) as temporary:
        model_config = {"label_names": list(class_names), **({"thresholds": list(thresholds)} if thresholds else {})}
        save_for_hf(saved, str(temporary), model_config=model_config, data_config=data_config, safe_serialization=True)
        written = json.loads((temporary / "config.json").read_text())
        # num_classes also stands beside model_args, and transformers accepts it only once.
        written.get("model_args", {}).pop("num_classes", None)
        (temporary / "config.json").write_text(json.dumps(written, indent=2))


def save_assembled(model: nn.Module, folder: str | Path, task: str, settings: dict[str, Any]) -> None:
    """Write a detector or segmenter into ``folder``, as :func:`save` does with a classifier.

    Args:
        model: The network.
        folder: The folder to write into; it is created if it does not exist.
        task: The network's task, ``detection`` or ``segmentation``.
        settings: The contents of ``config.json``: everything that is needed to build the network again, to prepare its
            images and to name its classes.

    Raises:
        OSError: The files could not be written.
    """
    state_dict = {key: value.contiguous() for key, value in model.state_dict().items()}
    with replaced(Path(folder)) as temporary:
        save_file(state_dict, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps({"task": task, **settings}, indent=2))


@dataclass(frozen=True)
class Model:
    """A model with everything that is needed to use it.

    Attributes:
        name: The model's name: ``iformer_small`` for a classifier, ``semantic_fpn_iformer_small`` for a network around
            a backbone.
        task: The model's task: ``classification``, ``detection`` or ``segmentation``.
        network: The network, in evaluation mode.
        class_names: The names of the classes, in the order of the network's outputs.
        config: The preprocessing of images. For a classifier it has timm's keys ``input_size`` (channels, height,
            width), ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``, and ``thresholds``, the
            probability from which on an image has each label, if it may have several; for other tasks it is the
            contents of ``config.json``.
        weights: The source of the weights: ``released``, a seed, a file or a folder.
        exported: The precision in which the model was exported, if it is a file that an inference engine runs; empty
            for a network of PyTorch.
    """

    name: str
    task: str
    network: Any
    class_names: tuple[str, ...]
    config: dict[str, Any]
    weights: str
    exported: str = ""

    def on_cpu(self) -> "Model":
        """Return the model with its network on the CPU, which is a copy if it is elsewhere."""
        return self if self.device.type == "cpu" else replace(self, network=copy.deepcopy(self.network).cpu())

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random."""
        return self.weights.startswith(FRESH)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next((tensor.device for tensor in self.network.parameters()), torch.device("cpu"))

    @property
    def channels(self) -> int:
        """The number of channels of the model's images: 3 for RGB, 1 for greyscale."""
        return self.config["input_size"][0] if "input_size" in self.config else 3

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of a classifier's classes, ``(N, K)``; of several labels they need not sum to 1."""
        return logits.float().sigmoid() if "thresholds" in self.config else logits.float().softmax(-1)

    @cached_property
    def prepare(self) -> Any:
        """The function that turns an image into a classifier's input ``(C, H, W)``."""
        keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        return create_transform(**{key: self.config[key] for key in keys}, is_training=False)


def resolve(reference: str | Path, weights: str | Path = "", seed: int = 0) -> Model:
    """Return the model that a user's reference stands for, ready to be used.

    Args:
        reference: The folder of a saved model of any task, such as a run's folder, or one of the files in it; the name
            of a timm model, unless there is a saved model's folder of that name; ``hf-hub:USER/NAME``; a file that
            ``iformer export`` wrote; or a file of weights from which their model can be told, that is one of the
            authors' release or one that ``iformer convert`` wrote.
        weights: The weights of a model that is given by its name: ``released``, which is the default; ``random``; a
            file; or a saved model. For a saved model, which has weights already, only ``random`` may be given.
        seed: The seed of random weights.

    Raises:
        ValueError: There is no such model, or the weights do not belong to it.
        OSError: A file is missing or cannot be read, or the weights could not be downloaded.
    """
    reference, weights = str(reference), str(weights)
    if not reference:
        reference, weights = weights, ""
    if locations.is_exported(reference):
        if weights:
            raise ValueError(f"{reference}: an exported file, which has weights of its own; give no others")
        # The package of deployment knows how to read the file.
        return import_module("iformer.deployment.exported").read(Path(reference))
    if locations.is_saved(reference):
        if weights not in ("", "random"):
            raise ValueError(f"{weights}: {reference} has weights of its own; give a model's name, or no weights")
        return _saved(reference, weights != "random", seed)
    if not timm.is_model(reference):
        file = Path(reference)
        if not file.is_file():
            near = difflib.get_close_matches(reference, timm.list_models(), n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise FileNotFoundError(f"{reference}: no such file or folder, and no model of timm{hint}")
        if weights not in ("", "random"):
            raise ValueError(f"{weights}: {reference} is a file of weights itself; give a model's name, or no weights")
        return resolve(_model_of(file), weights or file, seed)
    if weights not in ("", "random", "released") and locations.is_saved(weights):
        locations.find_classifier(weights, reference)
        return _saved(weights, True, seed)
    weights = weights or "released"
    if weights == "released" and not timm.is_model_pretrained(reference):
        raise ValueError(f"{reference}: no released weights for this model; give a file of weights, or random")
    torch.manual_seed(seed)
    network = create(reference, {"released": True, "random": False}.get(weights, weights))
    return of_classifier(network, f"{FRESH}{seed}" if weights == "random" else weights)


def of_classifier(network: Any, weights: str = "", thresholds: Sequence[float] | None = None) -> Model:
    """Return a timm classifier as a :class:`Model`, with the preprocessing and the classes of its configuration.

    Args:
        network: The classifier.
        weights: The source of the weights.
        thresholds: The probability from which on an image has each label, if it may have several.
    """
    names = network.pretrained_cfg.get("label_names")
    if not names and (subset := infer_imagenet_subset(network)):
        info = ImageNetInfo(subset)
        names = [info.index_to_description(index) for index in range(info.num_classes())]
    names = names or [f"class {index}" for index in range(network.num_classes)]
    name = network.pretrained_cfg.get("architecture", type(network).__name__)
    data_config = resolve_input_data_config(network)
    if thresholds:
        data_config["thresholds"] = tuple(thresholds)
    return Model(name, "classification", network.eval(), tuple(names), data_config, weights)


def _saved(reference: str, trained: bool, seed: int) -> Model:
    """Return a saved model, with its own weights if ``trained``, or with random ones."""
    folder, settings = locations.find(reference, trained)
    weights = reference if trained else f"{FRESH}{seed}"
    torch.manual_seed(seed)
    if settings["task"] == "classification":
        return of_classifier(_classifier(folder, settings, trained), weights, settings.get("thresholds"))
    # The package of the task knows how to build the network.
    try:
        network = import_module(f"iformer.{settings['task']}.model").build(**settings["network"])
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    if trained:
        _load_state_dict(network, _load_file(folder), folder)
    name = f"{settings['network']['architecture']}_{settings['network']['backbone']}"
    return Model(name, settings["task"], network.eval(), tuple(settings["class_names"]), settings, weights)


def _model_of(file: Path) -> str:
    """Return the name of the model whose weights a file holds.

    Raises:
        ValueError: The file does not say which model its weights belong to.
    """
    if file.suffix == ".safetensors":
        with contextlib.suppress(SafetensorError), safe_open(file, "pt") as opened:
            if name := (opened.metadata() or {}).get("architecture"):
                return name
    state_dict = released.load(file)
    if released.is_official(state_dict):
        return released.preset_of(released.convert(state_dict), file, "")[0]
    raise ValueError(f"{file}: does not say which model it belongs to; give the model's name, and this file as weights")


def _classifier(folder: Path, settings: dict[str, Any], trained: bool) -> Any:
    checked = config.ClassifierConfig.model_validate_json(config.checkable(json.dumps(settings)))
    arguments: dict[str, Any] = {"num_classes": checked.num_classes, **checked.model_args}
    about = {**checked.pretrained_cfg.model_dump(mode="json", exclude_none=True), "num_classes": checked.num_classes}
    if settings.get("label_names"):
        about["label_names"] = list(settings["label_names"])
    model = create(checked.architecture, pretrained_cfg=about, **arguments)
    if trained:
        state_dict = _load_file(folder)
        if is_shared(state_dict):
            state_dict = of_ramp(state_dict, model)
        embedding = state_dict.get("stages.0.pos_embed")
        if isinstance(model, InceptionTransformer) and embedding is not None and embedding.ndim == 3:
            # Earlier versions saved the models for 384 pixels with position embeddings of that grid.
            height, width = (side * model.stem_stride for side in embedding.shape[:2])
            if embedding.shape != model.stages[0].pos_embed.shape:
                model.set_input_size((height, width))
        _load_state_dict(model, state_dict, folder)
    return model


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
        raise ValueError(f"{folder}: the weights do not fit config.json ({reason})") from error

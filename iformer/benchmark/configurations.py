"""The configurations that are measured: a model in an engine, in a precision, for a batch of images."""

import importlib
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iformer.benchmark import detectors, training
from iformer.deployment import engines
from iformer.deployment.channels_first import channels_first
from iformer.deployment.formats import prepare, to_openvino, write_onnx
from iformer.deployment.quantize import quantize_openvino
from iformer.models import locations
from iformer.models.backbone import create
from iformer.models.prediction import TYPES
from iformer.models.saved import Model, resolve

ENGINES = {
    "eager": ("fp32", "bf16", "fp16"),
    "fused": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
"""The engines, each with the precisions that it offers."""

TASKS: dict[str, tuple[str, tuple[int, int]]] = {
    "classification": ("", (224, 224)),
    "segmentation": ("semantic_fpn", (512, 512)),
    "detection": ("mask_rcnn", (800, 1066)),
}
"""The tasks, each with what is built around a backbone, and the height and width of images where the model has none."""

CALIBRATION = 8
"""The least number of random images to calibrate int8 on, which is enough to measure speed."""


@dataclass(frozen=True)
class Configuration:
    """One configuration to measure.

    Attributes:
        model: A reference for :func:`iformer.models.saved.resolve`, or ``module:callable`` for any function that can be
            imported and returns a network, such as torchvision's; it is asked for random weights.
        engine: The engine, one of :data:`ENGINES`.
        precision: The precision, one of those that the engine offers.
        batch: The number of images in a batch.
        height: The height of the images in pixels.
        width: The width of the images in pixels.
        device: The device, cpu or cuda.
        features: Whether to run the model as a backbone that returns its feature maps.
        task: ``detection`` or ``segmentation`` for Mask R-CNN or Semantic FPN around the timm model of that name; empty
            for the model itself.
        training: Whether to run training steps instead of inferences, see :mod:`iformer.benchmark.training`.
    """

    model: str
    engine: str
    precision: str
    batch: int
    height: int
    width: int
    device: str = "cpu"
    features: bool = False
    task: str = ""
    training: bool = False

    @property
    def title(self) -> str:
        """The model's name, for a table."""
        return titled(self.model, self.task)

    @property
    def label(self) -> str:
        """The configuration in words: model, engine, precision and batch size."""
        return f"{self.title}, {self.engine} {self.precision}, {'training, ' * self.training}batch {self.batch}"


def titled(model: str, task: str) -> str:
    """Return the name of a model in a table."""
    name = model.rpartition(":")[2]
    return name if ":" in model or not task else f"{TASKS[task][0]} {name}"


def combinations(
    models: Sequence[str],
    engines: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int] = (1,),
    size: tuple[int, int] | None = None,
    device: str = "cpu",
    task: str = "",
) -> list[Configuration]:
    """Return all combinations, without those whose engine does not offer the precision.

    Args:
        models: The models, each as in :attr:`Configuration.model`.
        engines: The engines, among :data:`ENGINES`.
        precisions: The precisions, among fp32, bf16, fp16 and int8.
        batches: The batch sizes.
        size: The height and width of the images in pixels; by default those that each model is for.
        device: The device, cpu or cuda.
        task: What to build around models that are given by their names, see :attr:`Configuration.task`.

    Raises:
        ValueError: There is no such model, engine, precision, device or task, or the images are too small.
    """
    known = sorted({precision for each in ENGINES.values() for precision in each})
    for kind, given, expected in (
        ("engine", engines, ENGINES),
        ("precision", precisions, known),
        ("task", [task] if task else [], TASKS),
    ):
        for name in given:
            if name not in expected:
                raise ValueError(f"{kind} is {name!r}, expected one of {', '.join(expected)}")
    if size and min(size) < 16:
        raise ValueError(f"size is {size}, expected the images' height and width of at least 16 pixels")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, expected cpu{' or cuda' if torch.cuda.is_available() else ''}")
    about = {}
    for model in models:  # a wrong name is found before anything is measured
        opened = open_model(model, task)
        height, width = size or own_size(opened)
        built = "" if task == "classification" or is_function(model) or locations.is_saved(model) else task
        about[model] = (detectors.ENGINES if opened.task == "detection" else ENGINES, height, width, built)
    chosen = [
        Configuration(model, engine, precision, batch, height, width, device, task=built)
        for batch in batches
        for model, (offered, height, width, built) in about.items()
        for engine in engines
        for precision in precisions
        if precision in offered.get(engine, ()) and (device == "cpu" or engine in ("eager", "fused", "compile"))
    ]
    if not chosen:
        raise ValueError(
            f"engines {', '.join(engines)} offer none of the precisions {', '.join(precisions)} on {device}"
        )
    return chosen


def open_model(reference: str, task: str = "", features: bool = False) -> Model:
    """Return the model of a configuration; one that is given by its name gets random weights.

    Args:
        reference: The model, as in :attr:`Configuration.model`.
        task: What to build around a model that is given by its name, see :attr:`Configuration.task`.
        features: Whether to return a backbone, see :attr:`Configuration.features`.

    Raises:
        ValueError: There is no such model, or it is not for the task.
        OSError: A saved model cannot be read.
    """
    locations.refuse_exported(reference)
    torch.manual_seed(0)
    if is_function(reference):
        return _called(reference, task)
    if features:
        return Model(reference, "classification", create(reference, features_only=True).eval(), (), {}, "random")
    saved = locations.is_saved(reference)
    if task in ("", "classification") or saved:
        model = resolve(reference, "" if saved and locations.has_weights(reference) else "random")
        if task not in ("", model.task):
            raise ValueError(f"task is {task}, but {reference} is a model for {model.task}")
        return model
    architecture, _ = TASKS[task]
    build = importlib.import_module(f"iformer.{task}.model").build
    network = build(architecture=architecture, backbone=reference).eval()
    return Model(f"{architecture}_{reference}", task, network, (), {}, "random")


def is_function(reference: str) -> bool:
    """Return whether a reference stands for a function that returns a network, ``module:callable``."""
    return ":" in reference and not reference.startswith(locations.HUB)


def _called(reference: str, task: str) -> Model:
    module, _, name = reference.rpartition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model {reference}: {error}") from error
    weights = {"weights", "weights_backbone"} & set(inspect.signature(function).parameters)
    network = function(**dict.fromkeys(weights)).eval()
    if detectors.is_detector(network):
        task = task or "detection"
    if task and detectors.is_detector(network) != (task == "detection"):
        raise ValueError(f"task is {task}, but {reference} returns {type(network).__name__}")
    return Model(name, task or "classification", network, (), {}, "random")


def own_size(model: Model) -> tuple[int, int]:
    """Return the height and width of the images that a model is for, in pixels."""
    if model.task == "detection":
        return detectors.own_size(model.network)
    height, width = model.config.get("crop") or model.config.get("input_size", TASKS[model.task][1])[-2:]
    return height, width


def network(configuration: Configuration) -> Any:
    """Return the configuration's network in evaluation mode; a model that is given by its name gets random weights.

    Raises:
        ValueError: There is no such model.
        OSError: A saved model cannot be read.
    """
    model = open_model(configuration.model, configuration.task, configuration.features).network
    if detectors.is_detector(model):
        detectors.occupy(model, configuration.height, configuration.width)
        return detectors.WithoutPasting(model)
    return model


def channels(model: nn.Module) -> int:
    """Return the channels of the images that a network takes: those of its first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def runner(configuration: Configuration, threads: int | None = None) -> Callable[[], object]:
    """Prepare a configuration, and return a function that runs it on random images."""
    if configuration.training:
        return training.runner(configuration)
    model = network(configuration)
    if detectors.is_detector(model):
        return detectors.runner(model, configuration, threads)
    images = torch.randn(configuration.batch, channels(model), configuration.height, configuration.width)
    if configuration.engine in ("onnxruntime", "openvino"):
        with engines.quiet():
            run = _engine(configuration, model, images, threads)
        return lambda: run(images)
    return _torch(configuration, model, images)


def _torch(configuration: Configuration, model: nn.Module, images: Tensor) -> Callable[[], object]:
    call: Any = model
    images = images.to(configuration.device, TYPES[configuration.precision])
    if configuration.engine != "eager":
        call = prepare(model, images[:1])
        images = images.to(memory_format=torch.channels_last)
    if configuration.engine == "compile":
        call = channels_first(call)
    call = call.to(configuration.device, TYPES[configuration.precision])
    if configuration.engine != "eager":
        call = call.to(memory_format=torch.channels_last)
    if configuration.engine == "compile":
        # Freezing packs the weights for the processor once. CUDA graphs launch all kernels at once.
        on_gpu = configuration.device == "cuda"
        how: dict[str, Any] = {"mode": "reduce-overhead"} if on_gpu else {"options": {"freezing": True}}
        call = torch.compile(call, **how)

    def run() -> object:
        with torch.no_grad():
            outputs = call(images)
        if configuration.device == "cuda":
            torch.cuda.synchronize()
        return outputs

    return run


def _engine(configuration: Configuration, model: nn.Module, images: Tensor, threads: int | None) -> engines.Runner:
    calibration = torch.randn(max(CALIBRATION // len(images), 1) * len(images), *images.shape[1:])
    fused = channels_first(prepare(model, images[:1]))
    if configuration.engine == "openvino":
        graph = to_openvino(fused, images)
        if configuration.precision == "int8":
            graph = quantize_openvino(graph, calibration.split(len(images)))
        return engines.run_openvino(graph, configuration.precision, threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(fused, file, configuration.precision, calibration, images)
        return engines.open_file(file, configuration.precision, threads)

"""The configurations that are measured: a model in an engine, in a precision, for a batch of images."""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iformer.deployment import engines
from iformer.deployment.channels_first import channels_first
from iformer.deployment.formats import prepare, to_openvino, write_onnx
from iformer.deployment.quantize import quantize_openvino
from iformer.models import locations
from iformer.models.backbone import create
from iformer.models.prediction import TYPES
from iformer.models.saved import resolve

ENGINES = {
    "eager": ("fp32", "bf16", "fp16"),
    "fused": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
"""The engines, each with the precisions that it offers."""

CALIBRATION = 8
"""The least number of random images to calibrate int8 on, which is enough to measure speed."""


@dataclass(frozen=True)
class Configuration:
    """One configuration to measure.

    Attributes:
        model: A reference for :func:`iformer.models.saved.resolve`, or ``module:callable`` for any function that can be
            imported and returns a network.
        engine: The engine, one of :data:`ENGINES`.
        precision: The precision, one of those that the engine offers.
        batch: The number of images in a batch.
        height: The height of the images in pixels.
        width: The width of the images in pixels.
        device: The device, cpu or cuda.
        features: Whether to run the model as a backbone that returns its feature maps.
    """

    model: str
    engine: str
    precision: str
    batch: int
    height: int
    width: int
    device: str = "cpu"
    features: bool = False

    @property
    def label(self) -> str:
        """The configuration in words: model, engine, precision and batch size."""
        return f"{self.model.rpartition(':')[2]}, {self.engine} {self.precision}, batch {self.batch}"


def combinations(
    models: Sequence[str],
    engines: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int] = (1,),
    size: int = 224,
    device: str = "cpu",
) -> list[Configuration]:
    """Return all combinations, without those whose engine does not offer the precision.

    Args:
        models: The models, each as in :attr:`Configuration.model`.
        engines: The engines, among :data:`ENGINES`.
        precisions: The precisions, among fp32, bf16, fp16 and int8.
        batches: The batch sizes.
        size: The side of the images in pixels.
        device: The device, cpu or cuda.

    Raises:
        ValueError: There is no such model, engine, precision or device.
    """
    known = sorted({precision for each in ENGINES.values() for precision in each})
    for kind, given, expected in (("engine", engines, ENGINES), ("precision", precisions, known)):
        for name in given:
            if name not in expected:
                raise ValueError(f"{kind} is {name!r}, expected one of {', '.join(expected)}")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, expected cpu{' or cuda' if torch.cuda.is_available() else ''}")
    chosen = [
        Configuration(model, engine, precision, batch, size, size, device)
        for batch in batches
        for model in models
        for engine in engines
        for precision in precisions
        if precision in ENGINES[engine] and (device == "cpu" or engine in ("eager", "fused", "compile"))
    ]
    if not chosen:
        raise ValueError(
            f"engines {', '.join(engines)} offer none of the precisions {', '.join(precisions)} on {device}"
        )
    for model in models:
        network(replace(chosen[0], model=model))  # a wrong name is found before anything is measured
    return chosen


def network(configuration: Configuration) -> Any:
    """Return the configuration's network in evaluation mode; a timm model gets random weights.

    Raises:
        ValueError: There is no such model, or it does not take batches of images.
        OSError: A saved model cannot be read.
    """
    locations.refuse_exported(configuration.model)
    torch.manual_seed(0)
    module, _, name = configuration.model.rpartition(":")
    if module and not configuration.model.startswith(locations.HUB):
        try:
            build = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model {configuration.model}: {error}") from error
        return build().eval()
    if configuration.features:
        return create(configuration.model, features_only=True).eval()
    model = resolve(configuration.model, "random")
    if model.task == "detection":
        raise ValueError(f"model {configuration.model}: is a detector, expected a model that takes batches of images")
    return model.network


def channels(model: nn.Module) -> int:
    """Return the channels of the images that a network takes: those of its first convolution."""
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def runner(configuration: Configuration, threads: int | None = None) -> Callable[[], object]:
    """Prepare a configuration, and return a function that runs it on random images."""
    model = network(configuration)
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

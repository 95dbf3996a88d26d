"""What is measured side by side: a model in an engine, in a precision, for a batch of images."""

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from iformer.deployment import engines
from iformer.deployment.channels_first import channels_first
from iformer.deployment.formats import TYPES, prepare, quiet, to_openvino, write_onnx
from iformer.deployment.quantize import quantize_openvino
from iformer.models.backbone import create
from iformer.models.locations import HUB
from iformer.models.saved import resolve

ENGINES = {
    "eager": ("fp32", "bf16", "fp16"),
    "fused": ("fp32", "bf16", "fp16"),
    "compile": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "fp16", "int8"),
}
"""The engines and the precisions that each has."""

CALIBRATION = 8
"""Random images, or one batch, that int8 is calibrated on: enough where only the speed is asked for."""


@dataclass(frozen=True)
class Configuration:
    """One thing to measure.

    Attributes:
        model: What :func:`iformer.models.saved.resolve` takes, or ``module:callable`` for whatever else can be imported
            and called for a network.
        engine: One of ``ENGINES``.
        precision: One of those that the engine has.
        batch: Images at a time.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        device: cpu or cuda.
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
        """For people."""
        return f"{self.model.rpartition(':')[2]}, {self.engine} {self.precision}, batch {self.batch}"


def combinations(
    models: Sequence[str],
    engines: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int] = (1,),
    size: int = 224,
    device: str = "cpu",
) -> list[Configuration]:
    """Every combination that exists: an engine is passed over where it does not have a precision.

    Args:
        models: See :attr:`Configuration.model`.
        engines: Names in :data:`ENGINES`.
        precisions: fp32, bf16, fp16, int8.
        batches: Images at a time.
        size: The side of the images in pixels.
        device: cpu or cuda.

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
            f"engines {', '.join(engines)} have none of the precisions {', '.join(precisions)} on {device}"
        )
    for model in models:
        network(replace(chosen[0], model=model))  # a wrong name is found before anything is measured
    return chosen


def network(configuration: Configuration) -> Any:
    """Return the configuration's network, in evaluation mode. A model of timm has random weights.

    Raises:
        ValueError: There is no such model, or it does not take a batch of images.
        OSError: A saved model cannot be read.
    """
    torch.manual_seed(0)
    module, _, name = configuration.model.rpartition(":")
    if module and not configuration.model.startswith(HUB):
        try:
            build = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model {configuration.model}: {error}") from error
        return build().eval()
    if configuration.features:
        return create(configuration.model, features_only=True).eval()
    model = resolve(configuration.model, "random")
    if model.task == "detection":
        raise ValueError(f"model {configuration.model}: a detector, which takes no batch of images of one size")
    return model.network


def runner(configuration: Configuration, threads: int | None = None) -> Callable[[], object]:
    """Get the configuration ready to run on random images, which is what is timed as preparation."""
    images = torch.randn(configuration.batch, 3, configuration.height, configuration.width)
    model = network(configuration)
    if configuration.engine in ("onnxruntime", "openvino"):
        with quiet():
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
        # Frozen weights are packed for the processor once. CUDA graphs start all kernels at once.
        inductor.freezing = configuration.device == "cpu"
        call = torch.compile(call, mode="reduce-overhead" if configuration.device == "cuda" else None)

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

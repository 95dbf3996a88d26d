"""What is measured side by side: a model in an engine, in a precision, for a batch of images."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

from iformer.deployment import engines
from iformer.deployment.channels_first import channels_first
from iformer.deployment.formats import TYPES, prepare, quiet, to_openvino, write_onnx
from iformer.deployment.quantize import quantize_openvino

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
class Variant:
    """One thing to measure.

    Attributes:
        model: A model of timm, or ``module:callable`` for whatever else can be imported and called for a network.
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


def network(variant: Variant) -> Any:
    """The variant's network, with random weights, in evaluation mode.

    Raises:
        ValueError: There is no such model.
    """
    torch.manual_seed(0)
    module, _, name = variant.model.rpartition(":")
    if module:
        try:
            build = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model {variant.model}: {error}") from error
        return build().eval()
    if not timm.is_model(name):
        raise ValueError(f"model: timm has no {name}")
    return timm.create_model(name, features_only=variant.features).eval()


def runner(variant: Variant, threads: int | None = None) -> Callable[[], object]:
    """Get the variant ready to run on random images, which is what is timed as preparation."""
    images = torch.randn(variant.batch, 3, variant.height, variant.width)
    model = network(variant)
    if variant.engine in ("onnxruntime", "openvino"):
        with quiet():
            run = _engine(variant, model, images, threads)
        return lambda: run(images)
    return _torch(variant, model, images)


def _torch(variant: Variant, model: nn.Module, images: Tensor) -> Callable[[], object]:
    call: Any = model
    images = images.to(variant.device, TYPES[variant.precision])
    if variant.engine != "eager":
        call = prepare(model, images[:1])
        images = images.to(memory_format=torch.channels_last)
    if variant.engine == "compile":
        call = channels_first(call)
    call = call.to(variant.device, TYPES[variant.precision])
    if variant.engine != "eager":
        call = call.to(memory_format=torch.channels_last)
    if variant.engine == "compile":
        # Frozen weights are packed for the processor once. CUDA graphs start all kernels at once.
        inductor.freezing = variant.device == "cpu"
        call = torch.compile(call, mode="reduce-overhead" if variant.device == "cuda" else None)

    def run() -> object:
        with torch.no_grad():
            outputs = call(images)
        if variant.device == "cuda":
            torch.cuda.synchronize()
        return outputs

    return run


def _engine(variant: Variant, model: nn.Module, images: Tensor, threads: int | None) -> engines.Runner:
    calibration = torch.randn(max(CALIBRATION // len(images), 1) * len(images), *images.shape[1:])
    fused = channels_first(prepare(model, images[:1]))
    if variant.engine == "openvino":
        graph = to_openvino(fused, images)
        if variant.precision == "int8":
            graph = quantize_openvino(graph, calibration.split(len(images)))
        return engines.run_openvino(graph, variant.precision, threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(fused, file, variant.precision, calibration, images)
        return engines.open_file(file, variant.precision, threads)

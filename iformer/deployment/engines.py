"""The engines that run exported files."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
"""The file formats, each with the suffix of its files."""

OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the types to compute in. For the parts of an int8 model that are not quantised, OpenVINO itself
chooses bfloat16 if the processor supports it, and float32 otherwise."""

Runner = Callable[[Tensor], Tensor]


def require(package: str) -> Any:
    """Return the module of an optional package.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f'{package} is not installed; run pip install "iformer-inception[deploy]"') from error


def open_file(file: Path, precision: str = "fp32", threads: int | None = None) -> Runner:
    """Return a function that runs an exported file on the CPU.

    It takes images ``(N, C, H, W)`` of float32 and returns logits ``(N, classes)``, or ``(N, classes, H, W)`` for a
    segmenter.

    Args:
        file: The file written by :func:`~iformer.deployment.export.export`, whose suffix determines the format.
        precision: The precision in which the file was exported.
        threads: The number of threads to use; None leaves it to the engine. The torch-export format uses torch's
            threads.

    Raises:
        ValueError: The engine is not installed.
    """
    openers = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch_export}
    return openers[file.suffix](file, precision, threads)


def _open_onnx(file: Path, precision: str, threads: int | None) -> Runner:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _open_openvino(file: Path, precision: str, threads: int | None) -> Runner:
    openvino = require("openvino")
    return run_openvino(openvino.Core().read_model(file), precision, threads)


def run_openvino(model: Any, precision: str, threads: int | None = None, **properties: Any) -> Runner:
    """Compile an OpenVINO model for this CPU and return a function that runs it."""
    properties |= {"PERFORMANCE_HINT": "LATENCY"}
    if precision in OPENVINO_TYPES:
        properties["INFERENCE_PRECISION_HINT"] = OPENVINO_TYPES[precision]
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    request = require("openvino").Core().compile_model(model, "CPU", properties).create_infer_request()
    return lambda images: torch.from_numpy(request.infer([images.numpy()])[0].copy())


def _open_torch_export(file: Path, precision: str, threads: int | None) -> Runner:
    module: Any = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return run

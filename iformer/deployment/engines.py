"""Running exported files, each in its own engine."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
"""The file formats, and how a file of each is called."""

OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""What OpenVINO shall compute in. For what is not quantised in an int8 model it chooses itself: bfloat16 where the
processor has units for it, else float32."""

Runner = Callable[[Tensor], Tensor]


def require(package: str) -> Any:
    """The module of an optional package.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f'{package} is not installed; pip install "iformer-inception[deploy]"') from error


def open_file(file: Path, precision: str = "fp32", threads: int | None = None) -> Runner:
    """What runs an exported file on the CPU: ``(N, C, H, W)`` float32 images -> ``(N, classes)``.

    Args:
        file: Written by :func:`~iformer.deployment.export.export`; its name's ending tells the format.
        precision: What it was exported in.
        threads: To compute with; None for the engine's own choice. The torch-export format uses torch's.

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
    """Compile an OpenVINO model for this CPU."""
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

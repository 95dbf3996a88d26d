"""The engines that run exported files."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from iformer_command import extras

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
"""The file formats, each with the suffix of its files."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torch-export": "torch"}
"""The package that runs each format."""

METADATA = (
    *("task", "model", "precision", "dynamic", "class_names", "preprocessing"),
    *("thresholds", "palette", "resize", "window", "flip_test", "category_ids"),
)
"""The keys of files' metadata, of which each task has its own."""

OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""OpenVINO's names of the types to compute in. For the parts of an int8 model that are not quantised, OpenVINO itself
chooses bfloat16 if the processor supports it, and float32 otherwise."""

Runner = Callable[[Tensor], Tensor]


class Engine(NamedTuple):
    """An exported file, ready to run on the CPU.

    Attributes:
        run: The function from an input to the outputs, in the order of their names in the file.
        metadata: The file's metadata, as text.
    """

    run: Callable[[Tensor], list[Tensor]]
    metadata: dict[str, str]


def require(package: str) -> Any:
    """Return the module of an optional package.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(extras.not_installed(package.partition(".")[0], "deploy")) from error


def open_file(file: Path, precision: str = "fp32", threads: int | None = None) -> Runner:
    """Return a function that runs the exported file of a classifier or segmenter on the CPU.

    It takes images ``(N, C, H, W)`` of float32 and returns logits ``(N, classes)``, or ``(N, classes, H, W)`` for a
    segmenter. The arguments and errors are those of :func:`open_engine`.
    """
    run = open_engine(file, precision, threads).run
    return lambda images: run(images)[0]


def open_engine(file: Path, precision: str = "", threads: int | None = None) -> Engine:
    """Return the engine that runs an exported file on the CPU.

    Args:
        file: The file written by :func:`~iformer.deployment.export.export`, whose suffix determines the format.
        precision: The precision in which the file was exported; by default the one that its metadata states.
        threads: The number of threads to use; None leaves it to the engine. The torch-export format uses torch's
            threads.

    Raises:
        ValueError: The engine is not installed, or cannot read the file.
        FileNotFoundError: There is no such file, or its weights are missing.
    """
    kind = next(kind for kind, suffix in FORMATS.items() if suffix == file.suffix)
    needed = [file, file.with_suffix(".bin")] if kind == "openvino" else [file]
    for each in needed:
        if not each.is_file():
            raise FileNotFoundError(f"{each}: no such file{f', which holds the weights of {file}' * (each != file)}")
    opener = {"onnx": _open_onnx, "openvino": _open_openvino, "torch-export": _open_torch_export}[kind]
    require(PACKAGES[kind])
    try:
        with quiet():
            return opener(file, precision, threads)
    except Exception as error:  # engines raise errors of their own and of many other kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: damaged, or not a file for {PACKAGES[kind]} ({reason[:200]})") from error


def _open_onnx(file: Path, precision: str, threads: int | None) -> Engine:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # fatal errors; the others are raised
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return Engine(
        lambda images: [torch.from_numpy(found) for found in session.run(None, {name: images.numpy()})],
        dict(session.get_modelmeta().custom_metadata_map),
    )


def _open_openvino(file: Path, precision: str, threads: int | None) -> Engine:
    model = require("openvino").Core().read_model(file)
    metadata = {key: model.get_rt_info([key]).astype(str) for key in METADATA if model.has_rt_info([key])}
    precision = precision or metadata.get("precision", "")
    if metadata.get("task") == "detection":
        precision = "fp32"  # of what is not quantised: bfloat16 cannot tell neighbouring pixels apart
    return Engine(compile_openvino(model, precision, threads), metadata)


def run_openvino(model: Any, precision: str, threads: int | None = None, **properties: Any) -> Runner:
    """Compile an OpenVINO model for this CPU and return a function that runs it and returns its first output."""
    run = compile_openvino(model, precision, threads, **properties)
    return lambda images: run(images)[0]


def compile_openvino(
    model: Any, precision: str, threads: int | None = None, **properties: Any
) -> Callable[[Tensor], list[Tensor]]:
    """Compile an OpenVINO model for this CPU and return a function that runs it and returns its outputs."""
    properties |= {"PERFORMANCE_HINT": "LATENCY"}
    if precision in OPENVINO_TYPES:
        properties["INFERENCE_PRECISION_HINT"] = OPENVINO_TYPES[precision]
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    request = require("openvino").Core().compile_model(model, "CPU", properties).create_infer_request()
    return lambda images: [torch.from_numpy(found.copy()) for found in request.infer([images.numpy()]).values()]


def _open_torch_export(file: Path, precision: str, threads: int | None) -> Engine:
    metadata = dict.fromkeys(METADATA, "")
    module: Any = torch.export.load(file, extra_files=metadata).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return [module(images)]

    return Engine(run, {key: value for key, value in metadata.items() if value})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the messages of exporters, quantisers and engines, and send their progress to standard error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

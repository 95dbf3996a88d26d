"""The file formats that run without this package: ONNX, OpenVINO and ``torch.export``.

A file takes normalised images ``(N, C, H, W)`` of float32 and returns logits of float32, ``(N, classes)`` for a
classifier and ``(N, classes, H, W)`` for a segmenter. Its metadata holds what its user needs to know: ``task``,
``model``, ``precision``, and as JSON ``dynamic`` (whether it takes any size), ``class_names`` (a list) and
``preprocessing`` (an object of ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``);
for a classifier whose images have several labels also ``thresholds``, the probability (the sigmoid of the logit) from
which on an image has each; for a segmenter also ``palette``, and ``resize``, ``window`` and ``flip_test`` where it has
them.
"""

import errno
import io
import json
from pathlib import Path
from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from iformer.common.files import written
from iformer.deployment import engines
from iformer.deployment.channels_first import channels_first
from iformer.deployment.fuse import fuse
from iformer.deployment.quantize import quantize_onnx, quantize_openvino
from iformer.models.inception_transformer import InceptionStage
from iformer.models.prediction import TYPES
from iformer.models.saved import Model

Metadata = dict[str, str]

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
TOLERANCE = 1e-3
"""The largest difference allowed between float32 logits of an engine and eager's, relative to the largest logit."""


def write(model: Model, file: Path, kind: str, precision: str, images: Tensor, dynamic: bool = False) -> dict[str, Any]:
    """Write the fused ``model`` into a file, and check the file.

    The file appears, or is replaced, only after it is complete and has been checked.

    Args:
        model: A classifier, or a segmenter for images of one size whose configuration has their ``input_size``; on any
            device.
        file: The file to write, with the suffix of its format (``engines.FORMATS``).
        kind: The format, one of onnx, openvino and torch-export.
        precision: The precision, one of fp32, bf16, fp16 and int8.
        images: Prepared images ``(N, C, H, W)`` for the check and for the calibration of int8.
        dynamic: Whether the file takes any batch size, height and width, instead of one image of the size of
            ``images``.

    Returns:
        A dictionary that compares the file with eager float32 on ``images``: ``largest_difference`` between logits,
        ``relative_difference``, the same relative to the largest logit, ``same_class``, the share of images (pixels for
        a segmenter) with the same most probable class, and ``per_pixel``, whether it is a share of pixels.

    Raises:
        ValueError: There is no such format, the format does not offer this precision or any size, or the float32
            logits differ.
        OSError: The file cannot be written.
    """
    require_offered(kind, precision)
    require_suffix(file, kind)
    model = model.on_cpu()
    example = torch.zeros_like(images[:1])  # torch.export keeps it in the file, which must not hold images of the user
    about = metadata(model, precision, dynamic)
    with written(file) as temporary:  # an .xml file comes with its .bin file
        writer = {"onnx": _write_onnx, "openvino": _write_openvino, "torch-export": _write_torch_export}[kind]
        with engines.quiet():
            writer(model.network, about, temporary, precision, images, example, dynamic)
        result = compare(model.network, engines.open_file(temporary, precision), images)
        if precision == "fp32" and not result["relative_difference"] <= TOLERANCE:
            raise ValueError(
                f"{file}: not written, its logits differ from eager's by {result['relative_difference']:.1e} of the "
                f"largest, expected at most {TOLERANCE:.0e}"
            )
    return {**result, "per_pixel": model.task == "segmentation"}


def compare(model: nn.Module, run: engines.Runner, images: Tensor) -> dict[str, float]:
    """Return the differences between an engine's logits and eager's, see :func:`write`."""
    found = []
    for image in images.split(1):  # the logits of many scenes at once would take gigabytes
        with torch.inference_mode():
            expected = model(image)
        logits = run(image)
        same = (logits.argmax(1) == expected.argmax(1)).double().mean()
        found.append(torch.stack([(logits - expected).abs().max(), expected.abs().max(), same]))
    table = torch.stack(found)
    largest, greatest = table[:, :2].amax(0).tolist()
    return {
        "largest_difference": largest,
        "relative_difference": largest / greatest,
        "same_class": float(table[:, 2].mean()),
    }


def metadata(model: Model, precision: str, dynamic: bool = False) -> Metadata:
    """Return the metadata of a file, whose values are text; all but names and precision are JSON."""
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    told: dict[str, Any] = {"dynamic": dynamic, "class_names": model.class_names}
    if model.task == "detection":
        told["finds_masks"] = model.network.finds_masks
    else:
        told["preprocessing"] = {key: model.config[key] for key in keys}
    others = ("thresholds", "palette", "resize", "window", "flip_test", "category_ids")
    told |= {key: model.config[key] for key in others if model.config.get(key)}
    return {
        "task": model.task,
        "model": model.name,
        "precision": precision,
        **{key: json.dumps(value) for key, value in told.items()},
    }


def require_offered(kind: str, precision: str) -> None:
    """Check that a format offers a precision.

    Raises:
        ValueError: There is no such format or precision, or the format does not offer the precision.
    """
    if kind not in engines.FORMATS:
        raise ValueError(f"format is {kind}, expected one of {', '.join(engines.FORMATS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision}, expected one of {', '.join(PRECISIONS)}")
    if (kind, precision) == ("onnx", "bf16"):
        raise ValueError("precision bf16: ONNX Runtime has no such kernels on CPUs, expected another format")
    if (kind, precision) == ("torch-export", "int8"):
        raise ValueError("precision int8: torch-export files are not quantised, expected format onnx or openvino")


def require_suffix(file: Path, kind: str) -> None:
    """Raise ValueError if the name of a file to write does not end as its format requires."""
    if file.suffix != engines.FORMATS[kind]:
        raise ValueError(f"{file}: a file of format {kind} must end in {engines.FORMATS[kind]}")


class _Cast(nn.Module):
    """A network that computes in another type, but takes images and returns logits of float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()


def trace(model: nn.Module, example: Tensor, dynamic: bool = False) -> ExportedProgram:
    """Return the graph of a network for images like ``example``, or for any batch size and image size if ``dynamic``.

    Raises:
        ValueError: The network cannot be traced for these images; some of timm's models take one size only.
    """
    if dynamic:  # torch.export treats sizes of 1, and those of the position embeddings, as special cases
        example = example.new_zeros(2, example.shape[1], *(side + 32 for side in example.shape[2:]))
    shapes = (dict.fromkeys((0, 2, 3), Dim.DYNAMIC),) if dynamic else None
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=shapes)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[:1]
        kind = "of any size" if dynamic else f"of {example.shape[2]}x{example.shape[3]} pixels"
        raise ValueError(f"the model cannot be exported for images {kind} ({''.join(reason)})") from error


def prepare(model: nn.Module, example: Tensor, dynamic: bool = False) -> Any:
    """Return the fused model; unless ``dynamic``, an iFormer gets position embeddings for the size of ``example``."""
    height, width = example.shape[2:]
    fixed = not dynamic and any(isinstance(module, InceptionStage) for module in model.modules())
    return fuse(model, (height, width) if fixed else None)


def write_onnx(
    network: nn.Module, file: Path, precision: str, images: Tensor, example: Tensor, dynamic: bool = False
) -> None:
    """Write a network into an ONNX file without metadata; int8 is calibrated on ``images``.

    Raises:
        ValueError: ``dynamic`` is set for a network that pools to a grid, as UPerNet does, which ONNX supports for
            known sizes only.
    """
    engines.require("onnxscript")
    pools = [module for module in network.modules() if isinstance(module, nn.AdaptiveAvgPool2d)]
    if dynamic and any(to_2tuple(pool.output_size) != (1, 1) for pool in pools):
        raise ValueError(
            "the model pools to a grid, which in ONNX needs known sizes; leave --dynamic out, or choose another format"
        )
    if precision == "fp16":
        network = _Cast(network, torch.float16)
    program = torch.onnx.export(
        trace(network, example, dynamic), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(file, external_data=False)
    if precision == "int8":
        quantize_onnx(file, images.split(len(example)))


def _write_onnx(
    network: nn.Module, about: Metadata, file: Path, precision: str, images: Tensor, example: Tensor, dynamic: bool
) -> None:
    engines.require("onnx")
    write_onnx(channels_first(prepare(network, example, dynamic)), file, precision, images, example, dynamic)
    describe_onnx(file, about)


def describe_onnx(file: Path, about: Metadata) -> None:
    """Write metadata into an ONNX file."""
    onnx = engines.require("onnx")
    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, about)
    onnx.save(graph, file)


def to_openvino(network: nn.Module, example: Tensor, dynamic: bool = False) -> Any:
    """Return a network as an OpenVINO model."""
    openvino = engines.require("openvino")
    graph = openvino.convert_model(trace(network, example, dynamic))
    for node in graph.get_ops():  # its PyTorch frontend resizes to a side of 1 as old versions of torch did
        if node.get_attributes().get("coordinate_transformation_mode") == "pytorch_half_pixel":
            node.set_attribute("coordinate_transformation_mode", "half_pixel")
    graph.inputs[0].tensor.set_names({"images"})
    graph.outputs[0].tensor.set_names({"logits"})
    if not dynamic:
        graph.reshape(list(example.shape))
    return graph


def _write_openvino(
    network: nn.Module, about: Metadata, file: Path, precision: str, images: Tensor, example: Tensor, dynamic: bool
) -> None:
    graph = to_openvino(channels_first(prepare(network, example, dynamic)), example, dynamic)
    if precision == "int8":
        graph = quantize_openvino(graph, images.split(1))
    save_openvino(graph, about, file, precision)


def save_openvino(graph: Any, about: Metadata, file: Path, precision: str) -> None:
    """Write an OpenVINO model with metadata.

    Raises:
        OSError: The file cannot be written.
    """
    for key, value in about.items():
        graph.set_rt_info(value, [key])
    # 16-bit weights serve bfloat16 too; the type to compute in is chosen when the file is compiled.
    try:
        engines.require("openvino").save_model(graph, file, compress_to_fp16=precision in ("bf16", "fp16"))
    except RuntimeError as error:  # its message says only that the stream has failed
        raise OSError(errno.EIO, "OpenVINO could not write all of it; is the disk full?") from error


def _write_torch_export(
    network: nn.Module, about: Metadata, file: Path, precision: str, images: Tensor, example: Tensor, dynamic: bool
) -> None:
    network = prepare(network, example, dynamic)
    if precision != "fp32":
        network = _Cast(network, TYPES[precision])
    content = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    torch.export.save(trace(network, example, dynamic), content, extra_files=about)
    file.write_bytes(content.getbuffer())

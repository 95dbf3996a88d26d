"""int8 after training: NNCF for OpenVINO, ONNX Runtime's own tools for ONNX.

Convolutions and linear layers become int8, their weights with a scale per channel; what is between them does not, for
there a quantised operation would save nothing and its rounding would cost accuracy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from iformer.deployment import engines

# What stays in floating point. NNCF would quantise depthwise convolutions and elementwise operations too, as they come;
# both are bound by memory, and each change of type is one more pass over a map that GELU and residuals cannot join.
# Attention in int8 is no faster either, and where the processor computes the rest in bfloat16 it costs three points.
_FLOAT = (
    *("Add", "AvgPool", "Concat", "Divide", "GroupConvolution", "Interpolate"),
    *("MaxPool", "Multiply", "ReduceMean", "ScaledDotProductAttention", "Subtract"),
)


def quantize_openvino(graph: Any, batches: Sequence[Tensor]) -> Any:
    """An OpenVINO model in int8, calibrated on batches of images such as it takes."""
    nncf = engines.require("nncf")
    # SmoothQuant's multiplications would stand between the quantised operations and gain nothing here.
    no_smoothing = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    dataset = nncf.Dataset([images.numpy() for images in batches])
    return nncf.quantize(
        graph,
        dataset,
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=no_smoothing),
        ignored_scope=nncf.IgnoredScope(types=list(_FLOAT), validate=False),
    )


def quantize_onnx(file: Path, batches: Sequence[Tensor]) -> None:
    """Replace an ONNX file by one in int8 (QDQ), calibrated on batches of images such as it takes."""
    tools = engines.require("onnxruntime.quantization")
    graph = engines.require("onnx").load(file).graph
    weights = {tensor.name for tensor in graph.initializer}
    depthwise = [
        node.name for node in graph.node if any(part.name == "group" and part.i > 1 for part in node.attribute)
    ]
    attention = [node.name for node in graph.node if node.op_type == "MatMul" and not weights & set(node.input)]

    class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.rest, None)
            return None if images is None else {"images": images.numpy()}

    tools.quantize_static(
        file,
        file,
        Reader(),
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        nodes_to_exclude=depthwise + attention,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        per_channel=True,
    )

"""Quantisation to int8 after training, by NNCF for OpenVINO and by ONNX Runtime's tools for ONNX.

Convolutions and linear layers become int8, with a scale for each channel of their weights. The operations between them
stay in floating point, because quantising them would save nothing and its rounding would cost accuracy. So do, in a
detector, all operations on boxes: they are no convolutions and linear layers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from iformer.deployment import engines

# The operations that stay in floating point. NNCF would quantise depthwise convolutions and elementwise operations too,
# but both are bound by memory, and each change of type is one more pass over a map that cannot be fused with GELU and
# residuals. Attention in int8 is not faster either, and costs three points of accuracy if the rest is in bfloat16.
# A detector's regions are gathered from the levels of the pyramid by ScatterElementsUpdate: quantised before that, they
# cost a small detector nine points of AP; quantised after it, as the heads' input, one.
_FLOAT = (
    *("Add", "AvgPool", "Concat", "Divide", "GroupConvolution", "Interpolate", "MaxPool", "Multiply"),
    *("ReduceMean", "ROIAlign", "ScaledDotProductAttention", "ScatterElementsUpdate", "Subtract"),
)


def quantize_openvino(graph: Any, batches: Sequence[Tensor]) -> Any:
    """Return an OpenVINO model in int8, calibrated on batches of its input images."""
    nncf = engines.require("nncf")
    # SmoothQuant would put multiplications between the quantised operations and gain nothing here.
    no_smoothing = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    dataset = nncf.Dataset([images.numpy() for images in batches])
    return nncf.quantize(
        graph,
        dataset,
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=no_smoothing),
        ignored_scope=nncf.IgnoredScope(names=_products(graph), types=list(_FLOAT), validate=False),
    )


def _products(graph: Any) -> list[str]:
    """Return the names of an OpenVINO model's matrix products of two computed matrices, which are attention's."""
    steps = ("Convert", "Reshape", "Transpose")

    def constant(node: Any) -> bool:
        while node.get_type_name() in steps:
            node = node.input_value(0).get_node()
        return node.get_type_name() == "Constant"

    products = (node for node in graph.get_ops() if node.get_type_name() == "MatMul")
    return [
        node.get_friendly_name()
        for node in products
        if not any(constant(value.get_node()) for value in node.input_values())
    ]


def quantize_onnx(file: Path, batches: Sequence[Tensor]) -> None:
    """Quantise an ONNX file to int8 (QDQ) in place, calibrated on batches of its input images."""
    tools = engines.require("onnxruntime.quantization")
    graph = engines.require("onnx").load(file).graph
    name = graph.input[0].name
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
            return None if images is None else {name: images.numpy()}

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

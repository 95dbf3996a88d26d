"""TorchScript, FX, torch.compile and torch.export agree with eager."""

import io
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules, set_scriptable
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from iformer.models.inception_transformer import InceptionTransformer
from tests.networks import SIZES, TWO_STAGES, plain_and_fused

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:NOTE. The nodes obtained:UserWarning"
)

Tiny = Callable[..., InceptionTransformer]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch._dynamo.reset()


# TorchScript


@plain_and_fused
@pytest.mark.parametrize("scriptable", [False, True])
def test_torchscript(tiny: Tiny, scriptable: bool) -> None:
    with set_scriptable(scriptable):
        model = tiny()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        close(scripted(x), model(x))


@plain_and_fused
@pytest.mark.parametrize("ramp", [(0, 0), (2, 4), (0, 4)])
def test_torchscript_without_branches(tiny: Tiny, ramp: tuple[int, ...]) -> None:
    model = tiny(**{**TWO_STAGES, "attention_heads": ramp}, scriptable=True)
    x = torch.randn(2, 3, 64, 64)
    close(torch.jit.script(model)(x), model(x))


@plain_and_fused
@pytest.mark.parametrize("feature_cls", ["list", "dict", "fx"])
def test_torchscript_of_feature_maps(tiny: Tiny, feature_cls: str) -> None:
    model = tiny(**TWO_STAGES, features_only=True, out_indices=(0, 1), feature_cls=feature_cls, scriptable=True)
    x = torch.randn(1, 3, 64, 64)
    maps, expected = torch.jit.script(model)(x), model(x)
    if isinstance(expected, dict):
        maps, expected = list(maps.values()), list(expected.values())
    assert len(maps) == 2
    for one, other in zip(maps, expected, strict=True):
        close(one, other)


def test_torchscript_trains(tiny: Tiny) -> None:
    scripted = torch.jit.script(tiny(drop_path_rate=0.1).train())
    scripted(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in scripted.parameters())


# FX


def trace(model: nn.Module) -> nn.Module:
    """Trace as timm's tests do."""
    tracer: dict[str, Any] = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    training, evaluation = get_graph_node_names(model, tracer_kwargs=tracer)
    return create_feature_extractor(
        model, train_return_nodes=training[-1:], eval_return_nodes=evaluation[-1:], tracer_kwargs=tracer
    )


def test_fx_of_a_preset() -> None:
    model = timm.create_model("iformer_nano").eval()
    x = torch.randn(1, *model.default_cfg["min_input_size"])
    with torch.inference_mode():
        (y,) = trace(model)(x).values()
        torch.testing.assert_close(y, model(x), rtol=0, atol=0)


@plain_and_fused
def test_fx_at_any_size(tiny: Tiny) -> None:
    model = tiny()
    traced = trace(model)
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        (y,) = traced(x).values()
        torch.testing.assert_close(y, model(x), rtol=0, atol=0)


def test_fx_trains(tiny: Tiny) -> None:
    model = trace(tiny(drop_path_rate=0.1).train())
    (y,) = model(torch.randn(2, 3, 64, 64)).values()
    assert y.shape == (2, 7)
    y.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@plain_and_fused
def test_fx_then_torchscript(tiny: Tiny) -> None:
    model = tiny(**TWO_STAGES, scriptable=True)
    x = torch.randn(1, 3, 64, 64)
    (y,) = torch.jit.script(trace(model))(x).values()
    close(y, model(x))


@plain_and_fused
def test_fx_without_options(tiny: Tiny) -> None:
    """Other tools trace without what timm tells its tracer."""
    model = tiny()
    traced = torch.fx.symbolic_trace(model)
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


@plain_and_fused
def test_feature_extractor_of_any_layer(tiny: Tiny) -> None:
    model = tiny()
    extractor = create_feature_extractor(model, {"stages.2.blocks.1.mixer.cat": "mixed", "norm": "normed"})
    maps = extractor(torch.randn(1, 3, 64, 64))
    mixer = model.stages[2].blocks[1].mixer
    assert maps["mixed"].shape == (1, 4, 4, mixer.proj.in_features)
    assert maps["normed"].shape == (1, 2, 2, 64)


# torch.compile


# What takes long to compile; that two stages follow each other at any size is seen in exporting.
ONE_STAGE: dict[str, Any] = {
    "depths": (1,), "dims": (8,), "num_heads": (2,), "attention_heads": (1,), "pool_strides": (2,),
    "layer_scales": (1.0,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "dynamic", "sizes"),
    [(TWO_STAGES, None, [(2, 65, 34)]), (ONE_STAGE, True, [(2, 65, 34), (4, 96, 127)])],
    ids=["one size", "any size"],
)
def test_compile(
    tiny: Tiny, architecture: dict[str, Any], dynamic: bool | None, sizes: list[tuple[int, int, int]]
) -> None:
    model = tiny(**architecture)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for batch, height, width in sizes:
            x = torch.randn(batch, 3, height, width)
            close(compiled(x), model(x))


def test_compiled_training_step(tiny: Tiny) -> None:
    model = tiny(**TWO_STAGES).train()
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        forward(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_compile_with_inductor(tiny: Tiny) -> None:
    model = tiny(**ONE_STAGE)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        x = torch.randn(2, 3, 48, 33)
        close(compiled(x), model(x))


# torch.export


@plain_and_fused
@pytest.mark.parametrize("strict", [False, True])
def test_static_export(tiny: Tiny, strict: bool) -> None:
    model = tiny(**TWO_STAGES)
    x = torch.randn(1, 3, 47, 64)
    close(torch.export.export(model, (x,), strict=strict).module()(x), model(x))


NAMED = {0: Dim("batch", min=1, max=64), 2: Dim("height", min=33, max=2048), 3: Dim("width", min=33, max=2048)}


@pytest.mark.parametrize(
    ("architecture", "dimensions", "strict"),
    [
        ({}, NAMED, False),
        (TWO_STAGES, dict.fromkeys((0, 2, 3), Dim.DYNAMIC), False),
        (TWO_STAGES, dict.fromkeys((0, 2, 3), Dim.DYNAMIC), True),
        (TWO_STAGES, dict.fromkeys((0, 2, 3), Dim.AUTO), False),
    ],
    ids=["named", "dynamic", "dynamic strict", "auto"],
)
def test_export_for_any_size(
    tiny: Tiny, architecture: dict[str, Any], dimensions: dict[int, Any], strict: bool
) -> None:
    model = tiny(**architecture)
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dimensions,), strict=strict)
    exported = program.module()
    for batch, height, width in [*SIZES, (1, 224, 160)]:
        x = torch.randn(batch, 3, height, width)
        close(exported(x), model(x))


@plain_and_fused
def test_static_export_has_no_padding(tiny: Tiny) -> None:
    """Only a graph for any size needs it (AttentionBranch)."""
    x = torch.randn(1, 3, 64, 64)
    assert "pad.default" not in str(torch.export.export(tiny(**TWO_STAGES), (x,)).graph)

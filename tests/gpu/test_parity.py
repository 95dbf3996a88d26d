"""Logits and gradients on a GPU are those of the CPU in float32: in each type and memory format, eager and compiled."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iformer.models.recomputation import recompute
from tests.networks import NARROW, draw


def network(device: str) -> tuple[nn.Module, Tensor]:
    """iFormer-S and images for a GPU, and a small stand-in for the CPU; LayerScale hides nothing of a block."""
    if device == "cpu":
        return draw(timm.create_model("iformer_nano", num_classes=5, **NARROW)), torch.randn(4, 3, 32, 32)
    model = timm.create_model("iformer_small", num_classes=5)
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1)
    return model, torch.randn(4, 3, 224, 224)


def pass_through(
    model: Any, images: Tensor, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a training step and the gradients of all parameters, on the CPU in float32."""
    labels = torch.arange(len(images), device=images.device) % 5
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
    (loss * scale).backward()
    gradients = {
        name.removeprefix("_orig_mod."): (each.grad / scale).float().cpu() for name, each in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return logits.detach().float().cpu(), gradients


def differences(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
    """The difference of logits relative to the largest, and that of all gradients together relative to their norm."""
    logits = (one[0] - other[0]).abs().max() / other[0].abs().max()
    assert one[1].keys() == other[1].keys()
    joined = [torch.cat([gradients[name].flatten() for name in sorted(gradients)]) for _, gradients in (one, other)]
    return float(logits), float((joined[0] - joined[1]).norm() / joined[1].norm())


# The largest differences of logits and gradients. Rounding errors of some hundred operations one after the other add up
# like a random walk, to ten to twenty times that of one: 6e-8 in float32, 5e-4 in float16, 4e-3 in bfloat16; sums are
# in float32. Where two values of a max-pooling are nearly equal, rounding decides which of them has the gradient. With
# the CPU's autocast iFormer-S differs by 0.001 and 0.003 in float16, and by 0.006 and 0.012 in bfloat16.
TOLERANCES = {
    torch.float32: (1e-4, 1e-3),
    torch.float16: (0.01, 0.03),
    torch.bfloat16: (0.04, 0.12),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_logits_and_gradients(dtype: torch.dtype, memory_format: torch.memory_format, device: str) -> None:
    model, images = network(device)
    expected = pass_through(copy.deepcopy(model).train(), images)
    model = recompute(model.to(device).to(memory_format=memory_format)).train()
    # Small gradients would be zero in float16, as GradScaler knows.
    found = pass_through(model, images.to(device, memory_format=memory_format), dtype, scale=256.0)
    logits, gradients = differences(found, expected)
    assert logits < TOLERANCES[dtype][0]
    assert gradients < TOLERANCES[dtype][1]


def test_maps_keep_their_channels_last(device: str) -> None:
    model, images = network(device)
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    maps: list[Tensor] = []
    for stage in model.stages:  # type: ignore[union-attr]
        stage.register_forward_hook(lambda *call: maps.append(call[-1]))
    with torch.no_grad():
        model(images.to(device, memory_format=torch.channels_last))
    assert len(maps) == 4
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)


@pytest.fixture
def how(device: str) -> dict[str, Any]:
    """The arguments of ``torch.compile``: with CUDA graphs on a GPU, and without any code of its own on the CPU."""
    torch._dynamo.reset()
    return {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "aot_eager"}


def test_compiled_inference(how: dict[str, Any], device: str) -> None:
    model, images = network(device)
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, **how)
    with torch.inference_mode():
        for number in range(4):  # a graph is recorded in the second call, and replayed from the third on
            batch = torch.roll(images, number, 0).to(device, memory_format=torch.channels_last)
            found = compiled(batch).clone()
            torch.testing.assert_close(found, model(batch), rtol=1e-3, atol=1e-3 * float(found.abs().max()))


def test_compiled_training(how: dict[str, Any], device: str) -> None:
    model, images = network(device)
    model = model.train().to(device).to(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(model), **how)
    for number in range(3):
        batch = torch.roll(images, number, 0).to(device, memory_format=torch.channels_last)
        logits, gradients = differences(pass_through(compiled, batch), pass_through(model, batch))
        assert logits < 1e-3
        assert gradients < 1e-2

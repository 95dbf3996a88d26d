"""Memory: its layout, and how much of it."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from iformer.models.inception_transformer import AttentionBranch, InceptionTransformer

Tiny = Callable[..., InceptionTransformer]


def test_channels_last_changes_nothing(tiny: Tiny) -> None:
    model = tiny()
    images = torch.randn(2, 3, 65, 96)
    expected = model.forward_intermediates(images)
    model.to(memory_format=torch.channels_last)
    features, maps = model.forward_intermediates(images.to(memory_format=torch.channels_last))
    for one, other in zip([features, *maps], [expected[0], *expected[1]], strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(stage.pos_embed.is_contiguous() for stage in model.stages)  # channels were last already


def copies_of_maps(model: InceptionTransformer, images: Tensor) -> Counter[str]:
    """How often a forward pass copies a feature map, by the operator that wants the copy."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model(images)
    copies: Counter[str] = Counter()
    for event in profiler.events():
        shape = event.input_shapes[0] if event.name == "aten::copy_" else []
        if len(shape) == 4 and shape[0] == len(images):
            parent = event.cpu_parent
            while parent.name in ("aten::clone", "aten::contiguous", "aten::reshape", "aten::_reshape_alias"):
                if parent.cpu_parent is None:
                    break
                parent = parent.cpu_parent
            copies[parent.name] += 1
    return copies


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other convolutions copy to their own layout")
def test_no_needless_copies(tiny: Tiny) -> None:
    """Pooling wants the channels that it takes in one piece. Nothing else copies a map."""
    model = tiny(depths=(2, 2, 2, 2), attention_heads=(1, 1, 2, 2, 2, 2, 3, 3)).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    assert copies_of_maps(model, images) == {"aten::max_pool2d_with_indices": 8, "aten::avg_pool2d": 4}


def test_contiguous_images_are_turned_once(tiny: Tiny) -> None:
    model = tiny(attention_heads=(2, 4, 4, 4, 4), pool_strides=(1, 1, 1, 1))  # no pooling, which copies
    assert sum(copies_of_maps(model, torch.randn(2, 3, 64, 64)).values()) == 1


@pytest.mark.parametrize("training", [False, True])
def test_attention_needs_linear_memory(training: bool) -> None:
    """No tensor on the way, forwards or backwards, comes near the attention matrices in size."""
    branch = AttentionBranch(16, 2).train(training)
    x = torch.randn(1, 64, 48, 16, requires_grad=training)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        y = branch(x)
        if training:
            y.sum().backward()
    matrices = 2 * (64 * 48) ** 2 * 4
    assert 0 < max(event.cpu_memory_usage for event in profiler.events()) < matrices / 20


LARGE_IMAGE = """
import timm, torch, iformer
from iformer.benchmark.memory import highest
model = timm.create_model("iformer_small").eval()
with torch.no_grad():
    maps = model.forward_intermediates(torch.randn(1, 3, 800, 1280), intermediates_only=True)
assert maps[0].shape == (1, 96, 200, 320) and maps[3].shape == (1, 384, 25, 40)
print(highest())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a process counts its parent's memory too")
def test_large_image() -> None:
    """800x1280 within 2.5 GiB for the whole process: the attention matrix of one block alone would take 1 GiB."""
    result = subprocess.run(
        [sys.executable, "-c", LARGE_IMAGE], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) / 2**10 < 2.5

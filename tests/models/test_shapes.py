"""Every shape of image and of model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iformer.deployment.fuse import fuse
from iformer.models.inception_transformer import InceptionTransformer
from tests.networks import draw

STAGES = 4

Finish = Callable[[Any], Any]


@st.composite
def architectures(choose: st.DrawFn) -> dict[str, Any]:
    depths = choose(st.tuples(*[st.integers(1, 2)] * STAGES))
    num_heads = choose(st.tuples(*[st.integers(1, 4)] * STAGES))
    widths = choose(st.tuples(*[st.sampled_from([4, 6, 8])] * STAGES))
    blocks = [heads for heads, depth in zip(num_heads, depths, strict=True) for _ in range(depth)]
    return {
        "depths": depths,
        "num_heads": num_heads,
        "dims": tuple(heads * width for heads, width in zip(num_heads, widths, strict=True)),
        "attention_heads": tuple(choose(st.integers(0, heads)) for heads in blocks),
        "conv_ratio": choose(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "pool_strides": choose(st.tuples(*[st.sampled_from([1, 2])] * STAGES)),
        "layer_scales": choose(st.tuples(*[st.sampled_from([None, 0.1])] * STAGES)),
        "stem_stride": choose(st.sampled_from([2, 4])),
        "img_size": choose(st.one_of(st.integers(16, 80), st.tuples(st.integers(16, 80), st.integers(16, 80)))),
        "in_chans": choose(st.integers(1, 5)),
        "num_classes": choose(st.sampled_from([0, 1, 5])),
        "global_pool": choose(st.sampled_from(["avg", "max", ""])),
    }


made = pytest.mark.parametrize("finish", [lambda model: model, lambda model: fuse(draw(model))], ids=["plain", "fused"])
"""For a test that holds for the backbone as for what ``fuse`` makes of it."""


@made
@settings(max_examples=60, deadline=None)
@given(data=st.data(), config=architectures(), batch=st.integers(1, 3))
def test_any_model_takes_any_image(finish: Finish, data: st.DataObject, config: dict[str, Any], batch: int) -> None:
    if not config["global_pool"]:
        config["num_classes"] = 0
    sides = st.integers(8 * config["stem_stride"], 100)
    height, width = data.draw(sides, "height"), data.draw(sides, "width")
    model = finish(InceptionTransformer(**config).eval())
    x = torch.randn(batch, config["in_chans"], height, width)
    with torch.no_grad():
        features, stages = model.forward_intermediates(x)
        y = model(x)

    strides = [config["stem_stride"] * 2**i for i in range(STAGES)]
    assert [tuple(stage.shape) for stage in stages] == [
        (batch, dim, -(-height // stride), -(-width // stride))
        for dim, stride in zip(config["dims"], strides, strict=True)
    ]
    channels = config["num_classes"] or config["dims"][-1]
    assert y.shape == ((batch, channels) if config["global_pool"] else features.shape)
    assert torch.isfinite(y).all()


@made
@settings(max_examples=15, deadline=None)
@given(height=st.integers(16, 70), width=st.integers(16, 70))
def test_images_of_a_batch_do_not_meet(finish: Finish, height: int, width: int) -> None:
    model = finish(
        InceptionTransformer(
            depths=(1, 1), dims=(8, 16), num_heads=(2, 4), attention_heads=(1, 2), pool_strides=(2, 1),
            layer_scales=(1, 1),
        ).eval()
    )  # fmt: skip
    x = torch.randn(3, 3, height, width)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("stem_stride", "side"), [(4, 32), (2, 16)])
def test_trains_on_the_smallest_images(stem_stride: int, side: int) -> None:
    model = InceptionTransformer(
        depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_heads=(2, 2, 2, 2), attention_heads=(1, 1, 1, 1), img_size=side,
        stem_stride=stem_stride,
    )  # fmt: skip
    model(torch.randn(2, 3, side, side)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

"""Networks whose last stages are dilated, so that their maps are finer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor

from iformer.deployment.channels_first import channels_first
from iformer.deployment.fuse import fuse
from iformer.models import saved
from iformer.models.recomputation import recompute
from tests.networks import plain_and_fused

Tiny = Callable[..., Any]

REDUCTIONS = {8: [4, 8, 8, 8], 16: [4, 8, 16, 16], 32: [4, 8, 16, 32]}
NO_ATTENTION = {"attention_heads": (0, 0, 0, 0, 0)}


@plain_and_fused
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (96, 61)])
@pytest.mark.parametrize("output_stride", REDUCTIONS)
def test_maps_are_as_fine_as_they_say(output_stride: int, size: tuple[int, int], tiny: Tiny) -> None:
    model = tiny(output_stride=output_stride)
    assert [info["reduction"] for info in model.feature_info] == REDUCTIONS[output_stride]
    maps = model.forward_intermediates(torch.randn(2, 3, *size), intermediates_only=True)
    for found, stride in zip(maps, REDUCTIONS[output_stride], strict=True):
        assert tuple(found.shape[2:]) == tuple(-(-side // stride) for side in size)


@pytest.mark.parametrize("output_stride", REDUCTIONS)
def test_features_only_knows_the_strides(output_stride: int) -> None:
    model = timm.create_model("iformer_small", features_only=True, output_stride=output_stride, device="meta")
    assert model.feature_info.reduction() == REDUCTIONS[output_stride]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_every_position_of_the_ordinary_network_is_one_of_the_dilated(output_stride: int, tiny: Tiny) -> None:
    """Where neither attention nor an embedding depends on the number of positions."""
    ordinary, dilated = tiny(**NO_ATTENTION), tiny(**NO_ATTENTION, output_stride=output_stride)
    for stage in ordinary.stages:
        torch.nn.init.zeros_(stage.pos_embed)
    dilated.load_state_dict(ordinary.state_dict())
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = ordinary.forward_intermediates(x, intermediates_only=True)
        found = dilated.forward_intermediates(x, intermediates_only=True)
    for coarse, fine in zip(expected, found, strict=True):
        step = fine.shape[2] // coarse.shape[2]
        torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-4, atol=1e-4)
    assert found[-1].shape[2] == 96 // output_stride


def test_stride_32_is_the_ordinary_network(tiny: Tiny) -> None:
    ordinary, asked = tiny(), tiny(output_stride=32)
    asked.load_state_dict(ordinary.state_dict())
    x = torch.randn(2, 3, 65, 90)
    assert torch.equal(asked(x), ordinary(x))
    assert str(asked) == str(ordinary)


def test_released_weights_stay_as_they_are(released_file: Path, released: dict[str, Tensor]) -> None:
    def create(**arguments: Any) -> Any:
        overlay = {"file": str(released_file)}
        return timm.create_model("iformer_small", pretrained=True, pretrained_cfg_overlay=overlay, **arguments)

    ordinary, dilated = create().state_dict(), create(output_stride=8).state_dict()
    assert ordinary.keys() == dilated.keys()
    for name, weight in ordinary.items():
        assert torch.equal(weight, dilated[name]), name


def test_the_forms_for_inference_compute_the_same(tiny: Tiny) -> None:
    model = tiny(output_stride=8)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        for made in (fuse(model), fuse(model, (64, 96)), channels_first(fuse(model))):
            torch.testing.assert_close(made(x), expected, rtol=1e-3, atol=1e-4)


def test_recomputation_changes_no_gradient(tiny: Tiny) -> None:
    model = tiny(output_stride=8).train()
    gradients = []
    for each in (model, recompute(model)):
        each.zero_grad()
        each(torch.ones(2, 3, 64, 64)).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in each.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_saved_network_keeps_its_stride(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(output_stride=16)
    saved.save(model, tmp_path, [f"class {i}" for i in range(7)])
    again = saved.resolve(tmp_path).network
    assert [info["reduction"] for info in again.feature_info] == REDUCTIONS[16]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("decoder", "output_stride"),
    [("DeepLabV3", 8), ("DeepLabV3", 16), ("DeepLabV3Plus", 8), ("DeepLabV3Plus", 16), ("PAN", 16), ("PAN", 32)],
)
def test_decoders_of_segmentation_models_pytorch_take_it(decoder: str, output_stride: int) -> None:
    narrow = {"depths": (1, 1, 1, 1), "num_heads": (3, 6, 10, 12), "attention_heads": (1, 3, 7, 11)}
    model = getattr(smp, decoder)(
        "tu-iformer_small", encoder_weights=None, encoder_output_stride=output_stride, classes=5, **narrow
    )
    side = 256 if decoder == "PAN" else 64  # it pools the last map three times
    logits = model(torch.randn(2, 3, side, side))
    assert logits.shape == (2, 5, side, side)
    logits.mean().backward()
    with torch.no_grad():
        assert model.encoder(torch.randn(1, 3, side, side))[-1].shape[2] == side // output_stride


@pytest.mark.parametrize("value", [4, 64, 0])
def test_other_strides_are_refused(value: int, tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=rf"^output_stride is {value}, expected 8, 16 or 32$"):
        tiny(output_stride=value)

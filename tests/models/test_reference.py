"""The backbone against the authors' released model (tests/data/README.md)."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from iformer.models.inception_transformer import InceptionTransformer
from iformer.models.released import checkpoint_filter_fn, rename


@pytest.fixture
def model(released: dict[str, Tensor]) -> InceptionTransformer:
    model = timm.create_model("iformer_small")
    model.load_state_dict(checkpoint_filter_fn(dict(released), model))
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal((2, 3, 224, 224)).astype(np.float32))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_evaluation(
    model: InceptionTransformer, images: Tensor, reference: dict[str, Any], memory_format: torch.memory_format
) -> None:
    model.eval().to(memory_format=memory_format)
    with torch.no_grad():
        features, stages = model.forward_intermediates(images.to(memory_format=memory_format))
        pooled = model.forward_head(features, pre_logits=True)
        logits = model.forward_head(features)
    assert (logits - reference["logits"]).abs().max() < 1e-4
    assert (pooled - reference["pooled"]).abs().max() < 1e-4
    for number, stage in enumerate(stages, 1):
        torch.testing.assert_close(stage.mean((2, 3)), reference[f"stage{number}_mean"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stage[:, :, :2, :2], reference[f"stage{number}_corner"], rtol=1e-4, atol=1e-4)


def test_training_step(model: InceptionTransformer, images: Tensor, reference: dict[str, Any]) -> None:
    model.train().zero_grad()
    loss = F.cross_entropy(model(images), torch.tensor([3, 7]))
    loss.backward()
    assert loss.item() == pytest.approx(reference["train_loss"].item(), abs=1e-4)

    norms = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    expected = {rename(name): norm for name, norm in reference["grad_norms"].items()}
    assert norms.keys() == expected.keys()
    # BatchNorm takes away what the bias in front of it adds. Its gradient is zero, and what is left is rounding error:
    # such norms agree on being zero, beside those of the other parameters (0.01 and more), but not in their digits.
    batch_normed = {"stem.conv1.bias", "stem.conv2.bias"} | {f"stages.{i}.downsample.conv.bias" for i in (1, 2, 3)}
    assert {name for name, norm in expected.items() if norm < 1e-3} == batch_normed
    assert all(norms.pop(name) < 1e-4 for name in batch_normed)
    assert norms == {name: pytest.approx(expected[name], rel=1e-3) for name in norms}

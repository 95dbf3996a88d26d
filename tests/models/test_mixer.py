"""The Inception mixer and its parts against the paper's equations, written out."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.models.inception_transformer import (
    AttentionBranch,
    ConvBranch,
    InceptionBlock,
    InceptionMixer,
    InceptionStage,
    InceptionTransformer,
    MaxPoolBranch,
)
from iformer.models.recomputation import recompute


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def attention_in_loops(x: np.ndarray, qkv: nn.Linear, heads: int, stride: int) -> np.ndarray:
    """Eq. 7 for one image, (H, W, C): average pooling, softmax attention, nearest upsampling, position by position."""
    height, width, channels = x.shape
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    weight, bias = qkv.weight.detach().double().numpy(), qkv.bias.detach().double().numpy()
    tokens = []
    for i in range(rows):
        for j in range(columns):
            cell = x[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]  # cut where the image ends
            tokens.append(weight @ cell.mean((0, 1)) + bias)
    head = channels // heads
    mixed = np.zeros((rows * columns, channels))
    for h in range(heads):
        q, k, v = (
            np.stack([t[part * channels + h * head : part * channels + (h + 1) * head] for t in tokens])
            for part in range(3)
        )
        for a in range(len(tokens)):
            scores = np.exp(k @ q[a] / math.sqrt(head))
            mixed[a, h * head : (h + 1) * head] = scores @ v / scores.sum()
    return np.stack(
        [np.stack([mixed[i // stride * columns + j // stride] for j in range(width)]) for i in range(height)]
    )


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), heads=st.integers(1, 3), stride=st.sampled_from([1, 2]))
def test_attention_branch(height: int, width: int, heads: int, stride: int) -> None:
    branch = AttentionBranch(4 * heads, heads, stride)
    randomise(branch)
    x = torch.randn(2, height, width, 4 * heads)
    with torch.no_grad():
        y = branch(x)
    for image, result in zip(x, y, strict=True):
        expected = attention_in_loops(image.double().numpy(), branch.qkv, heads, stride)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_max_pool_branch() -> None:
    branch = MaxPoolBranch(3)
    randomise(branch)
    x = torch.randn(2, 5, 4, 3)
    padded = F.pad(x, (0, 0, 1, 1, 1, 1), value=-math.inf)
    pooled = torch.stack(
        [torch.stack([padded[:, i : i + 3, j : j + 3].amax((1, 2)) for j in range(4)], 1) for i in range(5)], 1
    )
    torch.testing.assert_close(branch(x), pooled @ branch.fc.weight.T + branch.fc.bias)


def test_conv_branch() -> None:
    branch = ConvBranch(3)
    randomise(branch)
    assert branch.fc.bias is None
    assert branch.conv.bias is None
    x = torch.randn(2, 5, 4, 3)
    wide = F.pad(x @ branch.fc.weight.T, (0, 0, 1, 1, 1, 1))
    summed = sum(wide[:, i : i + 5, j : j + 4] * branch.conv.weight[:, 0, i, j] for i in range(3) for j in range(3))
    torch.testing.assert_close(branch(x), summed)


@pytest.mark.parametrize("attention_heads", range(5))
@pytest.mark.parametrize("conv_ratio", [0.0, 0.5, 1.0])
def test_mixer_splits_and_fuses(attention_heads: int, conv_ratio: float) -> None:
    """Eqs. 3 and 4: the first channels are high frequency, the first of them convolution; the last are attention."""
    mixer = InceptionMixer(16, 4, attention_heads, conv_ratio, pool_stride=2)
    randomise(mixer)
    low = 4 * attention_heads
    conv = int((16 - low) * conv_ratio)
    assert mixer.split_dims == (conv, 16 - low - conv, low)
    present = [
        branch is not None for branch in (mixer.conv_branch, mixer.pool_branch, mixer.attn_branch)
    ]  # no branch without channels
    assert present == [dim > 0 for dim in mixer.split_dims]

    x = torch.randn(2, 7, 6, 16)
    parts = [
        branch(part) if attention else F.gelu(branch(part))
        for branch, part, attention in (
            (mixer.conv_branch, x[..., :conv], False),
            (mixer.pool_branch, x[..., conv : 16 - low], False),
            (mixer.attn_branch, x[..., 16 - low :], True),
        )
        if branch is not None
    ]
    y = torch.cat(parts, -1)
    assert y.shape[-1] == 2 * (16 - low) + low
    y = y + nhwc(F.conv2d(nchw(y), mixer.fusion.weight, padding=1, groups=y.shape[-1]))
    torch.testing.assert_close(mixer(x), y @ mixer.proj.weight.T + mixer.proj.bias, rtol=1e-4, atol=1e-4)


def gradients_and_kept(mixer: InceptionMixer, x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Gradients of everything, and how many bytes the backward pass was left."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = mixer(x)
    return list(torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])), sum(s.nbytes() for s in kept.values())


@pytest.mark.parametrize("attention_heads", range(5))
@pytest.mark.parametrize("conv_ratio", [0.0, 0.5, 1.0])
def test_training_keeps_less_and_computes_the_same(attention_heads: int, conv_ratio: float) -> None:
    mixer = recompute(InceptionBlock(16, 4, attention_heads, conv_ratio, pool_stride=2)).mixer
    randomise(mixer)
    x = torch.randn(2, 7, 6, 16, requires_grad=True)
    torch.testing.assert_close(mixer.train()(x), mixer.eval()(x))
    gradients, kept = gradients_and_kept(mixer.train(), x)
    expected, all_kept = gradients_and_kept(mixer.eval(), x)
    torch.testing.assert_close(gradients, expected)
    assert kept < 0.8 * all_kept


def test_training_uses_the_same_activations_and_random_numbers() -> None:
    mixer = recompute(InceptionBlock(16, 4, 2, proj_drop=0.5)).mixer.train()
    mixer.conv_act = mixer.pool_act = torch.nn.ReLU()
    randomise(mixer)
    x = torch.randn(2, 4, 4, 16, requires_grad=True)
    torch.manual_seed(0)
    y = mixer(x)
    gradient = torch.autograd.grad(y.sum(), x)
    dropped = y == 0
    assert 0.3 < dropped.float().mean() < 0.7
    expected = 2 * mixer.eval()(x) * ~dropped
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), x))


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_block(layer_scale: float | None) -> None:
    """Eqs. 5 and 6."""
    block = InceptionBlock(8, 2, 1, layer_scale=layer_scale)
    scale = 1.0 if layer_scale is None else layer_scale
    x = torch.randn(2, 4, 4, 8)
    y = x + scale * block.mixer(F.layer_norm(x, (8,), eps=1e-6))
    y = y + scale * block.mlp(F.layer_norm(y, (8,), eps=1e-6))
    torch.testing.assert_close(block(x), y)
    assert block.mlp.fc1.out_features == 32


@pytest.mark.parametrize("size", [(6, 6), (9, 4), (1, 1), (3, 7)])
def test_position_embedding_is_resized_bilinearly(size: tuple[int, int]) -> None:
    stage = InceptionStage(8, 8, (6, 6), (), (), downsample=False)
    nn.init.normal_(stage.pos_embed)
    x = torch.randn(2, 8, *size)
    embedding = stage.pos_embed.permute(2, 0, 1)[None]
    if size != (6, 6):
        embedding = F.interpolate(embedding, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(stage(x), x + embedding)


def test_dropout_of_the_projections() -> None:
    x = torch.randn(2, 4, 4, 8)
    assert not InceptionMixer(8, 2, 1, proj_drop=1.0).train()(x).any()
    assert not InceptionBlock(8, 2, 1, proj_drop=1.0).train().mlp(x).any()


def test_stochastic_depth_drops_both_residuals() -> None:
    block = InceptionBlock(8, 2, 1, drop_path=1.0).train()
    x = torch.randn(2, 4, 4, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_initialisation() -> None:
    model = InceptionTransformer(img_size=64, dims=(48, 96, 160, 192), layer_scales=(None, 0.5, 1e-6, 1e-6))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "layer_scale" in name:
            assert (parameter == (0.5 if name.startswith("stages.1") else 1e-6)).all(), name
            assert not name.startswith("stages.0")
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25), name
            assert parameter.abs().max() <= 2.0, name


def test_initialisation_of_pytorch() -> None:
    model = InceptionTransformer(img_size=64, dims=(48, 96, 160, 192), init_std=None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound, name
            assert module.bias is None or not module.bias.any(), name
    assert all(0.015 < stage.pos_embed.std() < 0.025 for stage in model.stages)


def test_stochastic_depth_grows_linearly(tiny: Callable[..., InceptionTransformer]) -> None:
    model = tiny(drop_path_rate=0.3, depths=(2, 1, 3, 1), attention_heads=(1, 1, 2, 2, 2, 3, 4))
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx(np.linspace(0, 0.3, 7).tolist())
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]


@pytest.mark.parametrize("rate", ["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_drop_rates_act_in_training_only(tiny: Callable[..., InceptionTransformer], rate: str) -> None:
    model = tiny(**{rate: 0.5})
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm2d):
            module.training = True
    assert (model(x) - model(x)).abs().max() > 1e-3

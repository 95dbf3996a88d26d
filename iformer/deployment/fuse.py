"""The exact reparameterisation: what is constant after training is multiplied into the weights beside it.

A fused model computes what the original does, with fewer passes over its maps. It is for inference: where LayerScale
or a normalisation has gone into a weight, it no longer trains in the same way.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, LayerScale, to_2tuple
from timm.models import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from iformer.models.inception_transformer import (
    Downsample,
    InceptionBlock,
    InceptionMixer,
    InceptionStage,
    MaxPoolBranch,
    Stem,
    nchw,
    nhwc,
)


def fuse(model: nn.Module, size: int | tuple[int, int] | None = None) -> Any:
    """A copy of ``model`` for inference that computes the same with fewer operations.

    In an iFormer, alone or as the backbone of something larger:

    - BatchNorm goes into the convolution before it,
    - a block's LayerNorm keeps its statistics only; its scale and shift go into the linear layers behind it,
    - LayerScale goes into the projection before it,
    - the identity around the fusion convolution goes into that convolution's centre tap,
    - where no gradients are recorded, GELUs overwrite what they take, for the largest maps are theirs. To look at what
      comes before a GELU, by hooks or feature extraction, take the original.

    The last LayerNorm, outside the blocks, stays as it is: its output is what ``forward_features`` returns.

    Modules that offer ``fuse``, as timm calls it, or one of its other names for this are fused by
    :func:`timm.models.reparameterize_model`, so that other models of timm may be given too.

    Args:
        model: Any network. It is left as it is.
        size: Height and width in pixels, one number for both, that the position embeddings are resized to. The copy
            then agrees with ``model`` at this size only.

    Returns:
        The copy, in evaluation mode and without gradients.

    Raises:
        ValueError: ``size`` is given for a model without an iFormer.
    """
    fused = reparameterize_model(model).requires_grad_(False)
    if size is not None:
        _fix_size(fused, to_2tuple(size))
    for module in fused.modules():  # all of them: a backbone may be taken apart into its stages
        if type(module) in _FUSE:
            _FUSE[type(module)](module)
    return fused.eval()


class InPlaceGELU(nn.Module):
    """GELU, over its input where no gradients are recorded. ``(...)`` -> ``(...)``."""

    def forward(self, x: Tensor) -> Tensor:
        """What ``nn.GELU`` returns."""
        return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class FusedMixer(InceptionMixer):
    """An Inception mixer whose fusion convolution holds the identity around it. ``(N, H, W, C)`` -> ``(N, H, W, C)``.

    Takes over the modules of ``mixer``.
    """

    def __init__(self, mixer: InceptionMixer) -> None:
        nn.Module.__init__(self)
        self.split_dims = mixer.split_dims
        for name, module in mixer.named_children():
            setattr(self, name, module)
        self.conv_branch, self.pool_branch, self.attn_branch = mixer.conv_branch, mixer.pool_branch, mixer.attn_branch
        self.conv_act, self.pool_act = mixer.conv_act, mixer.pool_act  # which may be one module
        self.fusion.weight[:, :, 1, 1] += 1

    def combine(self, conv: Tensor, pool: Tensor, attn: Tensor) -> Tensor:
        """Eqs. 3 and 4, the latter's sum included in the convolution."""
        y = self.concatenate(conv, pool, attn)
        return self.proj(nhwc(self.fusion(nchw(y))))


def _fix_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Resize the position embeddings of an iFormer, which may have been taken apart, for images of ``size``."""
    stages = [module for module in model.modules() if isinstance(module, InceptionStage)]
    if not stages:
        raise ValueError(f"size: {type(model).__name__} holds no iFormer whose position embeddings could be resized")
    for module in model.modules():  # in the order in which they run
        if isinstance(module, Stem):
            stride = module.conv1.stride[0] * module.conv2.stride[0]
        elif isinstance(module, InceptionStage):
            stride *= 2 if isinstance(module.downsample, Downsample) else 1
            module.set_size((-(-size[0] // stride), -(-size[1] // stride)))


def _fuse_stem(stem: Stem) -> None:
    _fold_batch_norm(stem, "conv1", "norm1")
    _fold_batch_norm(stem, "conv2", "norm2")


def _fuse_downsample(downsample: Downsample) -> None:
    _fold_batch_norm(downsample, "conv", "norm")


def _fuse_block(block: Any) -> None:
    if isinstance(block.mixer, FusedMixer):
        return
    _fold_norm1(block)
    scale, shift = _take_affine(block, "norm2")
    _scale_inputs(block.mlp.fc1, scale, shift)
    for name, projection in (("layer_scale1", block.mixer.proj), ("layer_scale2", block.mlp.fc2)):
        layer_scale = getattr(block, name)
        if isinstance(layer_scale, LayerScale):
            _scale_outputs(projection, layer_scale.gamma)
            setattr(block, name, nn.Identity())
    for module, name in ((block.mixer, "conv_act"), (block.mixer, "pool_act"), (block.mlp, "act")):
        act = getattr(module, name)
        if type(act) is nn.GELU and act.approximate == "none":
            setattr(module, name, InPlaceGELU())
    block.mixer = FusedMixer(block.mixer)


_FUSE: dict[type[nn.Module], Callable[[Any], None]] = {
    Stem: _fuse_stem,
    Downsample: _fuse_downsample,
    InceptionBlock: _fuse_block,
}


def _fold_batch_norm(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Let a convolution do what the BatchNorm behind it does, frozen or not, and put nothing in its place."""
    conv, norm = getattr(module, conv_name), getattr(module, norm_name)
    if isinstance(norm, nn.Identity):
        return  # fused already
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    _set(conv, weight, bias)
    setattr(module, norm_name, nn.Identity())


def _fold_norm1(block: Any) -> None:
    """Put the affine part of the norm before the mixer into the branches' linear layers.

    Averages commute with it, and so does the zero padding of the depthwise convolution, which comes after the linear
    layer. A maximum commutes with positive scales only: where the max-pooling branch has negative ones, a norm that
    only turns signs stays.
    """
    mixer = block.mixer
    scale, shift = _take_affine(block, "norm1")
    for branch, a, b in zip(
        (mixer.conv_branch, mixer.pool_branch, mixer.attn_branch),
        scale.split(mixer.split_dims),
        shift.split(mixer.split_dims),
        strict=True,
    ):
        if branch is not None:
            linear = branch.qkv if hasattr(branch, "qkv") else branch.fc
            _scale_inputs(linear, a.abs() if isinstance(branch, MaxPoolBranch) else a, b)
    conv, pool, _ = mixer.split_dims
    negative = torch.zeros_like(scale, dtype=torch.bool)
    negative[conv : conv + pool] = scale[conv : conv + pool] < 0
    if negative.any():
        block.norm1 = LayerNorm(len(scale), eps=block.norm1.eps).to(scale.device, mixer.proj.weight.dtype)
        block.norm1.requires_grad_(False).weight[negative] = -1


def _take_affine(block: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """Scale and shift of a block's norm, which is left without."""
    norm = getattr(block, name)
    setattr(block, name, LayerNorm(norm.normalized_shape[0], eps=norm.eps, affine=False))
    return norm.weight.double(), norm.bias.double()


def _scale_inputs(linear: nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Let ``linear(x)`` be what ``linear(scale * x + shift)`` was."""
    weight = linear.weight.double()
    bias = weight @ shift
    _set(linear, weight * scale, bias if linear.bias is None else bias + linear.bias)


def _scale_outputs(linear: nn.Linear, scale: Tensor) -> None:
    """Let ``linear(x)`` be what ``scale * linear(x)`` was."""
    wide = scale.double()
    _set(linear, linear.weight * wide[:, None], linear.bias * wide)


def _set(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Give ``layer`` new values, which were computed in float64, in its own type and memory format."""
    like = layer.weight
    layer.weight = nn.Parameter(torch.empty_like(like).copy_(weight), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)

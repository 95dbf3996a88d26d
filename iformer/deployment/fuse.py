"""The exact reparameterisation: operations that are constant after training are folded into neighbouring weights.

A fused model computes the same function as the original, with fewer passes over its maps. It is meant for inference:
with LayerScale and normalisations folded into weights, it no longer trains in the same way.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, LayerScale, Mlp, to_2tuple
from timm.models import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from iformer.models.inception_transformer import (
    AttentionBranch,
    ConvBranch,
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
    """Return a copy of ``model`` for inference that computes the same with fewer operations.

    In an iFormer, alone or as the backbone of something larger:

    - BatchNorm is folded into the convolution before it,
    - a block's LayerNorm keeps only its statistics; its scale and shift are folded into the linear layers after it,
    - LayerScale is folded into the projection before it,
    - the identity around the fusion convolution is folded into that convolution's centre tap,
    - if no gradients are recorded, GELUs overwrite their inputs, which are the largest maps. To look at the input of a
      GELU, by hooks or feature extraction, use the original.

    The last LayerNorm, outside the blocks, is not changed, because its output is that of ``forward_features``.

    Parametrised layers (:mod:`torch.nn.utils.parametrize`: LoRA in that form, weight norm, spectral norm) get the
    weights that they compute. An adapter of another form must be merged before.

    Modules with a method ``fuse``, or another name that timm knows for this, are fused by
    :func:`timm.models.reparameterize_model`, so that other timm models can be fused too.

    Args:
        model: Any network, which is not changed.
        size: The height and width in pixels for which the position embeddings are resized, or one number for both. The
            copy then agrees with ``model`` at this size only.

    Returns:
        The copy in evaluation mode, whose parameters require no gradients.

    Raises:
        ValueError: ``size`` is given for a model without an iFormer, or a layer to be folded is not the network's own,
            but an adapter for example; the message names it.
    """
    fused = copy.deepcopy(model).eval()
    _compute_parametrised(fused)
    _require_own_layers(fused)
    fused = reparameterize_model(fused, inplace=True).requires_grad_(False)
    if size is not None:
        _fix_size(fused, to_2tuple(size))
    for module in fused.modules():  # all of its modules, because a backbone may be taken apart into its stages
        if type(module) in _FUSE:
            _FUSE[type(module)](module)
    return fused.eval()


def _compute_parametrised(model: nn.Module) -> None:
    """Replace parametrised tensors by their values, which are constant after training."""
    for module in list(model.modules()):
        if is_parametrized(module):
            for name in [*cast(nn.ModuleDict, module.parametrizations)]:
                remove_parametrizations(module, name)


def _require_own_layers(model: nn.Module) -> None:
    """Raise ValueError, naming the layer, if one of those to be folded is of another class, or computes its weight."""
    for name, module in model.named_modules():
        for path, kind in _FOLDED.get(type(module), {}).items():
            layer = functools.reduce(lambda part, key: getattr(part, key, None), path.split("."), module)
            if layer is None or isinstance(layer, nn.Identity):  # a branch that the block lacks, a norm that is folded
                continue
            found = f"{name}.{path}".removeprefix(".")
            if type(layer) is not kind:
                raise ValueError(
                    f"{found} is a {type(layer).__module__}.{type(layer).__qualname__}, expected {kind.__name__}: "
                    "merge an adapter into its layer before the model is fused (in peft: merge_and_unload)"
                )
            if kind in (nn.Linear, nn.Conv2d) and "weight" not in dict(layer.named_parameters(recurse=False)):
                raise ValueError(
                    f"{found}.weight is computed in a hook, by pruning for example: make it a parameter first"
                )


class InPlaceGELU(nn.Module):
    """A GELU that overwrites its input, of any shape, if no gradients are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same as ``nn.GELU``."""
        return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class FusedMixer(InceptionMixer):
    """An Inception mixer on maps ``(N, H, W, C)`` whose fusion convolution includes the identity around it.

    Args:
        mixer: The mixer whose modules are taken over.
    """

    def __init__(self, mixer: InceptionMixer) -> None:
        nn.Module.__init__(self)
        self.split_dims = mixer.split_dims
        for name, module in mixer.named_children():
            setattr(self, name, module)
        self.conv_branch, self.pool_branch, self.attn_branch = mixer.conv_branch, mixer.pool_branch, mixer.attn_branch
        self.conv_act, self.pool_act = mixer.conv_act, mixer.pool_act  # the two may be one module
        self.fusion.weight[:, :, 1, 1] += 1

    def combine(self, conv: Tensor, pool: Tensor, attn: Tensor) -> Tensor:
        """Apply Eqs. 3 and 4, where the convolution includes the sum of Eq. 4."""
        y = self.concatenate(conv, pool, attn)
        return self.proj(nhwc(self.fusion(nchw(y))))


def _fix_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Resize the position embeddings of an iFormer, even one taken apart into stages, for images of ``size``."""
    stages = [module for module in model.modules() if isinstance(module, InceptionStage)]
    if not stages:
        raise ValueError(f"size: {type(model).__name__} holds no iFormer whose position embeddings could be resized")
    for module in model.modules():  # in the order in which they run
        if isinstance(module, Stem):
            stride = module.conv1.stride[0] * module.conv2.stride[0]
        elif isinstance(module, InceptionStage):
            stride *= module.downsample.conv.stride[0] if isinstance(module.downsample, Downsample) else 1
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


_FOLDED: dict[type[nn.Module], dict[str, type[nn.Module]]] = {
    Stem: {"conv1": nn.Conv2d, "conv2": nn.Conv2d},
    Downsample: {"conv": nn.Conv2d},
    InceptionBlock: {
        "norm1": LayerNorm,
        "norm2": LayerNorm,
        "mixer.conv_branch": ConvBranch,
        "mixer.conv_branch.fc": nn.Linear,
        "mixer.pool_branch": MaxPoolBranch,
        "mixer.pool_branch.fc": nn.Linear,
        "mixer.attn_branch": AttentionBranch,
        "mixer.attn_branch.qkv": nn.Linear,
        "mixer.fusion": nn.Conv2d,
        "mixer.proj": nn.Linear,
        "mlp": Mlp,
        "mlp.fc1": nn.Linear,
        "mlp.fc2": nn.Linear,
    },
}
"""The layers into which something is folded, or around which: by their paths in the module, with their classes."""


def _fold_batch_norm(module: nn.Module, conv_name: str, norm_name: str) -> None:
    """Fold a BatchNorm, frozen or not, into the convolution before it, and replace it by an identity."""
    conv, norm = getattr(module, conv_name), getattr(module, norm_name)
    if isinstance(norm, nn.Identity):
        return  # it is fused already
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
    """Fold the scale and shift of the norm before the mixer into the linear layers of the branches.

    Averages commute with them, and so does the zero padding of the depthwise convolution, which comes after the linear
    layer. A maximum commutes with positive scales only, so if the max-pooling branch has negative scales, the norm
    keeps a scale that only changes signs.
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
    """Return the scale and shift of a block's norm, and remove them from it."""
    norm = getattr(block, name)
    setattr(block, name, LayerNorm(norm.normalized_shape[0], eps=norm.eps, affine=False))
    return norm.weight.double(), norm.bias.double()


def _scale_inputs(linear: nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Change a layer so that ``linear(x)`` returns what ``linear(scale * x + shift)`` returned."""
    weight = linear.weight.double()
    bias = weight @ shift
    _set(linear, weight * scale, bias if linear.bias is None else bias + linear.bias)


def _scale_outputs(linear: nn.Linear, scale: Tensor) -> None:
    """Change a layer so that ``linear(x)`` returns what ``scale * linear(x)`` returned."""
    wide = scale.double()
    _set(linear, linear.weight * wide[:, None], linear.bias * wide)


def _set(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Set the parameters of ``layer`` to values computed in float64, keeping its type and memory format."""
    like = layer.weight
    layer.weight = nn.Parameter(torch.empty_like(like).copy_(weight), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(like.dtype), requires_grad=False)

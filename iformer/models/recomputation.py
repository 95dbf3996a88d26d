"""Recomputation, which reduces the memory of training; it is applied to a built model from outside.

In a mixer the fusion of the branches, and in a feed-forward network everything after the first layer, has wide
intermediate results that are cheap to compute, except for those of the last layer. Only the inputs of these parts are
kept for the backward pass, which computes the intermediate results again. It does not compute the last layer again,
because the backward pass of that layer needs only its input.
"""

from collections.abc import Callable
from functools import partial

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iformer.models.inception_transformer import (
    AttentionBranch,
    ConvBranch,
    InceptionBlock,
    InceptionMixer,
    MaxPoolBranch,
)
from iformer.models.pooling import AveragePool

REPEATABLE = (
    InceptionMixer, AttentionBranch, ConvBranch, MaxPoolBranch, Mlp,
    AveragePool, nn.Linear, nn.Conv2d, nn.GELU, nn.Identity, nn.MaxPool2d, nn.ConstantPad2d, nn.Sequential,
)  # fmt: skip
"""Modules that are known to draw no random numbers. Others, such as adapters that are added later, might."""


def recompute(model: nn.Module) -> nn.Module:
    """Make every iFormer block in ``model`` keep less for the backward pass; other models are left as they are.

    Results are the same to the bit. Recomputation takes place in training mode where gradients are recorded, and not
    under ``torch.compile``, whose own partitioner decides what to keep. The state dict does not change.

    Args:
        model: Any model, such as a detector around an iFormer.

    Returns:
        The same model.
    """
    for block in model.modules():
        if isinstance(block, InceptionBlock):
            mixer, mlp = block.mixer, block.mlp
            if isinstance(mixer, InceptionMixer):  # one that shares its weights among ramps changes between passes
                mixer.combine = partial(_recomputed, mixer, type(mixer).combine)  # type: ignore[method-assign]
            mlp.forward = partial(_feed_forward, mlp)  # type: ignore[method-assign]
    return model


def _feed_forward(mlp: Mlp, x: Tensor) -> Tensor:
    """Return the result of ``Mlp.forward``, recomputing all but the first layer in the backward pass."""
    return _recomputed(mlp, _behind_first_layer, mlp.fc1(x))


def _behind_first_layer(mlp: Mlp, x: Tensor) -> Tensor:
    return mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(mlp.act(x)))))


def _recomputed(module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``function(module, *inputs)``, of which only ``inputs`` are kept for the backward pass."""
    if not module.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(module, *inputs)
    return checkpoint(
        partial(function, module),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=not all(map(_is_repeatable, module.modules())),
        determinism_check="none",
    )


def _is_repeatable(module: nn.Module) -> bool:
    return type(module) in REPEATABLE or (isinstance(module, nn.Dropout) and module.p == 0)

"""Recomputation: less memory in training, put onto a built model from outside.

What fuses a mixer's branches, and what follows the first layer of a feed-forward network, is wide and cheap but for its
last layer. It is computed again in the backward pass, for which only its inputs are kept. Its last layer is not: what
that layer keeps is known before it is computed.
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
    AveragePool, nn.Linear, nn.Conv2d, nn.GELU, nn.Identity, nn.MaxPool2d,
)  # fmt: skip
"""Modules that draw no random numbers in what is computed again. Others might, such as adapters put inside later."""


def recompute(model: nn.Module) -> nn.Module:
    """Let every iFormer block in ``model`` keep less for the backward pass; other models stay as they are.

    What is computed is the same to the bit. It works in training where gradients are recorded, and not under
    ``torch.compile``, whose own partitioner decides what to keep. Nothing of it is in the state dict.

    Args:
        model: Any model, one that holds an iFormer say.

    Returns:
        The same model.
    """
    for block in model.modules():
        if isinstance(block, InceptionBlock):
            mixer, mlp = block.mixer, block.mlp
            mixer.combine = partial(_recomputed, mixer, type(mixer).combine)  # type: ignore[method-assign]
            mlp.forward = partial(_feed_forward, mlp)  # type: ignore[method-assign]
    return model


def _feed_forward(mlp: Mlp, x: Tensor) -> Tensor:
    """What ``Mlp.forward`` does."""
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

"""The form of a fused model that inference engines run fastest.

Engines choose the memory layout themselves, but they do not recognise that a linear layer between two permutations is a
convolution. They run it in a generic kernel and pass over the map again for GELU and the residual. If all maps are
channels first and linear layers are 1x1 convolutions, GELU and the residual become part of the convolution.
"""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

from iformer.deployment.fuse import FusedMixer, InPlaceGELU
from iformer.models.inception_transformer import (
    AttentionBranch,
    InceptionBlock,
    InceptionStage,
    nchw,
    nhwc,
    resize_pos_embed,
)


def channels_first(model: nn.Module) -> Any:
    """Return a copy of a fused model whose blocks compute on maps ``(N, C, H, W)``, for export.

    Args:
        model: A model returned by :func:`~iformer.deployment.fuse.fuse`. Parts that do not belong to an iFormer are
            copied unchanged.
    """
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InceptionStage):
                setattr(module, name, ChannelsFirstStage(child))
    return model.eval()


class ChannelsFirstStage(nn.Module):
    """A stage from maps ``(N, C, H, W)`` to maps ``(N, C', H', W')``."""

    def __init__(self, stage: InceptionStage) -> None:
        super().__init__()
        self.downsample = stage.downsample
        self.pos_embed = stage.pos_embed
        self.blocks = nn.Sequential(*[ChannelsFirstBlock(block) for block in stage.blocks])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the downsampling, the position embedding and the blocks."""
        x = self.downsample(x)
        return self.blocks(x + resize_pos_embed(self.pos_embed, [x.shape[2], x.shape[3]]).permute(2, 0, 1))


class ChannelsFirstBlock(nn.Module):
    """A fused block on maps ``(N, C, H, W)``."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        if not isinstance(block, InceptionBlock) or not isinstance(block.mixer, FusedMixer):
            raise ValueError("channels_first: the model is not fused, expected one that fuse has returned")
        mixer, mlp = block.mixer, cast(Any, block.mlp)
        self.norm1 = ChannelsFirstNorm(block.norm1)
        self.split_dims = mixer.split_dims
        self.branches = nn.ModuleList([_conv(mixer), _pool(mixer), _attention(mixer)])
        self.proj = nn.Sequential(mixer.fusion, _pointwise(mixer.proj))
        self.norm2 = ChannelsFirstNorm(block.norm2)
        self.mlp = nn.Sequential(_pointwise(mlp.fc1), _act(mlp.act), _pointwise(mlp.fc2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply Eqs. 3 to 6."""
        parts = self.norm1(x).split(self.split_dims, dim=1)
        mixed = [branch(part) for branch, part in zip(self.branches, parts, strict=True) if part.shape[1]]
        x = x + self.proj(torch.cat(mixed, dim=1))
        return x + self.mlp(self.norm2(x))


class ChannelsFirstNorm(nn.Module):
    """A LayerNorm over the channels of maps ``(N, C, H, W)``, written as single operations."""

    def __init__(self, norm: LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.sign = None if norm.weight is None else nn.Parameter(norm.weight[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the channels, in at least float32 because squares overflow float16."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - wide.mean(1, keepdim=True)
        y = (wide * torch.rsqrt((wide * wide).mean(1, keepdim=True) + self.eps)).to(x.dtype)
        return y if self.sign is None else y * self.sign


class ChannelsFirstAttention(nn.Module):
    """Self-attention on maps ``(N, C, H, W)``, with a 1x1 convolution each for q, k and v."""

    def __init__(self, branch: AttentionBranch) -> None:
        super().__init__()
        self.branch = branch
        dim = branch.qkv.in_features
        self.q, self.k, self.v = (_pointwise(branch.qkv, slice(i * dim, (i + 1) * dim)) for i in range(3))
        del branch.qkv  # its weights are in these convolutions

    def forward(self, x: Tensor) -> Tensor:
        """Apply Eq. 7."""
        size = [x.shape[2], x.shape[3]]
        x = self.branch.pool(x)
        q, k, v = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v)
        n, c, h, w = x.shape
        return self.branch.upsample(nchw(y.transpose(1, 2).reshape(n, h, w, c)), size)

    def _heads(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        heads = self.branch.num_heads
        return nhwc(x).reshape(n, h * w, heads, c // heads).transpose(1, 2)


def _conv(mixer: FusedMixer) -> nn.Module:
    branch = mixer.conv_branch
    return nn.Sequential(_pointwise(branch.fc), branch.conv, _act(mixer.conv_act)) if branch else nn.Identity()


def _pool(mixer: FusedMixer) -> nn.Module:
    branch = mixer.pool_branch
    return nn.Sequential(branch.pool, _pointwise(branch.fc), _act(mixer.pool_act)) if branch else nn.Identity()


def _attention(mixer: FusedMixer) -> nn.Module:
    return ChannelsFirstAttention(mixer.attn_branch) if mixer.attn_branch else nn.Identity()


def _act(act: nn.Module) -> nn.Module:
    return nn.GELU() if isinstance(act, InPlaceGELU) else act  # engines decide themselves which tensors to overwrite


def _pointwise(linear: nn.Linear, outputs: slice = slice(None)) -> nn.Conv2d:
    """Return a linear layer, or some of its outputs, as a 1x1 convolution."""
    weight, bias = linear.weight[outputs], linear.bias[outputs]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device=weight.device, dtype=weight.dtype)
    conv.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv

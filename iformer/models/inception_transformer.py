"""The Inception Transformer (iFormer): Section 3 of the paper.

"Inception Transformer", NeurIPS 2022, https://arxiv.org/abs/2205.12956. Equation numbers in this file are the paper's.

Feature maps enter and leave stages as ``(N, C, H, W)``. Inside a stage they are ``(N, H, W, C)``, so that
normalisations, linear layers and channel splits work on contiguous channels, while convolutions and poolings see the
same memory as a ``channels_last`` tensor, without a copy. If the network and its images are in ``channels_last``, all
feature maps are too. In constructors ``dd`` stands for ``device`` and ``dtype``, as it does in timm.
"""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerNorm,
    LayerScale,
    Mlp,
    calculate_drop_path_rates,
    resample_abs_pos_embed_nhwc,
    trunc_normal_,
    use_fused_attn,
)
from torch import Tensor, nn

from iformer.models.dilation import dilate
from iformer.models.pooling import AveragePool
from iformer.models.timm_interface import (
    BlockSequence,
    TimmInterface,
    by_stage,
    check_arguments,
    check_strides,
    map_sizes,
)


def nchw(x: Tensor) -> Tensor:
    """Return a view of a map with its channels first: ``(N, H, W, C)`` -> ``(N, C, H, W)``."""
    return x.permute(0, 3, 1, 2)


def nhwc(x: Tensor) -> Tensor:
    """Return a view of a map with its channels last: ``(N, C, H, W)`` -> ``(N, H, W, C)``."""
    return x.permute(0, 2, 3, 1)


def depthwise_conv(dim: int, **dd: Any) -> nn.Conv2d:
    """Return the 3x3 depthwise convolution of Eqs. 2 and 4, without bias."""
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)


@torch.fx.wrap  # whether anything is resized depends on the size, which is not known during tracing
def resize_pos_embed(pos_embed: Tensor, size: list[int]) -> Tensor:
    """Resize a position embedding bilinearly: ``(H, W, C)`` -> ``(*size, C)``."""
    return resample_abs_pos_embed_nhwc(pos_embed.unsqueeze(0), size, interpolation="bilinear", antialias=False)[0]


class MaxPoolBranch(nn.Module):
    """High-frequency mixer, max-pooling half: Eq. 1, ``Y_h1 = FC(MaxPool(X_h1))``.

    ``(N, H, W, C)`` -> ``(N, H, W, 2C)``.
    """

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.fc = nn.Linear(dim, 2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(nhwc(self.pool(nchw(x))))


class ConvBranch(nn.Module):
    """High-frequency mixer, convolution half: Eq. 2, ``Y_h2 = DwConv(FC(X_h2))``.

    ``(N, H, W, C)`` -> ``(N, H, W, 2C)``.
    """

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * dim, bias=False, **dd)
        self.conv = depthwise_conv(2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return nhwc(self.conv(nchw(self.fc(x))))


class AttentionBranch(nn.Module):
    """Low-frequency mixer: Eq. 7, ``Y_l = Upsample(MSA(AvePooling(X_l)))``.

    ``(N, H, W, C)`` -> ``(N, H, W, C)``. Pooling and upsampling happen only where ``pool_stride`` is 2 (in the first
    two stages). Where a side is odd, the last average covers the values that are left, and the upsampled map is cut to
    the exact size.

    The attention matrix is never stored: memory is linear in the number of positions. If ``set_fused_attn(False)`` of
    :mod:`timm.layers` was called before, it is stored: ``softmax`` returns it, which hooks can see, and the branch can
    be differentiated twice and in forward mode.
    """

    fused_attn: torch.jit.Final[bool]

    def __init__(self, dim: int, num_heads: int, pool_stride: int = 1, attn_drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool_stride = pool_stride
        self.fused_attn = use_fused_attn()
        self.pool = AveragePool(pool_stride) if pool_stride > 1 else nn.Identity()
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.softmax = nn.Softmax(dim=-1)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, x: Tensor) -> Tensor:
        size = [x.shape[1], x.shape[2]]
        x = nhwc(self.pool(nchw(x)))
        n, h, w, c = x.shape

        # q, k and v are split before the heads are moved, so that their gradients are joined without a transposition.
        q, k, v = self.qkv(x).reshape(n, h * w, 3, self.num_heads, c // self.num_heads).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        else:
            x = self.attn_drop(self.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5)) @ v
        x = x.transpose(1, 2).reshape(n, h, w, c)
        return nhwc(self.upsample(nchw(x), size))

    def upsample(self, x: Tensor, size: list[int]) -> Tensor:
        """Repeat the values of the pooled map: ``(N, C, H', W')`` -> ``(N, C, *size)``."""
        return F.interpolate(x, size=size, mode="nearest") if self.pool_stride > 1 else x


class InceptionMixer(nn.Module):
    """Inception token mixer: Section 3.2, Eqs. 3 and 4.

    Splits the channels between convolution, max-pooling and self-attention, and fuses their outputs, the first two
    after a GELU. ``(N, H, W, C)`` -> ``(N, H, W, C)``.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads into which the C channels are divided.
        attention_heads: Number of heads that are low frequency, from 0 to ``num_heads``. The last
            ``attention_heads * C / num_heads`` channels go to self-attention, the others to the high-frequency mixer.
        conv_ratio: Share of the high-frequency channels that the convolution takes; max-pooling takes the others.
        pool_stride: Stride of the average pooling before self-attention: 2, or 1 for none.
        attn_drop: Dropout rate of the attention weights.
        proj_drop: Dropout rate of the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention_heads: int,
        conv_ratio: float = 0.5,
        pool_stride: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        low = attention_heads * dim // num_heads
        high = dim - low
        conv = int(high * conv_ratio)
        self.split_dims = (conv, high - conv, low)
        fused = 2 * high + low

        self.conv_branch = ConvBranch(conv, **dd) if conv else None
        self.pool_branch = MaxPoolBranch(high - conv, **dd) if high - conv else None
        self.attn_branch = AttentionBranch(low, attention_heads, pool_stride, attn_drop, **dd) if low else None
        self.conv_act = nn.GELU()
        self.pool_act = nn.GELU()
        self.fusion = depthwise_conv(fused, **dd)
        self.proj = nn.Linear(fused, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        conv, pool, attn = x.split(self.split_dims, dim=-1)  # a missing branch has no channels
        if self.conv_branch is not None:
            conv = self.conv_branch(conv)
        if self.pool_branch is not None:
            pool = self.pool_branch(pool)
        if self.attn_branch is not None:
            attn = self.attn_branch(attn)
        return self.combine(conv, pool, attn)

    def concatenate(self, conv: Tensor, pool: Tensor, attn: Tensor) -> Tensor:
        """Concatenate the outputs of the branches: Eq. 3."""
        return torch.cat((self.conv_act(conv), self.pool_act(pool), attn), dim=-1)

    def combine(self, conv: Tensor, pool: Tensor, attn: Tensor) -> Tensor:
        """Return the mixer's output, given the outputs of its branches: Eqs. 3 and 4."""
        y = self.concatenate(conv, pool, attn)
        y = y + nhwc(self.fusion(nchw(y)))
        return self.proj_drop(self.proj(y))


class InceptionBlock(nn.Module):
    """iFormer block: Eqs. 5 and 6, pre-norm residuals around the Inception mixer and the feed-forward network.

    ``(N, H, W, C)`` -> ``(N, H, W, C)``. LayerScale multiplies both residuals where ``layer_scale`` is not None.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attention_heads: int,
        conv_ratio: float = 0.5,
        pool_stride: int = 1,
        mlp_ratio: float = 4.0,
        layer_scale: Optional[float] = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6, **dd)
        self.mixer = InceptionMixer(
            dim, num_heads, attention_heads, conv_ratio, pool_stride, attn_drop=attn_drop, proj_drop=proj_drop, **dd
        )
        self.layer_scale1 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

        self.norm2 = LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), drop=proj_drop, **dd)
        self.layer_scale2 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.layer_scale1(self.mixer(self.norm1(x))))  # Eq. 5
        x = x + self.drop_path2(self.layer_scale2(self.mlp(self.norm2(x))))  # Eq. 6
        return x


class Stem(nn.Module):
    """Two 3x3 convolutions, each followed by BatchNorm, with a GELU between them.

    ``(N, in_chans, H, W)`` -> ``(N, dim, ceil(H / stride), ceil(W / stride))``. With stride 4 both convolutions
    halve the map, with stride 2 the first one does.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(dim // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=stride // 2, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, then BatchNorm. ``(N, C, H, W)`` -> ``(N, C', ceil(H / 2), ceil(W / 2))``."""

    def __init__(self, in_dim: int, out_dim: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, **dd)
        self.norm = nn.BatchNorm2d(out_dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class InceptionStage(nn.Module):
    """One stage of Fig. 2: downsampling (none in the first), position embedding, iFormer blocks.

    ``(N, C, H, W)`` -> ``(N, C', H', W')``. The position embedding, ``(H', W', C')``, is learned for maps of ``size``
    and resized bilinearly for any other. It has no batch dimension, because a conversion to ``channels_last`` reorders
    tensors of four dimensions.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        size: tuple[int, int],
        attention_heads: tuple[int, ...],
        drop_path: Sequence[float],
        downsample: bool = True,
        device: Any = None,
        dtype: Any = None,
        **block_args: Any,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.downsample = Downsample(in_dim, dim, **dd) if downsample else nn.Identity()
        self.pos_embed = nn.Parameter(torch.empty(*size, dim, **dd))
        self.blocks = BlockSequence(
            *[
                InceptionBlock(dim, attention_heads=heads, drop_path=rate, **block_args, **dd)
                for heads, rate in zip(attention_heads, drop_path, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = nhwc(self.downsample(x)).contiguous()
        x = x + resize_pos_embed(self.pos_embed, [x.shape[1], x.shape[2]])
        return nchw(self.blocks(x))

    @torch.jit.ignore
    def set_size(self, size: tuple[int, int]) -> None:
        """Resize the position embedding for maps of ``size`` (height, width)."""
        pos_embed = resize_pos_embed(self.pos_embed.detach(), list(size)).contiguous()
        self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)


class InceptionTransformer(TimmInterface):
    """Inception Transformer: Fig. 2, a pyramid of four stages whose mixers follow a frequency ramp (Section 3.3).

    ``(N, in_chans, H, W)`` -> ``(N, num_classes)``, or ``(N, C)`` with ``num_classes=0``, or ``(N, C, H', W')`` with
    ``global_pool=''`` too. H and W may be any numbers from 32 up (16 with ``stem_stride=2``), odd or unequal ones too.

    Args:
        img_size: Height and width in pixels of the images for which the position embeddings are created.
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: timm's name of the pooling before the classifier; '' for none.
        depths: Number of blocks per stage.
        dims: Number of channels per stage.
        num_heads: Number of heads into which each stage's channels are divided.
        attention_heads: The frequency ramp: for every block of the network, in order, the number of its stage's heads
            that are low frequency. With 0 a block has no attention; with all of them it has no convolution and no
            max-pooling.
        conv_ratio: Share of the high-frequency channels that goes to the convolution; the rest goes to max-pooling.
        pool_strides: Stride of the pooling around attention, per stage: 2, or 1 for none.
        layer_scales: Initial LayerScale per stage; None for none.
        mlp_ratio: Hidden width of the feed-forward network, relative to its input.
        stem_stride: Stride of the stem, 4 or 2.
        output_stride: Greatest stride of a map: 32, 16 or 8. Stages that would exceed it are dilated instead; see
            :mod:`iformer.models.dilation`.
        init_std: Standard deviation of the initial weights. None is PyTorch's default, which is larger for narrower
            layers: with about 100 channels or fewer, 0.02 is so small that training starts slowly.
        drop_rate: Dropout rate before the classifier.
        proj_drop_rate: Dropout rate after the mixers' projections and in the feed-forward networks.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Drop path rate of the last block; it grows linearly from 0 at the first block.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Raises:
        ValueError: The arguments contradict each other; the message names the value.
    """

    def __init__(
        self,
        img_size: Union[int, tuple[int, int]] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 320, 384),
        num_heads: tuple[int, ...] = (3, 6, 10, 12),
        attention_heads: tuple[int, ...] = 3 * (1,) + 3 * (3,) + 4 * (7,) + 5 * (9,) + 3 * (11,),
        conv_ratio: float = 0.5,
        pool_strides: tuple[int, ...] = (2, 2, 1, 1),
        layer_scales: tuple[Optional[float], ...] = (None, None, 1e-6, 1e-6),
        mlp_ratio: float = 4.0,
        stem_stride: int = 4,
        output_stride: int = 32,
        init_std: Optional[float] = 0.02,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_arguments(depths, dims, num_heads, attention_heads, conv_ratio, pool_strides, layer_scales)
        check_strides(stem_stride, output_stride)
        super().__init__(in_chans, num_classes, global_pool, dims, stem_stride, output_stride)
        dd = {"device": device, "dtype": dtype}
        self.num_heads = tuple(num_heads)
        self.attention_heads = by_stage(attention_heads, depths)
        self.init_std = init_std

        self.stem = Stem(in_chans, dims[0], stem_stride, **dd)
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        sizes = map_sizes(img_size, stem_stride, len(depths))
        self.stages = nn.Sequential(
            *[
                InceptionStage(
                    dims[max(i - 1, 0)],
                    dim,
                    sizes[i],
                    self.attention_heads[i],
                    drop_path[i],
                    downsample=i > 0,
                    num_heads=num_heads[i],
                    conv_ratio=conv_ratio,
                    pool_stride=pool_strides[i],
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scales[i],
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    **dd,
                )
                for i, dim in enumerate(dims)
            ]
        )
        dilate(self.stages, stem_stride, output_stride)
        self.norm = LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise weights (see ``init_std``) and position embeddings from truncated normals, and biases with 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                if self.init_std is not None:
                    trunc_normal_(module.weight, std=self.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, InceptionStage):
                trunc_normal_(module.pos_embed, std=0.02)

    def extra_repr(self) -> str:
        ramp = " | ".join(
            f"{' '.join(map(str, heads))} of {total}"
            for heads, total in zip(self.attention_heads, self.num_heads, strict=True)
        )
        return f"frequency ramp (attention heads per block): {ramp}"

    def _norm(self, x: Tensor) -> Tensor:
        return nchw(self.norm(nhwc(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised features of the last stage: ``(N, in_chans, H, W)`` -> ``(N, C, H', W')``."""
        return self._norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits: ``(N, C, H', W')`` -> ``(N, num_classes)``; if ``pre_logits``, the features ``(N, C)``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

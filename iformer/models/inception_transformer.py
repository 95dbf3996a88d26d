"""The Inception Transformer (iFormer): Section 3 of the paper.

"Inception Transformer", NeurIPS 2022, https://arxiv.org/abs/2205.12956. Equation numbers in this file are the paper's.

Feature maps enter and leave stages as ``(N, C, H, W)``. Inside a stage they are ``(N, H, W, C)``, so that
normalisations, linear layers and channel splits work on contiguous channels, while convolutions and poolings see the
same memory as a ``channels_last`` tensor: neither side copies. Put the network and its images in ``channels_last`` and
they stay there throughout.
"""

import itertools
from collections.abc import Iterator, Sequence
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
    get_device_dtype,
    is_exporting,
    resample_abs_pos_embed_nhwc,
    to_2tuple,
    trunc_normal_,
)
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from torch import Tensor, nn


def depthwise_conv(dim: int, device: Any = None, dtype: Any = None) -> nn.Conv2d:
    """The 3x3 depthwise convolution of Eqs. 2 and 4, without bias."""
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, device=device, dtype=dtype)


@torch.fx.wrap  # whether there is anything to resize depends on the size, which a trace does not know
def resize_pos_embed(pos_embed: Tensor, size: list[int]) -> Tensor:
    """Bilinear resizing of a position embedding: ``(H, W, C)`` -> ``(*size, C)``."""
    return resample_abs_pos_embed_nhwc(pos_embed.unsqueeze(0), size, interpolation="bilinear", antialias=False)[0]


def _is_symbolic(size: int) -> bool:
    """Whether ``torch.export`` leaves this size open."""
    return is_exporting() and not isinstance(size, int)


class MaxPoolBranch(nn.Module):
    """High-frequency mixer, max-pooling half: Eq. 1, ``Y_h1 = FC(MaxPool(X_h1))``.

    ``(N, H, W, C)`` -> ``(N, H, W, 2C)``.
    """

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.fc = nn.Linear(dim, 2 * dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ConvBranch(nn.Module):
    """High-frequency mixer, convolution half: Eq. 2, ``Y_h2 = DwConv(FC(X_h2))``.

    ``(N, H, W, C)`` -> ``(N, H, W, 2C)``.
    """

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * dim, bias=False, device=device, dtype=dtype)
        self.conv = depthwise_conv(2 * dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.fc(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AttentionBranch(nn.Module):
    """Low-frequency mixer: Eq. 7, ``Y_l = Upsample(MSA(AvePooling(X_l)))``.

    ``(N, H, W, C)`` -> ``(N, H, W, C)``. Pooling and upsampling happen only where ``pool_stride`` is 2 (the first two
    stages). Where a side is odd, the last average covers what there is and the upsampled map is cut to the exact size.

    The attention matrix is never built: memory is linear in the number of positions.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pool_stride: int = 1,
        attn_drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool_stride = pool_stride
        self.attn_drop = attn_drop
        self.pool = nn.AvgPool2d(pool_stride, ceil_mode=True, count_include_pad=False)
        self.qkv = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        size = [x.shape[1], x.shape[2]]
        x = self.avg_pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        n, h, w, c = x.shape

        # Cut before the heads move in front, so that the gradients of q, k and v need not move back to meet.
        q, k, v = self.qkv(x).reshape(n, h * w, 3, self.num_heads, c // self.num_heads).unbind(2)
        dropout = self.attn_drop if self.training else 0.0
        x = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout)
        x = x.transpose(1, 2).reshape(n, h, w, c)
        return self.upsample(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)

    def avg_pool(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> ``(N, C, H', W')``, the positions between which attention is."""
        if self.pool_stride == 1:
            return x
        if _is_symbolic(x.shape[2]) or _is_symbolic(x.shape[3]):
            # Pooling with ceil_mode asks whether a side is odd, which a graph for any size cannot answer. The mean of
            # a cell whose last row or column is repeated is the mean of what there is; at an even side it is unused.
            return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), self.pool_stride)
        return self.pool(x)

    def upsample(self, x: Tensor, size: list[int]) -> Tensor:
        """``(N, C, H', W')`` -> ``(N, C, *size)``."""
        return F.interpolate(x, size=size, mode="nearest") if self.pool_stride > 1 else x


class InceptionMixer(nn.Module):
    """Inception token mixer: Section 3.2, Eqs. 3 and 4.

    Splits the channels between convolution, max-pooling and self-attention and fuses what they return, the first two
    after a GELU. ``(N, H, W, C)`` -> ``(N, H, W, C)``.

    Args:
        dim: Channels C.
        num_heads: Heads that C divides into.
        attention_heads: How many of them are low frequency, 0 to ``num_heads``. The last
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
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
        conv, pool, attn = x.split(self.split_dims, dim=-1)  # no channels where there is no branch
        if self.conv_branch is not None:
            conv = self.conv_branch(conv)
        if self.pool_branch is not None:
            pool = self.pool_branch(pool)
        if self.attn_branch is not None:
            attn = self.attn_branch(attn)
        return self.combine(conv, pool, attn)

    def concatenate(self, conv: Tensor, pool: Tensor, attn: Tensor) -> Tensor:
        """Eq. 3: what the branches return, side by side."""
        return torch.cat((self.conv_act(conv), self.pool_act(pool), attn), dim=-1)

    def combine(self, conv: Tensor, pool: Tensor, attn: Tensor) -> Tensor:
        """From what the branches return to the output: Eqs. 3 and 4."""
        y = self.concatenate(conv, pool, attn)
        y = y + self.fusion(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
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

    def __init__(self, in_chans: int, dim: int, stride: int = 4, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
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

    def __init__(self, in_dim: int, out_dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(out_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class InceptionStage(nn.Module):
    """One stage of Fig. 2: downsampling (none in the first), position embedding, iFormer blocks.

    ``(N, C, H, W)`` -> ``(N, C', H', W')``. The position embedding, ``(H', W', C')``, is learned for ``size`` and
    resized bilinearly to any other. It has no batch dimension, or ``channels_last`` would take it for images and
    reorder it.
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
        self.grad_checkpointing = False
        self.downsample = Downsample(in_dim, dim, **dd) if downsample else nn.Identity()
        self.pos_embed = nn.Parameter(torch.empty(*size, dim, **dd))
        self.blocks = nn.Sequential(
            *[
                InceptionBlock(dim, attention_heads=heads, drop_path=rate, **block_args, **dd)
                for heads, rate in zip(attention_heads, drop_path, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()
        x = x + resize_pos_embed(self.pos_embed, [x.shape[1], x.shape[2]])
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)

    @torch.jit.ignore
    def set_size(self, size: tuple[int, int]) -> None:
        """Resize the position embedding for maps of ``size`` (height, width)."""
        pos_embed = resize_pos_embed(self.pos_embed.detach(), list(size)).contiguous()
        self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)


class InceptionTransformer(nn.Module):
    """Inception Transformer: Fig. 2, a pyramid of four stages whose mixers follow a frequency ramp (Section 3.3).

    ``(N, in_chans, H, W)`` -> ``(N, num_classes)``, or ``(N, C)`` with ``num_classes=0``, or ``(N, C, H', W')`` with
    ``global_pool=''`` too. H and W may be any, odd and unequal included, from 32 up (16 with ``stem_stride=2``).

    Args:
        img_size: Image height and width in pixels that the position embeddings are made for.
        in_chans: Image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: timm's name for the pooling before the classifier; '' for none.
        depths: Blocks per stage.
        dims: Channels per stage.
        num_heads: Heads that each stage's channels divide into.
        attention_heads: The frequency ramp: for every block of the network, in order, how many of its stage's heads are
            low frequency. 0 leaves a block without attention, all of them leave it without convolution and max-pooling.
        conv_ratio: Share of the high-frequency channels that goes to the convolution; the rest goes to max-pooling.
        pool_strides: Stride of the pooling around attention, per stage: 2, or 1 for none.
        layer_scales: Initial LayerScale per stage, None for none.
        mlp_ratio: Hidden width of the feed-forward network, relative to its input.
        stem_stride: 4 or 2.
        init_std: Standard deviation of the initial weights. None is PyTorch's default, which grows as layers narrow:
            with some 100 channels and fewer, 0.02 is so small that training starts slowly.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the mixers' projections and in the feed-forward networks.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0 at the first.

    Raises:
        ValueError: The configuration contradicts itself; the message names the value.
    """

    output_fmt = "NCHW"

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
        init_std: Optional[float] = 0.02,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        _validate(depths, dims, num_heads, attention_heads, conv_ratio, pool_strides, layer_scales, stem_stride)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = dims[-1]
        self.num_heads = tuple(num_heads)
        self.attention_heads = _split(attention_heads, depths)
        self.stem_stride = stem_stride
        self.init_std = init_std
        self.feature_info = [
            dict[str, Any](num_chs=dim, reduction=stem_stride * 2**i, module=f"stages.{i}")
            for i, dim in enumerate(dims)
        ]
        self.grad_checkpointing = False

        self.stem = Stem(in_chans, dims[0], stem_stride, **dd)
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        sizes = self._stage_sizes(img_size, len(depths))
        stages = []
        for i, dim in enumerate(dims):
            stages.append(
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
            )
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = LayerNorm(self.num_features, eps=1e-6, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    @torch.jit.ignore
    def _stages(self) -> Iterator[InceptionStage]:
        return (stage for stage in self.stages if isinstance(stage, InceptionStage))

    def _stage_sizes(self, img_size: Union[int, tuple[int, int]], stages: int) -> list[tuple[int, int]]:
        """Height and width of each stage's map."""
        height, width = to_2tuple(img_size)
        strides = [self.stem_stride * 2**i for i in range(stages)]
        return [(-(-height // stride), -(-width // stride)) for stride in strides]

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Truncated normal weights (see ``init_std``) and position embeddings, zero biases, unit norms."""
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

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {f"stages.{i}.pos_embed" for i in range(len(self.stages))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.(?:downsample|pos_embed)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^stem", "blocks": blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep only block inputs for the backward pass and compute the rest again."""
        self.grad_checkpointing = enable
        for stage in self._stages():
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, tuple[int, int]]) -> None:
        """Resize the position embeddings for images of ``img_size`` pixels (height, width)."""
        sizes = self._stage_sizes(img_size, len(self.stages))
        for stage, size in zip(self._stages(), sizes, strict=True):
            stage.set_size(size)
        update_model_input_size(self, img_size)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier with a new one for ``num_classes`` (0 removes it), and the pooling if named."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features
        if global_pool is not None:
            self.global_pool = global_pool

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, list[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[list[Tensor], tuple[Tensor, list[Tensor]]]:
        """The feature maps of the stages, and the features that the head takes.

        Args:
            x: Images, ``(N, in_chans, H, W)``.
            indices: Stages to return: the last n if an int, all if None, negative ones count from the end.
            norm: Apply the final normalisation to the last stage's map (the only one that it fits).
            stop_early: Skip the stages behind the last one asked for.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: Return the feature maps only.
        """
        assert output_fmt in ("NCHW", "NHWC"), "Output format must be one of NCHW, NHWC."
        intermediates: list[Tensor] = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)

        x = self.stem(x)
        last = len(self.stages) - 1
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a Sequential
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                y = self._norm(x) if norm and i == last else x
                intermediates.append(y.permute(0, 2, 3, 1) if output_fmt == "NHWC" else y)

        if intermediates_only:
            return intermediates
        if len(stages) == len(self.stages):
            x = self._norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, list[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the feature maps ``indices`` do not need; returns the indices from the front."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        self.num_heads = self.num_heads[: max_index + 1]
        self.attention_heads = self.attention_heads[: max_index + 1]
        if prune_norm or prune_end:  # the norm fits the last stage only
            self.norm = nn.Identity()
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices

    def _norm(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        """``(N, in_chans, H, W)`` -> normalised features of the last stage, ``(N, C, H', W')``."""
        return self._norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """``(N, C, H', W')`` -> ``(N, num_classes)``; the pooled features ``(N, C)`` if ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _split(values: Sequence[int], lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Cut a flat sequence into tuples of the given lengths."""
    rest = iter(values)
    return tuple(tuple(itertools.islice(rest, length)) for length in lengths)


def _validate(
    depths: Sequence[int],
    dims: Sequence[int],
    num_heads: Sequence[int],
    attention_heads: Sequence[int],
    conv_ratio: float,
    pool_strides: Sequence[int],
    layer_scales: Sequence[Optional[float]],
    stem_stride: int,
) -> None:
    """Raise ValueError, naming the value, where the arguments of InceptionTransformer do not fit each other."""
    per_stage = {"dims": dims, "num_heads": num_heads, "pool_strides": pool_strides, "layer_scales": layer_scales}
    for name, values in per_stage.items():
        if len(values) != len(depths):
            raise ValueError(f"{name} has {len(values)} entries, expected one for each of the {len(depths)} stages")
    for stage, stride in enumerate(pool_strides):
        if stride not in (1, 2):
            raise ValueError(f"pool_strides of stage {stage + 1} is {stride}, expected 1 or 2")
    for dim, heads in zip(dims, num_heads, strict=True):
        if heads < 1 or dim % heads:
            raise ValueError(f"{dim} channels do not divide into {heads} heads")
    if len(attention_heads) != sum(depths):
        raise ValueError(
            f"attention_heads has {len(attention_heads)} entries, expected one for each of the {sum(depths)} blocks"
        )
    for stage, ramp in enumerate(_split(attention_heads, depths)):
        for block, count in enumerate(ramp):
            if not 0 <= count <= num_heads[stage]:
                raise ValueError(
                    f"attention_heads of stage {stage + 1}, block {block + 1} is {count}, "
                    f"expected 0 to {num_heads[stage]}"
                )
    if not 0 <= conv_ratio <= 1:
        raise ValueError(f"conv_ratio is {conv_ratio}, expected 0 to 1")
    if stem_stride not in (2, 4):
        raise ValueError(f"stem_stride is {stem_stride}, expected 2 or 4")

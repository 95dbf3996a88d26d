"""The interface that timm requires of a model, and the checks of the model's arguments."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from timm.layers import get_device_dtype, to_2tuple
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices  # what timm's own models use, as the next; it has no public
from timm.models._input import update_model_input_size  # name, and tests/models/test_timm_contract.py would fail
from torch import Tensor, nn


class BlockSequence(nn.Sequential):
    """A sequence of blocks; if ``grad_checkpointing``, only the blocks' inputs are kept for the backward pass."""

    def __init__(self, *blocks: Any) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x)
        return x


class TimmInterface(nn.Module):
    """The methods and attributes that timm uses to build, adapt and cut a model.

    A derived model has a ``stem``, ``stages`` that map ``(N, C, H, W)`` to ``(N, C', H', W')``, a ``norm`` for the last
    stage's map with its channels last, and timm's ``ClassifierHead`` as ``head``.

    Args:
        in_chans: Number of image channels.
        num_classes: Number of classes; 0 for no classifier.
        global_pool: timm's name of the pooling before the classifier; '' for none.
        dims: Number of channels per stage.
        stem_stride: Stride of the first stage's map; each further stage doubles it.
        output_stride: Greatest stride of a map.
    """

    output_fmt = "NCHW"

    if TYPE_CHECKING:  # TorchScript would expect to find these attributes on the class
        stem: nn.Module
        stages: Any
        norm: nn.Module
        head: Any
        num_heads: tuple[int, ...]
        attention_heads: tuple[tuple[int, ...], ...]

        def _norm(self, x: Tensor) -> Tensor: ...

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        dims: Sequence[int],
        stem_stride: int,
        output_stride: int,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = dims[-1]
        self.stem_stride = stem_stride
        self.feature_info = [
            dict[str, Any](num_chs=dim, reduction=min(stem_stride * 2**i, output_stride), module=f"stages.{i}")
            for i, dim in enumerate(dims)
        ]
        self.grad_checkpointing = False

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that take no weight decay: the position embeddings."""
        return {f"stages.{i}.pos_embed" for i in range(len(self.stages))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters into layers: stages if ``coarse``, blocks otherwise."""
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
        """Trade time for memory: keep only the blocks' inputs for the backward pass, which computes the rest again."""
        self.grad_checkpointing = enable
        for module in self.modules():
            if isinstance(module, BlockSequence):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def set_input_size(self, img_size: Union[int, tuple[int, int]]) -> None:
        """Resize the position embeddings for images of ``img_size`` pixels (height, width)."""
        sizes = map_sizes(img_size, self.stem_stride, len(self.stages))
        for stage, size in zip(self.stages, sizes, strict=True):
            stage.set_size(size)
        update_model_input_size(self, img_size)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer, which is ``nn.Identity`` if there is no classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier with a new one for ``num_classes`` (0 removes it), and the pooling if it is given."""
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
        """Return the input of the head, ``(N, C, H', W')``, and the feature maps of the stages.

        Args:
            x: Images, ``(N, in_chans, H, W)``.
            indices: The stages to return: the last n if it is an int, all if it is None; negative indices in a list
                count from the end.
            norm: Whether to apply the final normalisation to the last stage's map (the only one that it fits).
            stop_early: Whether to skip the stages after the last one in ``indices``.
            output_fmt: The layout of the feature maps, 'NCHW' or 'NHWC'.
            intermediates_only: Whether to return the feature maps alone.
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
        """Remove the layers that the feature maps ``indices`` do not need; return the indices, none negative."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        self.num_heads = self.num_heads[: max_index + 1]
        self.attention_heads = self.attention_heads[: max_index + 1]
        if prune_norm or prune_end:  # the norm fits only the last stage
            self.norm = nn.Identity()
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or prune_end:
            self.reset_classifier(0, "")
        return take_indices


def map_sizes(img_size: Union[int, tuple[int, int]], stem_stride: int, stages: int) -> list[tuple[int, int]]:
    """Return the height and width of each stage's map for images of ``img_size`` pixels, without dilation."""
    height, width = to_2tuple(img_size)
    strides = [stem_stride * 2**i for i in range(stages)]
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def by_stage(values: Sequence[int], depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Divide ``values``, one for each block of the network, into a tuple for each stage."""
    rest = iter(values)
    return tuple(tuple(itertools.islice(rest, depth)) for depth in depths)


def check_arguments(
    depths: Sequence[int],
    dims: Sequence[int],
    num_heads: Sequence[int],
    attention_heads: Sequence[int],
    conv_ratio: float,
    pool_strides: Sequence[int],
    layer_scales: Sequence[Optional[float]],
) -> None:
    """Raise ValueError, naming the value, if the arguments of InceptionTransformer contradict each other."""
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
    for stage, ramp in enumerate(by_stage(attention_heads, depths)):
        for block, count in enumerate(ramp):
            if not 0 <= count <= num_heads[stage]:
                raise ValueError(
                    f"attention_heads of stage {stage + 1}, block {block + 1} is {count}, "
                    f"expected 0 to {num_heads[stage]}"
                )
    if not 0 <= conv_ratio <= 1:
        raise ValueError(f"conv_ratio is {conv_ratio}, expected 0 to 1")


def check_strides(stem_stride: int, output_stride: int) -> None:
    """Raise ValueError, naming the value, for strides that InceptionTransformer does not have."""
    if stem_stride not in (2, 4):
        raise ValueError(f"stem_stride is {stem_stride}, expected 2 or 4")
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride is {output_stride}, expected 8, 16 or 32")

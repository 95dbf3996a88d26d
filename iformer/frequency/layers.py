"""The layers of a model to look at, its blocks and the branches of its Inception mixers, as maps ``(N, C, H, W)``."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iformer.models.inception_transformer import InceptionBlock

BRANCHES = ("max-pooling", "convolution", "attention")

Point = Literal["input", "operator", "output"]
"""A point of a branch: its input, the output of its max-pooling, depthwise convolution or attention, or its output."""

_BLOCK = re.compile(r"(?:^|\.)blocks\.\d+$")
_NUMBER = re.compile(r"[._](\d+)(?=\.|$)")  # stages.0, or stages_0 in timm's features_only


@dataclass(frozen=True)
class Layer:
    """A layer of a model whose feature maps can be looked at.

    Attributes:
        name: The name of the module, as in ``named_modules()``.
        module: The module whose output is looked at, or whose input if ``point`` is "input".
        stage: The number of the stage, counted from 1; 0 if the model has no stages.
        block: The number of the block in its stage, counted from 1; 0 if the layer is not a block.
        branch: The branch, one of :data:`BRANCHES`, or '' for a whole block.
        point: The point of the branch.
        channels_last: Whether four-dimensional maps are ``(N, H, W, C)``, unless their shape says otherwise.
        prefix_tokens: The number of class and register tokens that may precede the positions in tokens ``(N, L, C)``.
    """

    name: str
    module: nn.Module
    stage: int = 0
    block: int = 0
    branch: str = ""
    point: Point = "output"
    channels_last: bool = False
    prefix_tokens: int = 0

    @property
    def label(self) -> str:
        """The stage and the block of the layer as text, or its name if it has neither."""
        depth = [f"{kind} {number}" for kind, number in (("stage", self.stage), ("block", self.block)) if number]
        return ", ".join(depth) or self.name

    def maps(self, features: Any, image_size: tuple[int, ...]) -> Tensor:
        """Return the layer's features as maps ``(N, C, H, W)``.

        Args:
            features: Maps, or tokens ``(N, L, C)`` whose grid has the proportions of the image.
            image_size: The height and width of the images.

        Raises:
            ValueError: The features are neither maps nor a grid of tokens.
        """
        if isinstance(features, Tensor) and features.ndim == 4:
            return features.permute(0, 3, 1, 2) if self._is_channels_last(features, image_size) else features
        if isinstance(features, Tensor) and features.ndim == 3:
            for prefix in (self.prefix_tokens, 0):  # CaiT and XCiT append the class token behind their blocks
                tokens = features[:, prefix:]
                height = round(math.sqrt(tokens.shape[1] * image_size[0] / image_size[1]))
                if height and tokens.shape[1] % height == 0:
                    return tokens.mT.unflatten(2, (height, -1))
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"layer {self.name} returns {shape}, expected maps of four dimensions or a grid of tokens")

    def restore(self, maps: Tensor, features: Tensor, image_size: tuple[int, ...]) -> Tensor:
        """Return ``features`` with their maps replaced, which is the inverse of :meth:`maps`."""
        if features.ndim == 4:
            return maps.permute(0, 2, 3, 1) if self._is_channels_last(features, image_size) else maps
        tokens = maps.flatten(2).mT
        return torch.cat([features[:, : features.shape[1] - tokens.shape[1]], tokens], 1)

    def _is_channels_last(self, features: Tensor, image_size: tuple[int, ...]) -> bool:
        """Return the declared layout, unless the maps have the image's proportions in the other layout only.

        Some models (GC ViT, Swin v2-CR) change the layout around their blocks, but declare the layout of their stages.
        """
        _, a, b, c = features.shape
        first, last = _proportional((b, c), image_size), _proportional((a, b), image_size)
        return last if first != last else self.channels_last


def blocks(model: Any) -> list[Layer]:
    """Return the residual blocks of a timm model in the order in which they run.

    For a model whose blocks have other names, its stages are returned.

    Raises:
        ValueError: The model has neither blocks nor named stages.
    """
    names = [name for name, module in model.named_modules() if _BLOCK.search(name) and _runs(module)]
    if not names:
        features = getattr(model, "feature_info", None) or []
        names = [dict(entry)["module"] for entry in features]
    if not names or not set(names) <= dict(model.named_modules()).keys():
        raise ValueError(f"{type(model).__name__} has no blocks and names no stages, so there is nothing to look at")
    return [_layer(model, name) for name in names]


def last(layers: Iterable[Layer]) -> list[Layer]:
    """Return the last block of each stage; layers that are whole stages are all returned."""
    return list({layer.stage if layer.block else layer.name: layer for layer in layers}.values())


def _proportional(size: tuple[int, int], image_size: tuple[int, ...]) -> bool:
    """Return whether a map has the image's proportions, up to one position that rounding adds or removes."""
    return abs(size[0] - size[1] * image_size[0] / image_size[1]) <= max(1, image_size[0] / image_size[1])


def _runs(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity))


def _layer(model: Any, name: str) -> Layer:
    """Return the block or stage ``name`` as a layer."""
    module = model.get_submodule(name)
    numbers = [int(number) + 1 for number in _NUMBER.findall(name)]
    block = numbers.pop() if _BLOCK.search(name) else 0
    channels_last = isinstance(module, InceptionBlock) or getattr(model, "output_fmt", "NCHW") == "NHWC"
    return Layer(
        name,
        module,
        stage=numbers[-1] if numbers else 0,
        block=block,
        channels_last=channels_last,
        prefix_tokens=getattr(model, "num_prefix_tokens", 0),
    )


def branches(model: Any) -> list[Layer]:
    """Return the three points of each branch of every Inception mixer in order; other models have none."""
    found = []
    for block in blocks(model):
        if not isinstance(block.module, InceptionBlock):
            continue
        mixer = block.module.mixer
        modules: dict[str, tuple[str, str, bool, str]] = {
            "max-pooling": ("pool_branch", "pool_branch.pool", False, "pool_act"),
            "convolution": ("conv_branch", "conv_branch.conv", False, "conv_act"),
            "attention": ("attn_branch", "attn_branch", True, "attn_branch"),
        }
        for branch, (whole, operator, channels_last, output) in modules.items():
            if getattr(mixer, whole) is None:
                continue
            points: dict[Point, tuple[str, bool]] = {
                "input": (whole, True),
                "operator": (operator, channels_last),
                "output": (output, True),
            }
            for point, (name, last_dim) in points.items():
                found.append(
                    Layer(
                        f"{block.name}.mixer.{name}",
                        mixer.get_submodule(name),
                        block.stage,
                        block.block,
                        branch,
                        point,
                        channels_last=last_dim,
                    )
                )
    return found


@contextmanager
def watched(layers: Iterable[Layer], see: Callable[[Layer, Any], Any]) -> Iterator[None]:
    """Call ``see(layer, features)`` whenever features pass a layer.

    If ``see`` returns a value other than None, it replaces the features. At the point "input" it must return None.
    """
    handles = []
    for layer in layers:
        if layer.point == "input":
            handles.append(layer.module.register_forward_pre_hook(lambda _, args, layer=layer: see(layer, args[0])))
        else:
            handles.append(layer.module.register_forward_hook(lambda _, args, out, layer=layer: see(layer, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

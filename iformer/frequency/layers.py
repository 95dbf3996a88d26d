"""Where to look in a model: its blocks, and the branches of every Inception mixer, as maps ``(N, C, H, W)``."""

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
"""Of a branch: what it takes, what its max-pooling, depthwise convolution or attention returns, and what it returns."""

_BLOCK = re.compile(r"(?:^|\.)blocks\.\d+$")
_NUMBER = re.compile(r"[._](\d+)(?=\.|$)")  # stages.0, or stages_0 in timm's features_only


@dataclass(frozen=True)
class Layer:
    """A place in a model where feature maps pass.

    Attributes:
        name: Of the module, as in ``named_modules()``.
        module: Whose output, or at the point "input" whose input, is looked at.
        stage: From 1; 0 where the model has no stages.
        block: From 1 in each stage; 0 where the layer is no block.
        branch: One of :data:`BRANCHES`, '' for whole blocks.
        point: Of the branch.
        channels_last: Four-dimensional maps are ``(N, H, W, C)``, unless their shape says otherwise.
        prefix_tokens: Class and register tokens in front of the positions of tokens ``(N, L, C)``, if they are there.
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
        """The layer's depth, for people."""
        depth = [f"{kind} {number}" for kind, number in (("stage", self.stage), ("block", self.block)) if number]
        return ", ".join(depth) or self.name

    def maps(self, features: Any, image_size: tuple[int, ...]) -> Tensor:
        """What passes here as maps ``(N, C, H, W)``.

        Args:
            features: Maps, or tokens ``(N, L, C)``, whose grid then has the proportions of the image.
            image_size: Height and width of the images.

        Raises:
            ValueError: It is neither.
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
        """The inverse of :meth:`maps`: ``features`` with their maps replaced."""
        if features.ndim == 4:
            return maps.permute(0, 2, 3, 1) if self._is_channels_last(features, image_size) else maps
        tokens = maps.flatten(2).mT
        return torch.cat([features[:, : features.shape[1] - tokens.shape[1]], tokens], 1)

    def _is_channels_last(self, features: Tensor, image_size: tuple[int, ...]) -> bool:
        """As declared, unless maps have the image's proportions in the other layout only.

        Some models (GC ViT, Swin v2-CR) change the layout around their blocks and declare that of their stages.
        """
        _, a, b, c = features.shape
        first, last = _proportional((b, c), image_size), _proportional((a, b), image_size)
        return last if first != last else self.channels_last


def blocks(model: Any) -> list[Layer]:
    """The residual blocks of a timm model, in the order they run; the stages of a model whose blocks have other names.

    Raises:
        ValueError: It has neither.
    """
    names = [name for name, module in model.named_modules() if _BLOCK.search(name) and _runs(module)]
    if not names:
        features = getattr(model, "feature_info", None) or []
        names = [dict(entry)["module"] for entry in features]
    if not names or not set(names) <= dict(model.named_modules()).keys():
        raise ValueError(f"{type(model).__name__} has no blocks and names no stages, so there is nothing to look at")
    return [_layer(model, name) for name in names]


def last(layers: Iterable[Layer]) -> list[Layer]:
    """The last block of each stage; where layers are no blocks they are whole stages, and all of them stay."""
    return list({layer.stage if layer.block else layer.name: layer for layer in layers}.values())


def _proportional(size: tuple[int, int], image_size: tuple[int, ...]) -> bool:
    """Whether a map has the image's proportions, up to a position that rounding adds or leaves out."""
    return abs(size[0] - size[1] * image_size[0] / image_size[1]) <= max(1, image_size[0] / image_size[1])


def _runs(module: nn.Module) -> bool:
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Identity))


def _layer(model: Any, name: str) -> Layer:
    """The block or stage ``name``."""
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
    """Three points of each branch of every Inception mixer, in the order they run; none in other models."""
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
    """Call ``see(layer, features)`` whenever features pass; what it returns, if not None, takes their place.

    Features of the point "input" cannot be replaced.
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

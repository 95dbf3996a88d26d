"""Segmentation networks over the feature maps of any timm model: Semantic FPN, and UPerNet."""

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from iformer.models.backbone import feature_maps, refusal

Architecture = Literal["semantic_fpn", "upernet"]


class Segmenter(nn.Module):
    """Backbone and decoder, whose logits are resized to the image's size.

    Args:
        backbone: Images ``(N, 3, H, W)`` to feature maps, the finest first, each of about half the size of the one
            before it; timm's ``features_only``.
        decoder: The list of them, ``(N, C, H, W)``, to logits of the finest one's size.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.channels_last_features = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` -> logits ``(N, num_classes, H, W)``, for any height and width."""
        features = self.backbone(images)
        if self.channels_last_features:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        logits = self.decoder(features)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")

    def no_weight_decay(self) -> set[str]:
        """The position embeddings, which timm's ``features_only`` does not name."""
        return {name for name, _ in self.named_parameters() if name.endswith("pos_embed")}


class SemanticFPNDecoder(nn.Module):
    """Feature pyramid and head of Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", 2019, Section 3).

    Args:
        in_channels: Of the feature maps, the finest first.
        num_classes: Channels of the logits.
        neck_channels: Of the pyramid.
        head_channels: Of the head.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, neck_channels: int = 256, head_channels: int = 128
    ) -> None:
        super().__init__()
        self.neck = FeaturePyramidNetwork(list(in_channels), neck_channels)
        # A level gets a block for each doubling that takes it to the finest one's size, which itself gets one too.
        self.levels: Any = nn.ModuleList(
            nn.ModuleList(
                Conv2dNormActivation(neck_channels if block == 0 else head_channels, head_channels)
                for block in range(max(1, level))
            )
            for level in range(len(in_channels))
        )
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, the finest first -> logits of its size."""
        pyramid = list(self.neck(OrderedDict((str(level), feature) for level, feature in enumerate(features))).values())
        merged = self.levels[0][0](pyramid[0])
        for level, blocks in enumerate(self.levels[1:], 1):
            x = pyramid[level]
            for finer, block in zip(reversed(pyramid[:level]), blocks, strict=True):
                x = F.interpolate(block(x), finer.shape[-2:], mode="bilinear")  # twice the size, or one pixel less
            merged = merged + x
        return self.classifier(merged)


class UPerNetDecoder(nn.Module):
    """UPerNet (Xiao et al., "Unified Perceptual Parsing for Scene Understanding", 2018), segmentation_models_pytorch's.

    Args:
        in_channels: Of the feature maps, the finest first.
        num_classes: Channels of the logits.
        channels: Of the pyramid.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 512) -> None:
        super().__init__()
        # Imports all of the package, which few need.
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as Decoder

        # It expects the image and a map of stride 2 before the four, and leaves them out.
        self.decoder = Decoder([3, 0, *in_channels], encoder_depth=5, decoder_channels=channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, the finest first -> logits of its size."""
        return self.classifier(self.dropout(self.decoder([features[0], features[0], *features])))


def semantic_fpn(
    backbone: str = "iformer_small",
    num_classes: int = 150,
    pretrained_backbone: bool | str = False,
    backbone_args: dict[str, Any] | None = None,
    neck_channels: int = 256,
    head_channels: int = 128,
) -> Segmenter:
    """Return Semantic FPN, as in Table 4 of the paper.

    Args:
        backbone: A timm model for images of any size with four feature maps or more, each of half the size of the one
            before it; the coarsest four are used.
        num_classes: The channels of the logits.
        pretrained_backbone: The backbone's weights, see :func:`iformer.models.backbone.create`.
        backbone_args: Arguments of ``timm.create_model``, such as ``drop_path_rate``.
        neck_channels: The channels of the feature pyramid.
        head_channels: The channels of the head.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """
    features = _features(backbone, pretrained_backbone, backbone_args or {})
    channels = features.feature_info.channels()
    return Segmenter(features, SemanticFPNDecoder(channels, num_classes, neck_channels, head_channels))


def upernet(
    backbone: str = "iformer_small",
    num_classes: int = 150,
    pretrained_backbone: bool | str = False,
    backbone_args: dict[str, Any] | None = None,
    channels: int = 512,
) -> Segmenter:
    """Return UPerNet; the arguments are those of :func:`semantic_fpn`, and the decoder's ``channels``.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """
    features = _features(backbone, pretrained_backbone, backbone_args or {})
    return Segmenter(features, UPerNetDecoder(features.feature_info.channels(), num_classes, channels))


ARCHITECTURES: dict[str, Callable[..., Segmenter]] = {"semantic_fpn": semantic_fpn, "upernet": upernet}


def nested(network: dict[str, Any]) -> dict[str, Any]:
    """Return a network's arguments with those of the backbone in ``backbone_args``.

    Recipes and saved models of earlier versions have them among the others.
    """
    own = {"architecture", *inspect.signature(_architecture(network["architecture"])).parameters}
    others = {name: value for name, value in network.items() if name not in own}
    if not others:
        return network
    rest = {name: value for name, value in network.items() if name in own}
    return {**rest, "backbone_args": {**(rest.get("backbone_args") or {}), **others}}


def build(architecture: Architecture, **arguments: Any) -> Segmenter:
    """Return :func:`semantic_fpn` or :func:`upernet`, by its name.

    Raises:
        ValueError: There is no such architecture, or an argument is wrong.
    """
    arguments = nested({"architecture": architecture, **arguments})
    return _architecture(arguments.pop("architecture"))(**arguments)


def _architecture(name: str) -> Callable[..., Segmenter]:
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture is {name!r}, expected {' or '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _features(name: str, pretrained: bool | str, arguments: dict[str, Any]) -> Any:
    """The four coarsest feature maps of images of any size.

    Raises:
        ValueError: The backbone has no such maps, or wants images of certain sizes.
    """
    features = feature_maps(name, pretrained, **arguments)
    strides = features.feature_info.reduction()
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ValueError(f"{name}: feature maps of strides {strides}, expected four, each twice the one before")
    for module in features.modules():
        if hasattr(module, "dynamic_img_pad"):  # a patch embedding, which takes multiples of its patches only
            module.dynamic_img_pad = True
    if message := refusal(features, 33, 67):
        raise ValueError(f"{name}: takes images of certain sizes only, expected any size ({message})")
    return features

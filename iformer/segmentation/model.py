"""Segmentation networks over the feature maps of any timm model: Semantic FPN and UPerNet."""

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
    """A backbone and a decoder, whose logits are resized to the size of the image.

    Args:
        backbone: A module from images ``(N, 3, H, W)`` to a list of feature maps, such as timm's ``features_only``. The
            finest map comes first, and each has about half the size of the one before it.
        decoder: A module from that list of feature maps ``(N, C, H, W)`` to logits of the finest map's size.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.channels_last_features = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, num_classes, H, W)`` for images ``(N, 3, H, W)`` of any height and width."""
        features = self.backbone(images)
        if self.channels_last_features:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        logits = self.decoder(features)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")

    def no_weight_decay(self) -> set[str]:
        """Return the names of the position embeddings, which timm's ``features_only`` does not report."""
        return {name for name, _ in self.named_parameters() if name.endswith("pos_embed")}


class SemanticFPNDecoder(nn.Module):
    """Feature pyramid and head of Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", 2019, Section 3).

    Args:
        in_channels: The number of channels of each feature map, the finest first.
        num_classes: The number of classes, which is that of the logits' channels.
        neck_channels: The number of channels of the feature pyramid.
        head_channels: The number of channels of the head.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, neck_channels: int = 256, head_channels: int = 128
    ) -> None:
        super().__init__()
        self.neck = FeaturePyramidNetwork(list(in_channels), neck_channels)
        # Each level gets one block per doubling up to the size of the finest level, which gets one block too.
        self.levels: Any = nn.ModuleList(
            nn.ModuleList(
                Conv2dNormActivation(neck_channels if block == 0 else head_channels, head_channels)
                for block in range(max(1, level))
            )
            for level in range(len(in_channels))
        )
        self.classifier = nn.Conv2d(head_channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits of the finest map's size for feature maps, the finest first."""
        pyramid = list(self.neck(OrderedDict((str(level), feature) for level, feature in enumerate(features))).values())
        merged = self.levels[0][0](pyramid[0])
        for level, blocks in enumerate(self.levels[1:], 1):
            x = pyramid[level]
            for finer, block in zip(reversed(pyramid[:level]), blocks, strict=True):
                x = F.interpolate(block(x), finer.shape[-2:], mode="bilinear")  # twice the size, or one pixel less
            merged = merged + x
        return self.classifier(merged)


class UPerNetDecoder(nn.Module):
    """The decoder of UPerNet (Xiao et al., "Unified Perceptual Parsing for Scene Understanding", 2018).

    The implementation is that of segmentation_models_pytorch.

    Args:
        in_channels: The number of channels of each feature map, the finest first.
        num_classes: The number of classes, which is that of the logits' channels.
        channels: The number of channels of the feature pyramid.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 512) -> None:
        super().__init__()
        # This imports the whole package, which few users need.
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder as Decoder

        # It expects the image and a map of stride 2 before the four maps, and ignores both.
        self.decoder = Decoder([3, 0, *in_channels], encoder_depth=5, decoder_channels=channels)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits of the finest map's size for feature maps, the finest first."""
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
            before it. The coarsest four are used.
        num_classes: The number of classes.
        pretrained_backbone: The backbone's weights; see :func:`iformer.models.backbone.create`.
        backbone_args: Arguments of ``timm.create_model``, such as ``drop_path_rate``.
        neck_channels: The number of channels of the feature pyramid.
        head_channels: The number of channels of the head.

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
    """Return UPerNet.

    It takes the arguments of :func:`semantic_fpn`, and ``channels``, the number of channels of the decoder.

    Raises:
        ValueError: There is no such model, its arguments are wrong, or the weights do not fit.
        OSError: The weights cannot be read.
    """
    features = _features(backbone, pretrained_backbone, backbone_args or {})
    return Segmenter(features, UPerNetDecoder(features.feature_info.channels(), num_classes, channels))


ARCHITECTURES: dict[str, Callable[..., Segmenter]] = {"semantic_fpn": semantic_fpn, "upernet": upernet}


def nested(network: dict[str, Any]) -> dict[str, Any]:
    """Return a network's arguments with the arguments of its backbone under ``backbone_args``.

    Recipes and saved models of earlier versions list the backbone's arguments among those of the network.
    """
    own = {"architecture", *inspect.signature(_architecture(network["architecture"])).parameters}
    others = {name: value for name, value in network.items() if name not in own}
    if not others:
        return network
    rest = {name: value for name, value in network.items() if name in own}
    return {**rest, "backbone_args": {**(rest.get("backbone_args") or {}), **others}}


def build(architecture: Architecture, **arguments: Any) -> Segmenter:
    """Build a segmenter by the name of its architecture, with the arguments of :func:`semantic_fpn` or :func:`upernet`.

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
    """Return a backbone that computes its four coarsest feature maps for images of any size.

    Raises:
        ValueError: The backbone has no four maps whose strides double, or takes images of certain sizes only.
    """
    features = feature_maps(name, pretrained, **arguments)
    strides = features.feature_info.reduction()
    if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(strides)):
        raise ValueError(f"{name}: feature maps of strides {strides}, expected four, each twice the one before")
    for module in features.modules():
        if hasattr(module, "dynamic_img_pad"):  # a patch embedding, otherwise for whole patches only
            module.dynamic_img_pad = True
    if message := refusal(features, 33, 67):
        raise ValueError(f"{name}: takes images of certain sizes only, expected any size ({message})")
    return features

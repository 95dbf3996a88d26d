"""Mask R-CNN (He et al., 2017) over the feature pyramid of any timm backbone."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from timm.layers import LayerNorm2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, RPNHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from iformer.common.ranges import Count, require
from iformer.models.backbone import feature_maps, refusal

Architecture = Literal["mask_rcnn"]

LEVELS = ("0", "1", "2", "3")  # of the pyramid; the fifth, "pool", is for proposals only
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # of the anchors, height over width


class PyramidBackbone(nn.Module):
    """A timm model's last four feature maps, each normalised, and the feature pyramid over them.

    The maps come out of the stages as they are summed, without a norm, so each gets a LayerNorm over its channels, as
    is the custom with transformer backbones: two parameters a channel, 1,984 in all for iFormer-S, 2,368 for iFormer-B.

    Args:
        features: timm's feature extractor, four maps ``(N, C_i, H_i, W_i)``.
        channels: Of every level of the pyramid.
    """

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        info: Any = features.feature_info
        self.features = features
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in info.channels())
        self.fpn = FeaturePyramidNetwork(info.channels(), channels, LastLevelMaxPool())
        self.out_channels = channels
        self.strides: list[int] = info.reduction()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(N, 3, H, W)`` -> five maps of ``channels``, each half as large as the one before."""
        features: list[Tensor] = self.features(images.contiguous(memory_format=torch.channels_last))
        maps: dict[str, Tensor] = {}
        for i, norm in enumerate(self.norms):
            maps[str(i)] = norm(features[i])
        # Anchors and boxes take the maps' dtype, and 16 bits cannot tell neighbouring pixels apart.
        return {name: level.float() for name, level in self.fpn(maps).items()}


class ProposalHead(RPNHead):
    """torchvision's, with outputs in 32 bits also under autocast: see :class:`PyramidBackbone`."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each level ``(N, anchors, H, W)`` scores and ``(N, 4 anchors, H, W)`` offsets."""
        scores, offsets = [], []
        for level in x:
            hidden = self.conv(level)
            scores.append(self.cls_logits(hidden).float())
            offsets.append(self.bbox_pred(hidden).float())
        return scores, offsets


class BoxPredictor(FastRCNNPredictor):
    """torchvision's, with outputs in 32 bits also under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, D)`` -> class scores ``(n, classes)``, offsets ``(n, 4 classes)``."""
        return self.cls_score(x).float(), self.bbox_pred(x).float()


class Detector(MaskRCNN):
    """torchvision's Mask R-CNN, with what training asks of a timm model.

    Takes a list of images ``(3, H, W)``, of any size and with values from 0 to 1, and resizes and normalises them
    itself. In training, with targets (``boxes`` as corners, ``labels`` from 1, ``masks``), returns the losses; in
    evaluation ``boxes``, ``labels``, ``scores`` and ``masks`` ``(n, 1, H, W)`` in the images' own pixels.
    """

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None, paste: bool = True) -> Any:
        """See the class; without ``paste``, ``masks`` are ``(n, 1, 28, 28)``, each in its box.

        :func:`iformer.detection.masks.pasted` pastes them one at a time.
        """
        if paste:
            return super().forward(images, targets)
        inputs, _ = self.transform(images)
        features = self.backbone(inputs.tensors)
        proposals, _ = self.rpn(inputs, features)
        found, _ = self.roi_heads(features, proposals, inputs.image_sizes)
        for objects, inner, image in zip(found, inputs.image_sizes, images, strict=True):
            objects["boxes"] = resize_boxes(objects["boxes"], inner, image.shape[-2:])
        return found

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters of the backbone that are not decayed, its position embeddings."""
        model: Any = self.backbone.features.model
        return {f"backbone.features.model.{name}" for name in getattr(model, "no_weight_decay", set)()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in the backbone.

        Raises:
            ValueError: The backbone cannot.
        """
        model: Any = self.backbone.features.model
        try:
            model.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            if enable:
                raise ValueError(f"grad_checkpointing: {type(model).__name__} has none, expected false") from error


def build(architecture: Architecture = "mask_rcnn", **arguments: Any) -> Detector:
    """Return :func:`mask_rcnn`, by its name.

    Raises:
        ValueError: There is no such architecture, or an argument is wrong.
    """
    if architecture != "mask_rcnn":
        raise ValueError(f"architecture is {architecture!r}, expected mask_rcnn")
    return mask_rcnn(**arguments)


def mask_rcnn(
    backbone: str = "iformer_small",
    num_classes: int = 80,
    pretrained_backbone: bool | str = False,
    backbone_args: dict[str, Any] | None = None,
    freeze_batch_norm: bool = False,
    channels: int = 256,
    anchor_scale: int = 8,
    min_size: int | Sequence[int] = 800,
    max_size: int = 1333,
    **settings: Any,
) -> Detector:
    """Mask R-CNN as in the paper's Table 3.

    Five levels, an anchor of three shapes at every place of each, 7x7 features for boxes and 14x14 for masks.

    Args:
        backbone: A timm model for images of any size with four maps whose strides double (iFormer, ResNet, ConvNeXt,
            Swin, PVT v2...).
        num_classes: Without the background, which is label 0.
        pretrained_backbone: True for the released weights, or a file of weights, or the folder of a run.
        backbone_args: Of the backbone, ``drop_path_rate`` say.
        freeze_batch_norm: Keep statistics and weights of the backbone's BatchNorms as they are: the few images of a
            detector's batch are no measure of either.
        channels: Of the pyramid and the mask head, and a quarter of the box head's.
        anchor_scale: Side of the anchors over the stride of their level.
        min_size: Shorter side of the images in the network, in pixels; in training one of several, drawn at random.
        max_size: The longer side at most.
        settings: Others of torchvision's ``MaskRCNN``, ``box_score_thresh`` say.

    Raises:
        ValueError: There is no such backbone or setting, a size makes no sense, or the backbone has no such maps.
        OSError: The weights cannot be read.
    """
    for name, value in (("min_size", min_size), ("max_size", max_size)):
        require(name, value, Count | Annotated[Sequence[Count], Field(min_length=1)])
    shorter = max(min_size) if isinstance(min_size, Sequence) else min_size
    if shorter > max_size:
        raise ValueError(f"min_size is {shorter}, more than max_size, {max_size}; it is the shorter side")
    features = _features(backbone, pretrained_backbone, backbone_args or {})
    if freeze_batch_norm:
        features = freeze_batch_norm_2d(features)
    strides = features.feature_info.reduction()
    pyramid = PyramidBackbone(features, channels)
    # A box of 224 pixels is pooled from stride 16 where anchors are 8 strides wide: as many strides at other scales.
    pool = {"featmap_names": LEVELS, "sampling_ratio": 2, "canonical_scale": 28 * anchor_scale}
    parts: dict[str, Any] = {
        "image_mean": features.pretrained_cfg["mean"],
        "image_std": features.pretrained_cfg["std"],
        "rpn_anchor_generator": _anchors([*strides, 2 * strides[-1]], anchor_scale),
        "rpn_head": ProposalHead(channels, len(ASPECT_RATIOS)),
        "box_roi_pool": MultiScaleRoIAlign(output_size=7, **pool),
        "box_head": TwoMLPHead(channels * 7 * 7, 4 * channels),
        "box_predictor": BoxPredictor(4 * channels, num_classes + 1),
        "mask_roi_pool": MultiScaleRoIAlign(output_size=14, **pool),
        "mask_head": MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes + 1),
    }
    _require_known(settings, parts)
    return Detector(pyramid, min_size=min_size, max_size=max_size, **parts, **settings)


def _require_known(settings: Iterable[str], parts: Iterable[str]) -> None:
    """Raise ValueError for settings that torchvision would pass over, or that are made here."""
    known = {*inspect.signature(MaskRCNN).parameters} - {*parts, "kwargs"}
    if unknown := set(settings) - known:
        near = difflib.get_close_matches(min(unknown), [*known, *inspect.signature(mask_rcnn).parameters], n=1)
        raise ValueError(f"Mask R-CNN has no {min(unknown)}{f', did you mean {near[0]}?' if near else ''}")


def _features(name: str, pretrained: bool | str, arguments: dict[str, Any]) -> Any:
    """The four coarsest feature maps.

    Raises:
        ValueError: The backbone has no such maps, or wants images of certain sizes.
    """
    features = feature_maps(name, pretrained, feature_cls="getter", **arguments)
    strides = features.feature_info.reduction()
    if [stride * 8 // strides[0] for stride in strides] != [8, 16, 32, 64]:
        raise ValueError(f"backbone: {name} has maps of stride {strides}, expected four that double")
    if message := refusal(features, 64, 96):
        raise ValueError(f"backbone: {name} takes images of certain sizes only, expected any ({message})")
    return features


def _anchors(strides: Sequence[int], scale: int) -> AnchorGenerator:
    sizes = tuple((scale * stride,) for stride in strides)
    return AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))

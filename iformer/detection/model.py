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

LEVELS = ("0", "1", "2", "3")  # the pyramid's levels without the fifth, "pool", which serves proposals only
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors


class PyramidBackbone(nn.Module):
    """A timm model's last four feature maps, each normalised, and the feature pyramid over them.

    The stages return their feature maps without a final norm, so each map gets a LayerNorm over its channels, as is
    usual with transformer backbones. That adds two parameters per channel: 1,984 in all for iFormer-S, and 2,368 for
    iFormer-B.

    Args:
        features: timm's feature extractor, which returns four maps ``(N, C_i, H_i, W_i)``.
        channels: The number of channels of every level of the pyramid.
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
        """Return five maps for images ``(N, 3, H, W)``, each half as large as the one before."""
        features: list[Tensor] = self.features(images.contiguous(memory_format=torch.channels_last))
        maps: dict[str, Tensor] = {}
        for i, norm in enumerate(self.norms):
            maps[str(i)] = norm(features[i])
        # Anchors and boxes take the maps' dtype, and 16 bits cannot tell neighbouring pixels apart.
        return {name: level.float() for name, level in self.fpn(maps).items()}


class ProposalHead(RPNHead):
    """torchvision's proposal head, with 32-bit outputs even under autocast; see :class:`PyramidBackbone`."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return scores ``(N, anchors, H, W)`` and offsets ``(N, 4 * anchors, H, W)`` for each level."""
        scores, offsets = [], []
        for level in x:
            hidden = self.conv(level)
            scores.append(self.cls_logits(hidden).float())
            offsets.append(self.bbox_pred(hidden).float())
        return scores, offsets


class BoxPredictor(FastRCNNPredictor):
    """torchvision's box predictor, with 32-bit outputs even under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class scores ``(n, classes)`` and offsets ``(n, 4 * classes)`` for features ``(n, D)``."""
        return self.cls_score(x).float(), self.bbox_pred(x).float()


class Detector(MaskRCNN):
    """torchvision's Mask R-CNN, with the methods that training expects of a timm model.

    The detector takes a list of images ``(3, H, W)`` of any size, with values from 0 to 1, and resizes and normalises
    them itself. In training it also takes targets (``boxes`` as corners, ``labels`` counted from 1, ``masks``) and
    returns the losses. In evaluation it returns ``boxes``, ``labels``, ``scores`` and ``masks`` ``(n, 1, H, W)`` in the
    pixels of the original images.
    """

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None, paste: bool = True) -> Any:
        """Return the losses in training and the detections in evaluation, as the class describes.

        Args:
            images: The images ``(3, H, W)``.
            targets: The target of each image, in training.
            paste: Whether to paste the masks into the images. Otherwise ``masks`` are ``(n, 1, 28, 28)``, each relative
                to its box, and :func:`iformer.detection.masks.pasted` pastes them one at a time.
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
        """Return the names of the backbone's parameters without weight decay, its position embeddings."""
        model: Any = self.backbone.features.model
        return {f"backbone.features.model.{name}" for name in getattr(model, "no_weight_decay", set)()}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch on gradient checkpointing in the backbone, which saves memory at the cost of time.

        Raises:
            ValueError: The backbone does not support it.
        """
        model: Any = self.backbone.features.model
        try:
            model.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            if enable:
                raise ValueError(
                    f"grad_checkpointing: {type(model).__name__} does not support it, expected false"
                ) from error


def build(architecture: Architecture = "mask_rcnn", **arguments: Any) -> Detector:
    """Build a detector by the name of its architecture, with the arguments of :func:`mask_rcnn`.

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
    """Build Mask R-CNN as in Table 3 of the paper.

    The feature pyramid has five levels, with anchors of three shapes at every position of each. Boxes are predicted
    from 7x7 features and masks from 14x14 features.

    Args:
        backbone: The name of a timm model for images of any size with four feature maps whose strides double, such as
            iFormer, ResNet, ConvNeXt, Swin or PVT v2.
        num_classes: The number of classes without the background, which is label 0.
        pretrained_backbone: True for the released weights, or a file of weights, or the folder of a run.
        backbone_args: Arguments of the backbone, such as ``drop_path_rate``.
        freeze_batch_norm: Whether to freeze the statistics and weights of the backbone's BatchNorms: the few images in
            a detector's batch are too few to estimate them.
        channels: The number of channels of the pyramid and of the mask head, and a quarter of that of the box head.
        anchor_scale: The side of the anchors divided by the stride of their level.
        min_size: The length in pixels to which the shorter side of an image is resized. Of several, training draws one
            at random.
        max_size: The greatest length of the longer side in pixels.
        settings: Further arguments of torchvision's ``MaskRCNN``, such as ``box_score_thresh``.

    Raises:
        ValueError: There is no such backbone or setting, a size makes no sense, or the backbone lacks such maps.
        OSError: The weights cannot be read.
    """
    for name, value in (("min_size", min_size), ("max_size", max_size)):
        require(name, value, Count | Annotated[Sequence[Count], Field(min_length=1)])
    shorter = max(min_size) if isinstance(min_size, Sequence) else min_size
    if shorter > max_size:
        raise ValueError(f"min_size is {shorter}, expected at most max_size, which is {max_size}")
    features = _features(backbone, pretrained_backbone, backbone_args or {})
    if freeze_batch_norm:
        features = freeze_batch_norm_2d(features)
    strides = features.feature_info.reduction()
    pyramid = PyramidBackbone(features, channels)
    # A box of 224 pixels is pooled from stride 16 if anchors are 8 strides wide; other scales keep that proportion.
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
    """Raise ValueError for settings that torchvision would ignore or that :func:`mask_rcnn` sets itself."""
    known = {*inspect.signature(MaskRCNN).parameters} - {*parts, "kwargs"}
    if unknown := set(settings) - known:
        near = difflib.get_close_matches(min(unknown), [*known, *inspect.signature(mask_rcnn).parameters], n=1)
        raise ValueError(f"Mask R-CNN has no argument {min(unknown)}{f', did you mean {near[0]}?' if near else ''}")


def _features(name: str, pretrained: bool | str, arguments: dict[str, Any]) -> Any:
    """Return a backbone that computes its four coarsest feature maps.

    Raises:
        ValueError: The backbone has no four maps whose strides double, or takes images of certain sizes only.
    """
    features = feature_maps(name, pretrained, feature_cls="getter", **arguments)
    strides = features.feature_info.reduction()
    if [stride * 8 // strides[0] for stride in strides] != [8, 16, 32, 64]:
        raise ValueError(f"backbone: {name} has maps of strides {strides}, expected four, each twice the one before")
    if message := refusal(features, 64, 96):
        raise ValueError(f"backbone: {name} takes images of certain sizes only, expected any size ({message})")
    return features


def _anchors(strides: Sequence[int], scale: int) -> AnchorGenerator:
    sizes = tuple((scale * stride,) for stride in strides)
    return AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))

"""Mask R-CNN (He et al., 2017) and Faster R-CNN (Ren et al., 2015) over the feature pyramid of any timm backbone."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from timm.layers import LayerNorm2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, RPNHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from iformer.common.ranges import Count, require
from iformer.models.backbone import feature_maps, refusal

Architecture = Literal["mask_rcnn", "faster_rcnn"]

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


class RegionHeads(RoIHeads):
    """torchvision's heads for boxes and masks, whose mask loss leaves out the objects without a mask.

    Args:
        heads: The heads that torchvision's detectors build for themselves.
    """

    def __init__(self, heads: RoIHeads) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(heads.__dict__)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the detections in evaluation and the losses in training, as torchvision's heads do."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        assert targets is not None
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        boxes = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        loss_classifier, loss_box_reg = fastrcnn_loss(*self.box_predictor(boxes), labels, offsets)

        chosen = [_with_masks(*sample) for sample in zip(targets, labels, matched, strict=True)]
        proposals = [boxes[i] for boxes, i in zip(proposals, chosen, strict=True)]
        matched = [objects[i] for objects, i in zip(matched, chosen, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, proposals, image_shapes)))
        masks, labels = ([target[name] for target in targets] for name in ("masks", "labels"))
        loss_mask = maskrcnn_loss(logits, proposals, masks, labels, matched)
        return [], {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg, "loss_mask": loss_mask}


def _with_masks(target: dict[str, Tensor], labels: Tensor, matched: Tensor) -> Tensor:
    """Return the indices of an image's proposals that show an object with a mask.

    Args:
        target: The target of the image. Without ``masked`` ``(n,)`` all of its objects have masks.
        labels: The labels of the proposals, 0 for the background.
        matched: The index of the object that each proposal shows.
    """
    positive = torch.where(labels > 0)[0]
    return positive[target["masked"][matched[positive]]] if "masked" in target else positive


class Detector(FasterRCNN):
    """torchvision's Faster R-CNN, with the methods that training expects of a timm model.

    The detector takes a list of images ``(3, H, W)`` of any size, with values from 0 to 1, and resizes and normalises
    them itself. In training it also takes targets (``boxes`` as corners, ``labels`` counted from 1) and returns the
    losses. In evaluation it returns ``boxes``, ``labels`` and ``scores`` in the pixels of the original images.
    """

    roi_heads: Any

    @property
    def finds_masks(self) -> bool:
        """Whether the detector finds masks, and not boxes only."""
        return self.roi_heads.has_mask()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None, paste: bool = True) -> Any:
        """Return the losses in training and the detections in evaluation, as the class describes.

        Args:
            images: The images ``(3, H, W)``.
            targets: The target of each image, in training.
            paste: Whether to paste the masks into the images, if there are masks. Otherwise they are ``(n, 1, 28,
                28)``, each relative to its box, and :func:`iformer.detection.masks.pasted` pastes them one at a time.
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


class MaskDetector(Detector, MaskRCNN):
    """torchvision's Mask R-CNN, with the methods that training expects of a timm model.

    It is a detector whose targets also have ``masks`` ``(n, H, W)``, and ``masked`` ``(n,)`` of bool if some objects
    have no mask. In evaluation it also returns ``masks`` ``(n, 1, H, W)``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roi_heads = RegionHeads(self.roi_heads)


def build(
    architecture: Architecture = "mask_rcnn",
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
    """Build Mask R-CNN as in Table 3 of the paper, or Faster R-CNN, which is the same without masks.

    The feature pyramid has five levels, with anchors of three shapes at every position of each. Boxes are predicted
    from 7x7 features and masks from 14x14 features.

    Args:
        architecture: ``mask_rcnn`` or ``faster_rcnn``.
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
        settings: Further arguments of torchvision's ``MaskRCNN`` or ``FasterRCNN``, such as ``box_score_thresh``.

    Raises:
        ValueError: There is no such architecture, backbone or setting, a size makes no sense, or the backbone lacks
            such maps.
        OSError: The weights cannot be read.
    """
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture is {architecture!r}, expected {' or '.join(get_args(Architecture))}")
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
    parts: dict[str, Any] = {
        "image_mean": features.pretrained_cfg["mean"],
        "image_std": features.pretrained_cfg["std"],
        "rpn_anchor_generator": _anchors([*strides, 2 * strides[-1]], anchor_scale),
        "rpn_head": ProposalHead(channels, len(ASPECT_RATIOS)),
        "box_roi_pool": _pool(7, anchor_scale),
        "box_head": TwoMLPHead(channels * 7 * 7, 4 * channels),
        "box_predictor": BoxPredictor(4 * channels, num_classes + 1),
    }
    detector: type[Detector] = Detector
    if architecture == "mask_rcnn":
        detector = MaskDetector
        parts["mask_roi_pool"] = _pool(14, anchor_scale)
        parts["mask_head"] = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
        parts["mask_predictor"] = MaskRCNNPredictor(channels, channels, num_classes + 1)
    _require_known(architecture, settings, parts)
    return detector(pyramid, min_size=min_size, max_size=max_size, **parts, **settings)


def _pool(size: int, anchor_scale: int) -> MultiScaleRoIAlign:
    # A box of 224 pixels is pooled from stride 16 if anchors are 8 strides wide; other scales keep that proportion.
    return MultiScaleRoIAlign(LEVELS, size, sampling_ratio=2, canonical_scale=28 * anchor_scale)


def _require_known(architecture: Architecture, settings: Iterable[str], parts: Iterable[str]) -> None:
    """Raise ValueError for settings that torchvision would ignore or that :func:`build` sets itself."""
    name, made = ("Mask R-CNN", MaskRCNN) if architecture == "mask_rcnn" else ("Faster R-CNN", FasterRCNN)
    known = {*inspect.signature(made).parameters} - {*parts, "kwargs"}
    if unknown := set(settings) - known:
        near = difflib.get_close_matches(min(unknown), [*known, *inspect.signature(build).parameters], n=1)
        raise ValueError(f"{name} has no argument {min(unknown)}{f', did you mean {near[0]}?' if near else ''}")


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

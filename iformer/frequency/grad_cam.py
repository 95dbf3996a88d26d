"""Grad-CAM (Selvaraju et al., ICCV 2017), as in the paper's Fig. 5: where a model sees what it names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from iformer.frequency import layers
from iformer.frequency.layers import Layer, watched


def class_layer(model: Any, images: Tensor) -> Layer:
    """Where to look for a classifier's evidence: the last block whose map is 4x4 at least, so that there is a where.

    That is in the last stage, as in the paper, for images of the size that most models are made for. Where a class
    token alone is classified, the last block's other tokens do not matter any more; what this block normalises first
    is looked at instead.

    Args:
        model: A timm model in evaluation mode.
        images: Such as it takes, ``(N, C, H, W)``.
    """
    blocks = layers.blocks(model)
    large = blocks[:1]

    def see(layer: Layer, features: Any) -> None:
        if min(layer.maps(features, images.shape[2:]).shape[2:]) >= 4:
            large.append(layer)

    with torch.inference_mode(), watched(blocks, see):
        model(images[:1])
    layer = large[-1]
    if layer.prefix_tokens and getattr(model, "global_pool", "") == "token":
        norm = getattr(layer.module, "norm1", None)
        if norm is None:  # blocks of parallel branches, each with its own
            return large[-2]
        return replace(layer, name=f"{layer.name}.norm1", module=norm)
    return layer


def grad_cam(
    forward: Callable[[Tensor], Tensor], layer: Layer, images: Tensor, target: int | Tensor | None = None
) -> Tensor:
    """Grad-CAM maps: the layer's maps weighted by the mean gradient of a score, positive evidence only.

    Any network will do whose score is a function of the layer: that of a detector is the sum of its boxes' scores for
    a class, say, and that of a segmenter the mean of the class's logits over some region.

    Args:
        forward: Images to the scores of classes, ``(N, classes)``, or to one score for each image, ``(N,)``. A module
            in evaluation mode, or a function that calls one.
        layer: A layer of that module.
        images: ``(N, C, H, W)``.
        target: The class, one for all images or one for each; None where ``forward`` returns one score for each.

    Returns:
        ``(N, H, W)``, at the images' size, the largest value of each map 1 (0 where there is no evidence).
    """
    size = images.shape[2:]
    here = nn.Identity()  # Captum looks at maps (N, C, H, W), which here() sees in whatever layout the model works

    def pass_by(layer: Layer, features: Any) -> Tensor:
        return layer.restore(here(layer.maps(features, size)), features, size)

    with torch.enable_grad(), watched([layer], pass_by):
        evidence = LayerGradCam(forward, here).attribute(
            images.detach().requires_grad_(), target, relu_attributions=True
        )
    maps = F.interpolate(evidence.detach(), tuple(size), mode="bilinear", align_corners=False)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return maps / largest.where(largest > 0, 1.0)

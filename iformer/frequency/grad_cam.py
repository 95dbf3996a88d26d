"""Grad-CAM (Selvaraju et al., ICCV 2017), which shows where a model finds evidence for a class (Fig. 5)."""

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
    """Return the layer in which to look for a classifier's evidence.

    It is the last block whose map has at least 4x4 positions, because a smaller map hardly tells places apart. For
    images of the size that most models are made for, this block is in the last stage, as in the paper. If a model
    classifies its class token alone, the other tokens after the last block have no influence, so the layer is the first
    norm of that block instead.

    Args:
        model: A timm model in evaluation mode.
        images: Images ``(N, C, H, W)`` for the model.
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
        if norm is None:  # a block of parallel branches, each with its own norm
            return large[-2]
        return replace(layer, name=f"{layer.name}.norm1", module=norm)
    return layer


def grad_cam(
    forward: Callable[[Tensor], Tensor], layer: Layer, images: Tensor, target: int | Tensor | None = None
) -> Tensor:
    """Return Grad-CAM maps: a layer's maps weighted by the mean gradient of a score, with positive evidence only.

    Any network can be explained whose score is a function of the layer. The score of a detector may be, for example,
    the sum of its boxes' scores for a class, and that of a segmenter the mean of a class's logits over a region.

    Args:
        forward: A function from images to the scores of the classes, ``(N, classes)``, or to one score for each image,
            ``(N,)``: a module in evaluation mode, or a function that calls one.
        layer: The layer of that module to look at.
        images: The images ``(N, C, H, W)``.
        target: The class, either one for all images or one for each; None if ``forward`` returns one score for each
            image.

    Returns:
        The maps ``(N, H, W)`` at the size of the images. The largest value of each map is 1, or 0 if there is no
        evidence.
    """
    size = images.shape[2:]
    here = nn.Identity()  # Captum reads maps (N, C, H, W) here, whatever the layout of the model

    def pass_by(layer: Layer, features: Any) -> Tensor:
        return layer.restore(here(layer.maps(features, size)), features, size)

    with torch.enable_grad(), watched([layer], pass_by):
        evidence = LayerGradCam(forward, here).attribute(
            images.detach().requires_grad_(), target, relu_attributions=True
        )
    maps = F.interpolate(evidence.detach(), tuple(size), mode="bilinear", align_corners=False)[:, 0]
    largest = maps.amax((1, 2), keepdim=True)
    return maps / largest.where(largest > 0, 1.0)

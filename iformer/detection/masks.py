"""Masks of an image's objects, one at a time: all of them at full size would take gigabytes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image


def pasted(found: dict[str, Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the mask ``(H, W)`` of each object as bool, pasted into the image as torchvision does.

    Args:
        found: The detector's ``boxes`` ``(n, 4)`` as corners in the image's pixels, and its ``masks`` ``(n, 1, h, w)``,
            the probabilities inside the boxes.
        size: The height and width of the image in pixels.
    """
    for mask, box in zip(found["masks"], found["boxes"], strict=True):
        yield paste_masks_in_image(mask[None], box[None], size)[0, 0] > 0.5


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """Return a mask ``(H, W)`` of bool, or of 0 and 1, as COCO's compressed run lengths, ``size`` and ``counts``."""
    encoded: dict[str, Any] = rle.encode(np.asfortranarray(mask.to(torch.uint8).cpu().numpy()))
    return encoded


def from_run_lengths(encoded: dict[str, Any]) -> Tensor:
    """Return the mask ``(H, W)`` of bool from which :func:`run_lengths` made ``encoded``."""
    return torch.from_numpy(np.ascontiguousarray(rle.decode(encoded))).bool()

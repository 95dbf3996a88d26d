"""Masks of an image's objects one at a time: all at its full size at once would take gigabytes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image


def pasted(found: dict[str, Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the mask of each object, ``(H, W)`` of bool, as torchvision pastes it into the image.

    Args:
        found: ``boxes`` ``(n, 4)`` as corners in the image's pixels, ``masks`` ``(n, 1, h, w)``, probabilities in them.
        size: Height and width of the image.
    """
    for mask, box in zip(found["masks"], found["boxes"], strict=True):
        yield paste_masks_in_image(mask[None], box[None], size)[0, 0] > 0.5


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """``(H, W)`` of bool or of 0 and 1 in COCO's compressed run lengths: ``size`` and ``counts``."""
    encoded: dict[str, Any] = rle.encode(np.asfortranarray(mask.to(torch.uint8).cpu().numpy()))
    return encoded


def from_run_lengths(encoded: dict[str, Any]) -> Tensor:
    """The mask of :func:`run_lengths`, ``(H, W)`` of bool."""
    return torch.from_numpy(np.ascontiguousarray(rle.decode(encoded))).bool()

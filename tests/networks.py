"""Small networks that several test files build, and the weights they are drawn with."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

NARROW: dict[str, Any] = {
    "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "num_heads": [2, 2, 2, 2], "attention_heads": [1, 0, 0, 1],
}  # fmt: skip
"""Arguments of the smallest iFormer that has every branch."""

SEGMENTERS: dict[str, dict[str, Any]] = {
    name: {"architecture": name, "backbone": "iformer_small", "num_classes": 3, "backbone_args": NARROW, **decoder}
    for name, decoder in (("semantic_fpn", {"neck_channels": 8, "head_channels": 8}), ("upernet", {"channels": 8}))
}
"""What ``iformer.segmentation.build`` takes for a small network of each architecture."""

SCENES: dict[str, Any] = {
    "window": None, "flip_test": False, "resize": None, "mean": [0.5] * 3, "std": [0.25] * 3,
    "class_names": ["red", "green", "blue"], "palette": [[250, 0, 0], [0, 250, 0], [0, 0, 250]],
}  # fmt: skip
"""What a saved segmenter's ``config.json`` says besides its network."""

# All that a compiler can meet in the four stages, in two: attention pooled and not, LayerScale.
TWO_STAGES: dict[str, Any] = {
    "depths": (1, 1),
    "dims": (8, 16),
    "num_heads": (2, 4),
    "attention_heads": (1, 2),
    "pool_strides": (2, 1),
    "layer_scales": (None, 1.0),
}
SIZES = [(2, 64, 64), (1, 33, 47), (3, 96, 61), (2, 65, 34)]

plain_and_fused = pytest.mark.parametrize("tiny", ["plain", "fused"], indirect=True)
"""For a test that holds for the backbone as for what ``fuse`` makes of it."""


def draw(model: nn.Module) -> nn.Module:
    """Draw every weight anew: as initialised, LayerScale is so small that most of a network does not show."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


FAMILIES: dict[str, dict[str, Any]] = {
    "iformer_nano": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 3, "embed_dim": 24},
    "vit_base_patch16_siglip_gap_224": {"img_size": 48, "depth": 2, "embed_dim": 24, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "depths": (1, 2, 1, 1),
        "embed_dim": 12,
        "num_heads": (1, 1, 2, 2),
        "window_size": 4,
    },
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)},
    "resnet10t": {},
}
"""Models of timm with other layouts, and the arguments that make them small."""


def small(name: str) -> Any:
    """Return a small model of one of ``FAMILIES``, in evaluation mode."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **FAMILIES[name]).eval()


def images_for(name: str, count: int = 2) -> Tensor:
    """Return random images of the size that it takes."""
    side = FAMILIES[name].get("img_size", 32)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))

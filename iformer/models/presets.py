"""The configurations of the Inception Transformer, registered with timm.

Depths, widths and ramps are those of the authors' release (paper, Section 3.3 and appendix); the ablations are the rows
of Table 5. A preset is data: the arguments of :class:`InceptionTransformer` that differ from its defaults, and the
address of the released weights.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from iformer.models.inception_transformer import InceptionTransformer
from iformer.models.released import checkpoint_filter_fn

SMALL: dict[str, Any] = {
    "depths": (3, 3, 9, 3),
    "dims": (96, 192, 320, 384),
    "num_heads": (3, 6, 10, 12),
    "attention_heads": 3 * (1,) + 3 * (3,) + 4 * (7,) + 5 * (9,) + 3 * (11,),
}
BASE: dict[str, Any] = {
    "depths": (4, 6, 14, 6),
    "dims": (96, 192, 384, 512),
    "num_heads": (3, 6, 12, 16),
    "attention_heads": 4 * (1,) + 6 * (3,) + 7 * (8,) + 7 * (10,) + 6 * (15,),
}
LARGE: dict[str, Any] = {
    "depths": (4, 6, 18, 8),
    "dims": (96, 192, 448, 640),
    "num_heads": (3, 6, 14, 20),
    "attention_heads": 4 * (1,) + 6 * (3,) + 9 * (10,) + 9 * (12,) + 8 * (19,),
}

PRESETS: dict[str, dict[str, Any]] = {
    "iformer_small": SMALL,
    "iformer_base": BASE,
    "iformer_large": LARGE,
    # For images of 384 pixels, as their configuration below says. Their weights have position embeddings for 224
    # pixels, which the network resizes in every forward pass; `img_size=384` resizes them once.
    "iformer_small_384": SMALL,
    "iformer_base_384": BASE,
    "iformer_large_384": LARGE,
    # Table 5, the mixer: attention alone, and attention with max-pooling. With convolution too it is iformer_small.
    "iformer_small_attention": {**SMALL, "attention_heads": 3 * (3,) + 3 * (6,) + 9 * (10,) + 3 * (12,)},
    "iformer_small_attention_pool": {**SMALL, "conv_ratio": 0.0},
    # Table 5, the ramp: attention heads decrease towards the top, or are about half of all heads everywhere.
    "iformer_small_ramp_down": {**SMALL, "attention_heads": 3 * (2,) + 3 * (3,) + 4 * (3,) + 5 * (1,) + 3 * (1,)},
    "iformer_small_ramp_flat": {**SMALL, "attention_heads": 3 * (2,) + 3 * (3,) + 9 * (5,) + 3 * (6,)},
    # For images of 28 to 64 pixels.
    "iformer_nano": {
        "depths": (1, 1, 2, 1),
        "dims": (32, 64, 96, 192),
        "num_heads": (2, 4, 6, 6),
        "attention_heads": (1, 2, 4, 5, 5),
        "layer_scales": (None, None, None, None),
        "stem_stride": 2,
        "init_std": None,
        "img_size": 32,
    },
}


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "min_input_size": (3, 32, 32),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/sail-sg/iFormer",
        "paper_ids": "arXiv:2205.12956",
        "paper_name": "Inception Transformer",
        **kwargs,
    }


def _released(name: str, **kwargs: Any) -> dict[str, Any]:
    return _cfg(f"https://huggingface.co/sail/dl2/resolve/main/iformer/{name}.pth", **kwargs)


_AT_384: dict[str, Any] = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "iformer_small.sail_in1k": _released("iformer_small"),
        "iformer_base.sail_in1k": _released("iformer_base"),
        "iformer_large.sail_in1k": _released("iformer_large"),
        "iformer_small_384.sail_in1k": _released("iformer_small_384", **_AT_384),
        "iformer_base_384.sail_in1k": _released("iformer_base_384", **_AT_384),
        "iformer_large_384.sail_in1k": _released("iformer_large_384", **_AT_384),
        "iformer_small_attention.untrained": _cfg(),
        "iformer_small_attention_pool.untrained": _cfg(),
        "iformer_small_ramp_down.untrained": _cfg(),
        "iformer_small_ramp_flat.untrained": _cfg(),
        "iformer_nano.untrained": _cfg(
            num_classes=10, input_size=(3, 32, 32), pool_size=(2, 2), min_input_size=(3, 16, 16), crop_pct=1.0
        ),
    }
)


def _register(name: str, preset: dict[str, Any]) -> None:
    """Register ``preset`` as the timm model ``name``."""

    def create(pretrained: bool = False, **kwargs: Any) -> InceptionTransformer:
        return build_model_with_cfg(
            InceptionTransformer,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
            **{**preset, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    register_model(create)


for _name, _preset in PRESETS.items():
    _register(_name, _preset)

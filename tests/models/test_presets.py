"""The presets: the paper's figures, and what timm knows about them."""

from typing import Any

import pytest
import timm
import torch

from iformer.models.presets import PRESETS

NETWORKS = [name for name in PRESETS if not name.endswith("_384")]  # those for 384 pixels are the same networks
RELEASED = [f"iformer_{size}{suffix}" for suffix in ("", "_384") for size in ("small", "base", "large")]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("iformer_small", 19.866),
        ("iformer_base", 47.866),
        ("iformer_large", 86.637),
        ("iformer_small_384", 19.866),
        ("iformer_base_384", 47.866),
        ("iformer_large_384", 86.637),
        # Table 5
        ("iformer_small_attention", 20.93),
        ("iformer_small_attention_pool", 19.94),
        ("iformer_small_ramp_down", 18.98),
        ("iformer_small_ramp_flat", 18.72),
    ],
)
def test_parameter_counts(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in timm.create_model(name, device="meta").parameters())
    decimals = len(str(millions).partition(".")[2])
    assert round(count / 1e6, max(decimals, 2)) == millions


@pytest.mark.parametrize(
    ("name", "ramp"),
    [
        ("iformer_small", "1 1 1 of 3 | 3 3 3 of 6 | 7 7 7 7 9 9 9 9 9 of 10 | 11 11 11 of 12"),
        (
            "iformer_base",
            "1 1 1 1 of 3 | 3 3 3 3 3 3 of 6 | 8 8 8 8 8 8 8 10 10 10 10 10 10 10 of 12 | 15 15 15 15 15 15 of 16",
        ),
        (
            "iformer_large",
            "1 1 1 1 of 3 | 3 3 3 3 3 3 of 6 | 10 10 10 10 10 10 10 10 10 12 12 12 12 12 12 12 12 12 of 14 | "
            "19 19 19 19 19 19 19 19 of 20",
        ),
        ("iformer_small_attention", "3 3 3 of 3 | 6 6 6 of 6 | 10 10 10 10 10 10 10 10 10 of 10 | 12 12 12 of 12"),
        ("iformer_small_attention_pool", "1 1 1 of 3 | 3 3 3 of 6 | 7 7 7 7 9 9 9 9 9 of 10 | 11 11 11 of 12"),
        ("iformer_small_ramp_down", "2 2 2 of 3 | 3 3 3 of 6 | 3 3 3 3 1 1 1 1 1 of 10 | 1 1 1 of 12"),
        ("iformer_small_ramp_flat", "2 2 2 of 3 | 3 3 3 of 6 | 5 5 5 5 5 5 5 5 5 of 10 | 6 6 6 of 12"),
    ],
)
def test_ramp_is_visible(name: str, ramp: str) -> None:
    assert f"frequency ramp (attention heads per block): {ramp}\n" in repr(timm.create_model(name, device="meta"))


def test_ablations_of_the_mixer() -> None:
    attention = timm.create_model("iformer_small_attention", device="meta")
    assert not any("conv_branch" in name or "pool_branch" in name for name, _ in attention.named_modules())
    with_pool = timm.create_model("iformer_small_attention_pool", device="meta")
    assert not any("conv_branch" in name for name, _ in with_pool.named_modules())
    assert sum(name.endswith("pool_branch") for name, _ in with_pool.named_modules()) == 18


@pytest.mark.parametrize("name", PRESETS)
def test_configuration_fits_the_model(name: str) -> None:
    """Map size, classifier and first convolution as its ``default_cfg`` says, at the preset's own image size."""
    model = timm.create_model(name, device="meta").eval()
    cfg = model.default_cfg
    assert model.num_classes == cfg["num_classes"]
    assert model.in_chans == cfg["input_size"][0]
    assert model.num_features == model.head_hidden_size == PRESETS[name]["dims"][-1]
    assert model.get_submodule(cfg["first_conv"]) is model.stem.conv1
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()

    images = torch.empty(1, *cfg["input_size"], device="meta")
    features, stages = model.forward_intermediates(images)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features).shape == (1, cfg["num_classes"])
    grids = [tuple(stage.pos_embed.shape[:2]) for stage in model.stages]
    if name.endswith("_384"):  # those of 224, as in the released weights
        assert grids == [(56, 56), (28, 28), (14, 14), (7, 7)]
    else:
        assert [tuple(map_.shape[2:]) for map_ in stages] == grids


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in NETWORKS])
def test_presets_for_384_pixels_are_the_same_networks(name: str) -> None:
    assert repr(timm.create_model(name, device="meta")) == repr(
        timm.create_model(name.removesuffix("_384"), device="meta")
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_forwards_and_backwards(name: str) -> None:
    model = timm.create_model(name).eval()
    images = torch.randn(1, *model.default_cfg["min_input_size"])
    with torch.no_grad():
        y = model(images)
        assert y.shape == (1, model.num_classes)
        assert torch.isfinite(y).all()
        model.set_grad_checkpointing()
        torch.testing.assert_close(model(images), y, rtol=1e-4, atol=1e-5)

    model.reset_classifier(42)
    model.set_grad_checkpointing(False)
    y = model.train()(torch.randn(2, *model.default_cfg["min_input_size"]))
    assert y.shape == (2, 42)
    y.mean().backward()
    assert torch.isfinite(y).all()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert timm.is_model_pretrained(name)
    assert timm.create_model(f"{name}.sail_in1k", device="meta").pretrained_cfg["tag"] == cfg.tag == "sail_in1k"
    assert cfg.url == f"https://huggingface.co/sail/dl2/resolve/main/iformer/{name}.pth"
    assert cfg.input_size == ((3, 384, 384) if name.endswith("384") else (3, 224, 224))
    assert cfg.crop_pct == (1.0 if name.endswith("384") else 0.9)
    assert cfg.interpolation == "bicubic"
    assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_registry() -> None:
    assert sorted(timm.list_models(module="presets")) == sorted(PRESETS)
    assert sorted(timm.list_pretrained("iformer_*_384")) == [f"{n}.sail_in1k" for n in sorted(RELEASED) if "384" in n]
    ours = [name for name in timm.list_models("iformer_*", pretrained=True) if name.endswith("sail_in1k")]
    assert sorted(ours) == [f"{name}.sail_in1k" for name in sorted(RELEASED)]
    with pytest.raises(RuntimeError, match="no_such_tag"):
        timm.create_model("iformer_small.no_such_tag")
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("iformer_nano", pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_heads": (1,) * 17}, "attention_heads has 17 entries, expected one for each of the 18 blocks"),
        ({"attention_heads": (1,) * 19}, "attention_heads has 19 entries"),
        ({"attention_heads": (4, *(1,) * 17)}, "attention_heads of stage 1, block 1 is 4, expected 0 to 3"),
        ({"attention_heads": (*(1,) * 17, -1)}, "attention_heads of stage 4, block 3 is -1, expected 0 to 12"),
        ({"dims": (96, 192, 321, 384)}, "321 channels do not divide into 10 heads"),
        ({"dims": (96, 192, 320)}, "dims has 3 entries, expected one for each of the 4 stages"),
        ({"num_heads": (3, 6, 10, 12, 1)}, "num_heads has 5 entries"),
        ({"num_heads": (3, 0, 10, 12)}, "192 channels do not divide into 0 heads"),
        ({"layer_scales": (None,)}, "layer_scales has 1 entries"),
        ({"pool_strides": (2, 2, 1)}, "pool_strides has 3 entries"),
        ({"pool_strides": (2, 3, 1, 1)}, "pool_strides of stage 2 is 3, expected 1 or 2"),
        ({"conv_ratio": 1.1}, "conv_ratio is 1.1, expected 0 to 1"),
        ({"stem_stride": 3}, "stem_stride is 3, expected 2 or 4"),
    ],
)
def test_contradictions_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("iformer_small", device="meta", **arguments)

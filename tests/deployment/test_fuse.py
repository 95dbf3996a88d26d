"""A fused model computes what the original does, to rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import LayerScale, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork

from iformer.deployment.channels_first import channels_first
from iformer.deployment.fuse import FusedMixer, fuse
from iformer.models.inception_transformer import InceptionMixer, InceptionStage, InceptionTransformer
from iformer.models.presets import PRESETS
from tests.networks import SIZES, TWO_STAGES, draw

Tiny = Callable[..., InceptionTransformer]


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def agree(fused: Tensor, original: Tensor) -> None:
    """To 1e-5 of the largest value, in float32."""
    assert fused.shape == original.shape
    assert (fused - original).abs().max() <= 1e-5 * original.abs().max()


def operations(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def drawn(name: str) -> InceptionTransformer:
    """A preset whose weights are drawn but once."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    return draw(model.to_empty(device="cpu"))  # type: ignore[return-value]


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.endswith("_384")])  # which are the same networks
def test_every_preset(name: str) -> None:
    model = drawn(name)
    images = torch.randn(1, 3, 64, 48)
    fused = fuse(model)
    features, original = fused.forward_features(images), model.forward_features(images)
    agree(features, original)
    agree(fused.forward_head(features), model.forward_head(original))


@pytest.mark.parametrize("name", ["iformer_small", "iformer_small_attention_pool"])
def test_the_form_for_engines(name: str) -> None:
    model = fuse(drawn(name))
    images = torch.randn(1, 3, 64, 48)
    agree(channels_first(model)(images), model(images))


def test_folds_what_it_says(tiny: Tiny) -> None:
    model = tiny()
    fused = fuse(model)
    assert not operations(fused, nn.BatchNorm2d)
    assert not operations(fused, LayerScale)
    assert len(operations(fused, FusedMixer)) == 5
    affine = [norm for norm in operations(fused.stages, nn.LayerNorm) if norm.weight is not None]
    assert not affine  # the scales drawn for the max-pooling branches are positive
    assert fused.norm.weight is not None
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert operations(model, nn.BatchNorm2d)  # the original stays


def test_negative_scales_before_max_pooling(tiny: Tiny) -> None:
    model = tiny()
    for block in model.stages.modules():
        if hasattr(block, "norm1") and isinstance(block.norm1, nn.LayerNorm):
            block.norm1.weight.normal_()
    fused = fuse(model)
    signs = [norm.weight for norm in operations(fused.stages, nn.LayerNorm) if norm.weight is not None]
    assert signs
    assert all(set(sign.tolist()) == {-1.0, 1.0} for sign in signs)
    images = torch.randn(2, 3, 64, 64)
    agree(fused(images), model(images))


@pytest.mark.parametrize("feature_cls", ["getter", "list", "fx"])
def test_backbones(tiny: Tiny, feature_cls: str) -> None:
    model = tiny(features_only=True, feature_cls=feature_cls)
    images = torch.randn(2, 3, 65, 90)
    for one, other in zip(fuse(model)(images), model(images), strict=True):
        agree(one, other)


def test_inside_a_detector(tiny: Tiny) -> None:
    class Pyramid(nn.Module):
        out_channels = 16

        def __init__(self) -> None:
            super().__init__()
            self.body = freeze_batch_norm_2d(tiny(features_only=True))
            self.fpn = FeaturePyramidNetwork([16, 32, 48, 64], 16)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return self.fpn({str(i): features for i, features in enumerate(self.body(x))})

    detector = MaskRCNN(Pyramid(), num_classes=3, min_size=64, max_size=96).eval()
    images = torch.randn(1, 3, 64, 96)
    fused = fuse(detector)
    assert operations(fused, FusedMixer)
    for one, other in zip(fused.backbone(images).values(), detector.backbone(images).values(), strict=True):
        agree(one, other)


@pytest.mark.parametrize("size", [96, (64, 33)])
def test_fixed_size(tiny: Tiny, size: int | tuple[int, int]) -> None:
    model = tiny()
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(1, 3, height, width)
    fused = fuse(model, size)
    agree(fused(images), model(images))
    assert fused.stages[0].pos_embed.shape == (-(-height // 4), -(-width // 4), 16)


def test_fixed_size_of_a_backbone(tiny: Tiny) -> None:
    model = tiny(features_only=True, out_indices=(1, 2))
    images = torch.randn(1, 3, 65, 90)
    fused = fuse(model, (65, 90))
    for one, other in zip(fused(images), model(images), strict=True):
        agree(one, other)
    shapes = [module.pos_embed.shape[:2] for module in operations(fused, InceptionStage)]
    assert shapes == [(17, 23), (9, 12), (5, 6)]


@pytest.mark.parametrize("conv_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("attention_heads", [(0, 0, 0, 0, 0), (1, 2, 2, 3, 3), (2, 4, 4, 4, 4)])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_the_images(
    tiny: Tiny,
    attention_heads: tuple[int, ...],
    conv_ratio: float,
    training: bool,
) -> None:
    model = tiny(attention_heads=attention_heads, conv_ratio=conv_ratio)
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    fused = fuse(model).train(training)
    with torch.enable_grad():
        (one,) = torch.autograd.grad(fused(images).square().sum(), images)
        (other,) = torch.autograd.grad(model(images).square().sum(), images)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU("tanh")])
def test_other_activations_stay(tiny: Tiny, act: nn.Module) -> None:
    model = tiny()
    for mixer in operations(model, InceptionMixer):
        mixer.conv_act = mixer.pool_act = act
    images = torch.randn(1, 3, 64, 64)
    fused = fuse(model)
    agree(fused(images), model(images))
    agree(channels_first(fused)(images), model(images))


def test_fuses_once(tiny: Tiny) -> None:
    model = tiny()
    images = torch.randn(1, 3, 64, 64)
    agree(fuse(fuse(model))(images), model(images))


def test_other_models() -> None:
    model = timm.create_model("repvgg_a0", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    fused = fuse(model)
    assert not operations(fused, nn.BatchNorm2d)
    torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="holds no iFormer"):
        fuse(model, 64)


def test_compile(tiny: Tiny) -> None:
    model = fuse(tiny(**TWO_STAGES))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 65, 34)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_export_for_any_size(tiny: Tiny) -> None:
    model = fuse(tiny(**TWO_STAGES))
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dynamic,)).module()
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


class LowRank(nn.Module):
    """LoRA as a parametrisation."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Parameter(torch.randn(2, weight.shape[1]) / 4),
            nn.Parameter(torch.randn(len(weight), 2) / 4),
        )

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class Adapter(nn.Module):
    """LoRA as a module around a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.delta = base, LowRank(base.weight)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ (self.delta.b @ self.delta.a).T


def test_parametrised_layers_are_merged(tiny: Tiny) -> None:
    model = tiny()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight))
        elif name == "stem.conv2":
            parametrizations.spectral_norm(module)
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    fused = fuse(model.train())
    agree(fused(images), expected)
    assert not any(parametrize.is_parametrized(module) for module in fused.modules())
    assert parametrize.is_parametrized(model.stages[0].blocks[0].mixer.proj)


def test_adapters_and_computed_weights_are_named(tiny: Tiny) -> None:
    model = tiny()
    block = model.stages[2].blocks[1]
    branch = block.mixer.attn_branch
    branch.qkv = Adapter(branch.qkv)
    with pytest.raises(ValueError, match=r"^stages\.2\.blocks\.1\.mixer\.attn_branch\.qkv is a \S+Adapter, .* merge"):
        fuse(model)
    branch.qkv = branch.qkv.base
    block.mlp = nn.Sequential(block.mlp, nn.Linear(48, 48))
    with pytest.raises(ValueError, match=r"^stages\.2\.blocks\.1\.mlp is a torch\S+Sequential, expected Mlp"):
        fuse(model)
    block.mlp = block.mlp[0]
    prune.l1_unstructured(model.stem.conv1, "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"^stem\.conv1\.weight is computed in a hook, by pruning"):
        fuse(model)
    prune.remove(model.stem.conv1, "weight")
    images = torch.randn(1, 3, 64, 64)
    agree(fuse(model)(images), model(images))

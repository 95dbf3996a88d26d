import contextlib
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from iformer.paper.complexity import CONVENTIONS, KINDS, build, count

# Millions of parameters, billions of multiply-adds: measured on the released models, and on the rows of Table 5.
IFORMERS = {
    "iformer_small": (224, 19.866, 4.848),
    "iformer_base": (224, 47.866, 9.378),
    "iformer_large": (224, 86.637, 14.047),
    "iformer_small_384": (384, 19.866, 16.098),
    "iformer_base_384": (384, 47.866, 30.552),
    "iformer_large_384": (384, 86.637, 45.335),
    "iformer_small_attention": (224, 20.93, 5.224),
    "iformer_small_attention_pool": (224, 19.94, 4.909),
    "iformer_small_ramp_down": (224, 18.98, 4.66),
    "iformer_small_ramp_flat": (224, 18.72, 4.700),
}


class Attention(nn.Module):
    """Attention between positions as queries, keys and values; ``key_heads`` fewer than ``heads`` groups queries."""

    def __init__(self, heads: int, key_heads: int = 0) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads or heads

    def forward(self, x):
        q = x.flatten(2).transpose(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = q[:, : self.key_heads]
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=self.key_heads != self.heads)


class MultiheadAttention(nn.MultiheadAttention):
    def __init__(self, dim: int, heads: int, need_weights: bool) -> None:
        super().__init__(dim, heads, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return super().forward(x, x, x, need_weights=self.need_weights)[0]


class ChannelsLast(nn.Module):
    """A linear layer on channels that do not lie together in memory: its product arrives as a batched one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1))


class LearnedQuery(nn.Module):
    """Hands a parameter to a module as its input, as models with class tokens do."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.layer = nn.Linear(dim, 5)

    def forward(self, x):
        return self.layer(self.query) + x.mean()


# On 12 channels of 6x10 pixels: 60 positions.
CLOSED_FORMS = [
    (nn.Conv2d(12, 8, 3, stride=2, padding=1), "convolution", 8 * 3 * 5 * 12 * 9),
    (nn.Conv2d(12, 24, (1, 3), groups=6), "convolution", 24 * 6 * 8 * 2 * 3),
    (nn.ConvTranspose2d(12, 8, 2, stride=2), "convolution", 12 * 60 * 8 * 4),
    (ChannelsLast(nn.Linear(12, 7)), "linear", 60 * 12 * 7),
    (ChannelsLast(nn.Linear(12, 7, bias=False)), "linear", 60 * 12 * 7),
    (LearnedQuery(12), "linear", 12 * 5),
    (ChannelsLast(nn.LayerNorm(12)), "normalisation", 5 * 12 * 60),
    (nn.GroupNorm(3, 12), "normalisation", 5 * 12 * 60),
    (nn.BatchNorm2d(12), "normalisation", 2 * 12 * 60),
    (nn.Upsample(size=(7, 25)), "upsampling", 12 * 7 * 25),
    (Attention(heads=3), "attention", 2 * 60 * 60 * 12),
    (Attention(heads=4, key_heads=2), "attention", 2 * 60 * 60 * 12),
]


@pytest.mark.parametrize(("module", "kind", "expected"), CLOSED_FORMS)
def test_one_operation_counts_what_its_formula_says(module, kind, expected):
    complexity = count(module, (12, 6, 10))
    assert complexity.by_kind() == {other: expected if other == kind else 0 for other in KINDS}
    assert complexity.multiply_adds("layers") == (0 if kind == "attention" else expected)


@pytest.mark.parametrize("need_weights", [True, False])
def test_torch_multihead_attention_is_seen_through_its_fast_path(need_weights):
    complexity = count(MultiheadAttention(12, 4, need_weights), (12, 6, 10))
    assert complexity.by_kind() == {
        **dict.fromkeys(KINDS, 0),
        "linear": 60 * 4 * 12 * 12,
        "attention": 2 * 60 * 60 * 12,
    }
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", IFORMERS)
def test_iformers_cost_what_the_released_ones_do(name):
    size, parameters, multiply_adds = IFORMERS[name]
    complexity = count(build(name), (3, size, size))
    # Table 5's figures are known to two decimals at times, the others to three.
    assert complexity.parameters / 1e6 == pytest.approx(parameters, abs=0.0005 if size == 384 else 0.005)
    assert complexity.multiply_adds() / 1e9 == pytest.approx(multiply_adds, abs=0.0005)


def test_iformer_small_spends_where_the_released_one_does():
    complexity = count(build("iformer_small"), (3, 224, 224))
    kinds = {kind: n / 1e9 for kind, n in complexity.by_kind().items()}
    # The release writes as 1x1 convolutions what are linear layers here: 3.446 + 1.055 in all.
    assert kinds["linear"] + kinds["convolution"] == pytest.approx(3.446 + 1.055, abs=0.001)
    assert kinds["attention"] == pytest.approx(0.325, abs=0.0005)
    assert kinds["normalisation"] == pytest.approx(0.022, abs=0.0005)
    assert kinds["upsampling"] == pytest.approx(0.001, abs=0.0005)


def test_layers_only_reproduces_the_backbone_of_tables_3_and_4():
    model = build("iformer_small", num_classes=0)
    detection, segmentation = count(model, (3, 800, 1280)), count(model, (3, 512, 2048))
    assert round(detection.multiply_adds("layers") / 1e9, 1) == 92.3
    assert round(segmentation.multiply_adds("layers") / 1e9, 1) == 94.5
    assert detection.multiply_adds() > 2 * detection.multiply_adds("layers")  # attention is no rounding error there


@pytest.mark.parametrize(("name", "paper"), [("deit_small_patch16_224", 4.6), ("swin_tiny_patch4_window7_224", 4.5)])
def test_compared_transformers_cost_what_the_paper_says(name, paper):
    assert round(count(build(name), (3, 224, 224)).multiply_adds() / 1e9, 1) == paper


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "maxvit_t", "convnext_tiny", "resnet50"])
def test_products_agree_with_torchvisions_published_count(name):
    weights = next(iter(torchvision.models.get_model_weights(name)))
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    kinds = count(model, (3, 224, 224)).by_kind()
    products = kinds["convolution"] + kinds["linear"] + kinds["attention"]  # what torchvision's figure holds
    assert round(products / 1e9, 3) == weights.meta["_ops"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_fused_and_explicit_attention_count_the_same(name):
    counts = []
    for fused in (True, False):
        timm.layers.set_fused_attn(fused)
        try:
            counts.append(count(build(name), (3, 224, 224)))
        finally:
            timm.layers.set_fused_attn(True)
    assert counts[0] == counts[1]
    assert counts[0].by_kind()["attention"] > 0


SHORT = {"depths": (1, 1, 1, 1), "attention_heads": (1, 2, 3, 5)}


@pytest.fixture(scope="module")
def nano():
    """A short model with real weights, in memory."""
    return timm.create_model("iformer_nano", **SHORT)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, None])
def test_attention_kernel_does_not_matter(nano, backend):
    with sdpa_kernel(backend) if backend else contextlib.nullcontext():
        assert count(nano, (3, 32, 48)) == count(build("iformer_nano", **SHORT), (3, 32, 48))


@pytest.mark.parametrize("guard", [torch.enable_grad, torch.inference_mode])
def test_device_and_grad_mode_do_not_matter(nano, guard):
    with guard():
        real = count(nano, (3, 35, 52))
    assert real == count(build("iformer_nano", **SHORT), (3, 35, 52))


def test_equal_operations_have_results_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8, bias=False)

        def forward(self, x):
            one, other = F.gelu(x), F.gelu(x)
            one.transpose_(2, 3)
            return self.fc(other) @ one

    assert count(Twice().to("meta"), (4, 6, 8)).by_kind() == count(Twice(), (4, 6, 8)).by_kind()


def test_precision_does_not_matter(nano):
    assert count(copy.deepcopy(nano).bfloat16(), (3, 32, 32)) == count(nano, (3, 32, 32))


def test_model_is_left_as_it_was(nano):
    model = copy.deepcopy(nano).train()
    model.stages[1].eval()
    training = {name: module.training for name, module in model.named_modules()}
    count(model, (3, 32, 32))
    assert {name: module.training for name, module in model.named_modules()} == training
    assert all(torch.equal(tensor, nano.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_stages_add_up_to_the_network():
    complexity = count(build("iformer_small"), (3, 224, 224))
    assert complexity.stages() == ["stem", *(f"stages.{i}" for i in range(4)), "norm", "head"]
    for convention in CONVENTIONS:
        parts = [complexity.multiply_adds(convention, stage) for stage in complexity.stages()]
        assert sum(parts) == complexity.multiply_adds(convention)
    blocks = [complexity.multiply_adds(module=f"stages.2.blocks.{i}") for i in range(9)]
    assert sum(blocks) < complexity.multiply_adds(module="stages.2")  # the rest is its downsampling
    assert complexity.by_kind(module="stages.2")["upsampling"] == 0  # attention pools in the first two stages only


def test_shared_weights_count_once_as_parameters_and_each_time_as_multiply_adds():
    layer = nn.Conv2d(4, 4, 1)
    complexity = count(nn.Sequential(layer, layer), (4, 5, 5))
    assert complexity.parameters == 20
    assert complexity.multiply_adds() == 2 * 25 * 16


def test_detector_that_cannot_leave_its_device_is_counted_too():
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64
    )
    complexity = count(model, (3, 64, 64))
    assert complexity.multiply_adds(module="backbone") == count(model.backbone, (3, 64, 64)).multiply_adds()
    assert complexity.multiply_adds(module="rpn") > 0


@pytest.mark.parametrize("input_size", [(224, 224), (1, 3, 224, 224), (3, 0, 224), (3, 224.5, 224)])
def test_input_size_that_is_none_is_named(input_size):
    with pytest.raises(ValueError, match=rf"input_size is \({input_size[0]}, "):
        count(nn.Identity(), input_size)


def test_unknown_convention_and_module_are_named():
    complexity = count(nn.Sequential(nn.Conv2d(3, 1, 1)), (3, 4, 4))
    with pytest.raises(ValueError, match="'fvcore', expected one of complete, layers"):
        complexity.multiply_adds("fvcore")
    with pytest.raises(ValueError, match=r"no module 'stages\.9'"):
        complexity.multiply_adds(module="stages.9")

"""Semantic FPN and UPerNet: shapes, sizes, and the paper's figures."""

import pytest
import torch

from iformer.models import saved
from iformer.models.backbone import create
from iformer.paper.complexity import count
from iformer.segmentation.model import Segmenter, build, semantic_fpn, upernet

SMALL = {"neck_channels": 16, "head_channels": 8}
FAMILIES = {
    "iformer_small": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "num_heads": [2, 2, 2, 2],
                      "attention_heads": [1, 1, 1, 1]},
    "iformer_nano": {},
    "resnet18": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("size", [(64, 96), (51, 97), (32, 32)])
def test_logits_have_the_size_of_the_image(backbone: str, size: tuple[int, int]) -> None:
    model = semantic_fpn(backbone, 5, **SMALL, backbone_args=FAMILIES[backbone])
    assert all(module.training for module in model.modules())
    model.eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, *size)).shape == (1, 5, *size)


@pytest.mark.parametrize("architecture", ["semantic_fpn", "upernet"])
def test_every_parameter_learns(architecture: str) -> None:
    channels = SMALL if architecture == "semantic_fpn" else {"channels": 8}
    model = build(architecture, backbone="iformer_small", num_classes=4, **channels, **FAMILIES["iformer_small"])
    model(torch.randn(2, 3, 65, 70)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert {name.rpartition(".")[2] for name in model.no_weight_decay()} == {"pos_embed"}
    assert len(model.no_weight_decay()) == 4


def test_semantic_fpn_costs_what_the_paper_says() -> None:
    with torch.device("meta"):
        model = semantic_fpn("iformer_small")
    cost = count(model, (3, 512, 2048))
    parts = {name: cost.multiply_adds("layers", name) / 1e9 for name in ("", "backbone", "decoder.neck", "decoder")}
    assert parts == pytest.approx({"": 181.1, "backbone": 94.5, "decoder.neck": 54.2, "decoder": 86.6}, abs=0.05)
    assert cost.parameters / 1e6 == pytest.approx(23.74, abs=0.005)
    assert cost.multiply_adds("complete") - cost.multiply_adds("layers") == cost.by_kind()["attention"] > 100e9


def test_upernet_costs_what_the_authors_page_says() -> None:
    with torch.device("meta"):
        model = upernet("iformer_small")
    cost = count(model, (3, 512, 2048))
    assert cost.multiply_adds("layers") / 1e9 == pytest.approx(938, abs=0.5)
    # The page's 49 M count an auxiliary head that is there in training only: 3x3 to 256 channels, norm, 1x1.
    auxiliary = 320 * 256 * 9 + 2 * 256 + 256 * 150 + 150
    assert (cost.parameters + auxiliary) / 1e6 == pytest.approx(49, abs=0.5)


def test_the_backbone_begins_from_a_classifiers_checkpoint(tmp_path) -> None:
    torch.manual_seed(0)
    classifier = create("iformer_nano", num_classes=3)
    saved.save(classifier, tmp_path, ["a", "b", "c"])
    model = semantic_fpn("iformer_nano", 5, str(tmp_path), **SMALL)
    assert torch.equal(model.backbone.stem.conv1.weight, classifier.stem.conv1.weight)
    assert torch.equal(model.backbone.stages_3.blocks[0].mlp.fc1.weight, classifier.stages[3].blocks[0].mlp.fc1.weight)


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean iformer_nano"):
        semantic_fpn("iformer_nan")
    with pytest.raises(ValueError, match="architecture is 'unet', expected semantic_fpn or upernet"):
        build("unet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no_such"):
        build("semantic_fpn", backbone="iformer_nano", no_such=3)


@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        ("levit_128s", "out of range"),
        ("vit_tiny_patch16_224", r"feature maps of strides \[16, 16, 16, 16\], expected four, each twice"),
        ("gcvit_xxtiny", "takes images of certain sizes only, expected any size"),
    ],
)
def test_backbones_that_do_not_fit_are_named_in_one_line(backbone: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{backbone}.*{told}") as error:
        semantic_fpn(backbone, 5)
    assert "\n" not in str(error.value)


def test_levels_may_differ_by_a_pixel() -> None:
    assert isinstance(semantic_fpn("iformer_nano", 2, **SMALL), Segmenter)
    for side in range(33, 41):
        assert semantic_fpn("iformer_nano", 2, **SMALL).eval()(torch.zeros(1, 3, side, 33)).shape[-2:] == (side, 33)

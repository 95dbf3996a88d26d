"""Attention distances and effective receptive fields, against closed forms."""

import pytest
import torch
from torch import nn

from iformer.frequency import layers, receptive_field
from iformer.frequency.layers import Layer
from iformer.frequency.receptive_field import AttentionDistance, area_holding, receptive_fields
from iformer.models.inception_transformer import AttentionBranch
from tests.networks import images_for, small


def test_equal_keys_span_the_uniform_distance() -> None:
    distance = AttentionDistance(AttentionBranch(4, num_heads=2))
    distance.update(torch.zeros(3, 1, 2, 12), (10, 20))
    # Two positions 10 pixels apart: half of the attention stays, half spans 10.
    assert distance.pixels.tolist() == [5, 5]
    assert distance.uniform == 5


def test_attention_to_itself_spans_nothing_and_to_the_other_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receptive_field, "QUERIES", 3)  # more than one part of the matrix
    distance = AttentionDistance(AttentionBranch(8, num_heads=2))
    qkv = torch.zeros(1, 2, 2, 3, 2, 4)
    positions = 100 * torch.eye(4).view(2, 2, 4)
    qkv[0, :, :, 0] = qkv[0, :, :, 1] = positions[:, :, None]
    qkv[0, :, :, 1, 1] = positions.flip(1)  # the second head attends to the neighbour in the row
    distance.update(qkv.view(1, 2, 2, 24), (8, 8))
    torch.testing.assert_close(distance.pixels, torch.tensor([0.0, 4.0], dtype=torch.double))


def test_the_attention_is_the_branches_own() -> None:
    torch.manual_seed(0)
    branch = AttentionBranch(8, num_heads=2)
    qkv = torch.randn(3, 2, 2, 3, 2, 4)
    # Where the values are the unit vectors of the four positions, the branch returns its attention matrix.
    qkv[:, :, :, 2] = torch.eye(4).view(2, 2, 1, 4)
    distance = AttentionDistance(branch)
    distance.update(qkv.view(3, 2, 2, 24), (20, 10))
    branch.qkv.register_forward_hook(lambda *_: qkv.view(3, 2, 2, 24))
    attention = branch(torch.zeros(3, 2, 2, 8)).view(3, 4, 2, 4)
    positions = torch.tensor([[0.0, 0.0], [0.0, 5.0], [10.0, 0.0], [10.0, 5.0]])
    expected = (attention * torch.cdist(positions, positions)[:, None]).sum(-1).mean((0, 1))
    torch.testing.assert_close(distance.pixels.float(), expected)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_convolutions_see_their_kernels(depth: int) -> None:
    model = nn.Sequential(*(nn.Conv2d(3 if not i else 4, 4, 3, padding=1) for i in range(depth)))
    layer = Layer("last", model[-1])
    (field,) = receptive_fields(model, [layer], torch.randn(5, 3, 16, 12).split(2)).values()
    reached = field > 0
    assert field.sum().item() == pytest.approx(1)
    assert reached.sum() == (2 * depth + 1) ** 2
    assert reached[8 - depth : 9 + depth, 6 - depth : 7 + depth].all()


def test_fields_of_a_model_grow_with_its_stages() -> None:
    model, images = small("iformer_nano"), images_for("iformer_nano")
    ends = layers.last(layers.blocks(model))
    fields = receptive_fields(model, ends, [images])
    assert [layer.stage for layer in fields] == [1, 2, 3, 4]
    areas = [area_holding(field, 0.5) for field in fields.values()]
    assert areas == sorted(areas)
    split = receptive_fields(model, ends, images.split(1))
    for field, same in zip(fields.values(), split.values(), strict=True):
        torch.testing.assert_close(field, same, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_area() -> None:
    field = torch.zeros(4, 5)
    field[1, 1:4] = 0.25
    field[2, 2] = 0.25
    assert area_holding(field, 0.5) == 2 / 20
    assert area_holding(field, 0.9) == 4 / 20
    assert area_holding(torch.full((10, 10), 0.01), 0.9) == 0.9

"""One set of weights for all ramps: each ramp computes what the ordinary network with its slices computes."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from iformer.models import saved
from iformer.models.backbone import create
from iformer.models.recomputation import recompute
from iformer.models.shared_ramps import is_shared, most_heads, of_ramp, ramp_of, set_ramp, share
from tests.networks import draw

SMALL: dict[str, Any] = {
    "num_classes": 5, "img_size": 32, "stem_stride": 2, "depths": (1, 1, 2, 1), "dims": (8, 16, 24, 24),
    "num_heads": (2, 4, 3, 6), "attention_heads": (1, 2, 1, 2, 5), "init_std": None,
}  # fmt: skip


def shared(**arguments: Any) -> Any:
    return draw(share(lambda **changes: create("iformer_small", **{**SMALL, **arguments, **changes})))


def ramps_of(network: Any, count: int) -> list[tuple[int, ...]]:
    """No attention, nothing else, and random ramps."""
    random, most = np.random.default_rng(1), most_heads(network)
    return [(0,) * len(most), most, *(tuple(random.integers(0, most, endpoint=True).tolist()) for _ in range(count))]


@pytest.mark.parametrize("arguments", [{}, {"conv_ratio": 0.0}, {"conv_ratio": 1.0}, {"conv_ratio": 0.3}], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_ramp_computes_what_the_ordinary_network_does(arguments: dict[str, Any], training: bool) -> None:
    network = shared(**arguments)
    images = torch.randn(3, 3, 33, 32)
    for ramp in ramps_of(network, 4):
        ordinary = create("iformer_small", **{**SMALL, **arguments, "attention_heads": ramp})
        ordinary.load_state_dict(of_ramp(network.state_dict(), ordinary))
        set_ramp(network, ramp)
        network.train(training), ordinary.train(training)
        network.zero_grad()
        found, expected = network(images), ordinary(images)
        torch.testing.assert_close(found, expected, msg=str(ramp))
        for result in (found, expected):
            result.square().mean().backward()
        gradients = of_ramp(gradients_of(network), ordinary)
        for name, parameter in ordinary.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, msg=f"{ramp} {name}")
        statistics = dict(ordinary.named_buffers())
        for name, value in network.named_buffers():
            torch.testing.assert_close(value, statistics[name])


def gradients_of(network: Any) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}


def test_dropout_follows_the_mode() -> None:
    network = shared(proj_drop_rate=0.5, attn_drop_rate=0.5)
    images = torch.randn(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_a_channel_meets_the_same_weights_in_every_ramp() -> None:
    network = shared()
    state, block = network.state_dict(), "stages.1.blocks.0.mixer"  # 16 channels, 4 heads
    by_heads = []
    for heads in range(5):
        ordinary = create("iformer_small", **{**SMALL, "attention_heads": (1, heads, 1, 2, 5)})
        by_heads.append({k.removeprefix(f"{block}."): v for k, v in of_ramp(state, ordinary).items() if block in k})
    for heads in range(1, 4):  # the last heads are those of fewer heads; the first channels those of more convolution
        few, more = (by_heads[n]["attn_branch.qkv.weight"].unflatten(0, (3, -1)) for n in (heads, heads + 1))
        assert torch.equal(few, more[:, 4:, 4:])
        less, much = (by_heads[n]["conv_branch.fc.weight"] for n in (heads, heads - 1))
        assert torch.equal(less, much[: len(less), : less.shape[1]])
    # Of 12 channels max-pooling takes 6 to 11, of 8 it takes 4 to 7: two in common, each with two outputs.
    of_12, of_8 = (by_heads[n]["pool_branch.fc.weight"] for n in (1, 2))
    assert torch.equal(of_12[:4, :2], of_8[4:, 2:])


def test_all_parameters_learn_in_a_ramp_and_its_complement() -> None:
    network = shared().train()
    for ramp in ((0, 1, 3, 2, 0), (2, 3, 0, 1, 6)):
        set_ramp(network, ramp)
        network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_recomputation_of_blocks_between_which_the_ramp_changes() -> None:
    images, gradients = torch.randn(2, 3, 32, 32), []
    for prepare in (lambda network: network, recompute):
        torch.manual_seed(0)
        network = prepare(shared()).train()
        loss = torch.zeros(())
        for ramp in ramps_of(network, 1):
            set_ramp(network, ramp)
            loss = loss + network(images).square().mean()
        loss.backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(itertools.starmap(torch.equal, zip(*gradients, strict=True)))


def test_saved_weights_become_those_of_any_ramp(tmp_path: Path) -> None:
    network = shared().eval()
    saved.save(network, tmp_path / "run", list("abcde"))
    assert is_shared(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    own = network(images)
    torch.testing.assert_close(saved.resolve(tmp_path / "run").network(images), own)
    ramp = (0, 4, 3, 0, 6)
    set_ramp(network, ramp)
    arguments = {**SMALL, "attention_heads": ramp}
    begun = create("iformer_small", str(tmp_path / "run"), **arguments).eval()
    torch.testing.assert_close(begun(images), network(images))
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True, attention_heads=ramp).eval()
    torch.testing.assert_close(by_timm(images), network(images))
    fewer = create("iformer_small", str(tmp_path / "run"), **{**arguments, "num_classes": 2})
    assert fewer.head.fc.weight.shape == (2, 24)


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (lambda: share(partial(create, "resnet10t")), "model is ResNet, expected an iFormer"),
        (lambda: shared(depths=(0, 0, 0, 0), attention_heads=()), "one ramp only"),
        (lambda: set_ramp(shared(), (1, 2, 3)), r"\[1, 2, 3\] has 3 entries, expected one for each of the 5 blocks"),
        (lambda: set_ramp(shared(), (1, 5, 1, 1, 1)), "has 5 heads in block 2, expected 0 to 4"),
        (
            lambda: of_ramp(shared().state_dict(), create("iformer_nano")),
            r"shared weights of stages\.0\.blocks\.0\.mixer are those of 8 channels, expected 32",
        ),
        (
            lambda: of_ramp(shared(conv_ratio=0.0).state_dict(), create("iformer_small", **SMALL)),
            r"lack stages\.0\.blocks\.0\.mixer\.conv_branch\.fc\.weight",
        ),
    ],
)
def test_mistakes_are_named(attempt: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        attempt()


def test_the_space_of_nano() -> None:
    network = share(partial(create, "iformer_nano"))
    assert ramp_of(network) == (1, 2, 4, 5, 5)
    assert np.prod([heads + 1 for heads in most_heads(network)]) == 5145  # 3 x 5 x 7 x 7 x 7

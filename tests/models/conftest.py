"""Small models and the released model's weights, for the tests of the backbone."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from iformer.models.inception_transformer import InceptionTransformer

DATA = Path(__file__).parent.parent / "data"


@pytest.fixture(autouse=True)
def _seed_and_threads() -> Iterator[None]:
    """The same numbers in every run; and one thread, for on small maps several only wait for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(model: nn.Module) -> nn.Module:
    """Draw every weight anew: as initialised, LayerScale is so small that most of a network does not show."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


@pytest.fixture
def tiny() -> Callable[..., InceptionTransformer]:
    """Build a model of few channels that has all that the presets have; keyword arguments as for ``create_model``.

    Its weights are drawn anew, unless ``pretrained`` is asked for.
    """

    def build(**kwargs: Any) -> InceptionTransformer:
        shape = {
            "img_size": 64,
            "num_classes": 7,
            "depths": (1, 1, 2, 1),
            "dims": (16, 32, 48, 64),
            "num_heads": (2, 4, 4, 4),
            "attention_heads": (1, 2, 2, 3, 4),
        }
        model = timm.create_model("iformer_small", **{**shape, **kwargs}).eval()
        return model if kwargs.get("pretrained") else draw(model)

    return build


def released_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The reference's value of a tensor of the release, drawn from a generator that its name seeds."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = random.normal(0, 0.1, shape)
    elif "layer_scale" in name:
        value = random.uniform(0.2, 1.0, shape)
    elif "pos_embed" in name:
        value = random.normal(0, 0.5, shape)
    elif len(shape) == 1:
        unit = "norm" in name and name.endswith("weight")
        value = random.normal(0, 0.2, shape) + (1.0 if unit else 0.0)
    else:
        value = random.normal(0, 1.2 / np.prod(shape[1:]) ** 0.5, shape)
    return value.astype(np.float32)


@pytest.fixture(scope="session")
def reference() -> dict[str, Any]:
    """What the released iFormer-S computes (tests/data/README.md)."""
    facts = json.loads((DATA / "iformer_small_224.json").read_text())
    with np.load(DATA / "iformer_small_224.npz") as arrays:
        return facts | {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def released(reference: dict[str, Any]) -> dict[str, Tensor]:
    """The reference's state dict of iFormer-S, in the released format."""
    return {
        name: torch.from_numpy(released_weight(name, tuple(shape))) for name, shape in reference["state_dict"].items()
    }


@pytest.fixture(scope="session")
def released_file(released: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file, as the authors saved theirs."""
    path = tmp_path_factory.mktemp("released") / "iformer_small.pth"
    torch.save(released, path)
    return path

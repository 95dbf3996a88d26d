"""The backbone's own tests of shapes and compilers, on fused models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from iformer.deployment.fuse import fuse
from iformer.models.inception_transformer import InceptionTransformer
from tests.models import conftest, test_shapes
from tests.models.conftest import _seed_and_threads  # noqa: F401
from tests.models.conftest import tiny as _original  # noqa: F401
from tests.models.test_compilation import (  # noqa: F401
    SIZES,
    TWO_STAGES,
    _forget_compiled,
    close,
    test_feature_extractor_of_any_layer,
    test_fx_at_any_size,
    test_fx_then_torchscript,
    test_fx_without_options,
    test_static_export,
    test_static_export_has_no_padding,
    test_torchscript,
    test_torchscript_of_feature_maps,
    test_torchscript_without_branches,
)
from tests.models.test_shapes import test_any_model_takes_any_image, test_images_of_a_batch_do_not_meet  # noqa: F401
from tests.models.test_timm_contract import (  # noqa: F401
    images,
    test_forward_intermediates,
    test_normalised_feature_maps,
    test_runs_in_other_types,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:NOTE. The nodes obtained:UserWarning"
)


@pytest.fixture
def tiny(_original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:  # noqa: F811
    """As the backbone's, fused."""
    return lambda **kwargs: fuse(_original(**kwargs))


@pytest.fixture(autouse=True)
def _fused_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests of shapes build themselves is fused too."""

    def build(**kwargs: Any) -> nn.Module:
        return fuse(conftest.draw(InceptionTransformer(**kwargs)))

    monkeypatch.setattr(test_shapes, "InceptionTransformer", build)


def test_compile(tiny: Callable[..., nn.Module]) -> None:
    model = tiny(**TWO_STAGES)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 65, 34)
    with torch.no_grad():
        close(compiled(x), model(x))


def test_export_for_any_size(tiny: Callable[..., nn.Module]) -> None:
    model = tiny(**TWO_STAGES)
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=(dynamic,)).module()
    for batch, height, width in SIZES:
        x = torch.randn(batch, 3, height, width)
        close(exported(x), model(x))

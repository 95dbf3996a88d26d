"""Recomputation from outside: the same numbers with less kept, whatever is put inside; and none in a plain model."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.models.inception_transformer import InceptionTransformer
from iformer.models.recomputation import recompute

Tiny = Callable[..., InceptionTransformer]


class Adapter(nn.Module):
    """A linear layer and a low-rank update whose input is dropped out, as LoRA's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(F.dropout(x, 0.5, self.training)))


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    F.cross_entropy(model(images), torch.arange(len(images))).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]


def kept(model: nn.Module, images: Tensor) -> int:
    """Bytes that a training step keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    del output
    return sum(sizes.values())


@pytest.mark.parametrize("insert", ["nothing", "mlp.fc2", "mixer.proj"])
@pytest.mark.parametrize("rates", [{}, {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.2}])
def test_the_same_gradients_to_the_bit(tiny: Tiny, insert: str, rates: dict[str, float]) -> None:
    model = tiny(num_classes=4, **rates).train()
    if insert != "nothing":
        for stage in model.stages:
            for block in stage.blocks:
                part, name = insert.split(".")
                owner = getattr(block, part)
                setattr(owner, name, Adapter(getattr(owner, name)))
    images = torch.randn(4, 3, 64, 64)
    other = recompute(copy.deepcopy(model))
    assert other.state_dict().keys() == model.state_dict().keys()
    expected, found = gradients(model, images), gradients(other, images)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_less_is_kept(tiny: Tiny) -> None:
    model, images = tiny().train(), torch.randn(2, 3, 64, 64)
    assert kept(recompute(copy.deepcopy(model)), images) < 0.8 * kept(model, images)


def test_copies_recompute_their_own(tiny: Tiny) -> None:
    model = recompute(tiny(num_classes=4)).train()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert any(gradient.any() for gradient in gradients(other, torch.randn(4, 3, 64, 64)).values())


def test_other_models_stay_as_they_are() -> None:
    model = timm.create_model("resnet10t")
    assert recompute(model) is model
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_per_sample_gradients_in_training_mode(tiny: Tiny) -> None:
    """As of any timm model: with torch.func, in a mode in which BatchNorm does not see the other samples."""
    model = tiny(num_classes=4).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, image[None]), label[None])

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images, labels)
    for i in range(3):
        model.zero_grad()
        F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_mode_changed_between_forward_and_backward_changes_nothing(tiny: Tiny) -> None:
    model = tiny(num_classes=4, proj_drop_rate=0.3).train()
    images = torch.randn(4, 3, 64, 64)
    expected = gradients(model, images)
    model.zero_grad()
    torch.manual_seed(3)
    loss = F.cross_entropy(model(images), torch.arange(4))
    model.eval()
    loss.backward()
    assert all(torch.equal(expected[name], p.grad) for name, p in model.named_parameters())  # type: ignore[arg-type]


def test_second_derivatives(tiny: Tiny) -> None:
    model, images = tiny(num_classes=4).train(), torch.randn(2, 3, 64, 64, requires_grad=True)
    # The fast attention of the CPU has no second derivative; the plain one has.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
        gradient.square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.any()

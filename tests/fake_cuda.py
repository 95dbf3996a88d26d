"""A stand-in for a GPU: tensors that say they are on ``cuda``, and whose values are computed on the CPU.

PyTorch's own ``FakeTensorMode`` has no values, and so cannot follow a detector, whose course depends on them. As on a
GPU, and as with ``FakeTensorMode``, an operation on tensors of two devices fails, unless one is a number.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

BETWEEN_DEVICES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten._has_compatible_shallow_copy_type.default,
}

INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}
"""The operations that take indices of the CPU into a tensor of a GPU."""


class OnCuda(Tensor):
    """A tensor that says it is on ``cuda``, around one with its values."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnCuda":
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
            requires_grad=values.requires_grad,
        )
        made.values = values.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnCuda({self.values!r})"

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class FakeCuda(TorchDispatchMode):
    """Lets tensors be made on ``cuda``, and moved there, where there is none."""

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    on_cuda = [each for each in tensors if isinstance(each, OnCuda)]
    elsewhere = [each for each in tensors if not isinstance(each, OnCuda) and each.ndim]
    if func in INDEXING:
        elsewhere = [each for each in elsewhere if each is args[0]]
    if on_cuda and elsewhere and func not in BETWEEN_DEVICES:
        raise RuntimeError(f"{func}: tensors on cuda and on the CPU, of shapes {[tuple(t.shape) for t in elsewhere]}")
    device = torch.device(kwargs.get("device") or (CUDA if on_cuda else CPU))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": CPU}
    args, kwargs = tree_map(lambda each: each.values if isinstance(each, OnCuda) else each, (args, kwargs))
    result = func(*args, **kwargs)
    if func._schema.name.endswith("_") and on_cuda and result is not None:  # in place
        return next(each for each in on_cuda if each.values is result)
    if device.type != "cuda":
        return result
    return tree_map(lambda each: OnCuda(each) if isinstance(each, Tensor) else each, result)


def backward(loss: Tensor) -> None:
    """Compute gradients as ``loss.backward()`` does.

    PyTorch's own engine waits for a GPU's streams. This calls the same functions, those of the graph that it has
    recorded, one after the other.
    """
    waiting: dict[Any, int] = {}  # the gradients that each function still has to be given
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for function, _ in stack.pop().next_functions:
            if function is not None:
                waiting[function] = waiting.get(function, 0) + 1
                if function not in seen:
                    seen.add(function)
                    stack.append(function)
    given: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    ready: list[Any] = [loss.grad_fn]
    while ready:
        function = ready.pop()
        gradients = given.pop(function)
        known = any(gradient is not None for gradient in gradients)
        call = function if callable(function) else function.apply  # the latter where it is written in Python
        found = call(*gradients) if known else [None] * len(function.next_functions)
        found = found if isinstance(found, tuple | list) else [found]
        # In Python, arguments that are no tensors have a gradient, None, too; torchvision's follow after the tensors.
        for (target, number), gradient in zip(function.next_functions, found, strict=False):
            if target is None:
                continue
            slots = given.setdefault(target, [None] * len(target._input_metadata))
            if gradient is not None:
                about = target._input_metadata[number]
                gradient = gradient.sum_to_size(about.shape).to(about.dtype)
                slots[number] = gradient if slots[number] is None else slots[number] + gradient
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Let everything inside use the device ``cuda``; gradients are computed by :func:`backward`."""
    kernels = torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)  # the CPU has no others
    with pytest.MonkeyPatch.context() as patch, kernels[0], kernels[1], FakeCuda():
        patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
        patch.setattr(torch.accelerator, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)  # otherwise no autocast
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch._C, "_InferenceMode", lambda mode: torch.no_grad())  # which has no tensors like these
        torch._C._ensureCUDADeviceGuardSet()  # one that does nothing; FakeTensorMode does the same
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") begins on the CPU
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to replaces parameters
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            torch.__future__.set_overwrite_module_params_on_conversion(False)

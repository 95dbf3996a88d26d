"""Parameters and multiply-adds of any network, at any input size, in the two conventions of the paper.

Multiply-adds (MACs) are what the paper calls FLOPs. The network runs once on one image, and the cost of every tensor
operation that reaches PyTorch's dispatcher is computed from its shapes. All operations of a model are thus counted,
whatever its modules are, and only shapes matter: a model on the meta device, which computes nothing, gives the same
figures as one on a CPU.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Kind = Literal["convolution", "linear", "attention", "normalisation", "upsampling"]
"""A kind of operation. "linear" is any product with weights, and "attention" any product of two activations."""

Convention = Literal["complete", "layers"]
"""A convention of counting: "complete" counts all kinds of operations, "layers" all but attention."""

KINDS: tuple[Kind, ...] = get_args(Kind)
CONVENTIONS: dict[Convention, tuple[Kind, ...]] = {
    "complete": KINDS,  # Tables 1, 2 and 5
    "layers": tuple(kind for kind in KINDS if kind != "attention"),  # Tables 3 and 4
}

# Multiply-adds per normalised element. Matrix products and convolutions need no such figures, because PyTorch knows
# their cost.
_BATCH_NORM = 2
_LAYER_NORM = 5

# The methods with which torch.nn.init and timm draw weights.
_SETTING_VALUES = {
    getattr(Tensor, name) for name in ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
}


@dataclass(frozen=True)
class Complexity:
    """The cost of one forward pass of a network for a single image.

    Attributes:
        input_size: The channels, height and width of the image.
        parameters: The number of parameters; shared ones count once.
        by_module: The multiply-adds of each module and all that it contains, by kind of operation. The names are those
            of ``named_modules()``, where '' is the whole network. Modules without multiply-adds are left out.
    """

    input_size: tuple[int, int, int]
    parameters: int
    by_module: Mapping[str, Mapping[Kind, int]]

    def by_kind(self, convention: Convention = "complete", module: str = "") -> dict[Kind, int]:
        """Return the multiply-adds of ``module`` for each kind of operation that ``convention`` counts.

        Raises:
            ValueError: There is no such convention, or no module of that name with multiply-adds.
        """
        if convention not in CONVENTIONS:
            raise ValueError(f"convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}")
        if module not in self.by_module:
            raise ValueError(f"no module {module!r} has multiply-adds, expected one of by_module")
        return {kind: self.by_module[module][kind] for kind in CONVENTIONS[convention]}

    def multiply_adds(self, convention: Convention = "complete", module: str = "") -> int:
        """Return the multiply-adds of ``module``, by default of the whole network.

        Raises:
            ValueError: There is no such convention, or no module of that name with multiply-adds.
        """
        return sum(self.by_kind(convention, module).values())

    def stages(self) -> list[str]:
        """Return the names of the network's top modules in the order in which they run, with each of its stages."""
        return [
            name for name in self.by_module if name and name != "stages" and "." not in name.removeprefix("stages.")
        ]


def count(model: nn.Module, input_size: Sequence[int]) -> Complexity:
    """Count the parameters and multiply-adds of ``model``.

    The model runs once in evaluation mode, on its own device, and is left unchanged. On the meta device this takes no
    arithmetic and hardly any memory. Attention counts as its two matrix products, whether the model writes them out or
    calls a fused kernel.

    Args:
        model: Any network that takes a batch of images ``(1, C, H, W)``.
        input_size: The channels of the image, and its height and width in pixels.

    Raises:
        ValueError: ``input_size`` does not consist of three positive whole numbers.
    """
    if len(input_size) != 3 or any(not isinstance(side, int) or side < 1 for side in input_size):
        raise ValueError(f"input_size is {tuple(input_size)}, expected channels, height and width")
    with _undisturbed(model), _Counter(model) as counter:
        weights = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        model(weights.new_zeros(1, *input_size))
    channels, height, width = input_size
    return Complexity((channels, height, width), sum(p.numel() for p in model.parameters()), counter.by_module)


def build(name: str, **model_args: Any) -> nn.Module:
    """Return timm's model ``name`` on the meta device, without drawing weights: counting needs only shapes."""
    with torch.device("meta"), _WithoutValues():
        model: nn.Module = timm.create_model(name, **model_args)
    return model


class _WithoutValues(TorchFunctionMode):
    """A mode that skips operations that only set values, because tensors on the meta device have none."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return args[0] if func in _SETTING_VALUES else func(*args, **(kwargs or {}))


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Make ``model`` run in a way that shows a counter every operation, and restore its state afterwards."""
    training = [module for module in model.modules() if module.training]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide a whole nn.MultiheadAttention in one operation
    try:
        # Each fused attention kernel is an operation of its own, and some pad the heads, so the kernel that consists of
        # two matrix products is chosen. Inference mode is off because it would not decompose compound operations.
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in training:
            module.training = True


class _Counter(TorchDispatchMode):
    """A mode that adds up the multiply-adds of the operations that run inside it, for each module that runs them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.by_module: dict[str, Counter[Kind]] = {"": Counter()}
        self._weights = {t.untyped_storage() for t in (*model.parameters(), *model.buffers())}
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[str] = []
        self._results: dict[Any, Any] = {}

    def __enter__(self) -> Self:
        self._hooks = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)]
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            self._running.append(self._names[module])

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if module in self._names:
            self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = self._run(func, args, kwargs or {})
        counted = self._weigh(func.overloadpacket, args, kwargs or {}, out)
        if counted is not None:
            kind, multiply_adds = counted
            for name in self._running:
                self.by_module.setdefault(name, Counter())[kind] += multiply_adds
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Return the result of an operation; on the meta device, reuse an earlier result for the same shapes.

        The blocks of a network repeat, and some operations take PyTorch a millisecond on that device. Results that
        share memory with an input are always computed anew: products with weights are recognised by their memory.
        """
        inputs = [] if func.is_view else _tensors((*args, *kwargs.values()))
        if not inputs or not all(tensor.is_meta for tensor in inputs):
            return func(*args, **kwargs)
        key = (func, _signature(args), *kwargs, _signature(tuple(kwargs.values())))
        if key not in self._results:
            out = func(*args, **kwargs)
            memory = {tensor.untyped_storage() for tensor in inputs}
            if not memory.isdisjoint(tensor.untyped_storage() for tensor in _tensors((out,))):
                return out
            self._results[key] = out
        return _apart(self._results[key])

    def _weigh(self, operation: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> tuple[Kind, int] | None:
        """Return the kind and the multiply-adds of an operation, or None if the paper counts none for it."""
        name = str(operation)
        if operation in flop_registry:
            multiply_adds = flop_registry[operation](*args, **kwargs, out_val=out) // 2  # a multiply-add is two flops
            if "conv" in name:
                return "convolution", multiply_adds
            # The product of a linear layer may have any shape, even a batched one, so it is recognised by its weights.
            linear = any(isinstance(arg, Tensor) and arg.untyped_storage() in self._weights for arg in args)
            return ("linear" if linear else "attention"), multiply_adds
        # The names differ between devices: native_batch_norm, cudnn_batch_norm and so on.
        if "batch_norm" in name:
            return "normalisation", _BATCH_NORM * args[0].numel()
        if "layer_norm" in name or "group_norm" in name:
            return "normalisation", _LAYER_NORM * args[0].numel()
        if "upsample_nearest" in name:
            return "upsampling", out.numel()
        return None


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among an operation's arguments or results, some of which may be lists of tensors."""
    leaves = (leaf for value in values for leaf in (value if isinstance(value, list | tuple) else (value,)))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _apart(result: Any) -> Any:
    """Return a result in new tensors, whose shape can be changed in place without changing the stored result."""
    if isinstance(result, list | tuple):
        return tuple(map(_apart, result))
    return result.detach() if isinstance(result, Tensor) else result


def _signature(value: Any) -> tuple[Any, ...]:
    """Return all of an argument that the shapes of an operation's results depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return type(value), value

"""One set of weights for the networks of all frequency ramps, of which every ramp uses a part.

The paper sets its ramps by hand and names architecture search as the way out (its conclusion). A search needs the
accuracy of many ramps, too many to train each. As in AutoFormer (Chen et al., ICCV 2021), all of them are therefore
trained at once, in one network whose weights are entangled: a ramp has no weights of its own, but takes slices.

Which slices follows from how the mixer takes its channels: convolution the first ones, attention the last ones, and
max-pooling those between. **A weight belongs to the channels that it connects.** Whatever the ramp, channel c of a
stage's map meets the same weights in the branch that it goes to:

- attention has the weights of all C channels; with h heads it uses those of the last h heads, each of which has the
  same channels in every ramp;
- convolution has the weights of the channels that it takes where there is no attention, and uses those of the first;
- max-pooling, whose channels move with the ramp, has the weights of all C channels, and uses those of the channels
  that the ramp gives it (a few, which convolution takes in every ramp, are never used);
- fusion and projection have the weights of every output of each branch.

Everything else (stem, position embeddings, normalisations, feed-forward networks, head) is the same in all ramps.

AutoFormer searches the depth, the widths and the number of heads of a plain transformer, in which a smaller choice
takes the first weights of a larger one, and trains one random choice in a step. Here a stage keeps its width and
channels change between branches, so that slices must follow the channels; and a step trains several ramps, which
together use all branches (:mod:`iformer.classification.shared_ramps`).
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from iformer.models.inception_transformer import (
    AttentionBranch,
    ConvBranch,
    InceptionMixer,
    InceptionTransformer,
    MaxPoolBranch,
    depthwise_conv,
)
from iformer.models.timm_interface import by_stage

Ramp = Sequence[int]
"""The number of attention heads of every block of a network, in order."""


class SharedMixer(nn.Module):
    """The Inception mixers of all numbers of attention heads, with one set of weights.

    ``(N, H, W, C)`` -> ``(N, H, W, C)``. The mixer of :mod:`iformer.models.inception_transformer` itself computes the
    result, from the slices that belong to it.

    Args:
        plain: The mixer with each number of heads, from 0 to all. Their weights are not used.

    Attributes:
        heads: The number of attention heads of the mixer in force.
    """

    def __init__(self, plain: Sequence[InceptionMixer]) -> None:
        super().__init__()
        conv, pool, attn = plain[0].split_dims
        dim = conv + pool + attn
        self.plain = tuple(plain)  # no submodules: they have no weights
        self.heads = 0
        self.conv_branch = ConvBranch(conv) if conv else None
        self.conv_fusion = depthwise_conv(2 * conv) if conv else None
        self.conv_proj = nn.Linear(2 * conv, dim, bias=False) if conv else None
        self.pool_branch = MaxPoolBranch(dim) if pool else None
        self.pool_fusion = depthwise_conv(2 * dim) if pool else None
        self.pool_proj = nn.Linear(2 * dim, dim, bias=False) if pool else None
        self.attn_branch = AttentionBranch(dim, len(plain) - 1)
        self.attn_fusion = depthwise_conv(dim)
        self.attn_proj = nn.Linear(dim, dim, bias=False)
        self.proj_bias = nn.Parameter(torch.zeros(dim))
        self.names = tuple(name for name, _ in self.named_parameters())

    def train(self, mode: bool = True) -> "SharedMixer":
        """Set the mode of the plain mixers too, whose dropout depends on it."""
        for mixer in self.plain:
            mixer.train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        mixer = self.plain[self.heads]
        # FSDP shows a module's parameters as attributes only.
        weights = {name: attrgetter(name)(self) for name in self.names}
        result: Tensor = functional_call(mixer, sliced(weights, mixer.split_dims), (x,), strict=True)
        return result


def sliced(weights: Mapping[str, Tensor], split_dims: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return the weights of an :class:`InceptionMixer`: slices of those of a :class:`SharedMixer`.

    Args:
        weights: The weights of the :class:`SharedMixer` by name.
        split_dims: The mixer's ``split_dims``: the channels of convolution, max-pooling and attention.

    Raises:
        KeyError: The :class:`SharedMixer` lacks a branch that the mixer has.
    """
    conv, pool, attn = split_dims
    high = conv + pool
    dim = high + attn
    own: dict[str, Tensor] = {}
    # The outputs of each branch; convolution and max-pooling have two for each channel.
    outputs: dict[str, slice] = {}
    if conv:
        outputs["conv"] = slice(0, 2 * conv)
        own["conv_branch.fc.weight"] = weights["conv_branch.fc.weight"][: 2 * conv, :conv]
        own["conv_branch.conv.weight"] = weights["conv_branch.conv.weight"][: 2 * conv]
    if pool:
        outputs["pool"] = slice(2 * conv, 2 * high)
        own["pool_branch.fc.weight"] = weights["pool_branch.fc.weight"][2 * conv : 2 * high, conv:high]
        own["pool_branch.fc.bias"] = weights["pool_branch.fc.bias"][2 * conv : 2 * high]
    if attn:
        outputs["attn"] = slice(high, dim)
        qkv = weights["attn_branch.qkv.weight"].unflatten(0, (3, dim))
        own["attn_branch.qkv.weight"] = qkv[:, high:, high:].flatten(0, 1)
        own["attn_branch.qkv.bias"] = weights["attn_branch.qkv.bias"].unflatten(0, (3, dim))[:, high:].flatten()
    own["fusion.weight"] = torch.cat([weights[f"{name}_fusion.weight"][part] for name, part in outputs.items()])
    own["proj.weight"] = torch.cat([weights[f"{name}_proj.weight"][:, part] for name, part in outputs.items()], dim=1)
    own["proj.bias"] = weights["proj_bias"]
    return own


def share(build: Callable[..., InceptionTransformer]) -> InceptionTransformer:
    """Return a network whose mixers share their weights among all ramps; :func:`set_ramp` chooses one.

    Args:
        build: A function that returns an :class:`InceptionTransformer`, and takes its ``depths`` and
            ``attention_heads``. The ramp in force at first is the one that it builds without them.

    Raises:
        ValueError: ``build`` builds another kind of network, or one that has one ramp only.
    """
    network = build()
    if not isinstance(network, InceptionTransformer):
        raise ValueError(f"model is {type(network).__name__}, expected an iFormer, which has a frequency ramp")
    own, most = ramp_of(network), most_heads(network)
    if not most:
        raise ValueError("depths: a network without blocks has one ramp only, so that there is nothing to search")
    # The mixers of all blocks of a stage are alike.
    alike: dict[str, Any] = {"depths": (1,) * len(network.num_heads)}
    with torch.device("meta"):  # they need no weights
        plain = [
            build(**alike, attention_heads=tuple(min(heads, total) for total in network.num_heads))
            for heads in range(max(most) + 1)
        ]
    for stage, (blocks, total) in enumerate(zip(network.stages, network.num_heads, strict=True)):
        mixers = [each.stages[stage].blocks[0].mixer for each in plain[: total + 1]]
        for block in blocks.blocks:
            block.mixer = SharedMixer(mixers)
    network.init_weights()
    set_ramp(network, own)
    return network


def ramp_of(network: InceptionTransformer) -> tuple[int, ...]:
    """Return the ramp of a network; of one with shared weights, the ramp in force."""
    return tuple(heads for stage in network.attention_heads for heads in stage)


def most_heads(network: InceptionTransformer) -> tuple[int, ...]:
    """Return the greatest number of attention heads that each block of a network may have."""
    stages = zip(network.num_heads, network.attention_heads, strict=True)
    return tuple(total for total, heads in stages for _ in heads)


def set_ramp(network: InceptionTransformer, ramp: Ramp) -> None:
    """Choose the ramp by which a network that :func:`share` returned computes.

    Raises:
        ValueError: The ramp does not fit the network.
    """
    require_ramp(ramp, most_heads(network))
    network.attention_heads = by_stage(ramp, [len(stage) for stage in network.attention_heads])
    mixers = (block.mixer for stage in network.stages for block in stage.blocks)
    for mixer, heads in zip(mixers, ramp, strict=True):
        mixer.heads = heads


def require_ramp(ramp: Ramp, most: Ramp) -> None:
    """Raise ValueError, naming the block, if a ramp does not have 0 to ``most`` heads in each block."""
    if len(ramp) != len(most):
        raise ValueError(f"the ramp {[*ramp]} has {len(ramp)} entries, expected one for each of the {len(most)} blocks")
    for number, (heads, total) in enumerate(zip(ramp, most, strict=True)):
        if not 0 <= heads <= total:
            raise ValueError(f"the ramp {[*ramp]} has {heads} heads in block {number + 1}, expected 0 to {total}")


def is_shared(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether weights are those of a network that :func:`share` returned."""
    return any(name.endswith(".mixer.proj_bias") for name in state_dict)


def of_ramp(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of an ordinary network: slices of the shared ones, as its ramp says.

    Args:
        state_dict: The weights of a network that :func:`share` returned.
        network: The ordinary network.

    Raises:
        ValueError: The shared weights do not fit the network's mixers.
    """
    own = {name: value for name, value in state_dict.items() if ".mixer." not in name}
    for name, module in network.named_modules():
        if isinstance(module, InceptionMixer):
            prefix = f"{name}."
            weights = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
            width = len(weights.get("proj_bias", ()))
            if width != sum(module.split_dims):
                raise ValueError(
                    f"the shared weights of {name} are those of {width} channels, expected {sum(module.split_dims)}"
                )
            try:
                own |= {prefix + key: value for key, value in sliced(weights, module.split_dims).items()}
            except KeyError as error:
                raise ValueError(f"the shared weights lack {prefix}{error.args[0]}, which the ramp needs") from error
    return own

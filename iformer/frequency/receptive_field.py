"""How far a model looks: attention distances and effective receptive fields."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from iformer.frequency.layers import Layer, watched
from iformer.models.inception_transformer import AttentionBranch

QUERIES = 256  # the number taken at a time: the attention matrix of a large image does not fit into memory


class AttentionDistance:
    """The mean distance between a position and the positions that it attends to, accumulated over batches.

    Distances are measured on the grid on which attention acts, which is pooled in the first two stages, and given in
    pixels of the image.

    Args:
        branch: The attention branch whose queries and keys are looked at.
    """

    def __init__(self, branch: AttentionBranch) -> None:
        self.num_heads = branch.num_heads
        self._sum: Tensor | float = 0.0
        self._images = 0
        self.uniform = 0.0

    def update(self, qkv: Tensor, image_size: tuple[int, ...]) -> None:
        """Add the output ``(N, h, w, 3 * C)`` of the branch's ``qkv`` for images of this height and width."""
        n, h, w, _ = qkv.shape
        q, k = queries_and_keys(qkv, self.num_heads)
        rows, columns = torch.meshgrid(
            (torch.arange(h, device=q.device) + 0.5) * image_size[0] / h,
            (torch.arange(w, device=q.device) + 0.5) * image_size[1] / w,
            indexing="ij",
        )
        positions = torch.stack([rows, columns], -1).flatten(0, 1)
        total = 0.0
        for queries, places in zip(q.split(QUERIES, 2), positions.split(QUERIES), strict=True):
            distances = torch.cdist(places, positions)
            spanned = (attention(queries, k) * distances).sum(-1)
            self._sum = self._sum + spanned.double().sum((0, 2)) / (h * w)
            total += distances.double().sum().item()
        self.uniform = total / (h * w) ** 2
        self._images += n

    @property
    def pixels(self) -> Tensor:
        """The distance of each head in pixels, averaged over images and positions, ``(heads,)``.

        For comparison, :attr:`uniform` is the distance of attention that weighs all positions equally.
        """
        return torch.as_tensor(self._sum / self._images)


def queries_and_keys(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the queries and keys ``(N, heads, h * w, channels)`` in the output ``(N, h, w, 3 * C)`` of ``qkv``."""
    q, k, _ = qkv.detach().float().flatten(1, 2).unflatten(2, (3, heads, -1)).unbind(2)
    return q.transpose(1, 2), k.transpose(1, 2)


def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Return how much each query attends to each position, ``(N, heads, queries, positions)``, which sums to 1."""
    return (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)


def receptive_fields(model: Any, layers: Iterable[Layer], batches: Iterable[Tensor]) -> dict[Layer, Tensor]:
    """Return the effective receptive field ``(H, W)`` of the centre of each layer's map; its values sum to 1.

    It is the gradient of the central features (at ``[h // 2, w // 2]``, summed over channels) with respect to the
    image. Its magnitude is summed over the image's channels and averaged over images. The definition follows
    "Understanding the effective receptive field in deep convolutional neural networks" (Luo et al., NeurIPS 2016).

    Args:
        model: A timm model in evaluation mode.
        layers: The layers of the model, in the order in which they run.
        batches: Batches of images ``(N, C, H, W)``.

    Raises:
        ValueError: There is no image.
    """
    layers = tuple(layers)
    sums: dict[Layer, Tensor] = {}
    for images in batches:
        images = images.detach().requires_grad_()
        centres: dict[Layer, Tensor] = {}

        def see(layer: Layer, features: Any, size: Any = images.shape[2:], centres: Any = centres) -> None:
            maps = layer.maps(features, size)
            centres[layer] = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()

        with torch.enable_grad(), watched(layers, see):
            model(images)
        for layer, centre in centres.items():
            (gradient,) = torch.autograd.grad(centre, images, retain_graph=layer is not layers[-1])
            sums[layer] = sums.get(layer, 0.0) + gradient.abs().double().sum((0, 1))
    if not sums:
        raise ValueError("receptive fields: there are no images, expected at least one")
    return {layer: total / total.sum() for layer, total in sums.items()}


def area_holding(field: Tensor, share: float) -> float:
    """Return the smallest part of the image's area that holds ``share`` of a receptive field, both from 0 to 1."""
    held = field.flatten().sort(descending=True).values.cumsum(0)
    # The tolerance avoids counting a further pixel because of a rounding error.
    return (int((held < share * held[-1] * (1 - 1e-9)).sum()) + 1) / field.numel()

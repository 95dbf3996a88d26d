"""Labels of whole images of any size: at once, through a sliding window, with a flip test."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def logits(network: Network, images: Tensor, window: tuple[int, int] | None = None, flip: bool = False) -> Tensor:
    """Logits of whole images.

    Args:
        network: Images ``(N, 3, H, W)`` to logits ``(N, K, H, W)``.
        images: ``(N, 3, H, W)``, normalised.
        window: Height and width of a window that slides over the image by two thirds of its size; where windows
            overlap, their logits are averaged. None takes the image as a whole.
        flip: Average the class probabilities with those of the mirrored image; the result is their logarithm.

    Returns:
        ``(N, K, H, W)``.
    """
    if flip:
        mirrored = logits(network, images.flip(-1), window).flip(-1)
        straight = logits(network, images, window)
        # Not the logarithm of the mean: a probability too small for its type would be -inf, and NaN when resized.
        both = torch.logaddexp(straight.float().log_softmax(1), mirrored.float().log_softmax(1))
        return both - math.log(2)
    if window is None:
        return network(images)
    total: Tensor | None = None
    count = images.new_zeros(images.shape[-2:])
    for rows, columns in _windows(images.shape[-2:], window):
        part = network(images[..., rows, columns])
        if total is None:
            total = part.new_zeros(*part.shape[:2], *images.shape[-2:])
        total[..., rows, columns] += part
        count[rows, columns] += 1
    assert total is not None  # there is one window at least
    return total / count


def _windows(size: tuple[int, ...], window: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window; the last ones end with the image."""
    starts = []
    for whole, part in zip(size, window, strict=True):
        step = max(1, part * 2 // 3)
        starts.append([min(start, max(whole - part, 0)) for start in range(0, max(whole - part, 0) + step, step)])
    for top in dict.fromkeys(starts[0]):
        for left in dict.fromkeys(starts[1]):
            yield slice(top, top + window[0]), slice(left, left + window[1])


def labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The most probable class of each pixel, at another size.

    Resizes a few classes at a time: all of 150 at the size of a photograph would take gigabytes.

    Args:
        logits: ``(N, K, h, w)``.
        size: Height and width to resize them to, bilinearly.

    Returns:
        ``(N, H, W)`` int64.
    """
    best = found = None
    for first, group in zip(range(0, logits.shape[1], 8), logits.split(8, 1), strict=True):
        if group.shape[-2:] != size:
            group = F.interpolate(group, size, mode="bilinear")
        value, index = group.max(1)
        if best is None or found is None:
            best, found = value, index
        else:
            found = torch.where(value > best, index + first, found)
            best = torch.maximum(value, best)
    assert found is not None  # there is one class at least
    return found

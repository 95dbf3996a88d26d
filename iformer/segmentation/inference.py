"""Inference on whole images of any size: at once or through a sliding window, with or without a flip test."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import to_pil_image

from iformer.models.saved import Model
from iformer.segmentation.transforms import EvaluationTransform

Network = Callable[[Tensor], Tensor]


def classes(model: Model, image: Tensor) -> Tensor:
    """Return the class of each pixel of an image, which is prepared as the model's configuration says.

    Args:
        model: The segmenter. If its configuration has an ``input_size``, as that of a file exported for images of one
            size, the image is resized to that size; otherwise to fit ``resize``.
        image: The image ``(3, H, W)`` of uint8.

    Returns:
        The classes ``(H, W)`` as int64, on the model's device.
    """
    config, pixels = model.config, prepared(model, image)
    window, flip = config.get("window"), config.get("flip_test") or False
    found = logits(model.network, pixels[None].to(model.device), window, flip)
    return labels(found.float(), (image.shape[1], image.shape[2]))[0]


def prepared(model: Model, image: Tensor) -> Tensor:
    """Return an image ``(3, H, W)`` of uint8 as the segmenter's input ``(3, h, w)``, resized and normalised.

    Args:
        model: The segmenter, as in :func:`classes`.
        image: The image.
    """
    config = model.config
    if "input_size" in config:
        return model.prepare(to_pil_image(image))
    pixels, _ = EvaluationTransform(config.get("resize"), config["mean"], config["std"])(tv_tensors.Image(image))
    return pixels


def logits(network: Network, images: Tensor, window: tuple[int, int] | None = None, flip: bool = False) -> Tensor:
    """Return the logits of whole images.

    Args:
        network: A function from images ``(N, 3, H, W)`` to logits ``(N, K, H, W)``.
        images: The normalised images ``(N, 3, H, W)``.
        window: The height and width of a window that slides over the image in steps of two thirds of its size. Where
            windows overlap, their logits are averaged. None takes the image as a whole.
        flip: Whether to average the class probabilities with those of the mirrored image. The logits returned are then
            the logarithms of these averages.

    Returns:
        The logits ``(N, K, H, W)``.
    """
    if flip:
        mirrored = logits(network, images.flip(-1), window).flip(-1)
        straight = logits(network, images, window)
        # Averaging the probabilities themselves could turn one too small for its type into -inf, and NaN when resized.
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
    assert total is not None  # there is at least one window
    return total / count


def _windows(size: tuple[int, ...], window: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of each window; the last windows end at the edges of the image."""
    starts = []
    for whole, part in zip(size, window, strict=True):
        step = max(1, part * 2 // 3)
        starts.append([min(start, max(whole - part, 0)) for start in range(0, max(whole - part, 0) + step, step)])
    for top in dict.fromkeys(starts[0]):
        for left in dict.fromkeys(starts[1]):
            yield slice(top, top + window[0]), slice(left, left + window[1])


def labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the most probable class of each pixel after resizing the logits.

    A few classes are resized at a time: 150 classes at the size of a photograph would take gigabytes.

    Args:
        logits: The logits ``(N, K, h, w)``.
        size: The height and width in pixels to which the logits are resized bilinearly.

    Returns:
        The classes ``(N, H, W)`` as int64.
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
    assert found is not None  # there is at least one class
    return found

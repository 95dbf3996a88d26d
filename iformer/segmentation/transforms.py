"""Joint transforms of images and label maps, built on those of torchvision.

They are the usual ones of Semantic FPN on ADE20K: random resize, crop and flip, and photometric distortion. Samples are
``tv_tensors.Image`` ``(3, H, W)`` of uint8 and ``tv_tensors.Mask`` ``(H, W)`` of uint8.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

IGNORE = 255  # the value of unlabelled pixels in label maps in memory


def fitted_size(size: tuple[int, int], within: tuple[int, int], ratio: float = 1.0) -> tuple[int, int]:
    """Return the height and width of an image that is resized to fit a short and a long side, keeping its shape.

    Args:
        size: The height and width of the image in pixels.
        within: The short and the long side to fit in pixels, in any order.
        ratio: The factor by which ``within`` is multiplied.
    """
    scale = ratio * min(min(within) / min(size), max(within) / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class RandomResize(v2.Transform):
    """A resize to fit ``within`` times a random ratio from ``ratios``; None stands for the image's own size."""

    def __init__(self, within: tuple[int, int] | None, ratios: tuple[float, float]) -> None:
        super().__init__()
        self.within, self.ratios = within, ratios

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size at random."""
        height, width = v2.functional.get_size(flat_inputs[0])
        size = height, width
        ratio = float(torch.empty(1).uniform_(*self.ratios))
        return {"size": fitted_size(size, self.within or size, ratio)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image bilinearly, or a label map to the nearest label."""
        return v2.functional.resize(inpt, list(params["size"]), antialias=True)


class LimitedCrop(v2.RandomCrop):
    """A random crop in which no class covers more than ``max_share`` of the labelled pixels.

    Up to ten crops are drawn, and the first such crop is taken, or the last one if there is none. Where the crop
    exceeds the image, it is filled with ``colour``, and its labels are ignored.
    """

    def __init__(self, size: tuple[int, int], max_share: float, colour: Sequence[int]) -> None:
        fill: Any = {tv_tensors.Image: list(colour), tv_tensors.Mask: IGNORE}
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.max_share = max_share

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the position at random."""
        (labels,) = (item for item in flat_inputs if isinstance(item, tv_tensors.Mask))
        for _ in range(10):
            params = super().make_params(flat_inputs)
            counts = torch.bincount(self.transform(labels, params).flatten(), minlength=IGNORE + 1)[:IGNORE]
            if 0 < counts.max() <= self.max_share * counts.sum():
                break
        return params


def training_transform(
    within: tuple[int, int] | None,
    ratios: tuple[float, float],
    crop: tuple[int, int],
    max_share: float,
    hflip: float,
    photometric: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> v2.Compose:
    """Return the training transform: random resize, crop and flip, photometric distortion, and normalisation."""
    # Each distortion is applied to half of the images: brightness by 32/255, contrast, saturation, hue by 18 degrees.
    distortions: list[dict[str, Any]] = [
        {"brightness": 0.125},
        {"contrast": 0.5},
        {"saturation": 0.5},
        {"hue": 0.05},
    ]
    return v2.Compose(
        [
            RandomResize(within, ratios),
            LimitedCrop(crop, max_share, [round(255 * value) for value in mean]),
            v2.RandomHorizontalFlip(hflip),
            *(v2.RandomApply([v2.ColorJitter(**kind)]) for kind in distortions if photometric),
            normalisation(mean, std),
        ]
    )


class EvaluationTransform(nn.Module):
    """A transform that resizes an image to fit ``within``, unless it is None, and normalises it, not its labels."""

    def __init__(self, within: tuple[int, int] | None, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.within, self.normalise = within, normalisation(mean, std)

    def forward(self, image: tv_tensors.Image, labels: Any = None) -> tuple[Tensor, Any]:
        """Return the image ``(3, H, W)`` of uint8 as ``(3, h, w)`` of float32, and the labels unchanged."""
        if self.within is not None:
            size = fitted_size((image.shape[-2], image.shape[-1]), self.within)
            image = v2.functional.resize(image, list(size), antialias=True)
        return self.normalise(image), labels


def normalisation(mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """Return the conversion of images to normalised float32, which leaves label maps unchanged."""
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([to_float, v2.Normalize(list(mean), list(std))])

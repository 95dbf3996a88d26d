"""Pictures of detected objects."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from iformer.common.plotting import Colour, bright_colour, short


def draw(
    image: Tensor,
    boxes: Tensor,
    masks: Iterable[Tensor],
    labels: Tensor,
    scores: Tensor,
    names: Sequence[str],
) -> Image.Image:
    """Draw objects over an image: masks in the colours of their classes, boxes, names and scores.

    Args:
        image: The image ``(3, H, W)`` of uint8.
        boxes: The boxes ``(n, 4)`` as corners, the best object first.
        masks: The n masks ``(H, W)`` of bool, or none at all.
        labels: The labels ``(n,)``, counted from 1.
        scores: The scores ``(n,)``.
        names: The names of the objects; names beyond the n-th are ignored.
    """
    colours = [bright_colour(label) for label in labels.tolist()]
    picture = to_pil_image(_blended(image, masks, colours))
    pen = ImageDraw.Draw(picture)
    size = max(11, round(max(picture.size) / 50))
    font = ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
    width = max(1, round(size / 7))
    for box, hue in zip(boxes.tolist(), colours, strict=True):
        pen.rectangle(_inside(box, picture), outline=hue, width=width)
    # The names are drawn over all of the boxes.
    written: list[tuple[float, float, float, float]] = []
    for i, box in enumerate(boxes.tolist()):
        text = f"{short(names[i])} {scores[i]:.0%}"
        written.append(_write(pen, text, _inside(box, picture), colours[i], font, picture.size, written))
    return picture


def _blended(image: Tensor, masks: Iterable[Tensor], colours: Sequence[Colour]) -> Tensor:
    """Return ``image`` coloured under the masks and darkened where they overlap, holding one mask at a time."""
    covered = torch.zeros(image.shape[1:], dtype=torch.uint8)
    drawn = image.clone()
    for mask, hue in zip(masks, colours, strict=False):
        drawn[:, mask] = torch.tensor(hue, dtype=torch.uint8)[:, None]
        covered = (covered + mask).clamp_(max=2)
    drawn[:, covered > 1] = 0
    for channel, blend in zip(image, drawn, strict=True):  # one channel at a time: blending takes four bytes a pixel
        channel_blend = channel * 0.55 + blend * 0.45
        blend.copy_(torch.where(covered > 0, channel_blend, channel))
    return drawn


def _inside(box: Sequence[float], picture: Image.Image) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return left, top, max(left, min(right, picture.width - 1)), max(top, min(bottom, picture.height - 1))


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    background: Colour,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    written: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Write ``text`` at a corner of ``box``, a free one if there is any, and return the rectangle that it covers."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    # The candidates lie above the box, inside its top, below it, and inside its bottom.
    heights = [y for y in (box[1] - height, box[1], box[3], box[3] - height) if 0 <= y <= size[1] - height] or [0]
    places = [(x, y, x + width, y + height) for y in heights]
    free = [place for place in places if not any(_overlap(place, taken) for taken in written)]
    place = (free or places)[0]
    pen.rectangle(place, fill=background)
    # Black or white, whichever stands out more.
    brightness = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    pen.text((place[0] + 2 - left, place[1] + 2 - top), text, fill="black" if brightness > 140 else "white", font=font)
    return place


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

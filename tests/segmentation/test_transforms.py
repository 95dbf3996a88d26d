"""Joint transforms: images and label maps stay together, crops keep to the class limit."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from iformer.segmentation.transforms import (
    IGNORE,
    EvaluationTransform,
    LimitedCrop,
    RandomResize,
    fitted_size,
    training_transform,
)
from tests.segmentation.conftest import COLOURS, scene

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def sample(height: int, width: int, seed: int = 0) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    image, labels = scene(height, width, seed)
    labels[labels == 9] = IGNORE
    return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(labels))


@pytest.mark.parametrize("seed", range(10))
def test_colours_stay_on_their_labels(seed: int) -> None:
    torch.manual_seed(seed)
    transform = training_transform(None, (0.5, 2.0), (48, 64), 0.75, 0.5, False, MEAN, STD)
    image, labels = transform(*sample(70, 50, seed))
    assert (image.shape, labels.shape) == ((3, 48, 64), (48, 64))
    assert (image.dtype, labels.dtype) == (torch.float32, torch.uint8)
    pixels = (image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    distance = (pixels[None] - torch.from_numpy(COLOURS + 15.0)[:, :, None, None]).abs().sum(1)
    labelled = labels != IGNORE
    # All but the pixels at the borders of the areas, which are mixed.
    assert (distance.argmin(0)[labelled] == labels[labelled]).float().mean() > 0.93


def test_photometric_distortion_changes_the_image_only() -> None:
    arguments = ((1.0, 1.0), (40, 40), 1.0, 0.0)
    image, labels = sample(40, 40)
    seen = []
    for photometric in (False, True):
        torch.manual_seed(1)
        seen.append(training_transform(None, *arguments, photometric, MEAN, STD)(image, labels))
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_no_class_fills_a_crop() -> None:
    torch.manual_seed(0)
    labels = (torch.arange(200) // 45 % 2).to(torch.uint8).expand(200, 200)  # stripes, wider than the crop
    image = tv_tensors.Image(labels.expand(3, 200, 200))
    shares = {}
    for limit in (0.75, 1.0):
        crops = [LimitedCrop((40, 40), limit, [0, 0, 0])(image, tv_tensors.Mask(labels))[1] for _ in range(20)]
        shares[limit] = max(float(crop.flatten().bincount().max() / 1600) for crop in crops)
    assert shares[0.75] <= 0.75 < shares[1.0]


def test_unlabelled_pixels_do_not_count_for_the_limit() -> None:
    labels = torch.full((40, 40), IGNORE, dtype=torch.uint8)
    labels[:4], labels[4:8] = 0, 1
    _, cropped = LimitedCrop((40, 40), 0.75, [0, 0, 0])(
        tv_tensors.Image(labels.expand(3, 40, 40)), tv_tensors.Mask(labels)
    )
    assert torch.equal(cropped, labels)


def test_small_images_are_filled_with_the_colour_and_ignored_labels() -> None:
    torch.manual_seed(0)
    image, labels = sample(20, 70)
    pixels, cropped = LimitedCrop((48, 48), 0.75, [102, 128, 153])(image, labels)
    outside = (pixels == torch.tensor([102, 128, 153])[:, None, None]).all(0)
    assert outside.sum() == 28 * 48
    assert (cropped[outside] == IGNORE).all()


def test_sizes_fit_and_keep_their_shape() -> None:
    assert fitted_size((480, 640), (512, 2048)) == (512, 683)
    assert fitted_size((300, 3000), (512, 2048)) == (205, 2048)
    assert fitted_size((640, 480), (512, 2048), 0.5) == (341, 256)
    torch.manual_seed(0)
    shapes = {RandomResize((50, 200), (0.5, 2.0))(*sample(30, 40))[1].shape for _ in range(20)}
    assert all(25 <= height <= 100 and abs(width / height - 4 / 3) < 0.05 for height, width in shapes)
    assert len(shapes) > 5


def test_evaluation_resizes_the_image_only() -> None:
    image, labels = sample(30, 40)
    pixels, kept = EvaluationTransform((60, 240), MEAN, STD)(image, labels)
    assert pixels.shape == (3, 60, 80)
    assert kept is labels
    whole, _ = EvaluationTransform(None, MEAN, STD)(image)
    assert np.allclose(whole[0], (image[0].float() / 255 - 0.4) / 0.2, atol=1e-5)

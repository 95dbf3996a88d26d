"""Twenty thousand draws from the training data of every recipe."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from torch import Tensor

from iformer.training.resumable import ResumableBatchSampler
from tests.soak.recipes import alike, data_changes, settings, smaller, task

pytestmark = pytest.mark.soak

DRAWS = 20_000


def pipeline(name: str) -> dict[str, Any]:
    """What the draws of a recipe depend on."""
    data = settings(name)["data"]
    own = {"root", "batch_size", "num_workers", "crop_pct", "eval_batch_size"}
    return {**{key: value for key, value in data["init_args"].items() if key not in own}, **smaller(name)}


@pytest.mark.parametrize("name", alike(pipeline))
def test_every_draw_is_one_to_train_on(name: str, tmp_path: Path, small_fashion_mnist: Path) -> None:
    recipe = settings(name)
    recipe["data"]["init_args"] |= data_changes(name, tmp_path / "data", small_fashion_mnist, count=300, workers=2)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data: Any = parser.instantiate_classes(parser.parse_object({"data": recipe["data"]})).data
    data.setup("fit")
    loader = data.train_dataloader()
    (sampler,) = [s for s in (loader.sampler, loader.batch_sampler) if isinstance(s, ResumableBatchSampler)]
    check = {"detection": check_objects, "segmentation": check_scenes}.get(task(name), check_classes)
    drawn = epoch = 0
    while drawn < DRAWS:
        sampler.set_epoch(epoch)
        epoch += 1
        for batch in loader:
            check(batch, data)
            drawn += len(batch[0])


def check_classes(batch: tuple[Tensor, Tensor], data: Any) -> None:
    images, labels = batch
    assert images.shape[1:] == torch.Size(data.data_config["input_size"])
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert 0 <= labels.min() <= labels.max() < len(data.class_names)


def check_scenes(batch: tuple[Tensor, Tensor], data: Any) -> None:
    images, labels = batch
    assert images.shape[2:] == labels.shape[1:] == torch.Size(data.settings.crop)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert ((labels < len(data.class_names)) | (labels == 255)).all()


def check_objects(batch: tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]], data: Any) -> None:
    for image, target in zip(*batch, strict=True):
        height, width = image.shape[1:]
        boxes, labels, masks = (target[key] for key in ("boxes", "labels", "masks"))
        assert 0 <= image.min() <= image.max() <= 1
        assert len(boxes) == len(labels) == len(masks)
        assert masks.shape[1:] == image.shape[1:]
        if len(boxes):
            assert boxes.min() >= 0
            assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
            assert masks.flatten(1).any(1).all()
            assert 1 <= labels.min() <= labels.max() <= len(data.class_names)

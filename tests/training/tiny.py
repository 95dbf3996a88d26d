"""A small training run that draws random numbers wherever a real one does."""

import csv
import os
import random
import subprocess
import time
import unittest.mock
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp._common_utils import _FSDPDeviceHandle
from torch.utils.data import DataLoader, Dataset

from iformer.training.data import DataModule
from iformer.training.resumable import ResumableBatchSampler, run_seed

MODEL: dict[str, Any] = {
    "depths": [1, 1], "dims": [8, 8], "num_heads": [2, 2], "attention_heads": [1, 1], "pool_strides": [2, 1],
    "layer_scales": [1.0, 1.0],
}  # fmt: skip
"""Arguments of an iFormer of two stages, which is enough for a classifier that is trained for the training's sake."""


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Random images, augmented with draws from all three generators."""

    def __init__(self, length: int, classes: int, augment: bool) -> None:
        self.images = torch.randn(length, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.classes, self.augment = classes, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.images[index]
        if self.augment:
            image = image * random.random() + np.random.random() + torch.randn(3, 32, 32) / 10
        return image.float(), index % self.classes


class TinyData(DataModule):
    def __init__(
        self,
        batch_size: int = 4,
        length: int = 32,
        classes: int = 4,
        workers: int = 0,
        repeats: int = 1,
        augment: bool = True,
        broken_batch: int | None = None,
        label_offset: int = 0,
    ) -> None:
        super().__init__()
        self.settings = SimpleNamespace(num_workers=workers, pin_memory=False)
        self.batch_size, self.length, self.repeats = batch_size, length, repeats
        self.augment, self.broken_batch, self.label_offset = augment, broken_batch, label_offset
        self.class_names = [f"class {i}" for i in range(classes)]

    def images(self, training: bool) -> DataLoader:
        batches = ResumableBatchSampler(
            self.length,
            self.batch_size if training else 2 * self.batch_size,
            run_seed(),
            *self.rank,
            shuffle=training,
            drop_last=training,
            repeats=self.repeats if training else 1,
        )
        images = Images(self.length, len(self.class_names), training and self.augment)
        return self.loader(images, batches, training)

    def train_dataloader(self) -> DataLoader:
        return self.images(True)

    def val_dataloader(self) -> DataLoader:
        return self.images(False)

    def test_dataloader(self) -> DataLoader:
        return self.images(False)

    def on_before_batch_transfer(self, batch, dataloader_idx):  # type: ignore[no-untyped-def]
        images, labels = batch
        if self.broken_batch is not None and self.trainer.training and self.trainer.global_step == self.broken_batch:
            images = images * float("nan")
        return images, labels + self.label_offset


def recipe(folder: Path, **changes: object) -> Path:
    """A recipe with all that is random, written to ``folder``; ``changes`` are dotted keys with __ for the dots."""
    settings: dict = {
        "model": {
            "class_path": "iformer.classification.task.ClassificationTask",
            "init_args": {
                "model": "iformer_nano",
                "num_classes": 4,
                "model_args": {**MODEL, "drop_path_rate": 0.3, "drop_rate": 0.1},
                "mixup": 0.8,
                "cutmix": 1.0,
                "optimization": {"lr": 3e-3, "base_batch": None, "warmup_epochs": 1, "cooldown_epochs": 1},
            },
        },
        "data": {"class_path": "tests.training.tiny.TinyData", "init_args": {"workers": 0, "repeats": 2}},
        "trainer": {
            "max_epochs": 4,
            "accelerator": "cpu",
            "default_root_dir": str(folder / "run"),
            "enable_progress_bar": False,
        },
        "checkpoint": {"every_n_steps": 3},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = settings
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


class FrozenBatchNorm(lightning.Callback):
    """BatchNorm in evaluation mode, in which a batch's samples do not see each other."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: object
    ) -> None:
        for module in pl_module.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()


class Held(lightning.Callback):
    """In the middle of the second epoch, writes ``held`` beside the run's folder and waits there for ``go``."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        beside = Path(trainer.default_root_dir).parent
        if trainer.global_step == 10:
            (beside / "held").touch()
            while not (beside / "go").exists():
                time.sleep(0.01)


class GroupKilled(lightning.Callback):
    """Has another process send SIGTERM to this one and its loader workers, in the middle of the second epoch."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == 10:
            subprocess.run(["sh", "-c", f"kill -TERM -{os.getpgrp()}"], start_new_session=True, check=True)
            time.sleep(2)  # on a busy machine torch hears late of workers that have died


class KeepStatistics(lightning.Callback):
    """Writes each rank's running statistics after the last batch, and before validation, into the run's folder."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.is_last_batch:
            self.keep(trainer, pl_module, "before")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.keep(trainer, pl_module, "after")

    def keep(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, moment: str) -> None:
        statistics = {name: value for name, value in pl_module.named_buffers() if "running" in name}
        torch.save(statistics, Path(trainer.default_root_dir, f"{moment}-{trainer.global_rank}.pt"))


class CPUSharding(FSDPStrategy):
    """FSDP over gloo. Lightning and torch offer it on accelerators only, by two checks that are circumvented here."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        def use_cpu(state, *_):  # type: ignore[no-untyped-def]
            state._device_handle = _FSDPDeviceHandle(torch.device("cpu"), torch.cpu)
            return state

        with (
            unittest.mock.patch("torch.distributed.fsdp._init_utils._init_device_handle", use_cpu),
            unittest.mock.patch("torch.distributed.fsdp.fully_sharded_data_parallel._init_device_handle", use_cpu),
        ):
            return super()._setup_model(model)


def log_of(run: Path) -> list[dict[str, str]]:
    """The rows of a run's ``metrics.csv``, without those times that no two runs share."""
    with open(run / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "images/s"} for row in csv.DictReader(file)]

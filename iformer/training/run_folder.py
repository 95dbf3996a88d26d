"""The files in a run's folder besides checkpoints, and the checks and changes when a run is resumed.

``metrics.csv`` has a row for each time that something is logged, ``recipe.yaml`` has every setting, and ``run.lock`` is
there while a process trains.
"""

import csv
import errno
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from iformer.common.files import naming, write_text, written
from iformer.training.recipes import flat

LOCK = "run.lock"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk or a quota is full, or a file exceeds the system's limit


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from training in ``folder``.

    The operating system holds the lock and releases it when the process ends, in whatever way and on whatever machine,
    so that a run whose machine failed can be resumed on another one. The file names the process. Where the file system
    does not support locks, filelock relies on the file's contents.

    Args:
        folder: The run's folder, which is created if it does not exist.
        wait: Whether to wait until no other process trains there.

    Raises:
        ValueError: Another process trains in the folder, and ``wait`` is false; the message names it.
        OSError: The disk is full; the message names the folder if the failing writer did not name its file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        process, host, *_ = [*_owner(file), "?", "?"]
        raise ValueError(
            f"{folder}: process {process} on {host} trains there; wait for it, or name another folder with "
            f"--trainer.default_root_dir (if there is no such process any more, remove {LOCK})"
        ) from error
    try:
        with open(file, "w", encoding="utf-8") as text:
            text.write(f"{os.getpid()}\n{platform.node()}\n")
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:  # an error of TensorBoard's writer
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    finally:
        file.unlink(missing_ok=True)  # while no other process can take the lock
        lock.release()


def _owner(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").split()
    except FileNotFoundError:  # the process has just ended
        return []


class MetricsLog(Logger):
    """Logger that writes ``metrics.csv``, with a row of metrics, step and epoch for each call.

    Each row is written immediately, and checkpoints record the number of rows. A run that was interrupted and resumed
    therefore has the same rows as a run that was not.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder, "metrics.csv")
        self.columns: list[str] = []
        self.rows = 0

    @property
    def name(self) -> str:
        """Lightning's folder below ``save_dir``, which is not used."""
        return ""

    @property
    def version(self) -> str:
        """Lightning's folder below ``name``, which is not used."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.file.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because ``recipe.yaml`` has the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row of metrics.

        Raises:
            OSError: The row could not be written; the message names the file.
        """
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step
        if self.rows == 0 or not row.keys() <= set(self.columns):
            self._write([*(self._read() if self.rows else []), row])
            return
        with naming(self.file), open(self.file, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        self.rows += 1

    @rank_zero_only
    def keep(self, rows: int | None, step: int) -> None:
        """Continue the file of an earlier process.

        Args:
            rows: The number of rows to keep; None if the checkpoint does not state it.
            step: The optimiser step before which rows are kept if ``rows`` is None.
        """
        if self.file.is_file():
            found = self._read()
            self._write(found[:rows] if rows is not None else [row for row in found if int(row["step"] or 0) < step])

    def _read(self) -> list[dict[str, Any]]:
        with open(self.file, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.columns, self.rows = sorted({name for row in rows for name in row}), len(rows)
        with written(self.file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, self.columns)
            table.writeheader()
            table.writerows(rows)


class RunRecord(Callback):
    """Saves the recipe, the class names and the length of the log in checkpoints, and the recipe in the run's folder.

    When a run is resumed, these are compared with the checkpoint's. The current settings of the optimiser and of the
    schedule replace those of the checkpoint, and a message names the settings that have changed.

    Args:
        recipe: The recipe's name.
        settings: Every setting of the training run, as YAML.
    """

    def __init__(self, recipe: str, settings: str) -> None:
        self.recipe, self.settings = recipe, settings
        self.resumed = False
        self.began: int | None = None  # the optimiser steps before this process trained
        self.validated: int | None = None  # those before the last validation
        self.groups: list[list[dict[str, Any]]] = []
        self.log_rows: int | None = None
        self.saved_groups: list[int] = []  # the number of groups of each optimiser in the checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add ``recipe``, ``settings`` (YAML), ``class_names``, ``global_batch`` and ``log_rows`` to the checkpoint."""
        names = _class_names(trainer)
        checkpoint |= {"recipe": self.recipe, "settings": self.settings, "class_names": names}
        checkpoint["global_batch"] = _global_batch(trainer)
        checkpoint["log_rows"] = next((log.rows for log in trainer.loggers if isinstance(log, MetricsLog)), None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the run with the checkpoint.

        Raises:
            ValueError: The data's classes are not those of the checkpoint; or the global batch differs, on which the
                rates and steps of the schedule depend; or the checkpoint is already past the run's last epoch or step.
        """
        names, saved = _class_names(trainer), checkpoint.get("class_names")
        if names and saved and names != saved:
            odd = sorted(set(names) ^ set(saved)) or ["their order"]
            raise ValueError(f"the data's classes are not those of the checkpoint: {', '.join(odd[:5])} differ")
        if trainer.state.fn != "fit":
            return
        batch, begun = _global_batch(trainer), checkpoint.get("global_batch")
        if batch and begun and batch != begun:
            raise ValueError(
                f"the global batch (batch_size x devices x accumulate_grad_batches) is {batch}, "
                f"expected the {begun} of the checkpoint to resume from"
            )
        done = {
            "max_epochs": checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"],
            "max_steps": checkpoint["global_step"],
        }
        for limit, reached in done.items():
            if reached > (getattr(trainer, limit) or -1) > 0:
                raise ValueError(
                    f"trainer.{limit} is {getattr(trainer, limit)}, expected {reached} or more, "
                    "which the checkpoint to resume from has already reached"
                )
        if changed := _changes(checkpoint.get("settings", ""), self.settings):
            rank_zero_info(f"Going on with other settings than the checkpoint's: {'; '.join(changed)}")
        self.resumed = True
        self.saved_groups = [len(state["param_groups"]) for state in checkpoint["optimizer_states"]]
        checkpoint["lr_schedulers"] = []  # a schedule is a function of its settings and the number of steps taken
        self.log_rows = checkpoint.get("log_rows")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``recipe.yaml``, and remember the optimiser's settings before the checkpoint's replace them.

        Raises:
            OSError: ``recipe.yaml`` could not be written; the message names it.
            ValueError: The optimiser's state in the checkpoint belongs to other groups of parameters.
        """
        self.groups = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        if self.saved_groups and self.saved_groups != (found := [len(groups) for groups in self.groups]):
            raise ValueError(
                f"the optimiser has {sum(found)} groups of parameters, expected the {sum(self.saved_groups)} of the "
                "checkpoint to resume from: optimization.layer_decay cannot be set or removed when resuming"
            )
        if trainer.is_global_zero:
            write_text(Path(trainer.default_root_dir, "recipe.yaml"), self.settings)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember after how many steps the model was validated."""
        if not trainer.sanity_checking:
            self.validated = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the log, and restore the current settings of the optimiser and the learning rate."""
        self.began = trainer.global_step
        if not self.resumed:
            return
        for log in trainer.loggers:
            if isinstance(log, MetricsLog):
                log.keep(self.log_rows, trainer.global_step)
        for optimizer, groups in zip(trainer.optimizers, self.groups, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
        for config in trainer.lr_scheduler_configs:
            pl_module.lr_scheduler_step(config.scheduler, None)


def _class_names(trainer: Trainer) -> list[str] | None:
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    return None if names is None else [str(name) for name in names]


def _global_batch(trainer: Trainer) -> int | None:
    """Return the number of images in an optimiser step, or None if the datamodule has no batch size."""
    batch_size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    return None if batch_size is None else batch_size * trainer.world_size * trainer.accumulate_grad_batches


def _changes(before: str, now: str) -> list[str]:
    """Return ``key before -> now`` for each setting of model, data and trainer that differs."""
    old, new = (flat(yaml.safe_load(text) or {}) for text in (before, now))
    return [
        f"{key} {old[key]} -> {new[key]}"
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and key.startswith(("model.", "data.", "trainer.", "seed_everything"))
    ]

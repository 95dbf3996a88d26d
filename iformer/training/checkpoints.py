"""Checkpoints of a training run: written atomically, found again, pruned."""

import io
import os
import pickle
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

from iformer.common.files import written
from iformer.common.ranges import Count, checked

FOLDER = "checkpoints"  # in the folder of the run
# What torch writes into the description of shards: names of classes that a pickle may hold without running code.
_DESCRIBING = {
    *(f"{metadata.__name__} {name}" for name in (*metadata.__all__, "_MEM_FORMAT_ENCODING")),
    f"{_StorageInfo.__module__} {_StorageInfo.__name__}",
    "torch.serialization _get_layout",
    "torch Size",
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    *(f"{module} {kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
}


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Let Ctrl-C wait for the end of what is done here; a writer in C++ would take it for a failure to write."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint appears under its name when it is complete and on the disk, or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path``; on failure, a full disk say, nothing is left behind.

        Raises:
            OSError: The file could not be written; names it.
        """
        try:
            with _interrupted_later(), written(Path(path)) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its zip writer, behind which the reason may stand.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
            raise OSError(f"{path}: the checkpoint could not be written ({reason}); earlier ones are kept") from error


class RunCheckpoint(Checkpoint):
    """Saves every so many steps, before each validation or at the end of an epoch without one, and on SIGTERM.

    Checkpoints are named by their optimiser step. Only the newest are kept. In the middle of an epoch, one is written
    when the next batch begins, with everything that belongs to the step before.

    Args:
        every_n_steps: Optimiser steps between checkpoints; null saves once an epoch.
        keep: How many to keep.
    """

    @checked
    def __init__(self, every_n_steps: Count | None = 1000, keep: Count = 3) -> None:
        self.every_n_steps, self.keep = every_n_steps, keep
        self.terminated = False
        self.saved = 0  # the step of the last checkpoint
        self.max_steps: int | None = None  # of a run that goes on, while Lightning is not to know it
        self.restored = self.validation_due = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notice whether a validation is still to come."""
        validation = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        self.validation_due = validation["processed"] < validation["started"] and trainer.enable_validation
        self.restored = True
        if trainer.optimizers:  # sharded models are restored after on_fit_start
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have a run that is limited by ``max_steps`` restored as one that is limited by ``max_epochs`` is.

        For the former Lightning would begin an epoch with the counters of the one before, and so with other random
        draws, and leave out a validation that is due after the last step.
        """
        if self.restored and trainer.state.fn == "fit":
            loop = trainer.fit_loop.epoch_loop
            self.max_steps, loop.max_steps = loop.max_steps, -1

    def _limit_steps_again(self, trainer: Trainer) -> None:
        if self.max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self.max_steps = self.max_steps, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning, whose handler stops the ranks at different steps, and saves nothing."""
        self.terminated = trainer.received_sigterm
        self.saved = self.stepped = trainer.global_step
        self.due = self.ending = False
        if not self.validation_due:
            self._limit_steps_again(trainer)
        self.previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        self.terminated = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See if it is time to save; never in the middle of an accumulation, whose gradients a checkpoint lacks."""
        if trainer.global_step == self.stepped:
            return
        self.stepped = trainer.global_step
        self.ending = trainer.strategy.reduce_boolean_decision(self.terminated, all=False)
        self.due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save if it is time: now the step before is logged too."""
        self._limit_steps_again(trainer)
        if batch_idx and (self.due or self.ending):
            self._save(trainer)
            if self.ending:
                self._end()
        self.due = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before the validation, which may take long; averaged weights are not yet in the model's place."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._limit_steps_again(trainer)
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note down where a run that is restored goes on, in the state of Lightning's loops.

        By itself Lightning would not run the validation that this checkpoint was saved before, and take the batch that
        has begun for one that was stepped. There is no public way to say so.
        """
        loops = checkpoint["loops"]["fit_loop"]
        validation = loops["epoch_loop.val_loop.batch_progress"]
        if trainer.validating and not validation["is_last_batch"]:  # not for one that another callback saves behind it
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation |= {"total": begun, "current": {**begun}}
        elif trainer.training:
            for progress in loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]:
                if progress["started"] < progress["ready"]:
                    progress["ready"] = progress["started"]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """End on SIGTERM; what there was to save has been saved."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if training and trainer.strategy.reduce_boolean_decision(self.terminated, all=False):
            self._end()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless the validation has just seen to it."""
        self._save(trainer)
        if trainer.strategy.reduce_boolean_decision(self.terminated, all=False):
            self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give SIGTERM back."""
        if stage == "fit" and hasattr(self, "previous_handler"):
            signal.signal(signal.SIGTERM, self.previous_handler)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self.saved or getattr(trainer, "fast_dev_run", False):
            return
        trainer.save_checkpoint(folder(trainer) / f"step-{trainer.global_step:09}.ckpt", weights_only=False)
        self.saved = trainer.global_step
        if trainer.is_global_zero:
            for path in available(trainer.default_root_dir)[self.keep :]:
                trainer.strategy.remove_checkpoint(path)

    def _end(self) -> None:
        rank_zero_info(f"Ended by SIGTERM after step {self.saved}, which is saved: go on with --resume.")
        raise SystemExit(128 + signal.SIGTERM)


def folder(trainer: Trainer) -> Path:
    """Where the run's checkpoints are."""
    return Path(trainer.default_root_dir, FOLDER)


def available(run: str | Path) -> list[Path]:
    """The checkpoints of the folder of a run, newest first."""
    return sorted(Path(run, FOLDER).glob("step-*.ckpt"), reverse=True)


class _Description(pickle.Unpickler):
    """Reads the ``.metadata`` of a checkpoint in shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _DESCRIBING:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def require_plain(path: Path) -> None:
    """See that a checkpoint, a file or a folder of shards, holds but weights and plain values.

    Under FSDP, Lightning and torch read checkpoints without the safe loader: whole ones, the description of shards, and
    what of them is no tensor. So that is read with it first.

    Raises:
        ValueError: It holds something else, which could run code when it is read, or is no checkpoint.
    """
    file = path
    try:
        if path.is_dir():
            file = path / ".metadata"
            with open(file, "rb") as opened:
                described = _Description(opened).load()
            for index, place in described.storage_data.items():
                if place.transform_descriptors:
                    raise pickle.UnpicklingError("its shards are packed, which they never are")
                if isinstance(described.state_dict_metadata[index.fqn], metadata.BytesStorageMetadata):
                    file = path / place.relative_path
                    with open(file, "rb") as opened:
                        opened.seek(place.offset)
                        torch.load(io.BytesIO(opened.read(place.length)), map_location="meta", weights_only=True)
            file = path / "meta.pt"
        torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file, expected a checkpoint") from None
    except OSError as error:
        raise OSError(f"{file}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle raises whatever its parts make Python stumble over
        raise ValueError(f"{file}: not a checkpoint, or one that holds more than weights and plain values") from error


def newest(run: str | Path) -> Path:
    """The newest checkpoint of the folder of a run that can be read; warns of those that cannot.

    Raises:
        FileNotFoundError: There is none.
    """
    found = available(run)
    for path in found:
        try:
            # A checkpoint in shards (FSDP) is a folder complete with its meta.pt. torch.load verifies no checksum.
            with zipfile.ZipFile(path / "meta.pt" if path.is_dir() else path) as file:
                damaged = file.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            damaged = str(error)
        if damaged is None:
            return path
        rank_zero_warn(f"{path}: passed over, it cannot be read ({damaged})")
    if found:
        raise ValueError(
            f"{Path(run, FOLDER)}: none of the {len(found)} checkpoints can be read ({found[0].name}: {damaged})"
        )
    raise FileNotFoundError(f"{Path(run, FOLDER)}: no checkpoint to go on from (run without --resume to begin)")

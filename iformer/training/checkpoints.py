"""The checkpoints of a training run: writing them atomically, finding them, checking them and removing old ones."""

import io
import os
import pickle
import shutil
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

from iformer.common.files import write_json, written
from iformer.common.ranges import Count, checked
from iformer.training.callbacks import require_validation

FOLDER = "checkpoints"  # in the folder of the run
BEST = "best.ckpt"  # in that folder
# The classes that torch writes into the description of shards; a pickle may name these without running code.
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
    """Delay Ctrl-C until the end of the block, because torch's writer would take it for a failure to write."""
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
    """Writes checkpoints atomically: a file appears under its name when it is complete and on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to ``path``; if that fails, on a full disk for example, no part of it is left behind.

        Raises:
            OSError: The file could not be written; the message names it.
        """
        try:
            with _interrupted_later(), written(Path(path)) as temporary, open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its zip writer; the reason may be in its context.
            cause = error.__context__ if isinstance(error.__context__, OSError) else error
            reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
            raise OSError(f"{path}: the checkpoint could not be written ({reason}); earlier ones are kept") from error


class RunCheckpoint(Checkpoint):
    """Saves a checkpoint every so many steps, before each validation or at the end of the epoch, and on SIGTERM.

    Checkpoints are named by their optimiser step, and only the newest are kept. In the middle of an epoch, a checkpoint
    is written when the next batch begins, so that it contains everything that belongs to the previous step.

    Args:
        every_n_steps: Number of optimiser steps between checkpoints; null saves once an epoch.
        keep: Number of checkpoints to keep.
        best: Whether to keep the checkpoint of the best validation too, by the task's main metric, and to export its
            weights at the end instead of the last ones. ``best.json`` in the run's folder says which one it is.
    """

    @checked
    def __init__(self, every_n_steps: Count | None = 1000, keep: Count = 3, best: bool = False) -> None:
        self.every_n_steps, self.keep, self.best = every_n_steps, keep, best
        self.best_value: float | None = None
        self.terminated = False
        self.saved = 0  # the step of the last checkpoint
        self.max_steps: int | None = None  # the limit of a resumed run while it is hidden from Lightning
        self.restored = self.validation_due = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether the validation after this checkpoint still has to run."""
        validation = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        self.validation_due = validation["processed"] < validation["started"] and trainer.enable_validation
        self.restored = True
        if trainer.optimizers:  # sharded models are restored after on_fit_start
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide ``max_steps`` from Lightning until a resumed run trains again.

        Otherwise Lightning would begin an epoch with the counters of the previous one, and therefore with other random
        draws, and skip a validation that is due after the last step.
        """
        if self.best:
            require_validation(trainer, "checkpoint.best")
        if self.restored and trainer.state.fn == "fit":
            loop = trainer.fit_loop.epoch_loop
            self.max_steps, loop.max_steps = loop.max_steps, -1

    def _limit_steps_again(self, trainer: Trainer) -> None:
        if self.max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self.max_steps = self.max_steps, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's SIGTERM handler, which stops the ranks at different steps and saves nothing."""
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
        """Decide whether to save; never while gradients are accumulated, since checkpoints do not contain them."""
        if trainer.global_step == self.stepped:
            return
        self.stepped = trainer.global_step
        self.ending = trainer.strategy.reduce_boolean_decision(self.terminated, all=False)
        self.due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save if a checkpoint is due; by now the previous step has been logged too."""
        self._limit_steps_again(trainer)
        if batch_idx and (self.due or self.ending):
            self._save(trainer)
            if self.ending:
                self._end()
        self.due = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before the validation, which may take long, and before averaged weights replace the model's."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._limit_steps_again(trainer)
            self._save(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Correct the state of Lightning's loops in the checkpoint, so that a resumed run continues at the right place.

        By itself Lightning would not run the validation before which this checkpoint was saved, and would count a batch
        that has only begun as done. There is no public interface for this.
        """
        loops = checkpoint["loops"]["fit_loop"]
        validation = loops["epoch_loop.val_loop.batch_progress"]
        if trainer.validating and not validation["is_last_batch"]:  # another callback may save after the validation
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            validation |= {"total": begun, "current": {**begun}}
        elif trainer.training:
            for progress in loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]:
                if progress["started"] < progress["ready"]:
                    progress["ready"] = progress["started"]

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """End the run on SIGTERM; the checkpoint has been saved before the validation."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if training and trainer.strategy.reduce_boolean_decision(self.terminated, all=False):
            self._end()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the checkpoint from before the validation as ``best.ckpt`` if none before was better."""
        quick = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
        if not self.best or quick or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        name = f"val_{getattr(pl_module, 'metric', 'accuracy')}"
        value = float(trainer.callback_metrics[name])
        if self.best_value is None or value > self.best_value:
            self.best_value = value
            saved = folder(trainer) / f"step-{trainer.global_step:09}.ckpt"
            with written(folder(trainer) / BEST) as temporary:
                shutil.copyfile(saved, temporary)
            best = {"metric": name, "value": value, "step": trainer.global_step, "epoch": trainer.current_epoch + 1}
            write_json(Path(trainer.default_root_dir, "best.json"), best)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value of the main metric so far."""
        return {"best_value": self.best_value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value of the main metric."""
        self.best_value = state_dict["best_value"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless this was done before the validation and it changed nothing, and end the run on SIGTERM."""
        if getattr(pl_module, "learns_in_validation", False):
            self.saved = -1
        self._save(trainer)
        if trainer.strategy.reduce_boolean_decision(self.terminated, all=False):
            self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the previous SIGTERM handler."""
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
    """Return the folder of the run's checkpoints."""
    return Path(trainer.default_root_dir, FOLDER)


def available(run: str | Path) -> list[Path]:
    """Return the checkpoints in a run's folder, the newest first."""
    return sorted(Path(run, FOLDER).glob("step-*.ckpt"), reverse=True)


class _Description(pickle.Unpickler):
    """An unpickler for the ``.metadata`` of a sharded checkpoint that refuses all other classes."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _DESCRIBING:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def require_plain(path: Path) -> None:
    """Check that a checkpoint, a file or a folder of shards, holds nothing but weights and plain values.

    Under FSDP, Lightning and torch read some parts of checkpoints without the safe loader: whole files, the description
    of shards, and values that are not tensors. These parts are therefore read with the safe loader first.

    Raises:
        ValueError: The path is not a checkpoint, or holds something else, which could run code when it is read.
        FileNotFoundError: A file of the checkpoint does not exist.
        OSError: A file of the checkpoint cannot be read.
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
    except Exception as error:  # a damaged pickle can raise an error of any kind
        raise ValueError(f"{file}: not a checkpoint, or one that holds more than weights and plain values") from error


def newest(run: str | Path) -> Path:
    """Return the newest checkpoint in a run's folder that can be read, with a warning for each one that cannot.

    Raises:
        FileNotFoundError: There are no checkpoints.
        ValueError: None of the checkpoints can be read.
    """
    found = available(run)
    for path in found:
        try:
            # A sharded checkpoint (FSDP) is a folder that is complete once it has meta.pt. torch.load does not verify
            # checksums, so that is done here.
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

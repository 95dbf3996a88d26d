"""The folder of a run: its lock, its log, and what changed settings do to a run that goes on."""

import csv
import errno
import logging
import os
import resource
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from iformer.classification.task import ClassificationTask
from iformer.training import checkpoints, run_folder
from iformer.training.launcher import run
from tests.processes import start, wait_for
from tests.training.tiny import log_of, recipe

EVERY_STEP = {"trainer__log_every_n_steps": 1}


def rates(folder: Path) -> list[float]:
    return [float(row["lr"]) for row in log_of(folder) if row["lr"]]


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was told to end after two epochs."""
    folder = tmp_path_factory.mktemp("two")
    run("fit", ["--config", str(recipe(folder, trainer__max_epochs=2, **EVERY_STEP))])
    return folder / "run"


def test_more_epochs_follow_the_cosine_over_all_of_them(
    two_epochs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "whole").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "whole", **EVERY_STEP))])
    shutil.copytree(two_epochs, tmp_path / "run")
    with caplog.at_level(logging.INFO):
        run("fit", ["--config", str(recipe(tmp_path, **EVERY_STEP)), "--resume"])
    assert rates(tmp_path / "run")[16:] == rates(tmp_path / "whole/run")[16:]
    assert "trainer.max_epochs 2 -> 4" in caplog.text


@pytest.mark.parametrize(
    "optimization",
    [
        {"lr": 1e-4, "weight_decay": 0.5, "warmup_epochs": 0, "base_batch": None},
        {"lr": 1e-4, "min_lr": 1e-5, "cooldown_epochs": 0, "base_batch": None, "per": "step"},
    ],
)
def test_other_rates_hold_from_there_on(two_epochs: Path, tmp_path: Path, optimization: dict[str, Any]) -> None:
    (tmp_path / "whole").mkdir()
    changed = {"model__init_args__optimization": optimization, **EVERY_STEP}
    run("fit", ["--config", str(recipe(tmp_path / "whole", **changed))])
    shutil.copytree(two_epochs, tmp_path / "run")
    run("fit", ["--config", str(recipe(tmp_path, **changed)), "--resume"])
    assert rates(tmp_path / "run")[16:] == rates(tmp_path / "whole/run")[16:]
    groups = torch.load(checkpoints.newest(tmp_path / "run"))["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, optimization.get("weight_decay", 0.05)}


def test_settings_that_a_run_cannot_go_on_with_are_refused(two_epochs: Path, tmp_path: Path) -> None:
    shutil.copytree(two_epochs, tmp_path / "run")
    optimization = {"lr": 1e-3, "base_batch": None, "warmup_epochs": 0}
    file = recipe(tmp_path, trainer__max_epochs=2, model__init_args__optimization=optimization)
    kept = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.suffix in (".csv", ".yaml")}
    refused = {
        "--model.init_args.optimization.layer_decay=0.7": "layer_decay cannot be set",
        "--trainer.max_epochs=1": "trainer.max_epochs is 1, expected 2 or more",
        "--trainer.max_steps=15": "trainer.max_steps is 15, expected 16 or more",
    }
    for argument, told in refused.items():
        with pytest.raises(ValueError, match=told):
            run("fit", ["--config", str(file), "--resume", argument])
        assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("changes", [{}, {"trainer__check_val_every_n_epoch": 3}, {"trainer__val_check_interval": 0.5}])
def test_killed_in_validation_the_run_gets_that_validation(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first one, and after it has gone on in the last one."""
    changes = {**changes, **EVERY_STEP, "trainer__max_epochs": 3}
    (tmp_path / "whole").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "whole", **changes))])
    validations = [int(row["step"]) + 1 for row in log_of(tmp_path / "whole/run") if row["val_loss"]]
    assert validations[-1] == 24
    validate = ClassificationTask.validation_step

    def interrupted(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == steps[0] and batch_idx == 2:
            del steps[0]
            raise KeyboardInterrupt
        return validate(self, batch, batch_idx)

    steps = [validations[0], validations[-1], 0]
    monkeypatch.setattr(ClassificationTask, "validation_step", interrupted)
    file = recipe(tmp_path, **changes)
    for arguments in ([], ["--resume"]):
        with pytest.raises(KeyboardInterrupt):
            run("fit", ["--config", str(file), *arguments])
    results = run("fit", ["--config", str(file), "--resume"])
    assert "val_loss" in results["metrics"]
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole/run")
    first, second = (load_file(folder / "run/model.safetensors") for folder in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(first[key], second[key]) for key in second)


STEPS = {"model__init_args__optimization": {"lr": 3e-3, "base_batch": None, "warmup_epochs": 4, "cooldown_epochs": 2}}
LIMITED = {**EVERY_STEP, **STEPS, "trainer__max_epochs": -1, "trainer__max_steps": 20, "trainer__val_check_interval": 5}


@pytest.mark.parametrize("step", [3, 5, 8, 16, 20])
def test_a_run_of_so_many_steps_goes_on_from_each_place(step: int, whole_of_steps: Path, tmp_path: Path) -> None:
    """In the middle of an epoch, before a validation, at the end of an epoch without one, and before the last one."""
    kept = tmp_path / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    (kept / f"step-{step:09}.ckpt").symlink_to(whole_of_steps / "run" / checkpoints.FOLDER / f"step-{step:09}.ckpt")
    shutil.copy(whole_of_steps / "run" / "metrics.csv", tmp_path / "run")
    file = recipe(tmp_path, trainer__check_val_every_n_epoch=None, **LIMITED)
    results = run("fit", ["--config", str(file), "--resume"])
    assert "val_loss" in results["metrics"]
    assert log_of(tmp_path / "run") == log_of(whole_of_steps / "run")
    first, second = (load_file(folder / "run/model.safetensors") for folder in (tmp_path, whole_of_steps))
    assert all(torch.equal(first[key], second[key]) for key in second)


@pytest.fixture(scope="module")
def whole_of_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    changes = {**LIMITED, "trainer__check_val_every_n_epoch": None, "checkpoint__keep": 100}
    run("fit", ["--config", str(recipe(folder, **changes))])
    return folder


def test_a_checkpoint_that_another_callback_saves_after_the_validation_is_not_validated_again(tmp_path: Path) -> None:
    kept = {"dirpath": str(tmp_path / "own"), "filename": "{step}", "save_top_k": -1, "save_on_train_epoch_end": False}
    (tmp_path / "whole").mkdir()
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": kept}
    whole = {**EVERY_STEP, "trainer__max_epochs": 2, "trainer__callbacks": [callback]}
    run("fit", ["--config", str(recipe(tmp_path / "whole", **whole))])
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "whole/run/metrics.csv", tmp_path / "run")
    file = recipe(tmp_path, trainer__max_epochs=2, **EVERY_STEP)
    run("fit", ["--config", str(file), f"--ckpt_path={tmp_path / 'own' / 'step=8.ckpt'}"])
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole/run")


def test_a_log_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    run("fit", ["--config", str(recipe(tmp_path, trainer__max_epochs=2, **EVERY_STEP))])
    whole = log_of(tmp_path / "run")
    path = checkpoints.available(tmp_path / "run")[1]  # in the middle of the second epoch
    saved = torch.load(path)
    del saved["log_rows"]
    torch.save(saved, path)
    checkpoints.newest(tmp_path / "run").unlink()
    run("fit", ["--config", str(recipe(tmp_path, trainer__max_epochs=2, **EVERY_STEP)), "--resume"])
    assert log_of(tmp_path / "run") == whole


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    file = recipe(tmp_path, trainer__max_epochs=10_000)
    first = start(file)
    wait_for(lambda: checkpoints.available(tmp_path / "run"), first)
    for arguments in ([], ["--resume"]):
        with pytest.raises(ValueError, match=rf"run: process {first.pid} on {socket.gethostname()} trains there"):
            run("fit", ["--config", str(file), *arguments])
    assert first.exitcode is None
    assert first.pid is not None
    os.killpg(first.pid, signal.SIGKILL)
    first.join()
    assert (tmp_path / "run" / run_folder.LOCK).exists()  # of a process that is no more
    step = int(checkpoints.newest(tmp_path / "run").stem.split("-")[1])
    run("fit", ["--config", str(file), "--resume", f"--trainer.max_epochs={step // 8 + 2}"])
    assert not (tmp_path / "run" / run_folder.LOCK).exists()


def test_a_lock_of_another_machine_that_is_no_more_does_not_count(tmp_path: Path) -> None:
    """A run that was killed with its machine and queued again, on another one, has nobody to remove a file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / run_folder.LOCK).write_text("1\nnode-17\n")
    run("fit", ["--config", str(recipe(tmp_path, trainer__max_epochs=2))])


def test_loader_workers_that_outlive_a_killed_run_do_not_hold_its_lock(tmp_path: Path) -> None:
    file = recipe(tmp_path, trainer__max_epochs=10_000, data__init_args__workers=2)
    first = start(file)
    wait_for(lambda: checkpoints.available(tmp_path / "run"), first)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with run_folder.locked(tmp_path / "run"):
        pass
    os.killpg(first.pid, signal.SIGKILL)


def test_a_quick_try_leaves_nothing_behind(tmp_path: Path) -> None:
    run("fit", ["--config", str(recipe(tmp_path)), "--trainer.fast_dev_run=2"])
    assert list((tmp_path / "run").iterdir()) == []
    run("fit", ["--config", str(recipe(tmp_path))])


def test_overfitting_takes_the_same_batches_in_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    step = ClassificationTask.training_step

    def watched(self: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        seen.append(batch[1].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "training_step", watched)
    run("fit", ["--config", str(recipe(tmp_path, trainer__overfit_batches=2, data__init_args__repeats=1))])
    assert len(seen) == 8
    assert seen[:2] == seen[2:4] == seen[4:6] == seen[6:]


def test_ctrl_c_waits_for_the_end_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def interrupted(data: Any, file: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(data, file)

    monkeypatch.setattr(checkpoints.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "step-1.ckpt")
    assert torch.load(tmp_path / "step-1.ckpt") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.ckpt"]


def test_checkpoints_that_cannot_be_read_are_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / checkpoints.FOLDER).mkdir()
    for step in (1, 2):
        (tmp_path / checkpoints.FOLDER / f"step-{step:09}.ckpt").write_bytes(b"no checkpoint")
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(ValueError, match="none of the 2 checkpoints can be read"),
    ):
        checkpoints.newest(tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "recipe.yaml"])
def test_a_full_disk_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = recipe(tmp_path, **EVERY_STEP)
    if name == "metrics.csv":
        monkeypatch.setattr(csv.DictWriter, "writerow", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=name):
        run("fit", ["--config", str(file)])


def test_a_file_size_limit_while_a_checkpoint_is_written_is_told_as_what_it_is(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"step-1.ckpt: the checkpoint could not be written \(File too large\)"):
            checkpoints.AtomicCheckpointIO().save_checkpoint({"a": torch.rand(100_000)}, tmp_path / "step-1.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_that_a_library_does_not_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)), run_folder.locked(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

"""What happens on real clusters: kills, full disks, SIGTERM, losses that are not finite."""

import errno
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iformer.classification.task import ClassificationTask
from iformer.training import checkpoints
from iformer.training.callbacks import NonFiniteLossError
from iformer.training.data import leave_signals_to_the_run
from iformer.training.launcher import run
from tests.processes import CONTEXT, exit_status, start, wait_for
from tests.training.tiny import log_of, recipe


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def step_of(path: Path) -> int:
    return int(re.findall(r"\d+", path.stem)[0])


LOGGED = {"trainer__log_every_n_steps": 1}
VARIANTS: dict[str, dict] = {
    "workers": {"data__init_args__workers": 2, "trainer__accumulate_grad_batches": 3, "checkpoint__every_n_steps": 1},
    "ema": {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_killed_anywhere_and_resumed_ends_with_the_same_weights(changes: dict, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = start(recipe(tmp_path / "whole", **changes))
    go_on_from_kills(2, tmp_path, changes)
    whole.join()
    assert whole.exitcode == 0
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole" / "run"))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole" / "run")


def test_killed_often_and_resumed_ends_with_the_same_weights(whole_run: Path, tmp_path: Path) -> None:
    go_on_from_kills(4, tmp_path, LOGGED)
    assert_same(weights(tmp_path / "run"), weights(whole_run / "run"))
    assert log_of(tmp_path / "run") == log_of(whole_run / "run")


def go_on_from_kills(times: int, tmp_path: Path, changes: dict) -> None:
    """Make a run, and kill it so many times, each time at some moment after a new checkpoint."""
    file = recipe(tmp_path, **changes)
    moments = random.Random(os.getpid())
    for _ in range(times):
        before = checkpoints.available(tmp_path / "run")
        process = start(file, *["--resume"] * bool(before))
        wait_for(lambda before=before: checkpoints.available(tmp_path / "run")[:1] != before[:1], process)  # type: ignore[misc]
        process.join(moments.random() * 0.5)
        if process.exitcode is not None:
            break
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    process = start(file, "--resume")
    process.join()
    assert process.exitcode == 0, file.with_name("stderr").read_text()


@pytest.mark.parametrize("step", [3, 12, 16, 24, 32])
def test_each_checkpoint_leads_to_the_same_weights(step: int, whole_run: Path, tmp_path: Path) -> None:
    """Checkpoints in the middle of an epoch (3, 12) and at its end (16, 24), read in this process.

    With a worker: without, the samples' seeds would stand in for those of the steps.
    """
    kept = tmp_path / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    name = f"step-{step:09}.ckpt"
    (kept / name).symlink_to(whole_run / "run" / checkpoints.FOLDER / name)
    shutil.copy(whole_run / "run" / "metrics.csv", tmp_path / "run")
    run("fit", ["--config", str(recipe(tmp_path, data__init_args__workers=1, **LOGGED)), "--resume"])
    assert_same(weights(tmp_path / "run"), weights(whole_run / "run"))
    assert log_of(tmp_path / "run") == log_of(whole_run / "run")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its checkpoints kept."""
    folder = tmp_path_factory.mktemp("whole")
    run("fit", ["--config", str(recipe(folder, checkpoint__keep=100, data__init_args__workers=1, **LOGGED))])
    return folder


def test_sigterm_saves_and_says_how_to_go_on(whole_run: Path, tmp_path: Path) -> None:
    changes = {"checkpoint__every_n_steps": None, "data__init_args__workers": 1}
    file = recipe(tmp_path, **changes, trainer__callbacks=[{"class_path": "tests.training.tiny.Held"}])
    process = start(file)
    wait_for(lambda: (tmp_path / "held").exists(), process)
    process.terminate()
    (tmp_path / "go").touch()
    process.join()
    told = file.with_name("stderr").read_text()
    assert process.exitcode == 143, told
    assert "step 11, which is saved: go on with --resume" in told
    assert step_of(checkpoints.newest(tmp_path / "run")) == 11
    run("fit", ["--config", str(recipe(tmp_path, **changes)), "--resume"])
    assert_same(weights(tmp_path / "run"), weights(whole_run / "run"))


def test_sigterm_to_the_loader_workers_too_saves(whole_run: Path, tmp_path: Path) -> None:
    """As torchrun and SLURM send it."""
    changes = {"checkpoint__every_n_steps": None, "data__init_args__workers": 1}
    process = start(recipe(tmp_path, **changes, trainer__callbacks=[{"class_path": "tests.training.tiny.GroupKilled"}]))
    process.join()
    assert process.exitcode == 143, (tmp_path / "stderr").read_text()
    assert step_of(checkpoints.newest(tmp_path / "run")) == 11
    run("fit", ["--config", str(recipe(tmp_path, **changes)), "--resume"])
    assert_same(weights(tmp_path / "run"), weights(whole_run / "run"))


def leave_workers_behind() -> None:
    loader = torch.utils.data.DataLoader(range(8), num_workers=1, worker_init_fn=leave_signals_to_the_run)  # type: ignore[arg-type]
    globals()["left"] = iterator = iter(loader)
    next(iterator)


def test_workers_do_not_keep_a_process_from_ending() -> None:
    process = CONTEXT.Process(target=leave_workers_behind)
    process.start()
    process.join(300)
    ended = process.exitcode
    process.kill()
    assert ended == 0


def test_sigterm_in_validation_keeps_the_epoch(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate_once(self: ClassificationTask, batch: object, batch_idx: int) -> None:
        if self.trainer.global_step == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ClassificationTask, "validation_step", terminate_once)
    file = recipe(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        run("fit", ["--config", str(file)])
    assert exit_info.value.code == 143
    assert step_of(checkpoints.newest(tmp_path / "run")) == 16
    monkeypatch.undo()
    run("fit", ["--config", str(file), "--resume"])
    assert_same(weights(tmp_path / "run"), weights(whole_run / "run"))


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        if len(checkpoints.available(tmp_path / "run")) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match=r"step-0+8.ckpt: .*No space left on device.*earlier ones are kept"):
        run("fit", ["--config", str(recipe(tmp_path))])
    files = sorted(path.name for path in (tmp_path / "run" / checkpoints.FOLDER).iterdir())
    assert files == ["step-000000003.ckpt", "step-000000006.ckpt"]
    assert step_of(checkpoints.newest(tmp_path / "run")) == 6


def killed_while_writing(path: Path) -> None:
    io = checkpoints.AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    checkpoints.torch.save = lambda data, file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), 9))
    io.save_checkpoint({"step": 2}, path)


def test_kill_while_writing_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / checkpoints.FOLDER / "step-1.ckpt"
    assert exit_status(killed_while_writing, path) == -signal.SIGKILL
    assert torch.load(path) == {"step": 1}
    assert checkpoints.newest(tmp_path) == path


def test_the_newest_readable_checkpoint_is_found(tmp_path: Path) -> None:
    io = checkpoints.AtomicCheckpointIO()
    for step in (9, 10, 11):
        io.save_checkpoint({"weights": torch.rand(1000)}, tmp_path / checkpoints.FOLDER / f"step-{step:09}.ckpt")
    newest, middle, oldest = checkpoints.available(tmp_path)
    assert checkpoints.newest(tmp_path) == newest
    newest.write_bytes(newest.read_bytes()[:-500])
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 255  # a flipped bit in the weights
    middle.write_bytes(content)
    with pytest.warns(UserWarning, match="passed over"):
        assert checkpoints.newest(tmp_path) == oldest
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from"):
        checkpoints.newest(tmp_path / "none")


def test_old_checkpoints_are_pruned_and_a_run_is_not_overwritten(tmp_path: Path) -> None:
    file = recipe(tmp_path, checkpoint__keep=2)
    run("fit", ["--config", str(file)])
    assert [step_of(path) for path in checkpoints.available(tmp_path / "run")] == [32, 30]
    kept = torch.load(checkpoints.newest(tmp_path / "run"))
    assert kept["class_names"] == [f"class {i}" for i in range(4)]
    assert kept["recipe"] == "tiny"
    assert "drop_path_rate: 0.3" in kept["settings"]
    with pytest.raises(ValueError, match="go on with --resume"):
        run("fit", ["--config", str(file)])


def test_another_global_batch_is_not_resumed(tmp_path: Path) -> None:
    """It would take other steps of other rates than the schedule's."""
    file = recipe(tmp_path, trainer__max_epochs=2, trainer__accumulate_grad_batches=2)
    run("fit", ["--config", str(file)])
    for same in ([], ["--data.init_args.batch_size=8", "--trainer.accumulate_grad_batches=1"]):
        run("fit", ["--config", str(file), "--resume", *same])
    with pytest.raises(ValueError, match=r"global batch .* is 16, expected the 8 of the checkpoint"):
        run("fit", ["--config", str(file), "--resume", "--data.init_args.batch_size=8"])
    run("test", ["--config", str(file), "--resume", "--data.init_args.batch_size=8"])


def test_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"loss is nan at batch 3 of epoch 1 \(step 11, .*likely causes: .*rate"
    ) as error:
        run("fit", ["--config", str(recipe(tmp_path, data__init_args__broken_batch=11))])
    assert isinstance(error.value, ValueError)
    saved = torch.load(checkpoints.newest(tmp_path / "run"))
    assert saved["global_step"] == 9
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_sigterm_waits_for_the_end_of_an_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint would not hold the gradients of the batches before."""
    step = ClassificationTask.training_step

    def terminate_once(self: ClassificationTask, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> object:
        if self.global_step == 4 and batch_idx == 3:  # the first of three
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    changes = {"trainer__accumulate_grad_batches": 3, "checkpoint__every_n_steps": None}
    file = recipe(tmp_path, **changes)
    monkeypatch.setattr(ClassificationTask, "training_step", terminate_once)
    with pytest.raises(SystemExit):
        run("fit", ["--config", str(file)])
    monkeypatch.undo()
    assert step_of(checkpoints.newest(tmp_path / "run")) == 5
    run("fit", ["--config", str(file), "--resume"])
    (tmp_path / "whole").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "whole", **changes))])
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole" / "run"))

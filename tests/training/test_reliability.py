"""What happens on real clusters: kills, full disks, SIGTERM, losses that are not finite."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.training.tiny import recipe

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from iformer.cli import main; main()", "fit", "--config"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(file: Path, *arguments: str) -> subprocess.Popen[str]:
    """``iformer fit`` in a process, and its workers in its process group."""
    return subprocess.Popen(
        [*COMMAND, str(file), *arguments], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    )


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def step_of(path: Path) -> int:
    return int(re.findall(r"\d+", path.stem)[0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data__init_args__workers": 2, "trainer__accumulate_grad_batches": 2, "checkpoint__every_n_steps": 1},
        {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]},
    ],
    ids=["plain", "workers-accumulation", "ema"],
)
def test_killed_anywhere_and_resumed_ends_with_the_same_weights(changes: dict, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    changes = {"trainer__max_epochs": 6, **changes}
    uninterrupted = start(recipe(tmp_path / "whole", **changes))
    file = recipe(tmp_path, **changes)
    moments = random.Random(os.getpid())
    middles = 0
    for _ in range(3):
        before = checkpoints.available(tmp_path / "run")
        process = start(file, *["--resume"] * bool(before))
        while checkpoints.available(tmp_path / "run")[:1] == before[:1] and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.4)
        ended = process.poll()
        if ended is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert ended in (None, 0)
        steps = step_of(checkpoints.available(tmp_path / "run")[0])
        middles += steps % (4 if "trainer__accumulate_grad_batches" in changes else 8) != 0
        if ended == 0:
            break
    else:
        _, errors = start(file, "--resume").communicate()
        assert (tmp_path / "run" / "model.safetensors").exists(), errors
    uninterrupted.communicate()
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole" / "run"))


@pytest.mark.parametrize("step", [3, 8, 12, 16, 24])
def test_each_checkpoint_leads_to_the_same_weights(step: int, whole_run: Path, tmp_path: Path) -> None:
    """Checkpoints in the middle of an epoch (3, 12) and at its end (8, 16, 24), read in this process."""
    kept = tmp_path / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    name = f"step-{step:09}.ckpt"
    (kept / name).symlink_to(whole_run / "run" / checkpoints.FOLDER / name)
    run("fit", ["--config", str(recipe(tmp_path)), "--resume"])
    assert_same(weights(tmp_path / "run"), weights(whole_run / "run"))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its checkpoints kept."""
    folder = tmp_path_factory.mktemp("whole")
    run("fit", ["--config", str(recipe(folder, checkpoint__keep=100))])
    return folder

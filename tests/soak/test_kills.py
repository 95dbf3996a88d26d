"""Fifty kills of a run, half of them in validation and export: it ends with the log and weights of one never killed."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file

from iformer.training import checkpoints
from tests.processes import start, wait_for
from tests.training.tiny import log_of, recipe

KILLS = 50
CHANGES = {"trainer__log_every_n_steps": 1, "trainer__max_epochs": 6, "data__init_args__length": 64}
SLOW = [{"class_path": "tests.soak.test_kills.Slow"}]


class Slow(Callback):
    """Makes validation and export last long enough to be killed in."""

    def on_validation_batch_end(self, trainer, *_):  # type: ignore[no-untyped-def]
        Path(trainer.default_root_dir, "validating").touch()
        time.sleep(0.05)

    def on_validation_end(self, trainer, *_):  # type: ignore[no-untyped-def]
        Path(trainer.default_root_dir, "validating").unlink(missing_ok=True)

    def on_fit_end(self, trainer, *_):  # type: ignore[no-untyped-def]
        Path(trainer.default_root_dir, "exporting").touch()


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = start(recipe(tmp_path / "whole", **CHANGES))
    whole.join()
    assert whole.exitcode == 0
    moments, kills, runs, places = random.Random(0), 0, 0, {"training": 0, "validating": 0, "exporting": 0}
    while kills < KILLS:
        runs += 1
        (tmp_path / str(runs)).mkdir()
        folder = tmp_path / str(runs) / "run"
        file = recipe(tmp_path / str(runs), trainer__callbacks=SLOW, **CHANGES)
        while True:
            before = checkpoints.available(folder)
            for place in ("validating", "exporting"):
                (folder / place).unlink(missing_ok=True)
            process = start(file, *["--resume"] * bool(before))
            place = moments.choice(["training", "training", "validating", "exporting"])
            if place == "training":
                wait_for(lambda f=folder, before=before: checkpoints.available(f)[:1] != before[:1], process)
                process.join(moments.random())
            else:
                wait_for(lambda f=folder, place=place: (f / place).exists(), process)
                process.join(moments.random() * 0.1)
            if process.exitcode is not None or kills == KILLS:
                process.join()
                assert process.exitcode == 0, file.with_name("stderr").read_text()
                break
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            places[place] += 1
        assert log_of(folder) == log_of(tmp_path / "whole/run")
        first, second = (load_file(run / "model.safetensors") for run in (folder, tmp_path / "whole/run"))
        assert all(torch.equal(first[key], second[key]) for key in second)
        assert not [path for path in folder.iterdir() if path.name.startswith(".iformer")]
    print(f"{kills} kills in {runs} runs: {places}")

"""The best validation: its checkpoint is kept and exported, and a run ends that finds no better one."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.conftest import Command
from tests.training.tiny import log_of, recipe

AVERAGED = [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}]
STILL = {"lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0, "warmup_epochs": 0}
ALL_KEPT = {"checkpoint__keep": 100, "trainer__log_every_n_steps": 1}


def validations(folder: Path) -> dict[int, float]:
    """The accuracy after each step that was validated."""
    return {int(r["step"]) + 1: float(r["val_accuracy"]) for r in log_of(folder / "run") if r["val_accuracy"]}


def resumed_from(step: int, whole: Path, folder: Path, **changes: Any) -> None:
    """Go on with a run in ``folder`` from a checkpoint of ``whole``."""
    kept = folder / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    name = f"step-{step:09}.ckpt"
    (kept / name).symlink_to(whole / "run" / checkpoints.FOLDER / name)
    for path in (f"{checkpoints.FOLDER}/{checkpoints.BEST}", "best.json", "metrics.csv"):
        shutil.copy(whole / "run" / path, folder / "run" / path)
    run("fit", ["--config", str(recipe(folder, **changes)), "--resume"])
    assert log_of(folder / "run") == log_of(whole / "run")
    assert (folder / "run/best.json").read_text() == (whole / "run/best.json").read_text()
    first, second = (load_file(each / "run/model.safetensors") for each in (whole, folder))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("callbacks", [[], AVERAGED], ids=["plain", "averaged"])
def test_the_best_weights_are_exported_also_of_a_resumed_run(callbacks: list[Any], tmp_path: Path) -> None:
    changes = {**ALL_KEPT, "checkpoint__best": True, "trainer__callbacks": callbacks, "trainer__max_epochs": 3}
    (tmp_path / "whole").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "whole", **changes))])
    found = validations(tmp_path / "whole")
    best = json.loads((tmp_path / "whole/run/best.json").read_text())
    assert best["step"] == max(found, key=lambda step: found[step])  # the first of the best
    assert best == {
        "metric": "val_accuracy",
        "value": pytest.approx(max(found.values())),
        "step": best["step"],
        "epoch": best["step"] // 8,
    }
    exported = load_file(tmp_path / "whole/run/model.safetensors")
    kept = torch.load(tmp_path / "whole/run" / checkpoints.FOLDER / f"step-{best['step']:09}.ckpt")["state_dict"]
    assert all(torch.equal(value, kept[f"model.{name}"]) for name, value in exported.items())
    for step in (8, 12):  # before a validation, and in the middle of an epoch
        resumed_from(step, tmp_path / "whole", tmp_path / str(step), **changes)


def test_the_best_checkpoint_outlives_the_others(tmp_path: Path) -> None:
    """With a learning rate of 0 and BatchNorm frozen the first validation remains the best one."""
    changes = {"model__init_args__optimization": STILL, "freeze": {"stages": "all"}}
    file = str(recipe(tmp_path, checkpoint__best=True, checkpoint__keep=1, trainer__max_epochs=3, **changes))
    run("fit", ["--config", file])
    assert torch.load(tmp_path / "run" / checkpoints.FOLDER / checkpoints.BEST)["global_step"] == 8
    assert [path.name for path in checkpoints.available(tmp_path / "run")] == ["step-000000024.ckpt"]
    run("test", ["--config", file, f"--ckpt_path={tmp_path / 'run' / checkpoints.FOLDER / checkpoints.BEST}"])


def test_a_run_ends_when_nothing_gets_better(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes: dict[str, Any] = {"model__init_args__optimization": STILL, **ALL_KEPT}
    changes |= {"checkpoint__best": True, "trainer__max_epochs": 9, "early_stopping": {"patience": 2}}
    changes["data__init_args__augment"] = False
    (tmp_path / "whole").mkdir()
    with caplog.at_level(logging.INFO):
        run("fit", ["--config", str(recipe(tmp_path / "whole", **changes))])
    best = json.loads((tmp_path / "whole/run/best.json").read_text())["step"]
    steps = list(validations(tmp_path / "whole"))
    assert len(steps) < 9
    assert steps[-1] == best + 16
    assert "Ended early: no better val_accuracy than" in caplog.text
    for step in (best + 3 - best % 3, steps[-1]):  # while it counts, and when it has ended
        resumed_from(step, tmp_path / "whole", tmp_path / str(step), **changes)


def test_mistakes_take_one_line(tmp_path: Path, iformer: Command) -> None:
    file = str(recipe(tmp_path))
    none = "--trainer.limit_val_batches=0"
    mistakes = {
        "checkpoint.best needs validations, but trainer.limit_val_batches is 0": ["--checkpoint.best=true", none],
        "early_stopping.patience needs validations": ["--early_stopping.patience=3", none],
        "early_stopping.patience": ["--early_stopping.patience=0"],
        "early_stopping.min_delta": ["--early_stopping.min_delta=-1"],
    }
    for message, arguments in mistakes.items():
        status, _, err = iformer("fit", "--config", file, *arguments)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert message in err

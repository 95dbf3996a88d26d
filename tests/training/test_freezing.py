"""Parts of a network that are frozen, in runs of every kind."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from iformer.models.backbone import feature_maps
from iformer.training import checkpoints, freezing
from iformer.training.launcher import run
from tests.conftest import Command
from tests.processes import start_ranks
from tests.training.tiny import log_of, recipe


def state(folder: Path, step: int) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(folder / "run" / checkpoints.FOLDER / f"step-{step:09}.ckpt")["state_dict"]
    return weights


def changed(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """The parts of the network in which something differs: its parameters, or BatchNorm's statistics."""
    names = [name.removeprefix("model.") for name in first if not torch.equal(first[name], second[name])]
    return {".".join(name.split(".")[: 2 if name.startswith("stages") else 1]) for name in names}


REST = {"stages.1", "norm", "head"}
FROZEN = {"stem", "stages.0"}


def test_the_first_stage_is_frozen_and_then_trained(tmp_path: Path) -> None:
    changes = {"checkpoint__keep": 100, "freeze": {"stages": 1, "epochs": 2}, "trainer__log_every_n_steps": 1}
    (tmp_path / "whole").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "whole", **changes))])
    assert changed(state(tmp_path / "whole", 3), state(tmp_path / "whole", 16)) == REST
    assert changed(state(tmp_path / "whole", 16), state(tmp_path / "whole", 18)) == REST | FROZEN
    for step in (12, 16, 21):  # while frozen, in between, and after that
        folder = tmp_path / str(step)
        kept = folder / "run" / checkpoints.FOLDER
        kept.mkdir(parents=True)
        name = f"step-{step:09}.ckpt"
        (kept / name).symlink_to(tmp_path / "whole/run" / checkpoints.FOLDER / name)
        shutil.copy(tmp_path / "whole/run/metrics.csv", folder / "run")
        run("fit", ["--config", str(recipe(folder, **changes)), "--resume"])
        whole, resumed = (load_file(each / "run/model.safetensors") for each in (tmp_path / "whole", folder))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
        assert log_of(folder / "run") == log_of(tmp_path / "whole/run")


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_all_but_the_head(grad_checkpointing: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"freeze": {"stages": "all"}, "trainer__max_epochs": 2}
    changes["model__init_args__grad_checkpointing"] = grad_checkpointing
    run("fit", ["--config", str(recipe(tmp_path, checkpoint__keep=100, **changes))])
    assert changed(state(tmp_path, 3), state(tmp_path, 16)) == {"head"}


def test_two_processes_train_the_same_after_frozen_epochs(tmp_path: Path) -> None:
    file = recipe(tmp_path, checkpoint__keep=100, freeze={"stages": 1, "epochs": 1}, trainer__max_epochs=2)
    ranks = start_ranks(2, file, "--data.init_args.batch_size=2", "--trainer.devices=2")
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], file.with_name("stderr0").read_text()
    assert changed(state(tmp_path, 3), state(tmp_path, 8)) == REST
    assert changed(state(tmp_path, 8), state(tmp_path, 16)) == REST | FROZEN


STAGES = {
    "resnet18": ["layer1.", "layer2.", "layer3."],
    "convnext_atto": ["stages.0.", "stages.1.", "stages.2."],
    "swin_tiny_patch4_window7_224": ["layers.0.", "layers.1.", "layers.2."],
}


@pytest.mark.parametrize("name", STAGES)
def test_other_backbones(name: str) -> None:
    """As classifiers and inside of segmenters and detectors."""
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=2)
    expected = [parameter.shape for parameter in freezing._first(whole, 2)]
    stages = STAGES[name]
    names = [name for name, _ in whole.named_parameters()][: len(expected)]
    assert all(any(name.startswith(stage) for name in names) for stage in stages[:2])
    assert not any(name.startswith(stages[2]) for name in names)
    for extractor in ({}, {"feature_cls": "getter"}):
        inside = nn.ModuleDict({"body": feature_maps(name, False, **extractor), "decoder": nn.Linear(2, 2)})
        assert [parameter.shape for parameter in freezing._first(inside, 2)] == expected
        frozen = {id(parameter) for parameter in freezing._first(inside, "all")}
        assert {name for name, p in inside.named_parameters() if id(p) not in frozen} == {
            "decoder.weight",
            "decoder.bias",
        }


def test_mistakes_take_one_line(tmp_path: Path, iformer: Command) -> None:
    file = str(recipe(tmp_path))
    mistakes = {
        "freeze.stages is 5, but the backbone has 2 stages": ["--freeze.stages=5"],
        "freeze.epochs": ["--freeze.stages=1", "--freeze.epochs=0"],
        "freeze.stages: expected": ["--freeze.stages=head"],
    }
    for message, arguments in mistakes.items():
        status, _, err = iformer("fit", "--config", file, *arguments)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert message in err

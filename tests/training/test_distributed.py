"""Two processes against one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.processes import start_ranks
from tests.training.tiny import MODEL, log_of, recipe

FROZEN = [{"class_path": "tests.training.tiny.FrozenBatchNorm"}]
# What is drawn for a batch differs between one process and two; what is drawn for a sample does not.
SAMPLES_ONLY = {
    "model__init_args__model_args": MODEL,
    "model__init_args__mixup": 0.0,
    "model__init_args__cutmix": 0.0,
    "trainer__callbacks": FROZEN,
    "trainer__max_epochs": 3,
    "trainer__gradient_clip_val": 0.5,
}
TWO = ["--data.init_args.batch_size=2", "--trainer.devices=2"]


def run_two(file: Path, *arguments: str) -> None:
    ranks = start_ranks(2, file, *TWO, *arguments)
    for process in ranks:
        process.join()
    told = file.with_name("stderr1").read_text() + file.with_name("stderr0").read_text()
    assert [process.exitcode for process in ranks] == [0, 0], told


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that one process trains to."""
    folder = tmp_path_factory.mktemp("alone")
    run("fit", ["--config", str(recipe(folder, **SAMPLES_ONLY))])
    return load_file(folder / "run" / "model.safetensors")


@pytest.mark.parametrize("strategy", ["ddp", {"class_path": "tests.training.tiny.CPUSharding"}], ids=["ddp", "fsdp"])
def test_two_processes_train_to_the_weights_of_one(
    strategy: str | dict, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run_two(recipe(tmp_path, **SAMPLES_ONLY, trainer__strategy=strategy))
    together = load_file(tmp_path / "run" / "model.safetensors")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        other = together[name]
        if name.endswith("qkv.bias"):
            # A bias of the keys moves all scores of a query alike: its true gradient is zero, and Adam blows up what
            # rounding leaves of it. It changes no output.
            (q, _, v), (other_q, _, other_v) = value.chunk(3), other.chunk(3)
            value, other = torch.cat([q, v]), torch.cat([other_q, other_v])
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-5, msg=name)


def test_batchnorm_statistics_are_shared_and_resumption_is_exact(tmp_path: Path) -> None:
    statistics = [{"class_path": "tests.training.tiny.KeepStatistics"}]
    (tmp_path / "resumed" / "run" / checkpoints.FOLDER).mkdir(parents=True)
    run_two(recipe(tmp_path, trainer__callbacks=statistics, checkpoint__keep=100), "--trainer.strategy=ddp")
    (own, own_after), (other, other_after) = (
        [torch.load(tmp_path / "run" / f"{moment}-{rank}.pt") for moment in ("before", "after")] for rank in range(2)
    )
    assert any(not torch.equal(own[name], other[name]) for name in own)
    for name, value in own_after.items():
        assert torch.equal(value, other_after[name])
        torch.testing.assert_close(value, (own[name] + other[name]) / 2)

    name = "step-000000012.ckpt"  # in the middle of the second epoch
    (tmp_path / "resumed" / "run" / checkpoints.FOLDER / name).symlink_to(tmp_path / "run" / checkpoints.FOLDER / name)
    (tmp_path / "resumed" / "run" / "metrics.csv").symlink_to(tmp_path / "run" / "metrics.csv")
    run_two(recipe(tmp_path / "resumed"), "--trainer.strategy=ddp", "--resume")
    assert log_of(tmp_path / "resumed" / "run") == log_of(tmp_path / "run")
    whole, resumed = (load_file(path / "run" / "model.safetensors") for path in (tmp_path, tmp_path / "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

"""Training on GPUs: types, exact resumption with deterministic kernels, and several devices."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.gpu.conditions import real, two
from tests.processes import start, start_ranks, wait_for
from tests.segmentation.test_task import recipe as segmentation_recipe
from tests.training.test_distributed import SAMPLES_ONLY
from tests.training.tiny import log_of, recipe

pytestmark = [pytest.mark.gpu, real]

ON_GPU = {"trainer__accelerator": "gpu", "trainer__devices": 1, "trainer__log_every_n_steps": 1}
RANKS = 2 if torch.cuda.device_count() > 1 else 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_training_in_each_type(precision: str, compiled: bool, tmp_path: Path) -> None:
    changes = {"trainer__precision": precision, "model__init_args__compile_model": compiled}
    run("fit", ["--config", str(recipe(tmp_path, **ON_GPU, **changes))])
    losses = torch.tensor([float(row["loss"]) for row in log_of(tmp_path / "run") if row["loss"]])
    assert len(losses) == 32
    assert bool(((losses > 0.1) & (losses < 3)).all())  # about log(4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_killed_and_resumed_ends_with_the_same_bits(precision: str, tmp_path: Path) -> None:
    changes = {**ON_GPU, "trainer__deterministic": True, "trainer__precision": precision}
    changes |= {"data__init_args__workers": 1, "trainer__max_epochs": 6}
    (tmp_path / "whole").mkdir()
    whole = start(recipe(tmp_path / "whole", **changes))
    whole.join()
    file = recipe(tmp_path, **changes)
    process = start(file)
    wait_for(lambda: len(checkpoints.available(tmp_path / "run")) > 1, process)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process = start(file, "--resume")
    process.join()
    assert (whole.exitcode, process.exitcode) == (0, 0), file.with_name("stderr").read_text()
    one, other = (load_file(folder / "run" / "model.safetensors") for folder in (tmp_path, tmp_path / "whole"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole" / "run")


def test_a_segmenter_trains_with_deterministic_kernels(scenes: Path, tmp_path: Path) -> None:
    """In a process of its own: in one that has used cuBLAS before, it is too late to ask it for them."""
    file = segmentation_recipe(scenes, tmp_path, **{**ON_GPU, "trainer__deterministic": True})
    process = start(file)
    process.join()
    assert process.exitcode == 0, file.with_name("stderr").read_text()
    assert [row["val_miou"] for row in log_of(tmp_path / "run") if row["val_miou"]]


def run_ranks(count: int, file: Path, *arguments: str) -> None:
    batch = f"--data.init_args.batch_size={4 // count}"
    ranks = start_ranks(count, file, "--trainer.accelerator=gpu", f"--trainer.devices={count}", batch, *arguments)
    for process in ranks:
        process.join(300)
    told = "".join(file.with_name(f"stderr{rank}").read_text() for rank in range(count))
    assert [process.exitcode for process in ranks] == [0] * count, told


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_devices_together_train_to_the_weights_of_one(strategy: str, tmp_path: Path) -> None:
    """On as many devices as there are, up to two."""
    (tmp_path / "alone").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "alone", **{**SAMPLES_ONLY, **ON_GPU}))])
    run_ranks(RANKS, recipe(tmp_path, **SAMPLES_ONLY), f"--trainer.strategy={strategy}")
    alone, together = (load_file(folder / "run" / "model.safetensors") for folder in (tmp_path / "alone", tmp_path))
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        if not name.endswith("qkv.bias"):  # whose part for the keys has no gradient but rounding
            # Adam's first steps go by the signs of gradients, and rounding decides those of the smallest.
            difference = together[name].double() - value.double()
            assert float(difference.norm()) < 0.02 * float(value.double().norm()) + 0.02, name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_sharded_training_in_16_bits(precision: str, tmp_path: Path) -> None:
    options = ["--trainer.strategy=fsdp", f"--trainer.precision={precision}"]
    run_ranks(RANKS, recipe(tmp_path), *options)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())


def test_synchronised_batchnorm_trains(tmp_path: Path) -> None:
    run_ranks(RANKS, recipe(tmp_path), "--trainer.strategy=ddp", "--trainer.sync_batchnorm=true")
    assert (tmp_path / "run" / "model.safetensors").is_file()


@two
def test_synchronised_batchnorm_sees_all_devices(tmp_path: Path) -> None:
    statistics = [{"class_path": "tests.training.tiny.KeepStatistics"}]
    file = recipe(tmp_path, trainer__callbacks=statistics)
    run_ranks(2, file, "--trainer.strategy=ddp", "--trainer.sync_batchnorm=true")
    own, other = (torch.load(tmp_path / "run" / f"before-{rank}.pt", map_location="cpu") for rank in range(2))
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], msg=name)

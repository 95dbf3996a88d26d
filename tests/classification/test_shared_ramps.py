"""Training all ramps at once: what is drawn, resumption, and several processes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from iformer.classification.data import ImageData
from iformer.classification.shared_ramps import SharedRampsTask, draw
from iformer.models.shared_ramps import is_shared
from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.processes import start_ranks
from tests.training.test_distributed import FROZEN, TWO
from tests.training.tiny import MODEL, log_of, recipe

TASK = {
    "model__class_path": "iformer.classification.shared_ramps.SharedRampsTask",
    "trainer__log_every_n_steps": 1,
    "trainer__max_epochs": 3,
}
MOST = (2, 2)


def test_two_ramps_are_complements_and_more_are_a_sandwich() -> None:
    generator = np.random.default_rng(0)
    drawn = [draw(generator, (2, 4, 6), 2) for _ in range(300)]
    assert all([a + b for a, b in zip(*pair, strict=True)] == [2, 4, 6] for pair in drawn)
    assert {ramp[0] for pair in drawn for ramp in pair} == {0, 1, 2}
    assert len({tuple(pair[0]) for pair in drawn}) > 80  # of 105
    none, every, *others = draw(generator, (2, 4, 6), 4)
    assert (none, every, len(others)) == ([0, 0, 0], [2, 4, 6], 2)


@pytest.mark.parametrize("ramps", [2, 3, 5])
def test_a_step_costs_two_passes_of_the_batch(ramps: int) -> None:
    task = SharedRampsTask("iformer_nano", 4, {**MODEL}, ramps=ramps)
    task.drawn = draw(np.random.default_rng(0), MOST, ramps)
    seen: list[torch.Tensor] = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 0, 0, 0]))
    images = torch.arange(30.0).view(30, 1, 1, 1).expand(30, 3, 32, 32)
    task._training_loss(images, torch.arange(30) % 4).backward()
    assert [len(part) for part in seen] == ramps * [60 // ramps]
    assert torch.equal(torch.cat(seen).long().bincount(), torch.full((30,), 2))
    assert task.model.attention_heads == ((1,), (1,))  # evaluation takes its own ramp


def test_resumption_is_exact(tmp_path: Path) -> None:
    run("fit", ["--config", str(recipe(tmp_path, **TASK, checkpoint__keep=100))])
    folder = tmp_path / "resumed"
    (folder / "run" / checkpoints.FOLDER).mkdir(parents=True)
    name = "step-000000012.ckpt"  # in the middle of the second epoch
    (folder / "run" / checkpoints.FOLDER / name).symlink_to(tmp_path / "run" / checkpoints.FOLDER / name)
    (folder / "run" / "metrics.csv").symlink_to(tmp_path / "run" / "metrics.csv")
    run("fit", ["--config", str(recipe(folder, **TASK)), "--resume"])
    assert log_of(folder / "run") == log_of(tmp_path / "run")
    whole, resumed = (load_file(path / "run" / "model.safetensors") for path in (tmp_path, folder))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("strategy", ["ddp", {"class_path": "tests.training.tiny.CPUSharding"}], ids=["ddp", "fsdp"])
def test_two_processes_train_to_the_weights_of_one(strategy: str | dict[str, Any], tmp_path: Path) -> None:
    samples_only = {
        **TASK,
        "model__init_args__model_args": MODEL,
        "model__init_args__mixup": 0.0,
        "model__init_args__cutmix": 0.0,
        "trainer__callbacks": FROZEN,
        "trainer__max_epochs": 2,
    }
    (tmp_path / "alone").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "alone", **samples_only))])
    file = recipe(tmp_path, **samples_only, trainer__strategy=strategy)
    ranks = start_ranks(2, file, *TWO)
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], file.with_name("stderr0").read_text()
    alone, together = (load_file(path / "run" / "model.safetensors") for path in (tmp_path / "alone", tmp_path))
    for name, value in alone.items():
        if not name.endswith("qkv.bias"):  # of which the keys' part has no true gradient
            torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_the_recipe_of_imagenet_takes_steps_in_a_small_network(tmp_path: Path) -> None:
    for split, name in itertools.product(("train", "val"), ("a", "b")):
        (tmp_path / split / name).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / split / name / f"{i}.png")
    settings = {
        "model.init_args.model_args": {**MODEL, "img_size": 32, "drop_path_rate": 0.2},
        "model.init_args.num_classes": 2,
        "data.init_args.root": tmp_path,
        "data.init_args.image_size": 32,
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 4,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.precision": "bf16-mixed",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": tmp_path / "run",
    }
    run("fit", ["--config=search/imagenet1k_small", *(f"--{key}={value}" for key, value in settings.items())])
    assert is_shared(load_file(tmp_path / "run" / "model.safetensors"))


def test_validation_images_are_kept_apart_though_there_is_a_validation_split(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 3)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{i}.png")
    data = ImageData(str(tmp_path), val_split="train", test_split="val", val_share=0.2, num_workers=0)
    data.setup("fit")
    files = {kind: {path for path, _ in data.samples(kind)} for kind in ("train", "val", "test")}
    assert {kind: len(found) for kind, found in files.items()} == {"train": 32, "val": 8, "test": 6}
    assert not files["train"] & files["val"]
    assert all("train" in path.parts for path in files["val"])
    assert data.divided
    assert data.has_test

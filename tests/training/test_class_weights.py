"""Weights of classes, and the draw that follows them."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from iformer.classification.data import ImageData
from iformer.classification.task import ClassificationTask
from iformer.training import checkpoints
from iformer.training.class_weights import weights_of
from iformer.training.launcher import run
from iformer.training.resumable import ResumableBatchSampler
from tests.conftest import Command
from tests.processes import start, start_ranks, wait_for
from tests.training.tiny import MODEL, log_of, recipe

COUNTS = {"ant": 16, "bee": 6, "cat": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ``train`` of unequal classes, and a folder ``val``."""
    folder = tmp_path_factory.mktemp("unequal")
    random = np.random.default_rng(0)
    for split, counts in (("train", COUNTS), ("val", dict.fromkeys(COUNTS, 1))):
        for name, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def unequal(images: Path, folder: Path, **changes: Any) -> Path:
    """A recipe that draws anew wherever it can, from images of unequal classes."""
    data = {"root": str(images), "image_size": 32, "batch_size": 4, "num_workers": 0, "class_sampling": "balanced"}
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "data": {"class_path": "iformer.classification.data.ImageData", "init_args": data},
        "model__init_args__num_classes": 3,
        "model__init_args__optimization": {"base_batch": None, "warmup_epochs": 0},
        "trainer__max_epochs": 2,
        "trainer__log_every_n_steps": 1,
        "checkpoint__keep": 100,
    }
    return recipe(folder, **{**settings, **changes})


def resumed(whole: Path, folder: Path, step: int) -> None:
    """Put a checkpoint of a run, and its log, where another one goes on."""
    kept = folder / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    name = f"step-{step:09}.ckpt"
    (kept / name).symlink_to(whole / "run" / checkpoints.FOLDER / name)
    shutil.copy(whole / "run" / "metrics.csv", folder / "run")


def assert_same_run(whole: Path, other: Path) -> None:
    first, second = (load_file(folder / "run/model.safetensors") for folder in (whole, other))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert log_of(whole / "run") == log_of(other / "run")


def test_a_balanced_draw_goes_on_anywhere(images: Path, tmp_path: Path) -> None:
    """6 steps in an epoch; with a worker, so that the samples' seeds do not stand in for those of the steps."""
    changes = {"data__init_args__num_workers": 1, "model__init_args__class_weights": {"bee": 2.0}}
    run("fit", ["--config", str(unequal(images, tmp_path / "whole", **changes))])
    for step in (3, 6, 9):
        file = unequal(images, tmp_path / str(step), **changes)
        resumed(tmp_path / "whole", tmp_path / str(step), step)
        run("fit", ["--config", str(file), "--resume"])
        assert_same_run(tmp_path / "whole", tmp_path / str(step))


def test_a_balanced_draw_survives_a_kill(images: Path, tmp_path: Path) -> None:
    run("fit", ["--config", str(unequal(images, tmp_path / "whole"))])
    file = unequal(images, tmp_path / "killed", checkpoint__every_n_steps=1)
    process = start(file)
    wait_for(lambda: len(checkpoints.available(tmp_path / "killed/run")) > 3, process)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        run("fit", ["--config", str(file), "--resume"])
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_two_ranks_go_on_with_a_balanced_draw(images: Path, tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        file = unequal(images, tmp_path / name)
        if name == "resumed":
            resumed(tmp_path / "whole", tmp_path / name, 3)
        more = ["--resume"] if name == "resumed" else []
        ranks = start_ranks(
            2, file, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2", *more
        )
        for process in ranks:
            process.join()
        assert [process.exitcode for process in ranks] == [0, 0], file.with_name("stderr0").read_text()
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("repeats", [1, 2])
def test_ranks_share_what_one_process_draws(repeats: int) -> None:
    weights = np.repeat([1.0, 30.0], [36, 4])
    whole = list(ResumableBatchSampler(40, 12, seed=3, repeats=repeats, weights=weights))
    ranks = [list(ResumableBatchSampler(40, 4, 3, rank, 3, repeats=repeats, weights=weights)) for rank in range(3)]
    for k, batch in enumerate(whole):
        assert sorted(batch) == sorted(key for rank in ranks for key in rank[k])
    keys = [key for batch in whole for key in batch]
    assert len(set(keys)) == len(keys)  # a sample that is drawn again is augmented anew
    assert len({key.sample for key in keys}) < len(keys) / repeats


def test_samples_are_drawn_as_often_as_their_weights_say(images: Path) -> None:
    data = ImageData(str(images), image_size=16, num_workers=0, batch_size=8, class_sampling={"cat": 4.0, "ant": 0.0})
    data.setup()
    assert data.class_counts == list(COUNTS.values())
    sampler = data.train_dataloader().batch_sampler
    assert isinstance(sampler, ResumableBatchSampler)
    drawn = np.zeros(24)
    for epoch in range(2000):
        drawn += np.bincount(sampler.order(epoch), minlength=24)
    shares = np.array([0] * 16 + [1] * 6 + [4] * 2)
    np.testing.assert_allclose(drawn / drawn.sum(), shares / shares.sum(), atol=0.01)


def test_balanced_draws_take_each_class_equally_often(images: Path) -> None:
    data = ImageData(str(images), image_size=16, num_workers=0, batch_size=4, class_sampling="balanced")
    data.setup()
    loader: Any = data.train_dataloader()
    labels = []
    for epoch in range(40):
        loader.batch_sampler.set_epoch(epoch)
        labels += [int(label) for batch in loader for label in batch[1]]
    np.testing.assert_allclose(np.bincount(labels) / len(labels), 1 / 3, atol=0.05)


def test_balanced_weights_are_one_on_average() -> None:
    weights = weights_of("weights", "balanced", "abcd", lambda: [6, 0, 3, 1])
    assert weights == pytest.approx([10 / 18, 0, 10 / 9, 10 / 3])


def test_the_loss_is_weighted_in_training_only(images: Path) -> None:
    pixels, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 0, 0, 1, 2, 2])
    for mixup in (0.0, 0.5):
        task = ClassificationTask(
            "iformer_nano", 3, model_args=MODEL, label_smoothing=0.1, mixup=mixup, class_weights=[1.0, 2.0, 0.5]
        ).eval()
        logged: dict[str, Any] = {}
        task.log = lambda name, value, logged=logged, **_: logged.update({name: value})  # type: ignore[method-assign, assignment]
        task.loss_weights = torch.tensor(task.class_weights)
        task._trainer = type("Trainer", (), {"state": type("State", (), {"fn": "fit"})})()
        if mixup:
            task.mixup = lambda images, labels: (images, F.one_hot(labels, 3) * 0.9 + 0.1 / 3)
        with torch.no_grad():
            loss = task.training_step((pixels, labels), 0)
            task.validation_step((pixels, labels), 0)
            logits = task(pixels)
        targets = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
        each = -(targets * task.loss_weights * logits.log_softmax(1)).sum(1)
        torch.testing.assert_close(loss, each.mean())
        torch.testing.assert_close(logged["val_loss"], F.cross_entropy(logits, labels))


MISTAKES = {
    "model.init_args.class_weights has 2 weights, expected one for each of 3 classes": ("model", "class_weights=[1,2]"),
    "model.init_args.class_weights names cot, which is none of the 3 classes; did you mean cat?": (
        "model",
        "class_weights={cot: 2}",
    ),
    "class_weights has the weight -1, expected 0 or more": ("model", "class_weights=[1,-1,1]"),
    "class_weights is [0.0, 0.0, 0.0], expected a weight above 0": ("model", "class_weights=[0,0,0]"),
    "class_weights": ("model", "class_weights=even"),
    "data.init_args.class_sampling has 4 weights, expected one": ("data", "class_sampling=[1,1,1,1]"),
    "data.init_args.class_sampling names dog, which is none of the 3": ("data", "class_sampling={dog: 1}"),
    "class_sampling has the weight -2, expected 0 or more": ("data", "class_sampling={ant: -2}"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_take_one_line(message: str, images: Path, tmp_path: Path, iformer: Command) -> None:
    part, setting = MISTAKES[message]
    status, _, err = iformer("fit", f"--config={unequal(images, tmp_path)}", f"--{part}.init_args.{setting}")
    assert status == 2
    last = err.splitlines()[-1]
    assert last.startswith("iformer: error: ")
    assert message in last


def test_what_cannot_be_balanced_is_said(tmp_path: Path, iformer: Command) -> None:
    status, _, err = iformer("fit", f"--config={recipe(tmp_path)}", "--model.init_args.class_weights=balanced")
    assert status == 2
    assert "class_weights is balanced, but this data does not tell how many labels a class has" in err.splitlines()[-1]
    with pytest.raises(ValueError, match=r"class_sampling is balanced, expected null for WebDataset shards"):
        ImageData(str(tmp_path), "wds", class_sampling="balanced")

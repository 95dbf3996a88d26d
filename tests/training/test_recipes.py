"""Recipes: each parses, builds and trains; mistakes in them are named in one line."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from iformer.models import saved
from iformer.models.backbone import create
from iformer.training import checkpoints, recipes
from iformer.training.launcher import run
from tests.networks import NARROW
from tests.training.tiny import MODEL, recipe

NAMES = recipes.names()
SMALL = [
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--data.init_args.batch_size=4",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train, val and test of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.effect_noise((40, 40), 50).convert("RGB").save(folder / split / name / f"{i}.jpg")
    return folder


def of_task(task: str) -> list[str]:
    """The recipes whose model is this task's."""
    return [name for name in NAMES if f"iformer.{task}.task" in recipes.read(recipes.find(name))["model"]["class_path"]]


@pytest.mark.parametrize("name", [name for name in of_task("classification") if name != "fashion_mnist"])
def test_each_recipe_takes_two_steps(name: str, images: Path, tmp_path: Path) -> None:
    arguments = [f"--data.init_args.root={images}", "--data.init_args.num_workers=0", "--data.init_args.image_size=32"]
    settings = recipes.read(recipes.find(name))
    task = settings["model"]["init_args"]
    small = {**task.get("model_args", {}), **(MODEL if "nano" not in task["model"] else {}), "img_size": 32}
    if "ablation/" in name and name != "ablation/iformer_small":
        small.pop("attention_heads")  # of the preset, which must be whole
        small = {**task["model_args"], "img_size": 32}
    arguments += [f"--model.init_args.model_args={small}", "--model.init_args.num_classes=2"]
    if task.get("pretrained"):
        arguments.append("--model.init_args.pretrained=false")
    if "distillation" in task:
        saved.save(create("iformer_nano", num_classes=2, **MODEL), tmp_path / "teacher", ["a", "b"])
        arguments.append(f"--model.init_args.distillation.teacher={tmp_path / 'teacher'}")
    check_two_steps([f"--config={name}", *SMALL, *arguments], tmp_path)


def test_fashion_mnist_recipe_takes_two_steps(small_fashion_mnist: Path, tmp_path: Path) -> None:
    check_two_steps(["--config=fashion_mnist", *SMALL, f"--data.init_args.data_dir={small_fashion_mnist}"], tmp_path)


@pytest.mark.parametrize("name", of_task("segmentation"))
def test_segmentation_recipes_take_two_steps(name: str, tmp_path: Path) -> None:
    settings = recipes.read(recipes.find(name))
    task, data = settings["model"]["init_args"], settings["data"]["init_args"]
    for split, kind in itertools.product(("train", "val"), ("images", "labels")):
        folder = tmp_path / "data" / data[f"{split}_{kind}"]
        folder.mkdir(parents=True)
        for i in range(4):
            image = Image.new("L", (40, 40), 1) if kind == "labels" else Image.effect_noise((40, 40), 50)
            image.save(folder / f"{i}.png")
    small = {"channels": 8} if task.get("architecture") == "upernet" else {"neck_channels": 8, "head_channels": 8}
    arguments = [
        f"--data.init_args.root={tmp_path / 'data'}",
        "--data.init_args.num_workers=0",
        "--data.init_args.resize=null",
        "--data.init_args.crop=[32,32]",
        f"--model.init_args.model_args={ {**small, **(NARROW if 'nano' not in task['backbone'] else {})} }",
        "--model.init_args.pretrained=false",
    ]
    check_two_steps([f"--config={name}", *SMALL, *arguments], tmp_path / "run")


def check_two_steps(arguments: list[str], folder: Path) -> None:
    run("fit", [*arguments, f"--trainer.default_root_dir={folder}"])
    checkpoint = torch.load(checkpoints.newest(folder), weights_only=False)
    assert checkpoint["global_step"] == 2
    assert (folder / "config.json").exists()
    assert (folder / "metrics.csv").exists()


# Section 4.1 of the paper and the release: what all models share at 224 and at 384, and what each has of its own.
ALWAYS = {
    "label_smoothing": 0.1, "cooldown_epochs": 10, "auto_augment": "rand-m9-mstd0.5-inc1",
    "scale": [0.08, 1.0], "ratio": [0.75, pytest.approx(4 / 3)], "hflip": 0.5, "train_interpolation": "random",
    "random_erasing": 0.25, "erasing_mode": "pixel",
}  # fmt: skip
AT_224 = {
    **ALWAYS, "max_epochs": 310, "warmup_epochs": 5, "warmup_lr": 1e-6, "base_batch": 1024, "lr": 1e-3,
    "weight_decay": 0.05, "mixup": 0.8, "cutmix": 1.0, "image_size": 224, "crop_pct": 0.9,
}  # fmt: skip
AT_384 = {
    **ALWAYS, "max_epochs": 30, "warmup_epochs": 0, "base_batch": 512, "batch_size": 32, "weight_decay": 1e-8,
    "mixup": 0.1, "cutmix": 0.1, "gradient_clip_val": 1.0, "image_size": 384, "crop_pct": 1.0,
}  # fmt: skip
OWN = {
    "small": {"drop_path_rate": 0.2, "min_lr": 1e-6, "gradient_clip_val": None, "repeats": 1},
    "base": {"drop_path_rate": 0.4, "min_lr": 1e-5, "gradient_clip_val": 1.0, "repeats": 3},
    "large": {"drop_path_rate": 0.5, "min_lr": 1e-5, "gradient_clip_val": 1.0, "repeats": 3},
    "small_384": {"drop_path_rate": 0.3, "lr": 1e-5, "min_lr": 1e-6, "repeats": 1},
    "base_384": {"drop_path_rate": 0.5, "lr": 5e-6, "min_lr": 5e-7, "repeats": 3},
    "large_384": {"drop_path_rate": 0.6, "lr": 1e-5, "min_lr": 1e-6, "repeats": 3},
}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("imagenet1k/", "ablation/"))])
def test_imagenet_recipes_follow_the_paper(name: str) -> None:
    settings = recipes.read(recipes.find(name))
    task, trainer = settings["model"]["init_args"], settings["trainer"]
    found = {**task, **task["model_args"], **task["optimization"], **settings["data"]["init_args"], **trainer}
    kind, model = name.split("/iformer_")
    expected = {**(AT_384 if "384" in name else AT_224), **OWN[model if kind == "imagenet1k" else "small"]}
    if kind == "ablation":
        expected["max_epochs"] = 110
    assert {key: found[key] for key in expected} == expected
    assert "callbacks" not in trainer  # no average of the weights


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ade20k/semantic_fpn")])
def test_ade20k_recipes_follow_the_paper(name: str) -> None:
    settings = recipes.read(recipes.find(name))
    optimization, trainer = settings["model"]["init_args"]["optimization"], settings["trainer"]
    assert (trainer["max_epochs"], trainer["max_steps"], optimization["base_batch"]) == (-1, 80_000, 16)
    assert (optimization["lr"], optimization["weight_decay"]) == (2e-4, 1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("ade20k/")])
def test_runs_counted_in_steps_are_validated_at_their_end(name: str) -> None:
    trainer = recipes.read(recipes.find(name))["trainer"]
    assert trainer["check_val_every_n_epoch"] is None
    assert trainer["max_steps"] % trainer["val_check_interval"] == 0


def test_finetune_begins_from_local_weights_of_another_size(images: Path, tmp_path: Path) -> None:
    small = {**MODEL, "img_size": 32}
    common = [*SMALL, f"--data.init_args.root={images}", "--data.init_args.num_workers=0"]
    first = [*common, "--model.init_args.num_classes=2", "--data.init_args.image_size=32", "--config=finetune"]
    run("fit", [*first, f"--trainer.default_root_dir={tmp_path / 'a'}", "--model.init_args.pretrained=false",
                f"--model.init_args.model_args={small}"])  # fmt: skip
    from iformer.classification.task import ClassificationTask

    begun = ClassificationTask("iformer_small", 2, str(tmp_path / "a"), {**MODEL, "img_size": 64}).model
    trained = ClassificationTask("iformer_small", 2, str(tmp_path / "a"), small).model
    assert begun.stages[0].pos_embed.shape == (16, 16, 8)
    assert torch.equal(begun.stem.conv1.weight, trained.stem.conv1.weight)
    assert torch.equal(begun.head.fc.weight, trained.head.fc.weight)
    fewer = ClassificationTask("iformer_small", 5, str(tmp_path / "a"), small).model
    assert torch.equal(fewer.stem.conv1.weight, trained.stem.conv1.weight)
    assert fewer.head.fc.weight.shape == (5, 8)


@pytest.mark.parametrize(("per", "base_batch", "accumulate"), [("step", None, 1), ("epoch", 8, 1), ("step", 8, 2)])
def test_learning_rate_follows_the_formulas(per: str, base_batch: int | None, accumulate: int, tmp_path: Path) -> None:
    import csv

    lr, low, warm, warmup, cooldown, epochs, batches = 1e-2, 1e-4, 1e-5, 2, 2, 8, 4
    optimization = {"lr": lr, "min_lr": low, "warmup_lr": warm, "warmup_epochs": warmup, "cooldown_epochs": cooldown}
    file = recipe(
        tmp_path,
        model__init_args__optimization={**optimization, "base_batch": base_batch, "per": per},
        data__init_args__length=4 * batches,
        trainer__max_epochs=epochs,
        trainer__log_every_n_steps=1,
        trainer__limit_val_batches=0,
        trainer__accumulate_grad_batches=accumulate,
    )
    run("fit", ["--config", str(file)])
    with open(tmp_path / "run" / "metrics.csv") as metrics:
        found = [float(row["lr"]) for row in csv.DictReader(metrics) if row["lr"]]
    steps = batches // accumulate
    assert len(found) == epochs * steps
    scale = 4 * accumulate / base_batch if base_batch else 1
    for step, rate in enumerate(found):
        t = step / steps if per == "step" else step // steps
        length = epochs - cooldown
        expected = low + (lr - low) * (1 + math.cos(math.pi * t / length)) / 2
        if t < warmup:
            expected = warm + t * (lr - warm) / warmup
        if t >= length:
            expected = low
        assert rate == pytest.approx(scale * expected, rel=1e-5), step


def test_a_run_counted_in_steps_decays_over_them(tmp_path: Path) -> None:
    import csv

    lr, low, warmup, steps = 1e-2, 1e-4, 3, 12
    file = recipe(
        tmp_path,
        model__init_args__optimization={
            "lr": lr, "min_lr": low, "warmup_lr": 0.0, "warmup_epochs": warmup, "base_batch": None, "per": "step",
        },
        trainer__max_epochs=-1,
        trainer__max_steps=steps,  # an epoch and a half
        trainer__log_every_n_steps=1,
    )  # fmt: skip
    run("fit", ["--config", str(file)])
    with open(tmp_path / "run" / "metrics.csv") as metrics:
        found = [float(row["lr"]) for row in csv.DictReader(metrics) if row["lr"]]
    assert found == pytest.approx(
        [
            step / warmup * lr if step < warmup else low + (lr - low) * (1 + math.cos(math.pi * step / steps)) / 2
            for step in range(steps)
        ],
        rel=1e-5,
        abs=1e-12,
    )


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({"model__init_args__mixupp": 0.2}, [], "unknown key mixupp, did you mean mixup?"),
        ({"trainer__max_epoch": 3}, [], "did you mean trainer.max_epochs?"),
        ({"trainr": {"max_epochs": 3}}, [], "did you mean trainer.max_epochs?"),
        ({"model__init_args__optimization__warmup": 3}, [], "did you mean optimization.warmup"),
        ({"model__init_args__optimization__lr": "high"}, [], "optimization.lr: expected a valid number, got high"),
        ({"data__class_path": "tests.training.tiny.TinyDat"}, [], "TinyDat"),
        ({"model__class_path": "no_such_module.Task"}, [], "no_such_module"),
        ({}, ["--trainer.max_epoch", "3"], "did you mean trainer.max_epochs?"),
        ({}, ["--trainer.max_epochs", "three"], "trainer.max_epochs: expected int, got three"),
        ({"model__init_args__model": "iformer_smal"}, [], "did you mean iformer_small?"),
        ({"model__init_args__num_classes": 5}, [], "num_classes is 5, but the data has 4 classes"),
        ({"data__init_args__label_offset": 1, "data__init_args__repeats": 1}, [], "num_classes is 4"),
        ({"model__init_args__model_args__no_such": 5}, [], "no_such"),
        ({"model__init_args__pretrained": "missing.safetensors"}, [], "missing.safetensors: no such file"),
        ({"model__init_args__optimization__cooldown_epochs": 9}, [], "max_epochs is 4"),
    ],
)
def test_mistakes_are_named_in_one_line(changes: dict, arguments: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError)) as error:
        run("fit", ["--config", str(recipe(tmp_path, **changes)), *arguments])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_recipe_names() -> None:
    name, (config, rest) = recipes.resolve(["--resume", "--config", "imagenet1k/iformer_small"])
    assert (name, rest) == ("imagenet1k/iformer_small", "--resume")
    assert yaml.safe_load(config.removeprefix("--config=")) == recipes.read(recipes.find(name))
    assert recipes.resolve(["--config=cifar10.yaml"])[0] == "cifar10"
    with pytest.raises(ValueError, match=r"--config imagenet1k/iformer_smal: .* imagenet1k/iformer_small"):
        recipes.resolve(["--config", "imagenet1k/iformer_smal"])

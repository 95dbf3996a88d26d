"""Images with several labels, from their lists to prediction with an exported file."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from iformer.classification.label_lists import MultiLabelData
from iformer.classification.metrics import best_thresholds, per_label
from iformer.classification.multilabel import MultiLabelTask
from iformer.models import saved
from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.conftest import Command
from tests.processes import start_ranks
from tests.training.test_class_weights import assert_same_run, resumed
from tests.training.tiny import MODEL, recipe

NAMES = ["blue", "green", "red"]
PLAIN: dict[str, Any] = {
    "image_size": 32, "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 1.0, "num_workers": 0, "batch_size": 4,
    "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0,
}  # fmt: skip


def picture(labels: list[str], seed: int) -> Image.Image:
    """Dark noise, with a bright third for each label in its colour."""
    pixels = np.random.default_rng(seed).integers(0, 60, (32, 36, 3), dtype=np.uint8)
    for label in labels:
        number = NAMES.index(label)
        pixels[:, 12 * number : 12 * number + 12, 2 - number] += 190
    return Image.fromarray(pixels)


def labels_of(number: int) -> list[str]:
    """All combinations of the labels in turn, none among them."""
    return [name for bit, name in enumerate(NAMES) if number >> bit & 1]


def write_split(root: Path, split: str, count: int) -> None:
    (root / split).mkdir(parents=True)
    rows = [["file", "labels"]]
    for number in range(count):
        picture(labels_of(number), number).save(root / split / f"{number}.png")
        rows.append([f"{split}/{number}.png", " ".join(labels_of(number))])
    with open(root / f"{split}.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lists") / "set"
    for split, count in (("train", 32), ("val", 17), ("test", 8)):
        write_split(root, split, count)
    return root


@pytest.fixture
def lists(whole: Path, tmp_path: Path) -> Path:
    """``train.csv``, ``val.csv`` and ``test.csv``, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "set"))


def opened(root: Path, stage: str | None = None, **arguments: Any) -> MultiLabelData:
    data = MultiLabelData(str(root), **{**PLAIN, **arguments})
    data.setup(stage)
    return data


def everything(loader: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_right(images: Tensor, labels: Tensor) -> None:
    assert labels.dtype == torch.uint8
    shown = (images > 0.65).float().mean((2, 3)).flip(1) > 0.2  # blue first, as the labels are
    assert torch.equal(shown, labels.bool())


def recipe_of(root: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    task = {
        "model": "iformer_nano", "num_classes": 3, "model_args": {**MODEL, "drop_path_rate": 0.1},
        "optimization": {"lr": 5e-3, "base_batch": None, "warmup_epochs": 0, "per": "step"},
    }  # fmt: skip
    settings = {
        "model": {"class_path": "iformer.classification.multilabel.MultiLabelTask", "init_args": task},
        "data": {
            "class_path": "iformer.classification.label_lists.MultiLabelData",
            "init_args": {**yaml.safe_load(json.dumps(PLAIN)), "root": str(root), "hflip": 0.5},
        },
        "trainer__max_epochs": 2,
        "trainer__log_every_n_steps": 1,
        "checkpoint__keep": 100,
    }
    return recipe(folder, **{**settings, **changes})


class TestData:
    def test_lists(self, lists: Path) -> None:
        data = opened(lists)
        assert data.class_names == tuple(NAMES)
        assert data.class_counts == [16, 16, 16]
        for loader, count in ((data.train_dataloader(), 32), (data.val_dataloader(), 17), (data.test_dataloader(), 8)):
            images, labels = everything(loader)
            assert len(images) == count
            assert_right(images, labels)

    def test_other_columns_and_separators(self, lists: Path) -> None:
        for file in lists.glob("*.csv"):
            rows = list(csv.reader(file.open()))
            with open(file, "w", newline="", encoding="utf-8-sig") as text:
                for name, labels in rows[1:]:
                    named = "; ".join(f"deep {label}" for label in labels.split())
                    csv.writer(text).writerow(["x", named, name])
                    csv.writer(text).writerow([])
            text_of = file.read_text("utf-8-sig")
            file.write_text(f"id,tags,image\n{text_of}", "utf-8-sig")
        data = opened(lists, label_column="tags", file_column="image", separator=";")
        assert data.class_names == tuple(f"deep {name}" for name in NAMES)
        assert_right(*everything(data.train_dataloader()))

    def test_without_names_of_columns(self, lists: Path) -> None:
        for file in lists.glob("*.csv"):
            file.write_text(file.read_text().partition("\n")[2])
        assert_right(*everything(opened(lists).train_dataloader()))

    def test_one_list_is_divided(self, lists: Path) -> None:
        (lists / "train.csv").rename(lists / "all.csv")
        (lists / "val.csv").unlink()
        (lists / "test.csv").unlink()
        data = opened(lists, val_share=0.25)
        parts = {kind: set(indices) for kind, (_, _, indices) in data._parts.items()}
        assert parts["train"] | parts["val"] == set(range(32))
        assert parts["train"].isdisjoint(parts["val"])
        images, labels = everything(data.val_dataloader())
        assert 6 <= len(images) <= 10
        assert (labels.sum(0) > 0).all()
        assert (labels.sum(1) == 0).any()

    @pytest.mark.parametrize("kind", ["names", "numbers", "text"])
    def test_a_column_of_hugging_face(self, kind: str, lists: Path, tmp_path: Path) -> None:
        feature: Any = datasets.Value("string") if kind != "numbers" else datasets.ClassLabel(names=NAMES)
        column = datasets.Value("string") if kind == "text" else datasets.List(feature)
        features = datasets.Features({"image": datasets.Image(), "tags": column})
        for split, count in (("train", 16), ("validation", 8)):
            many = [labels_of(number) for number in range(count)]
            values = {"names": many, "numbers": [[NAMES.index(n) for n in each] for each in many],
                      "text": [" ".join(each) for each in many]}[kind]  # fmt: skip
            images = [str(lists / "train" / f"{number}.png") for number in range(count)]
            rows = datasets.Dataset.from_dict({"image": images, "tags": values}, features=features)
            rows.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
        where = {"reader": f"hfds/{tmp_path / 'parquet'}", "label_column": "tags"}
        data = opened(tmp_path / "cache", **where)
        assert data.class_names == tuple(NAMES)
        images, labels = everything(data.train_dataloader())
        assert len(images) == 16
        assert_right(images, labels)
        with pytest.raises(ValueError, match=r"split train: no column labels, there are: image, tags"):
            opened(tmp_path / "cache", **{**where, "label_column": "labels"})

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("train/7.png,", r"val\.csv, line 19: \S*train/7\.png stands in line 18 already"),
            (
                "train/8.png,gren",
                r"val\.csv, line 19: gren is not among the 3 classes of the training images, did you mean",
            ),
            ("train/none.png,red", r"val\.csv, line 19: \S*none\.png: no such file"),
            ("train/8.png", r"val\.csv, line 19: 1 columns, expected a file and its labels"),
        ],
    )
    def test_a_wrong_line_is_named(
        self, line: str, message: str, lists: Path, tmp_path: Path, iformer: Command
    ) -> None:
        (lists / "val.csv").write_text(f"file,labels\n{(lists / 'val.csv').read_text().partition(chr(10))[2]}")
        rows = (lists / "val.csv").read_text().splitlines()[:17]
        (lists / "val.csv").write_text("\n".join([*rows, "train/7.png,red", line]))
        with pytest.raises((ValueError, OSError), match=message) as caught:
            opened(lists)
        assert "\n" not in str(caught.value)
        status, _, err = iformer("fit", f"--config={recipe_of(lists, tmp_path)}")
        assert status == 2
        assert str(caught.value) in err.splitlines()[-1]

    def test_what_a_set_cannot_be_is_named(self, lists: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"train\.csv: no column tags, there are: file, labels \(data\.init_args"):
            opened(lists, label_column="tags")
        (tmp_path / "names.txt").write_text("red\ngreen\nblue\nblack\n")
        with pytest.raises(ValueError, match=r"names\.txt: no image in \S*train\.csv has the label black"):
            opened(lists, class_file=str(tmp_path / "names.txt"))
        (tmp_path / "names.txt").write_text("red\ngreen\n")
        with pytest.raises(ValueError, match=r"train\.csv, line 3: blue is not among the 2 classes of \S*names\.txt"):
            opened(lists, class_file=str(tmp_path / "names.txt"))
        with pytest.raises(ValueError, match=r"class_sampling is balanced, expected null where images have several"):
            opened(lists, class_sampling="balanced")
        with pytest.raises(ValueError, match=r"reader is 'wds', expected 'csv' or 'hfds/NAME'"):
            opened(lists, reader="wds")
        (lists / "train.csv").write_text("")
        with pytest.raises(ValueError, match=r"train\.csv: lists no images"):
            opened(lists)
        (lists / "train.csv").rename(lists / "mine.csv")
        (lists / "val.csv").rename(lists / "yours.csv")
        (lists / "test.csv").unlink()
        with pytest.raises(ValueError, match=r"set: expected train\.csv or training\.csv, there are: mine, yours"):
            opened(lists)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            opened(tmp_path / "nowhere")


class TestScores:
    def test_they_are_those_of_scikit_learn(self) -> None:
        found = torch.rand(50, 4).round(decimals=2)  # with ties
        labels = torch.randint(2, (50, 4)).int()
        labels[:, 3] = 0
        thresholds = best_thresholds(found, labels)
        rows = per_label(found, labels, thresholds, list("abcd"))
        for i, row in enumerate(rows[:3]):
            truth, scores = labels[:, i].numpy(), found[:, i].numpy()
            best = max(f1_score(truth, scores >= value) for value in np.unique(scores))
            assert row["f1"] == pytest.approx(best, abs=1e-4)
            assert row["average_precision"] == pytest.approx(average_precision_score(truth, scores), abs=1e-4)
            assert row["images"] == truth.sum()
            assert np.abs(scores - thresholds[i]).min() > 1e-4  # no image lies on it
        assert rows[3] == {"class": "d", "images": 0, "average_precision": None, "f1": None, "threshold": 0.5}

    @pytest.mark.parametrize("loss", ["binary_cross_entropy", "asymmetric"])
    def test_losses(self, loss: Any) -> None:
        task = MultiLabelTask("iformer_nano", 3, model_args=MODEL, loss=loss, label_smoothing=0.2)
        task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        logits, labels = torch.randn(5, 3), torch.randint(2, (5, 3), dtype=torch.uint8)
        task.forward = lambda _: logits  # type: ignore[method-assign]
        truth = labels.double() * 0.8 + 0.1
        p = logits.double().sigmoid()
        if loss == "asymmetric":  # Ridnik et al., equations 4 to 7, in timm's form for smoothed targets
            shifted = (1 - p + 0.05).clamp(max=1)
            focus = (1 - p * truth - shifted * (1 - truth)) ** (truth + 4 * (1 - truth))
            expected = -(focus * (truth * p.log() + (1 - truth) * shifted.log())).mean()
        else:
            expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
        assert float(task.training_step((torch.zeros(1), labels), 0)) == pytest.approx(float(expected), rel=1e-4)

    def test_tasks_and_data_that_do_not_belong_together(self, lists: Path, tmp_path: Path, iformer: Command) -> None:
        plain = "iformer.classification.task.ClassificationTask"
        status, _, err = iformer("fit", f"--config={recipe_of(lists, tmp_path, model__class_path=plain)}")
        assert (status, "the data has several labels for an image" in err.splitlines()[-1]) == (2, True)
        task = "iformer.classification.multilabel.MultiLabelTask"
        mine = {"class_path": task, "init_args": {"model": "iformer_nano", "num_classes": 4, "model_args": MODEL}}
        status, _, err = iformer("fit", f"--config={recipe(tmp_path, model=mine)}")
        assert (status, "the data has one label for each image" in err.splitlines()[-1]) == (2, True)


@pytest.fixture(scope="module")
def trained(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the folder of its run, which has learnt something."""
    folder = tmp_path_factory.mktemp("trained")
    file = recipe_of(whole, folder, trainer__max_epochs=12, checkpoint__keep=1, checkpoint__every_n_steps=None)
    run("fit", ["--config", str(file)])
    return file, folder / "run"


def predicted(iformer: Command, model: Path, *arguments: object) -> Any:
    status, out, err = iformer("predict", *arguments, "--model", model, "--json")
    assert status == 0, err
    return json.loads(out)


def test_it_learns_is_evaluated_and_predicts(trained: tuple[Path, Path], whole: Path, iformer: Command) -> None:
    file, folder = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == NAMES
    status, out, _ = iformer("test", "--config", file, "--resume", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["metrics"]["test_map"] > 0.8
    assert document["metrics"]["test_f1"] > 0.7
    # The thresholds that the last validation chose, though the weights were saved before it.
    assert [row["threshold"] for row in document["per_class"]] == [round(each, 4) for each in config["thresholds"]]
    status, out, _ = iformer("test", "--config", file, "--model.init_args.pretrained", folder, "--json")
    assert json.loads(out)["metrics"]["test_f1"] == document["metrics"]["test_f1"]
    status, out, _ = iformer("validate", "--config", file, "--resume")
    assert all(word in out for word in ("average_precision", "threshold", *NAMES))
    assert len((folder / "per_class.csv").read_text().splitlines()) == 4

    results = predicted(iformer, folder, whole / "test")
    truth = [set(labels_of(number)) for number in range(8)]
    found = [{entry["name"] for entry in each["classes"]} for each in results]
    rows = {row["class"]: row for row in document["per_class"]}
    for name in NAMES:  # predict decides as the test did
        pairs = [(name in right, name in said) for right, said in zip(truth, found, strict=True)]
        hits = sum(right and said for right, said in pairs)
        f1 = 2 * hits / sum(right + said for right, said in pairs)
        assert rows[name]["f1"] == pytest.approx(f1, abs=1e-4)


def test_predict_names_all_labels_from_their_thresholds_on(
    trained: tuple[Path, Path], whole: Path, tmp_path: Path, iformer: Command
) -> None:
    folder = Path(shutil.copytree(trained[1], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))
    config = json.loads((folder / "config.json").read_text())
    for thresholds, count in (([0.0] * 3, 3), ([1.0] * 3, 0)):
        (folder / "config.json").write_text(json.dumps({**config, "thresholds": thresholds}))
        for result in predicted(iformer, folder, whole / "test", "--top", 1):
            probabilities = [entry["probability"] for entry in result["classes"]]
            assert len(probabilities) == count
            assert probabilities == sorted(probabilities, reverse=True)
    status, out, _ = iformer("predict", whole / "test/0.png", "--model", folder)
    assert (status, "no label" in out) == (0, True)
    for ending in ("csv", "parquet", "jsonl"):
        output = tmp_path / f"results.{ending}"
        status, _, err = iformer("predict", whole / "test", "--model", folder, "--output", output)
        assert status == 0, err
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["classes"] == []
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["classes"] for row in csv.DictReader(file)] == ["[]"] * 8
    status, _, err = iformer("predict", whole / "test", "--model", folder, "--features", "pooled", "--json")
    assert status == 0, err
    (folder / "config.json").write_text(json.dumps({**config, "thresholds": [0.5]}))
    status, _, err = iformer("predict", whole / "test", "--model", folder)
    assert (status, "config.json: thresholds has 1 values, expected 3" in err) == (2, True)


def test_an_exported_file_keeps_the_thresholds(
    trained: tuple[Path, Path], whole: Path, tmp_path: Path, iformer: Command
) -> None:
    """That all formats keep the same facts is seen in tests/deployment."""
    file = tmp_path / "a.onnx"
    arguments = ["export", trained[1], "--format", "onnx", "--output", file]
    status, _, err = iformer(*arguments)
    assert status == 0, err
    results = predicted(iformer, trained[1], whole / "val"), predicted(iformer, file, whole / "val")
    for one, other in zip(*results, strict=True):
        assert [entry["name"] for entry in one["classes"]] == [entry["name"] for entry in other["classes"]]
    assert any(len(each["classes"]) != 1 for each in results[1])
    status, _, err = iformer(*arguments, "--labelled", whole)
    assert (status, "gives images several labels, which class folders do not" in err.splitlines()[-1]) == (2, True)


def test_it_goes_on_anywhere(whole: Path, tmp_path: Path) -> None:
    """8 steps in an epoch: in the middle of one, and behind a validation."""
    run("fit", ["--config", str(recipe_of(whole, tmp_path / "whole"))])
    for step in ("3", "8", "12", "16"):
        file = recipe_of(whole, tmp_path / step)
        resumed(tmp_path / "whole", tmp_path / step, int(step))
        run("fit", ["--config", str(file), "--resume"])
        assert_same_run(tmp_path / "whole", tmp_path / step)
        first, second = (json.loads((tmp_path / each / "run/config.json").read_text()) for each in ("whole", step))
        assert first == second


def test_two_processes_choose_the_thresholds_of_one(whole: Path, tmp_path: Path) -> None:
    """17 validation images: the ranks have batches of different sizes."""
    still = {
        "model__init_args__optimization": {"lr": 0.0, "min_lr": 0.0, "base_batch": None, "warmup_epochs": 0},
        "trainer__max_epochs": 1,
        "trainer__callbacks": [{"class_path": "tests.training.tiny.FrozenBatchNorm"}],
    }
    run("fit", ["--config", str(recipe_of(whole, tmp_path / "alone", **still))])
    file = recipe_of(whole, tmp_path / "two", **still)
    ranks = start_ranks(2, file, "--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2")
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], (tmp_path / "two/stderr0").read_text()
    alone, two = (json.loads((tmp_path / each / "run/config.json").read_text()) for each in ("alone", "two"))
    assert two["thresholds"] == pytest.approx(alone["thresholds"], abs=1e-5)
    assert torch.equal(*(load_file(tmp_path / n / "run/model.safetensors")["head.fc.bias"] for n in ("alone", "two")))


def test_averaged_weights_have_their_own_thresholds(whole: Path, tmp_path: Path, iformer: Command) -> None:
    ema = [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}]
    file = recipe_of(whole, tmp_path, trainer__callbacks=ema)
    run("fit", ["--config", str(file)])
    thresholds = json.loads((tmp_path / "run/config.json").read_text())["thresholds"]
    assert saved.resolve(tmp_path / "run").config["thresholds"] == tuple(thresholds)
    _, out, _ = iformer("validate", f"--config={file}", f"--model.init_args.pretrained={tmp_path / 'run'}", "--json")
    assert [row["threshold"] for row in json.loads(out)["per_class"]] == [round(each, 4) for each in thresholds]


def test_the_recipe_takes_two_steps(whole: Path, tmp_path: Path) -> None:
    for name in ("multilabel", "cifar10_tiles"):
        data = {"batch_size": 4, "num_workers": 0, "image_size": 32, "root": whole}
        task = {"num_classes": 3, "pretrained": "false", "model_args": {**MODEL, "img_size": 32}}
        trainer = {"max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": "false"}
        settings = {"data.init_args": data, "model.init_args": task, "trainer": trainer}
        arguments = [f"--{part}.{key}={value}" for part, each in settings.items() for key, value in each.items()]
        run("fit", [f"--config={name}", *arguments, f"--trainer.default_root_dir={tmp_path / name}"])
        assert checkpoints.available(tmp_path / name)
        assert saved.resolve(tmp_path / name).config["thresholds"]

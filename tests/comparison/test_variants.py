"""Variants are changes of a recipe's keys, and runs by other recipes are not mixed with theirs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from iformer.comparison import variants
from tests.conftest import Command
from tests.training.tiny import recipe


def read(folder: Path, changes: Any, *arguments: str, seeds: int = 3) -> list[variants.Variant]:
    file = folder / "variants.yaml"
    file.write_text(yaml.safe_dump(changes, sort_keys=False))
    return variants.read(str(recipe(folder)), file, "", seeds, arguments)


def test_keys_are_nested_or_dotted_and_merged_into_the_recipe(tmp_path: Path) -> None:
    plain, nested, dotted = read(
        tmp_path,
        {
            "plain": None,
            "nested": {"model": {"init_args": {"model_args": {"drop_rate": 0.5}}}, "seeds": 5},
            "dotted": {"model.init_args.model_args.drop_rate": 0.5, "model.init_args": {"mixup": 0.0}},
        },
    )
    of_recipe = plain.settings["model"]["init_args"]
    assert (of_recipe["mixup"], of_recipe["model_args"]["drop_rate"]) == (0.8, 0.1)
    assert [each.seeds for each in (plain, nested, dotted)] == [3, 5, 3]
    assert "seeds" not in nested.settings
    for each, mixup in ((nested, 0.8), (dotted, 0.0)):
        arguments = each.settings["model"]["init_args"]
        assert arguments["mixup"] == mixup
        assert arguments["model_args"] == {**of_recipe["model_args"], "drop_rate": 0.5}


def test_arguments_replace_the_recipes_keys_and_a_variants_replace_them(tmp_path: Path) -> None:
    changes = {"a": {}, "b": {"trainer.max_epochs": 7}}
    a, b = read(tmp_path, changes, "--trainer.max_epochs", "9", "--model.init_args.optimization.lr=1e-3")
    assert (a.epochs, b.epochs) == (9, 7)
    assert a.settings["model"]["init_args"]["optimization"]["lr"] == 0.001


@pytest.mark.parametrize(("name", "key"), [("cifar10", "model"), ("camvid", "backbone"), ("coco/tiny", "backbone")])
def test_models_are_named_by_the_key_of_their_task(name: str, key: str) -> None:
    found = variants.read(name, None, "iformer_nano,resnet18", 2)
    assert [each.settings["model"]["init_args"][key] for each in found] == ["iformer_nano", "resnet18"]
    assert [each.name for each in found] == ["iformer_nano", "resnet18"]


def test_runs_by_another_recipe_are_not_continued(tmp_path: Path) -> None:
    for each in read(tmp_path, {"a": {}, "b": {}}):
        each.write(tmp_path / "out")
    elsewhere = ("--trainer.default_root_dir", "elsewhere", "--data.init_args.num_workers", "3")
    for each in read(tmp_path, {"a": {}, "b": {}}, *elsewhere, seeds=9):
        each.write(tmp_path / "out")
    (tmp_path / "photos").mkdir()
    here, there = (["--data.init_args.root", str(tmp_path / name)] for name in ("photos", "of_another_machine"))
    for root in (there, here, [*here[:1], f"{here[1]}/../photos"]):
        read(tmp_path, {"a": {}, "b": {}}, *root)[0].write(tmp_path / "data")
    with pytest.raises(ValueError, match=r"a/recipe.yaml: the runs there have data.init_args.root .*photos, now it is"):
        read(tmp_path, {"a": {}, "b": {}}, *there)[0].write(tmp_path / "data")
    with pytest.raises(ValueError, match=r"a/recipe.yaml: the runs there have trainer.max_epochs 4, now it is 5"):
        read(tmp_path, {"a": {}, "b": {}}, "--trainer.max_epochs", "5")[0].write(tmp_path / "out")


def test_results_without_their_recipe_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "seed_0.json").touch()
    with pytest.raises(ValueError, match=r"a/recipe.yaml: is missing beside results"):
        read(tmp_path, {"a": {}, "b": {}})[0].write(tmp_path / "out")


MISTAKES: list[tuple[Any, list[str], str]] = [
    ({"a": {}}, [], "1 variants"),
    ({"a/b": {}, "c": {}}, [], "a/b"),
    ({"a": 3, "b": {}}, [], "variant a"),
    ({"a": {"seeds": 0}, "b": {}}, [], "a.seeds is 0"),
    ([1, 2], [], "variants.yaml"),
    ({"a": {}, "b": {}}, ["--trainer.max_epochs"], "--trainer.max_epochs"),
    ({"a": {}, "b": {}}, ["oops"], "oops"),
    ({"a": {}, "b": {"model.class_path": "no.Such"}}, [], "no.Such"),
    ({"a": {}, "b": {"model.class_path": "iformer.segmentation.task.SegmentationTask"}}, [], "judged by miou"),
]


@pytest.mark.parametrize(("changes", "arguments", "named"), MISTAKES, ids=[named for _, _, named in MISTAKES])
def test_mistakes_are_told_in_a_line(
    changes: Any, arguments: list[str], named: str, tmp_path: Path, iformer: Command
) -> None:
    file = tmp_path / "variants.yaml"
    file.write_text(yaml.safe_dump(changes, sort_keys=False))
    output = tmp_path / "out"
    status, _, err = iformer(
        "compare", "--config", recipe(tmp_path), "--variants", file, "--output", output, *arguments
    )
    assert status == 2
    assert named in err
    assert err.count("\n") == 1
    assert not list(output.rglob("seed_*"))

"""Recipes that begin from others."""

from pathlib import Path

import pytest
import yaml

from iformer.training import recipes

BASE = {"model": {"class_path": "a.A", "init_args": {"x": 1, "args": {"p": 1, "q": 2}}}, "trainer": {"max_epochs": 3}}


def write(folder: Path, **settings: object) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **settings}))
    return folder / "mine.yaml"


def test_a_recipe_changes_single_settings_of_its_base(tmp_path: Path) -> None:
    mine = write(tmp_path, model={"init_args": {"args": {"q": None}}}, trainer={"precision": "bf16-mixed"})
    assert recipes.read(mine) == {
        "model": {"class_path": "a.A", "init_args": {"x": 1, "args": {"p": 1, "q": None}}},
        "trainer": {"max_epochs": 3, "precision": "bf16-mixed"},
    }


def test_arguments_of_another_class_begin_from_nothing(tmp_path: Path) -> None:
    mine = write(tmp_path, model={"class_path": "b.B", "init_args": {"y": 1}})
    assert recipes.read(mine)["model"] == {"class_path": "b.B", "init_args": {"y": 1}}


def test_a_packaged_recipe_is_a_base_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: imagenet1k/iformer_large\ntrainer: {max_epochs: 5}")
    found = recipes.read(tmp_path / "mine.yaml")
    assert (found["model"]["init_args"]["model"], found["trainer"]["max_epochs"]) == ("iformer_large", 5)
    assert found["data"]["init_args"]["repeats"] == 3  # of the base's base


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("mine.yaml", r"mine\.yaml: base is mine\.yaml, which is itself based on this recipe"),
        ("no/such", "no such file or recipe"),
        ("[1]", r"base is \[1\], expected the name or the file of a recipe"),
    ],
)
def test_mistakes(base: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    with pytest.raises(ValueError, match=told) as error:
        recipes.read(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)

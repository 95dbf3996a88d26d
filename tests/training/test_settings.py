"""What may reach the settings of a run: recipes and the command line, never a checkpoint, and no class by stealth."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from iformer.training.launcher import run
from tests.training.tiny import MODEL


def recipe(folder: Path, **model_args: Any) -> list[str]:
    settings = {
        "model": {
            "class_path": "iformer.classification.task.ClassificationTask",
            "init_args": {"model": "iformer_nano", "num_classes": 4, "model_args": {**MODEL, **model_args}},
        },
        "data": {"class_path": "tests.training.tiny.TinyData", "init_args": {"length": 8}},
        "trainer": {"max_epochs": 7, "accelerator": "cpu", "enable_progress_bar": False},
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(folder / "recipe.yaml"), "--trainer.default_root_dir", str(folder / "run")]


def test_a_recipe_of_a_run_is_one(tmp_path: Path) -> None:
    run("fit", recipe(tmp_path))
    again = ["--config", str(tmp_path / "run/recipe.yaml"), "--trainer.default_root_dir", str(tmp_path / "again")]
    run("fit", again)
    first, second = ((tmp_path / name / "recipe.yaml").read_text() for name in ("run", "again"))
    assert first.replace(str(tmp_path / "run"), str(tmp_path / "again")) == second


def test_home_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    arguments = [*recipe(tmp_path), "--trainer.default_root_dir=~/runs/t"]
    run("fit", arguments)
    assert {path.name for path in (tmp_path / "home/runs/t").iterdir()} >= {"checkpoints", "config.json", "metrics.csv"}
    assert not (tmp_path / "~").exists()
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        run("fit", arguments)


def test_dictionaries_are_data(tmp_path: Path) -> None:
    touch = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "owned")]}}
    with pytest.raises(ValueError, match=r"model_args.*(class_path|subprocess)"):
        run("fit", recipe(tmp_path, drop_rate=touch))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_nothing_of_a_checkpoint_reaches_the_settings(verb: str, tmp_path: Path) -> None:
    arguments = recipe(tmp_path)
    run("fit", arguments)
    (newest, *_) = sorted((tmp_path / "run/checkpoints").iterdir())
    content = torch.load(newest, weights_only=True)
    touch = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "owned")]}}
    content["hyper_parameters"] = {"model_args": {"drop_rate": touch}, "num_classes": 9}
    torch.save(content, tmp_path / "stranger.ckpt")
    other = ["--trainer.default_root_dir", str(tmp_path / "other"), "--ckpt_path", str(tmp_path / "stranger.ckpt")]
    run(verb, [*arguments, *other])
    assert not (tmp_path / "owned").exists()


def test_checkpoints_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ckpt_path is http://localhost:9/a\.ckpt, expected a file"):
        run("test", [*recipe(tmp_path), "--ckpt_path", "http://localhost:9/a.ckpt"])

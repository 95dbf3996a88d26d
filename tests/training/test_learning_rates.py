"""The learning rate finder."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from iformer.classification.task import ClassificationTask
from iformer.training import learning_rates
from iformer.training.launcher import run
from tests.conftest import Command
from tests.training.tiny import recipe


def test_a_rate_is_suggested_and_nothing_else_is_left(
    tmp_path: Path, iformer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_rates, "STEPS", 40)
    optimization = {"lr": 3e-3, "base_batch": None, "warmup_epochs": 1}
    file = recipe(tmp_path, model__init_args__optimization=optimization, model__init_args__mixup=0.0)
    status, out, _ = iformer("fit", "--config", file, "--find_lr", "--json")
    found = json.loads(out)["learning_rate"]
    assert status == 0
    assert 1e-5 < found["lr"] < 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["learning_rates.png"]
    with Image.open(found["picture"]) as picture:
        assert min(picture.size) > 300
    status, out, _ = iformer("fit", "--config", file, "--find_lr", "--model.init_args.optimization.base_batch=8")
    option, rate, *_ = out.split()
    assert option == "--model.init_args.optimization.lr"
    assert float(rate) == pytest.approx(2 * found["lr"], rel=0.1)  # the same, rounded, for twice the batch
    status, _, err = iformer("fit", "--config", file, "--find_lr", "--trainer.fast_dev_run=1")
    assert status == 2
    assert err.splitlines()[-1].endswith("--find_lr does not go with trainer.fast_dev_run; give one of them")
    run("fit", ["--config", str(file), "--trainer.max_epochs=2"])
    run("fit", ["--config", str(file), "--find_lr"])  # of a recipe by which a run has been made


def test_the_rates_rise_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def watched(self: ClassificationTask, *_: object) -> None:
        rates.extend({group["lr"] for group in self.optimizers().param_groups})  # type: ignore[union-attr]

    monkeypatch.setattr(ClassificationTask, "on_before_optimizer_step", watched)
    run("fit", ["--config", str(recipe(tmp_path)), "--find_lr"])
    assert len(rates) > 50
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(1e-6)
    ratios = torch.tensor(rates[2:]) / torch.tensor(rates[1:-1])
    torch.testing.assert_close(ratios, ratios[0].expand_as(ratios))

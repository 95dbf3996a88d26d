"""``iformer search``: what it finds, that it goes on, and that processes share the work."""

import itertools
import json
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from iformer.benchmark import rounds
from iformer.classification.task import ClassificationTask
from iformer.models import config
from iformer.models.backbone import create
from iformer.search import budgets, search
from iformer.search import costs as costing
from iformer.search.candidates import Candidates
from iformer.search.costs import Costs, counts, space_of
from tests.conftest import Command
from tests.processes import command
from tests.search.conftest import NETWORK

RAMPS = [list(ramp) for ramp in itertools.product(range(3), range(3), range(4), range(4))]


@pytest.fixture(scope="module")
def costs(search_run: Path) -> Costs:
    return counts(space_of(config.read(search_run / "config.json")))


def true_cost(ramp: list[int]) -> dict[str, float]:
    with torch.device("meta"):
        network = create("iformer_nano", num_classes=2, **{**NETWORK, "attention_heads": ramp}).eval()
    macs = rounds.count_multiply_adds(network, torch.empty(1, 3, 32, 32, device="meta"))
    return {"macs": macs, "params": sum(p.numel() for p in network.parameters())}


@pytest.fixture
def budget(costs: Costs) -> str:
    """One that about half of the ramps are within."""
    macs = sorted(costs.of(ramp)["macs"] for ramp in RAMPS)
    return f"macs<={(macs[len(macs) // 2] + 0.5) / 1e3}K"


def test_what_is_found(search_run: Path, images: Path, budget: str, iformer: Command, tmp_path: Path) -> None:
    status, out, err = iformer(
        "search", "--checkpoint", search_run, "--data", images, "--budget", budget, "--budget", "params<=1M",
        "--candidates", 12, "--output", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads((tmp_path / "out/search.json").read_text())
    assert found["space"] == {"blocks": [2, 2, 3, 3], "stages": [1, 1, 1, 1], "ramps": 144}
    ramps = [each["attention_heads"] for each in found["evaluated"]]
    assert len({tuple(ramp) for ramp in ramps}) == len(ramps)
    assert all({key: each[key] for key in ("macs", "params")} == true_cost(each["attention_heads"])
               for each in found["evaluated"])  # fmt: skip
    within = [each for each in found["evaluated"] if each["macs"] <= found["limit"]]
    assert len(within) == 12
    # The front: no ramp within the budget is as cheap and more accurate.
    front = found["front"]
    assert front == sorted(front, key=lambda each: each["validation_accuracy"])
    for each in within:
        assert any(
            best["macs"] <= each["macs"] and best["validation_accuracy"] >= each["validation_accuracy"]
            for best in front
        )
    assert all(0 <= each["test_accuracy"] <= 1 for each in [*front, found["hand_set"]])
    assert found["hand_set"]["attention_heads"] == NETWORK["attention_heads"]
    for name in ("pareto.png", "ramps.png", "README.md", "search.html"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    # The line that is printed makes the ordinary network.
    assert all(each["arguments"] in out for each in front)
    (key, value) = shlex.split(front[-1]["arguments"])
    assert key == "--model.init_args.model_args"
    arguments = yaml.safe_load(value)
    assert arguments == {**NETWORK, "attention_heads": front[-1]["attention_heads"]}
    begun = ClassificationTask("iformer_nano", 2, str(search_run), arguments).model
    assert begun.attention_heads == tuple((heads,) for heads in front[-1]["attention_heads"])


def test_it_goes_on(search_run: Path, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["search", "--checkpoint", search_run, "--output", tmp_path, "--json"]
    accuracy = Candidates.accuracy
    calls: list[Any] = []

    def interrupted(self: Candidates, ramp: Any) -> float:
        calls.append(ramp)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return accuracy(self, ramp)

    monkeypatch.setattr(Candidates, "accuracy", interrupted)
    assert iformer(*arguments, "--candidates", 6)[0] == 130
    assert not (tmp_path / "search.json").exists()
    monkeypatch.setattr(Candidates, "accuracy", lambda self, ramp: calls.append(ramp) or accuracy(self, ramp))
    status, out, _ = iformer(*arguments, "--candidates", 6)
    assert status == 0
    assert len(calls) == 4 + 3  # none of the three that were finished again
    first = json.loads(out)
    assert json.loads(iformer(*arguments, "--candidates", 6)[1]) == first  # test images are not looked at again
    tested: list[Any] = []
    evaluate = Candidates.test_accuracies
    monkeypatch.setattr(Candidates, "test_accuracies", lambda self, new: tested.extend(new) or evaluate(self, new))
    more = json.loads(iformer(*arguments, "--candidates", 8)[1])
    shown = [tuple(each["attention_heads"]) for each in (first["hand_set"], *first["front"])]
    assert not {*tested} & {*shown}
    assert [each for each in more["evaluated"] if each in first["evaluated"]] == first["evaluated"]
    assert len(more["evaluated"]) == 8
    status, _, err = iformer(*arguments, "--budget", "macs<=1G")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds a search with budgets [], now it is ['macs<=1G']; name another --output" in err


def test_an_accuracy_does_not_depend_on_what_was_evaluated_before(search_run: Path) -> None:
    ramps = [[0, 0, 0, 0], [2, 2, 3, 3], [1, 0, 3, 1]]
    there, back = Candidates(search_run), Candidates(search_run)
    assert [there.accuracy(ramp) for ramp in ramps] == [back.accuracy(ramp) for ramp in ramps[::-1]][::-1]


def test_few_ramps_of_a_large_space_are_within_the_budget(tmp_path: Path) -> None:
    """NSGA-II finds its way there, where chance does not."""
    model_args = {"depths": [2, 2, 4, 2], "attention_heads": [1] * 2 + [2] * 2 + [3] * 4 + [5] * 2}
    costs = counts(space_of({
        "architecture": "iformer_nano", "num_classes": 10, "model_args": model_args,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }))  # fmt: skip
    space = costs.space
    least = costs.of(costs.least("macs"))["macs"]
    limit = budgets.read([f"macs<={least + 0.3 * (costs.own['macs'] - least)}"])
    judged: Any = SimpleNamespace(space=space, accuracy=lambda ramp: float(np.mean(np.divide(ramp, space.most))))
    study = search._study(tmp_path, {"seed": 0}, [space.own, costs.least("macs")])
    search._evaluate(study, judged, costs, limit, "macs", 30)
    found = [ramp for ramp in search.evaluated(study) if search._fits(costs.of(ramp), limit)]
    assert len(found) == 30
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]  # accuracy and cost
    random = np.random.default_rng(0)
    drawn = [random.integers(0, space.most, endpoint=True).tolist() for _ in study.trials]
    assert sum(search._fits(costs.of(ramp), limit) for ramp in drawn) < 6


def test_data_of_other_classes_are_refused(search_run: Path, images: Path, tmp_path: Path, iformer: Command) -> None:
    shutil.copytree(images, tmp_path / "images")
    for folder in (tmp_path / "images").iterdir():
        (folder / "below").rename(folder / "Below")
    status, _, err = iformer("search", "--checkpoint", search_run, "--data", tmp_path / "images", "--output", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "images: the data have the class Below where the run was trained on below" in err


def test_two_processes_share_one_search(search_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["search", "--checkpoint", search_run, "--output", output, "--candidates", 14]
    processes = [command(tmp_path / f"stderr{number}", *arguments) for number in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "stderr0").read_text()
    found = json.loads((output / "search.json").read_text())
    assert 14 <= len(found["evaluated"]) <= 15  # both may have had one in hand
    owners = {json.loads(line)["worker_id"] for line in (output / search.JOURNAL).read_text().splitlines()}
    assert len(owners) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--budget", "flops<=15M"], "unknown quantity flops, expected macs, params, latency"),
        (["--budget", "macs<15M"], "expected QUANTITY<=NUMBER, such as macs<=15M"),
        (["--budget", "macs<=15ms"], "unknown unit ms, expected no unit, K, M, G, x"),
        (["--budget", "latency<=10"], "unknown unit none, expected ms, us, s, x"),
        (["--budget", "macs<=0M"], "0 is no number above 0"),
        (["--budget", "macs<=1M", "--budget", "macs<=2M"], "there is another one of macs"),
        (["--budget", "macs<=1K"], "no ramp is within it; the cheapest, ["),
        (["--budget", "latency<=5ms", "--engine", "tensorrt"], "engine is 'tensorrt', expected one of eager"),
    ],
)
def test_wrong_budgets_are_one_line(
    arguments: list[str], told: str, search_run: Path, iformer: Command, tmp_path: Path
) -> None:
    status, _, err = iformer("search", "--checkpoint", search_run, "--output", tmp_path, *arguments)
    assert (status, err.count("\n")) == (2, 1), err
    assert told in err


def test_a_budget_may_be_that_of_the_ramp_set_by_hand() -> None:
    (budget,) = budgets.read(["macs <= 1.5x"])
    assert budget.against({"macs": 200.0}).excess({"macs": 300.0}) == 0
    assert budgets.read(["latency<=500us"])[0].excess({"latency": 0.5}) == 0


def test_a_space_with_one_ramp(costs: Costs, search_run: Path, iformer: Command, tmp_path: Path) -> None:
    cheapest = min(RAMPS, key=lambda ramp: costs.of(ramp)["macs"])
    assert costs.least("macs") == cheapest
    budget = f"macs<={true_cost(cheapest)['macs']}"
    status, _, err = iformer("search", "--checkpoint", search_run, "--output", tmp_path, "--budget", budget)
    assert (status, err.count("\n")) == (2, 1)
    assert f"one ramp only is within it, {cheapest}" in err


def test_what_is_no_search_run(search_run: Path, iformer: Command, tmp_path: Path) -> None:
    from iformer.models import saved

    saved.save(create("iformer_nano", num_classes=2, **NETWORK), tmp_path / "plain", ["a", "b"])
    for folder, told in (
        (tmp_path / "plain", "a saved iformer_nano, expected a run of a search recipe, such as search/cifar10"),
        (tmp_path / "none", "no such file or folder"),
    ):
        status, _, err = iformer("search", "--checkpoint", folder)
        assert (status, err.count("\n")) == (2, 1)
        assert told in err


def test_latencies_are_measured_once_and_put_together(
    search_run: Path, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costing, "ROUNDS", 2)
    arguments = ["search", "--checkpoint", search_run, "--output", tmp_path, "--json", "--engine", "eager"]
    status, out, err = iformer(*arguments, "--budget", "latency<=10s", "--candidates", 5)
    assert status == 0, err
    found = json.loads(out)
    kept = json.loads((tmp_path / "latency.json").read_text())
    assert len(kept["milliseconds"]) == 1 + 2 + 2 + 3 + 3  # its own ramp, and each other number of heads in each stage
    own = found["hand_set"]
    assert own["latency"] == kept["milliseconds"][str(own["attention_heads"])]
    assert own["measured_latency"] > 0
    assert (found["cost"], found["engine"]) == ("latency", "eager")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "latency.json").write_text(json.dumps({**kept, "weights": "of another run"}))
    status, _, err = iformer(*arguments, "--budget", "latency<=10s", "--output", tmp_path / "other")
    assert (status, err.count("\n")) == (2, 1)
    assert "latency.json: latencies of the ramps of another run; name another --output" in err
    written = (tmp_path / "latency.json").stat().st_mtime_ns
    assert iformer(*arguments, "--budget", "latency<=10s", "--candidates", 6)[0] == 0
    assert (tmp_path / "latency.json").stat().st_mtime_ns == written

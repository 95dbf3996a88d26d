"""Runs of a comparison: killed, interrupted, failing, of all tasks, and rebuilt from their result files."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock, Timeout

from iformer.comparison import compare, costs, page, runs, variants, worker
from iformer.training import checkpoints
from tests.conftest import Command
from tests.detection.conftest import MODEL as DETECTOR
from tests.detection.conftest import coco, data_arguments  # noqa: F401
from tests.processes import command, wait_for
from tests.segmentation.conftest import FOLDERS, NAMES
from tests.training.tiny import recipe

CHANGES = {"trainer__max_epochs": 6, "trainer__log_every_n_steps": 1, "checkpoint__every_n_steps": 2}
VARIANTS = {
    "good": {},
    "idle": {"model.init_args.optimization": {"lr": 1e-9, "warmup_lr": 0.0, "min_lr": 0.0}},
}
MEASURED = {"milliseconds": 1.0, "quartiles": [0.9, 1.1]}


def write_variants(folder: Path, changes: dict[str, Any]) -> Path:
    file = folder / "variants.yaml"
    file.write_text(yaml.safe_dump(changes, sort_keys=False))
    return file


def keep_latencies(output: Path, *names: str) -> None:
    """Latencies of an earlier comparison with the same results, so that none are measured."""
    networks = {name: json.loads((output / name / "seed_0.json").read_text())["network"] for name in names}
    found = {
        "variants": {name: {"eager": MEASURED} for name in names},
        "failed": {name: {"openvino": "it has none of it"} for name in names},
        "networks": {name: costs._digest(network) for name, network in networks.items()},
        "machine": "a machine",
    }
    (output / "latency.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of two seeds whose runs were never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    found = variants.read(str(recipe(folder, **CHANGES)), write_variants(folder, VARIANTS), "", 2)
    for job in runs.jobs_of(found, folder / "out"):
        worker.make(job)
    keep_latencies(folder / "out", "good", "idle")
    return folder / "out"


@pytest.fixture
def document(whole: Path, tmp_path: Path) -> dict[str, Any]:
    """The comparison of these runs from copies of their result files."""
    return again(whole, tmp_path)


def again(whole: Path, folder: Path) -> dict[str, Any]:
    for file in [*whole.glob("*/seed_*.json"), *whole.glob("*/recipe.yaml"), whole / "latency.json"]:
        target = folder / "copy" / file.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    found = variants.read(str(recipe(folder, **CHANGES)), write_variants(folder, VARIANTS), "", 2)
    return compare.compare(found, folder / "copy")


def test_result_files_alone_make_the_pages(document: dict[str, Any], tmp_path: Path) -> None:
    assert not list(tmp_path.glob("copy/*/seed_*/"))
    good, idle = document["variants"]
    assert [each["seed"] for each in good["scores"]] == [0, 1]
    assert good["mean"] == pytest.approx(sum(each["value"] for each in good["scores"]) / 2)
    assert [point["epoch"] for point in idle["curve"]] == [1, 2, 3, 4, 5, 6]
    assert good["parameters"] == idle["parameters"] > 0
    assert document["comparisons"] == 1
    text = (tmp_path / "copy" / "README.md").read_text()
    html = (tmp_path / "copy" / "compare.html").read_text()
    assert sum(good["classes"].values()) / 4 == pytest.approx(good["mean"], abs=1e-4)  # as many images of each class
    for row in (*page.score_rows(document), *page.cost_rows(document), *page.class_rows(document)):
        for cell in filter(None, row):
            assert cell in text.replace("\\", "").replace("&lt;", "<")
    assert html.count("data:image/png") == text.count(".png)") == 4
    assert json.loads((tmp_path / "copy" / "compare.json").read_text()) == document


def test_a_result_has_what_says_how_it_came_to_be(whole: Path) -> None:
    result = json.loads((whole / "good" / "seed_1.json").read_text())
    assert result["command"].split()[:2] == ["iformer", "fit"]
    assert (result["seed"], result["metric"], result["steps"]) == (1, "accuracy", 48)
    assert result["value"] == result["curve"][-1][1] == result["metrics"]["val_accuracy"]
    assert sum(row["accuracy"] for row in result["per_class"]) / 4 == pytest.approx(result["value"], abs=1e-4)
    assert result["peak_memory_mib"] > 100
    assert {"versions", "machine", "python"} <= result.keys()


def test_the_last_evaluation_is_made_if_the_training_ends_without_one(tmp_path: Path) -> None:
    file = recipe(tmp_path, trainer__max_epochs=3, trainer__check_val_every_n_epoch=2)
    job = worker.Job("a", 0, "accuracy", str(file), str(tmp_path / "out" / "seed_0"), 3)
    worker.make(job)
    result = json.loads(job.result.read_text())
    assert [epoch for epoch, _ in result["curve"]] == [2]
    assert 0 <= result["value"] <= 1
    assert len(result["per_class"]) == 4


def locked(output: Path) -> bool:
    """Return whether a process holds a run's lock; one that ended while it started may leave the file, but no lock."""
    for file in output.glob("*/seed_*/run.lock"):
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
    return False


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_interrupted_and_failing(whole: Path, tmp_path: Path, iformer: Command) -> None:
    """Interrupted, then killed, it ends with the results of one that was not; a run that fails is reported."""
    slow = {"trainer__callbacks": [{"class_path": "tests.comparison.slow.Slow"}]}
    settings = {"good": {}, "broken": {"data.init_args.broken_batch": 1}}
    output = tmp_path / "out"
    arguments = ["compare", "--config", recipe(tmp_path, **CHANGES, **slow), "--seeds", 1]
    arguments += ["--variants", write_variants(tmp_path, settings), "--output", output, "--json"]
    output.mkdir()
    shutil.copy(whole / "latency.json", output)
    (tmp_path / "slow").touch()
    reached: tuple[Path, ...] = ()
    for signal_sent in (signal.SIGINT, signal.SIGKILL):
        process = command(tmp_path / "stderr", *arguments)  # one run at a time
        good = output / "good" / "seed_0"
        wait_for(lambda good=good, reached=reached: checkpoints.available(good)[:1] > list(reached), process)  # type: ignore[misc]
        assert process.pid is not None
        os.kill(process.pid, signal_sent)
        process.join()
        if signal_sent == signal.SIGINT:
            err = (tmp_path / "stderr").read_text()
            assert process.exitcode == 130, err
            assert "the same command goes on" in err
            assert "iformer: interrupted" in err
            assert not locked(output)
        deadline = time.monotonic() + 120
        while locked(output) and time.monotonic() < deadline:  # the runs notice it and save
            time.sleep(0.05)
        assert not (good.with_suffix(".json")).exists()
        reached = tuple(checkpoints.available(good)[:1])
        assert reached
        assert "Ended by SIGTERM" in (good / runs.LOG).read_text()
    (tmp_path / "slow").unlink()
    status, out, err = iformer(*arguments, "--jobs", 2)
    assert status == 2
    (failed,) = json.loads(out)["failed"]
    assert failed["variant"] == "broken"
    assert "the loss is nan" in failed["reason"]
    assert failed["reason"] in Path(failed["log"]).read_text()
    assert f"broken, seed 0: {failed['reason']}" in err
    assert [each["name"] for each in json.loads(out)["variants"]] == ["good"]
    ours, never_stopped = (json.loads((folder / "good/seed_0.json").read_text()) for folder in (output, whole))
    for key in ("value", "metrics", "curve", "training_loss", "steps", "multiply_adds"):
        assert ours[key] == never_stopped[key]


def segmentation(scenes: Path) -> dict[str, Any]:
    return {
        "model": {
            "class_path": "iformer.segmentation.task.SegmentationTask",
            "init_args": {
                "backbone": "iformer_nano",
                "num_classes": 3,
                "model_args": {"neck_channels": 16, "head_channels": 16},
                "optimization": {"lr": 3e-3, "base_batch": None, "warmup_epochs": 0, "per": "step"},
            },
        },
        "data": {
            "class_path": "iformer.segmentation.data.SegmentationData",
            "init_args": {
                "root": str(scenes),
                "class_names": NAMES,
                "ignore_labels": [9],
                "crop": [48, 64],
                "batch_size": 2,
                "eval_batch_size": 1,
                "num_workers": 0,
                **FOLDERS,
            },
        },
    }


def detection(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {
            "class_path": "iformer.detection.task.DetectionTask",
            "init_args": {
                "backbone": "iformer_nano",
                "num_classes": 3,
                "model_args": DETECTOR,
                "optimization": {"lr": 1e-3, "base_batch": None, "warmup_steps": 2, "drops": [1]},
            },
        },
        "data": {"class_path": "iformer.detection.data.CocoData", "init_args": {**arguments, "batch_size": 2}},
    }


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_other_tasks(task: str, scenes: Path, data_arguments: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    settings = segmentation(scenes) if task == "segmentation" else detection(data_arguments)
    settings["trainer"] = {"max_epochs": 1, "accelerator": "cpu"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    faster = {"model.init_args.optimization.lr": 0.002}
    found = variants.read(str(tmp_path / "recipe.yaml"), write_variants(tmp_path, {"a": {}, "b": faster}), "", 1)
    for job in runs.jobs_of(found, tmp_path / "out"):
        worker.make(job)
    keep_latencies(tmp_path / "out", "a", "b")
    results = compare.compare(found, tmp_path / "out")
    metric, score, size = {
        "segmentation": ("miou", "mIoU", [48, 64]),
        "detection": ("box_ap", "AP of boxes", [64, 86]),
    }[task]
    assert (results["metric"], page.score_name(results)) == (metric, score)
    for each in results["variants"]:
        assert each["image_size"] == size
        assert each["multiply_adds"] > 1e6
        assert 0 <= each["mean"] <= 1
    assert page.verdict(results["variants"][1]) in ("cannot be told from one seed", "no difference seen")


def test_latencies_are_measured_once(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ROUNDS", 2)
    network = json.loads((whole / "good" / "seed_0.json").read_text())["network"]
    found = costs.kept_latencies({"good": network}, tmp_path / "latency.json")
    assert found["variants"]["good"].keys() == {"eager", "openvino"}
    assert all(each["milliseconds"] > 0 for each in found["variants"]["good"].values())
    assert costs.kept_latencies({"good": network}, tmp_path / "latency.json") == found
    asked = []
    monkeypatch.setattr(costs, "latencies", lambda configs: asked.append([*configs]) or found)
    costs.kept_latencies({"good": network}, tmp_path / "latency.json")
    assert not asked
    costs.kept_latencies({"good": {**network, "num_classes": 7}}, tmp_path / "latency.json")
    assert asked == [["good"]]


def test_what_does_not_run_in_an_engine_is_left_out(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(chosen: list[Any], count: int, failed: dict[Any, str]) -> dict[str, Any]:
        failed[chosen[1]] = "not in openvino"
        about = dict.fromkeys(("command", "versions", "python", "machine", "rounds"), "")
        return {"variants": [{**MEASURED, "milliseconds": number} for number in (0, 2, 3)], **about}

    monkeypatch.setattr(costs.rounds, "run", run)
    networks = {name: json.loads((whole / name / "seed_0.json").read_text())["network"] for name in ("good", "idle")}
    found = costs.kept_latencies(networks, tmp_path / "latency.json")
    assert found["failed"] == {"good": {"openvino": "not in openvino"}, "idle": {}}
    assert [*found["variants"]["good"]] == ["eager"]
    assert [each["milliseconds"] for each in found["variants"]["idle"].values()] == [2, 3]
    monkeypatch.delattr(costs.rounds, "run")
    assert costs.kept_latencies(networks, tmp_path / "latency.json") == found


def test_the_reason_is_that_of_the_variant_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"good": "the loss is nan", "idle": "no memory"}
    monkeypatch.setattr(runs, "make", lambda jobs, _: {job: reasons[job.variant] for job in reversed(jobs)})
    found = variants.read(str(recipe(tmp_path)), write_variants(tmp_path, VARIANTS), "", 1)
    with pytest.raises(ValueError, match=r"good: there is no run of it to compare with .*the loss is nan"):
        compare.compare(found, tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), -1.0])
def test_what_is_no_score_is_not_compared(value: float, tmp_path: Path) -> None:
    job = worker.Job("a", 0, "box_ap", "", str(tmp_path / "seed_0"), 1)
    with pytest.raises(ValueError, match=r"val_box_ap is .*: the validation images have nothing to judge by"):
        worker._write(job, [], {"metrics": {"val_box_ap": value}, "per_class": []}, 1)
    assert not job.result.exists()


def test_a_run_too_short_for_a_curve(document: dict[str, Any]) -> None:
    for each in document["variants"]:
        each["curve"] = each["training_loss"] = []
    assert "curves" not in page.draw(document)

"""The benchmarks compare what they say they compare."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from benchmarks import cifar10_sets, input_pipeline, many_files, page, prediction, ramp_search, scaling, tables, tasks
from benchmarks.naive_iformer import NaiveIFormer
from iformer.classification.data import ImageData
from iformer.classification.label_lists import MultiLabelData
from iformer.common.plotting import BLUE
from iformer.models.released import convert, rename


def test_the_naive_model_computes_what_ours_does() -> None:
    torch.manual_seed(0)
    naive = NaiveIFormer("iformer_small", img_size=128)
    for name, parameter in naive.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1)  # at 1e-6 the branches would not be seen in the logits
    ours = timm.create_model("iformer_small", img_size=128)
    ours.load_state_dict(convert(naive.state_dict()))
    images = torch.randn(2, 3, 128, 128)
    for training in (False, True):
        logits = [model.train(training)(images) for model in (naive, ours)]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
        gradients = []
        for model, output in zip((naive, ours), logits, strict=True):
            model.zero_grad()
            output.square().sum().backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        scale = max(gradient.norm() for gradient in gradients[0].values())
        for name, gradient in gradients[0].items():
            difference = gradient.flatten() - gradients[1][rename(name)].flatten()
            assert difference.norm() < 1e-4 * scale, name


def test_the_input_pipeline_accounts_for_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    input_pipeline.generate(tmp_path, 2, seed=0)
    arguments = ["input_pipeline", "--images", str(tmp_path), "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    threads = torch.get_num_threads()
    try:
        input_pipeline.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert result["images"] == 2
    assert list(result["milliseconds_per_image"]) == ["read and decode", *input_pipeline.STEPS.values()]


def photographs(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(0, 255, (250, 300, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_prediction_beside_timm_and_against_files(tmp_path: Path) -> None:
    output = tmp_path / "results" / "prediction.json"
    options = [
        "--photographs",
        photographs(tmp_path / "photographs"),
        "--model",
        "resnet10t",
        "--images",
        4,
        "--batch",
        2,
    ]
    options += ["--workers", 1, "--files", 2, 6, "--rounds", 1, "--threads", 1, "--output", output]
    prediction.main(list(map(str, options)))
    result = json.loads(output.read_text())
    found = result["photographs"]
    speed = found["images_per_second"]
    assert found["images"] == 4
    assert found["share_of_network"] == pytest.approx(speed["predict"] / speed["network alone"], rel=0.01)
    loops = [speed[f"timm's loop, batches of {batch}"] for batch in (2, 256)]
    assert found["over_timm"] == pytest.approx(speed["predict"] / max(loops), rel=0.01)
    assert result["files"]["files"] == [2, 6]
    text = prediction.section(result, "figures")
    assert f"| predict | {speed['predict']:.1f} |" in text
    assert (output.parent / "files.png").stat().st_size > 1000


def test_crops_are_of_one_size(tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    files = prediction.crop(photographs(tmp_path / "photographs", 2), tmp_path / "crops", 5)
    assert len(files) == 5
    assert {Image.open(file).size for file in files} == {(224, 224)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is known on Linux only")
def test_many_files_are_all_predicted(tmp_path: Path) -> None:
    output = tmp_path / "many_files.json"
    many_files.main(["--files", "300", "--every", "100", "--settled", "200", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["rows"] == 300
    assert list(result["resident_mib"]) == ["100", "200", "300"]
    assert result["growth_mib"] == pytest.approx(result["resident_mib"]["300"] - result["resident_mib"]["200"], abs=0.2)
    assert "300 names" in many_files.section(result, "")


def test_exponents() -> None:
    assert tables.exponent([1, 2, 4], [3, 6, 12]) == 1
    assert tables.exponent([1, 2, 4], [5, 20, 80]) == 2


def test_cost_grows_with_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "MODELS", {"resnet10t": BLUE})
    output = tmp_path / "scaling.json"
    options = ["--parts", "side", "--sides", "32", "64", "--engines", "eager"]
    scaling.main([*options, "--rounds", "1", "--threads", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [row["height"] for row in result["side"]["rows"]] == [32, 64]
    assert result["side"]["rows"][1]["multiply_adds"] == pytest.approx(
        4 * result["side"]["rows"][0]["multiply_adds"], rel=0.05
    )
    text = scaling.section(result, "figures")
    assert "| resnet10t | eager |" in text
    assert (tmp_path / "side.png").stat().st_size > 1000
    assert "figures/side.png" in text
    assert [row.batch for row in scaling.by_batch([2], ["eager"], 32)[2]] == [2]


def test_published_models_are_timms() -> None:
    for name in scaling.PUBLISHED:
        assert timm.is_model_pretrained(name)
    assert scaling.swin_tiny().eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 1000)


def test_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PEERS", {"segmentation": ("resnet10t",)})
    monkeypatch.setattr(tasks, "ENGINES", {"fused": ["fp32"]})
    output = tmp_path / "tasks.json"
    options = [
        "--tasks",
        "segmentation",
        "--model",
        "convnext_atto",
        "--size",
        "64",
        "96",
        "--rounds",
        "1",
        "--threads",
        "1",
    ]
    tasks.main([*options, "--output", str(output)])
    result = json.loads(output.read_text())["segmentation"]
    rows = [(row["model"], row["engine"]) for row in result["variants"]]
    assert rows == [("convnext_atto", "eager"), ("resnet10t", "eager"), ("convnext_atto", "fused")]
    times = [row["milliseconds"] for row in result["variants"]]
    assert result["ratios"]["fp32, best engine over eager"] == pytest.approx(
        times[0] / min(times[0], times[2]), abs=0.01
    )
    assert "| semantic_fpn convnext_atto | fused |" in tasks.section({"segmentation": result}, "")


def test_the_page_has_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / page.FOLDER / "int8"
    folder.mkdir(parents=True)
    exported = {"model": "runs/x", "format": "openvino", "precision": "int8"}
    exported |= {"accuracy": {"images": 1000, "eager": {"miou": 0.9}, "file": {"miou": 0.897}}}
    (folder / "x.json").write_text(json.dumps(exported))
    page.main(["--docs", str(tmp_path)])
    text = (tmp_path / "performance.md").read_text()
    assert "| runs/x | openvino int8 | 1,000 | mIoU | 90.00% | 89.70% | 0.30 |" in text
    assert "How cost grows" not in text


@pytest.fixture
def ten_classes(tmp_path: Path) -> Path:
    """Folders like those of CIFAR-10, of images in one shade for each class."""
    for split, count in (("train", 40), ("test", 4)):
        for number, name in enumerate("abcdefghij"):
            (tmp_path / "cifar" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (25 * number,) * 3).save(tmp_path / "cifar" / split / name / f"{i}.png")
    return tmp_path / "cifar"


def test_tiles_have_the_labels_that_they_show(ten_classes: Path, tmp_path: Path) -> None:
    cifar10_sets.tiles(ten_classes, tmp_path / "tiles")
    data = MultiLabelData(str(tmp_path / "tiles"), num_workers=0)
    data.setup()
    assert data.class_names == tuple("abcdefghij")
    counts = []
    for split in ("train", "val", "test"):
        reader, labels, indices = data._parts[split]
        counts.append(len(indices))
        for index in indices:
            shades = np.asarray(Image.open(reader[index][0]).convert("L"))[16::32, 16::32].flatten()
            assert np.flatnonzero(labels[index]).tolist() == sorted(set(np.round(shades / 25).astype(int).tolist()))
    assert counts == [90, 10, 10]


def test_thinned_classes_fall_exponentially(ten_classes: Path, tmp_path: Path) -> None:
    cifar10_sets.thinned(ten_classes, tmp_path / "thinned", ratio=40)
    data = ImageData(str(tmp_path / "thinned"), val_split="test", num_workers=0)
    data.setup()
    counts = data.class_counts or []
    assert (counts[0], counts[-1], len(data._parts["test"][2])) == (40, 1, 40)
    assert counts == sorted(counts, reverse=True)


def test_the_agreement_of_ranks_and_its_interval() -> None:
    accuracies = [0.70, 0.72, 0.75, 0.77, 0.80, 0.81, 0.83, 0.85]
    same = ramp_search.agreement(accuracies, [value + 0.1 for value in accuracies])
    assert [same[name] for name in ("tau", "low", "high")] == pytest.approx([1, 1, 1])
    assert ramp_search.agreement(accuracies, accuracies[::-1])["tau"] == pytest.approx(-1)
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(20):  # of no relation at all: most intervals hold zero
        found = ramp_search.agreement(random.random(12).tolist(), random.random(12).tolist(), seed)
        covered += found["low"] <= 0 <= found["high"]
    assert covered >= 16
    assert ramp_search.agreement([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]) is None
    assert ramp_search.agreement([0.1, 0.2], [0.1, 0.2]) is None


def test_the_share_of_attention_in_the_best_ramps() -> None:
    most = (2, 4, 6)
    ramps = ramp_search.random_ramps(most, 100, 0)
    assert ramps == ramp_search.random_ramps(most, 100, 0)
    assert len(set(ramps)) == 100
    rising = ramp_search.shares_of_best(ramps, [ramp[2] / 6 - ramp[0] / 2 for ramp in ramps], most)
    assert rising["best"] == 5
    assert rising["mean"][0] < 0.1
    assert rising["mean"][2] > 0.8
    assert 0 < rising["rise"][1] <= rising["rise"][0] <= rising["rise"][2]
    by_chance = ramp_search.shares_of_best(ramps, np.random.default_rng(1).random(100).tolist(), most)
    assert by_chance["rise"][1] < 0 < by_chance["rise"][2]

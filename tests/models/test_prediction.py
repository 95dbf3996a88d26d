"""``iformer predict`` on many images: where they come from, where results go, and what a kill costs."""

import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image

from iformer.common.images import stream_images
from iformer.models import prediction, saved
from iformer.models.prediction import Options, find_device, predictions, predictor, usual_batch
from iformer_command import cli
from tests.conftest import Command
from tests.processes import command, environments, exit_status, wait_for


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    model = timm.create_model("iformer_nano", num_classes=3)
    model.head.fc.weight.data.mul_(3)
    saved.save(model, tmp_path / "run", ["x", "y", "z"])
    return tmp_path / "run"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images at two levels, and one that is none."""
    random = np.random.default_rng(0)
    for number in range(12):
        file = tmp_path / "images" / ("ab"[number % 2]) / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(file)
    (tmp_path / "images" / "b" / "bad.jpg").write_bytes(b"no image")
    return tmp_path / "images"


def names(out: str) -> list[str]:
    return [Path(result["image"]).name for result in json.loads(out)]


def test_places_that_images_come_from(
    iformer: Command, trained: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "shard.tar.gz", "w:gz") as archive:
        for file in sorted(images.rglob("*.png")):
            archive.add(file, file.relative_to(images))
        archive.addfile(tarfile.TarInfo("notes.txt"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images / 'a/00.png'}\n\n{images / 'nowhere.png'}\n"))
    model = ("--model", trained, "--json")
    even, odd = ([f"{number:02}.png" for number in range(start, 12, 2)] for start in (0, 1))
    assert names(iformer("predict", images / "a", *model)[1]) == even
    assert names(iformer("predict", images / "*" / "0[0-3].png", *model)[1]) == ["00.png", "02.png", "01.png", "03.png"]
    assert names(iformer("predict", tmp_path / "shard.tar.gz", *model)[1]) == even + odd
    assert names(iformer("predict", tmp_path / "*.gz", *model)[1]) == even + odd
    status, out, err = iformer("predict", "-", *model)
    assert (status, names(out)) == (0, ["00.png", "nowhere.png"])
    assert "nowhere.png: no such file" in err


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("*.tiff", "*.tiff: no file fits this pattern"),
        ("empty.tar", "empty.tar: a tar file without images"),
        ("damaged.tar", "damaged.tar: a damaged tar file"),
        ("nowhere.png", "nowhere.png: no such file or folder"),
    ],
)
def test_places_without_images(place: str, told: str, iformer: Command, trained: Path, tmp_path: Path) -> None:
    tarfile.open(tmp_path / "empty.tar", "w").close()
    (tmp_path / "damaged.tar").write_bytes(b"not a tar file" * 100)
    status, out, err = iformer("predict", tmp_path / place, "--model", trained)
    assert (status, out) == (2, "")
    assert told in err


def test_a_damaged_tar_file_does_not_end_the_run(iformer: Command, trained: Path, images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cut.tar", "w") as archive:
        for name in ("00.png", "02.png"):
            archive.add(images / "a" / name, name)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:-6000])
    status, out, err = iformer("predict", tmp_path / "cut.tar", images / "a", "--model", trained, "--json")
    assert status == 2
    assert names(out) == ["00.png", "cut.tar", *(f"{number:02}.png" for number in range(0, 12, 2))]
    assert "cut.tar: a damaged tar file " in err


def test_processes_share_the_images(trained: Path, images: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for file in sorted(images.rglob("*.png"))[:3]:
            archive.add(file, file.name)
    places = [str(images), str(tmp_path / "shard.tar")]
    arguments = ["predict", *places, "--model", trained, "--output", tmp_path / "results.parquet"]
    ranks = [command(tmp_path / f"stderr{told['RANK']}", *arguments, **told) for told in environments(2)]
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0], (tmp_path / "stderr0").read_text()
    parts = [tmp_path / f"results-0000{rank}-of-00002.parquet" for rank in range(2)]
    found = [pq.read_table(part).to_pylist() for part in parts]
    assert [[row["image"] for row in rows] for rows in found] == [
        [str(image) for image in stream_images(places, (rank, 2))] for rank in range(2)
    ]
    assert [len(rows) for rows in found] == [7, 6 + 3]
    assert len({row["image"] for rows in found for row in rows}) == 16


def test_several_processes_need_a_file_each(
    iformer: Command, trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = iformer("predict", images, "--model", trained)
    assert (status, "several processes need an --output that ends in" in err) == (2, True)
    status, _, err = iformer("predict", "-", "--model", trained, "--output", "a.csv")
    assert (status, "several processes cannot share standard input" in err) == (2, True)


def test_threads_and_batches_change_nothing(trained: Path, images: Path) -> None:
    model = saved.resolve(trained)
    found = []
    for workers, batch_size in ((0, 1), (3, 5), (2, 32)):
        made = predictor(model, Options(workers=workers, batch_size=batch_size, top=3))
        found.append(list(predictions(model, made, stream_images([str(images)]))))
    assert [result["image"] for result in found[1]] == [result["image"] for result in found[0]]
    for one, other in zip(found[0], found[1], strict=True):
        assert one.get("error") == other.get("error")
        for a, b in zip(one.get("classes", []), other.get("classes", []), strict=True):
            assert (a["name"], a["probability"]) == (b["name"], pytest.approx(b["probability"], abs=2e-4))
    assert [len(results) for results in found] == [13] * 3


def test_names_and_weights_are_enough(iformer: Command, images: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("iformer_nano").state_dict(), tmp_path / "mine.pth")
    image = images / "a" / "00.png"
    status, out, _ = iformer("predict", image, "--model", "iformer_nano", "--weights", tmp_path / "mine.pth", "--json")
    assert status == 0
    assert {entry["name"] for entry in json.loads(out)[0]["classes"]} <= {f"class {i}" for i in range(10)}


def killed_in_the_middle(*arguments: str) -> None:
    """``iformer ARGUMENTS``, killed before the eighth result."""

    def killed(*given: Any) -> Any:
        for number, result in enumerate(predictions(*given)):
            if number == 7:
                os._exit(9)
            yield result

    prediction.predictions = killed  # type: ignore[assignment]
    sys.argv = ["iformer", *arguments]
    cli.main()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_results_of_a_killed_run_are_completed(
    suffix: str, iformer: Command, trained: Path, images: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"
    status, out, err = iformer("predict", images, "--model", trained, "--output", whole)
    assert status == 0
    assert "13 images, 1 of them unreadable" in out
    assert err.count("bad.jpg: not an image") == 1
    arguments = ["predict", str(images), "--model", str(trained), "--output", str(killed)]
    assert exit_status(killed_in_the_middle, *arguments) == 9
    status, out, _ = iformer(*arguments, "--resume")
    assert status == 0
    assert whole.read_bytes() == killed.read_bytes()
    status, _, err = iformer(*arguments, "--resume", "--top", 2)
    assert status == 2
    assert "was written with top 5, and cannot be resumed with 2" in err


def test_ctrl_c_keeps_the_results(trained: Path, images: Path, tmp_path: Path) -> None:
    names, file, errors = tmp_path / "names", tmp_path / "results.jsonl", tmp_path / "stderr"
    os.mkfifo(names)
    arguments = ["predict", "-", "--model", trained, "--output", file, "--batch-size", 1, "--workers", 0]
    process = command(errors, *arguments, standard_input=names)
    with names.open("w") as opened:
        opened.write("\n".join(map(str, sorted(images.rglob("*.png")))) + f"\n{tmp_path / 'last'}\n")
        opened.flush()
        wait_for(lambda: "last: no such file" in errors.read_text(), process)  # it waits for more
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join()
    assert process.exitcode == 130
    assert "Traceback" not in errors.read_text()
    assert len(file.read_text().splitlines()) == 13


def test_results_go_where_the_name_says(iformer: Command, trained: Path, images: Path) -> None:
    status, _, err = iformer("predict", images, "--model", trained, "--resume")
    assert status == 2
    assert "--resume needs an --output that ends in .jsonl, .csv, .parquet or .npy" in err


@pytest.mark.parametrize("killed_at", [None, 0, 5])
def test_features_as_rows(
    killed_at: int | None,
    iformer: Command,
    trained: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (images / "a" / "0.jpg").write_bytes(b"no image either")  # the first of all
    model, file = saved.resolve(trained), tmp_path / "features.npy"
    arguments = ("predict", images, "--model", trained, "--features", "pooled", "--output", file, "--batch-size", 1)
    if killed_at is not None:

        def killed(*given: Any) -> Any:
            for number, result in enumerate(predictions(*given)):
                if number == killed_at:
                    raise MemoryError
                yield result

        with monkeypatch.context() as patch:
            patch.setattr(prediction, "predictions", killed)
            assert iformer(*arguments)[0] == 2
    assert iformer(*arguments, *(["--resume"] if killed_at is not None else []))[0] == 0
    rows, names = np.load(file), (tmp_path / "features.npy.txt").read_text().splitlines()
    assert [Path(name) for name in names] == list(stream_images([str(images)]))
    assert (rows.dtype, rows.shape) == (np.float32, (14, model.network.num_features))
    assert [i for i, row in enumerate(rows) if np.isnan(row).any()] == [0, 13]
    pixels = torch.stack([model.prepare(Image.open(name)) for name in names[1:13]])
    with torch.inference_mode():
        expected = model.network.forward_head(model.network.forward_features(pixels), pre_logits=True)
    np.testing.assert_allclose(rows[1:13], expected, rtol=1e-3, atol=1e-4)


def test_features_as_lists(iformer: Command, trained: Path, images: Path, tmp_path: Path) -> None:
    image = images / "a" / "00.png"
    for kind in ("pooled", "map"):
        file = tmp_path / f"{kind}.parquet"
        assert iformer("predict", image, "--model", trained, "--features", kind, "--output", file)[0] == 0
        (row,) = pq.read_table(file).to_pylist()
        assert len(row["features"]) == np.prod(row.get("shape", [saved.resolve(trained).network.num_features]))
    status, _, err = iformer("predict", image, "--model", trained, "--features", "map", "--output", tmp_path / "a.npy")
    assert (status, "holds pooled features only" in err) == (2, True)
    status, _, err = iformer("predict", image, "--model", trained, "--features", "some")
    assert (status, "features is 'some', expected pooled or map" in err) == (2, True)
    assert "features: " in iformer("predict", image, "--model", trained, "--features", "pooled")[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_names_the_same(precision: str, trained: Path, images: Path) -> None:
    model = saved.resolve(trained)
    probabilities: list[list[float]] = []
    for name in ("fp32", precision):
        made = predictor(model, Options(precision=name, top=3))
        results = predictions(model, made, sorted((images / "a").glob("*.png")))
        probabilities.append([result["classes"][0]["probability"] for result in results])
    assert probabilities[0] == pytest.approx(probabilities[1], abs=0.03)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "gpu"])
def test_devices_that_are_not_here(device: str) -> None:
    with pytest.raises(ValueError, match=f"^device is {device}, expected auto"):
        find_device(device)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [find_device(name) for name in ("auto", "cuda:1")] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setenv("LOCAL_RANK", "3")  # of four processes on two devices
    assert find_device("auto") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device is cuda:2, expected auto, cpu or cuda"):
        find_device("cuda:2")


def test_options_are_checked() -> None:
    model: Any = saved.of_classifier(timm.create_model("iformer_nano", num_classes=2))
    with pytest.raises(ValueError, match="precision is int4, expected one of fp32, bf16, fp16"):
        predictor(model, Options(precision="int4"))


def test_a_processor_takes_fewer_large_images_at_a_time() -> None:
    """Batches of 32 small images, and of as many as have so many pixels; the options may say another number."""
    for side, expected in ((32, 32), (112, 32), (224, 8), (384, 2), (1024, 1)):
        config = {"input_size": (3, side, side)}
        model = saved.Model("classifier", "classification", torch.nn.Identity(), ("one",), config, "")
        assert usual_batch(model) == expected

"""``iformer fit FOLDER`` on class folders."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from iformer.models.saved import resolve
from iformer.training import folders, survey
from iformer.training.checkpoints import available
from tests.conftest import Command
from tests.processes import command, wait_for

TINY = ("--device", "cpu", "--workers", "0", "--trainer.enable_progress_bar", "false")


def picture(file: Path, colour: int, seed: int, size: tuple[int, int] = (32, 32)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 100, (size[1], size[0], 3), np.uint8)
    noise[..., colour] += 150
    Image.fromarray(noise).save(file)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures of each of three colours in a folder for each."""
    for label, name in enumerate(("blue", "green", "red")):
        for number in range(10):
            picture(tmp_path / "photos" / name / f"{number}.png", 2 - label, 100 * label + number)
    return tmp_path / "photos"


@pytest.fixture
def split(photos: Path) -> Path:
    """The same, with the last two of each colour for validation."""
    for file in sorted(photos.glob("*/*.png")):
        part = "val" if file.stem in "89" else "train"
        (photos / part / file.parent.name).mkdir(parents=True, exist_ok=True)
        file.rename(photos / part / file.parent.name / file.name)
    for name in ("blue", "green", "red"):
        (photos / name).rmdir()
    return photos


def test_one_line_trains_and_says_how_to_go_on(iformer: Command, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, out, err = iformer("fit", photos, "--output", run, "--epochs", 2, *TINY)
    assert status == 0, err
    assert "training: 27 images, 32x32 pixels" in err
    assert "10% of each class's images are kept apart" in err
    assert f"iformer predict IMAGE... --model {run}" in out
    assert resolve(run).class_names == ("blue", "green", "red")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["model"]["init_args"]["model"] == "iformer_nano"
    assert recipe["data"]["init_args"]["image_size"] == 32
    status, out, _ = iformer("predict", photos / "red" / "0.png", "--model", run, "--json")
    assert status == 0
    assert {each["name"] for each in json.loads(out)[0]["classes"]} == {"blue", "green", "red"}
    with pytest.warns(UserWarning, match="no test images: these are the figures of the validation images"):
        assert iformer("test", "--config", run / "recipe.yaml", "--resume")[0] == 0
    assert "split: validation" in (run / "README.md").read_text()
    assert "split: test" not in (run / "README.md").read_text()


@pytest.mark.parametrize(("with_test", "verb"), [(False, "validate"), (True, "test")])
def test_it_says_how_to_evaluate(with_test: bool, verb: str, iformer: Command, split: Path, tmp_path: Path) -> None:
    if with_test:
        shutil.copytree(split / "val", split / "test")
    run = tmp_path / "run"
    freeze = ("--freeze.stages", "1", "--freeze.epochs", "1", "--checkpoint.best", "true")
    status, out, err = iformer("fit", split, "--output", run, "--epochs", 1, *freeze, *TINY)
    assert status == 0, err
    assert f"iformer {verb} --config {run}/recipe.yaml" in out
    assert yaml.safe_load((run / "recipe.yaml").read_text())["freeze"]["stages"] == 1


def test_a_learning_rate_is_found_for_a_folder(iformer: Command, split: Path, tmp_path: Path) -> None:
    status, out, err = iformer("fit", split, "--find_lr", "--batch-size", 2, "--output", tmp_path / "run", *TINY)
    assert status == 0, err
    assert "--model.init_args.optimization.lr" in out
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_same_line_goes_on_after_ctrl_c(
    photos: Path, tmp_path: Path, iformer: Command, caplog: pytest.LogCaptureFixture
) -> None:
    line = ["fit", str(photos), "--output", str(tmp_path / "run"), "--epochs", "200", *TINY]
    process = command(tmp_path / "stderr", *line)
    wait_for(lambda: available(tmp_path / "run"), process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert "the same command goes on with --resume" in (tmp_path / "stderr").read_text()
    status, _, err = iformer(*line)
    assert status == 2
    assert f"{tmp_path / 'run'}: holds checkpoints of an earlier run; go on with --resume" in err
    done = int(available(tmp_path / "run")[0].stem.removeprefix("step-")) // 9 + 1  # epochs of nine steps
    status, _, err = iformer(*line, "--resume", "--epochs", done + 1)
    assert status == 0, err
    assert f"Going on with other settings than the checkpoint's: trainer.max_epochs 200 -> {done + 1}" in caplog.text


def test_check_says_what_is_there_and_trains_nothing(iformer: Command, split: Path, tmp_path: Path) -> None:
    status, out, err = iformer("fit", split, "--output", tmp_path / "run", "--check", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["images"] == {"train": 24, "val": 6}
    assert found["images_per_class"]["green"] == {"train": 8, "val": 2}
    assert found["sizes"]["train"] == [[32, 32]]
    assert not found["faults"]
    assert found["recipe"]["model"]["init_args"]["num_classes"] == 3
    assert not (tmp_path / "run").exists()


def test_faults_are_named(iformer: Command, split: Path) -> None:
    (split / "train" / "red" / "broken.png").write_bytes(b"no image")
    (split / "val" / "red" / "copy.png").write_bytes((split / "train" / "red" / "0.png").read_bytes())
    status, out, err = iformer("fit", split, "--check", "--json")
    broken, doubled = json.loads(out)["faults"]
    assert status == 2
    assert "1 of 25 training images cannot be read" in broken
    assert "broken.png" in broken
    assert "1 validation images are training images too" in doubled
    assert "copy.png is " in doubled
    status, _, err = iformer("fit", split)
    assert status == 2
    assert "more than the 1% that training passes over; repair or remove them" in err.splitlines()[-1]


def test_of_many_images_some_are_opened(iformer: Command, split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "LOOKED_AT", 10)
    status, out, _ = iformer("fit", split, "--check", "--json")
    assert status == 0
    assert "10 of the 24 training images were opened, evenly spread" in json.loads(out)["notes"]


def test_few_broken_images_are_passed_over(iformer: Command, split: Path, tmp_path: Path) -> None:
    (split / "train" / "red" / "broken.png").write_bytes(b"no image")
    share = ("--data.init_args.max_error_share", "0.1")
    status, _, err = iformer("fit", split, "--output", tmp_path / "run", "--epochs", 1, *share, *TINY)
    assert status == 0, err
    assert "warning: 1 of 25 training images cannot be read" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--epoch", "3"], "no option --epoch, did you mean --epochs?"),
        (["more"], "no option more"),
        (["--model", "iformer_smal"], "timm has no iformer_smal, did you mean iformer_small?"),
        (["--device", "tpu"], "--device tpu: expected auto, cpu, cuda, cuda:N or mps"),
        (["--weights", "released"], "--weights released: there are none of iformer_nano; expected random or a file"),
        (["--config", "cifar10"], "expected FOLDER or --config RECIPE"),
        (["--trainer.max_epoch=3", *TINY], "unknown key trainer.max_epoch, did you mean trainer.max_epochs?"),
        (
            ["--data.init_args.val_shar=0.2"],
            "unknown key data.init_args.val_shar, did you mean",
        ),
        (["--data.init_args.val_share=2"], "val_share is 2, expected less than 1"),
        (["--weights", "no.pth", *TINY], "no.pth: no such file"),
    ],
)
def test_wrong_options(options: list[str], told: str, iformer: Command, photos: Path, tmp_path: Path) -> None:
    status, _, err = iformer("fit", photos, "--output", tmp_path / "run", *options)
    assert status == 2
    assert told in err.splitlines()[-1]


def test_wrong_folders(iformer: Command, photos: Path, tmp_path: Path) -> None:
    def told(folder: Path) -> str:
        status, _, err = iformer("fit", folder)
        assert status == 2
        return err.splitlines()[-1]

    (tmp_path / "empty").mkdir()
    assert "empty: nothing to train on was recognised; expected a folder of images for each class" in told(
        tmp_path / "empty"
    )
    assert "none: no such folder" in told(tmp_path / "none")
    (tmp_path / "one").mkdir()
    (photos / "red").rename(tmp_path / "one" / "red")
    assert "1 class, expected at least two" in told(tmp_path / "one")
    (photos / "grey").mkdir()
    assert "grey: a class folder without images" in told(photos)


def settings(folder: Path, **options: object) -> dict:
    return folders.prepare(folder, folders.Options(**options)).settings  # type: ignore[arg-type]


def test_large_images_are_fine_tuned_at_the_size_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        picture(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", 0, number, (90, 70))
    chosen = settings(tmp_path / "photos")
    task, data = chosen["model"]["init_args"], chosen["data"]["init_args"]
    assert (task["model"], task["pretrained"], data["image_size"]) == ("iformer_small", True, 224)
    assert task["optimization"]["layer_decay"] == 0.8
    assert data["batch_size"] == 2
    chosen = settings(tmp_path / "photos", weights="random", image_size=96, lr=1e-3, seed=5, device="cuda:1")
    task = chosen["model"]["init_args"]
    assert (task["pretrained"], task["model_args"]["img_size"]) == (False, 96)
    assert task["optimization"]["layer_decay"] is None
    assert (task["optimization"]["lr"], task["optimization"]["base_batch"]) == (1e-3, None)
    assert (chosen["seed_everything"], chosen["trainer"]["devices"]) == (5, [1])
    other = settings(tmp_path / "photos", model="vit_base_patch16_siglip_gap_384", weights="random")
    assert (other["data"]["init_args"]["image_size"], other["data"]["init_args"]["mean"]) == (384, [0.5, 0.5, 0.5])
    monkeypatch.chdir(tmp_path)
    assert settings(Path("photos"))["trainer"]["default_root_dir"] == "runs/photos"


def test_help_tells_the_options(iformer: Command) -> None:
    status, out, _ = iformer("fit", "--help")
    assert status == 0
    assert "FOLDER|--config RECIPE" in out
    assert "--check" in out
    status, _, err = iformer("fit")
    assert status == 2
    assert "expected a FOLDER or --config RECIPE" in err


def test_short_options_go_with_a_recipe_too(iformer: Command, tmp_path: Path) -> None:
    options = ("--epochs", 3, "--lr", "0.5", "--batch-size", 7, "--output", tmp_path / "a b", "--device", "cpu")
    status, out, err = iformer("fit", "--config", "cifar10", *options, "--print_config")
    assert status == 0, err
    chosen = yaml.safe_load(out)
    assert (chosen["trainer"]["max_epochs"], chosen["data"]["init_args"]["batch_size"]) == (3, 7)
    assert chosen["trainer"]["default_root_dir"] == str(tmp_path / "a b")
    assert chosen["model"]["init_args"]["optimization"]["lr"] == 0.5
    status, _, err = iformer("fit", "--config", "cifar10", "--check")
    assert status == 2
    assert "go with a FOLDER" in err


def test_weights_that_cannot_be_fetched(iformer: Command, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> Callable[..., object]:
        raise OSError("no route")

    monkeypatch.setattr("timm.create_model", unreachable)
    status, _, err = iformer("fit", photos, "--model", "iformer_small", *TINY)
    assert status == 2
    assert "--weights FILE, in a recipe pretrained: FILE; or do without: --weights random" in err.splitlines()[-1]

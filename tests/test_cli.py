"""Mistakes, names and interruptions, from the outside: the exit status, and what is printed where."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from iformer.common import batches
from iformer.models import saved
from tests.conftest import Command

COMMAND = [sys.executable, "-c", "from iformer_command import cli; cli.main()"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier whose classes have names like these."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    saved.save(timm.create_model("iformer_nano", num_classes=3), folder, ["[red]a[/", "\x1b[2Jb", "caf\udce9"])
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, one of them with a name that is not UTF-8."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "caf\udce9.png", "new\nline.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.mark.parametrize(
    "arguments",
    [
        "--json",
        "nonsense --json",
        "list --nonsense --json",
        "tables 9 --json",
        "tables --figure x.png --json",
        "demo --epochs 0 --json",
        "demo --output /dev/null/x --json",
        "fit --config no/such/recipe --json",
        "validate --config no/such/recipe --json",
        "test --json --config",
        "predict --json",
        "predict nowhere --checkpoint nowhere --json",
        "predict nowhere --checkpoint nowhere --top 0 --json",
        "predict nowhere --checkpoint nowhere --threshold nan --json",
        "analyze . --json",
        "analyze . --model iformer_nano --limit 0 --json",
        "convert nowhere.pth x.safetensors --json",
        "export nonsense --json",
        "export iformer_nano --size 0 0 --weights random --json",
        "benchmark --engines= --json",
        "compare --json",
        "compare --config no/such/recipe --models a,b --json",
        "compare --config cifar10 --json",
        "benchmark --batch 0 --json",
    ],
)
def test_a_mistake_is_one_line_and_one_document(arguments: str, iformer: Command) -> None:
    status, out, err = iformer(*arguments.split())
    assert status == 2
    assert err.startswith("iformer: error: ")
    assert err.count("\n") == 1
    assert err == f"iformer: error: {json.loads(out)['error']}\n"
    assert json.loads(out).keys() == {"error"}


def test_names_are_printed_whatever_they_hold_and_whatever_the_locale(trained: Path, images: Path) -> None:
    twice = (
        "import sys; from iformer_command import cli\n"
        "for encoding in ('utf-8', 'ascii'):\n"
        "    sys.stdout.reconfigure(encoding=encoding, errors='strict')\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert not end.code\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", twice, "predict", str(images), "--checkpoint", str(trained)],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
        check=True,
    )
    printed = result.stdout.decode("ascii").splitlines()
    for lines in (printed[:12], printed[12:]):
        assert {Path(line).name for line in lines[::4]} == {"a.png", r"caf\xe9.png", r"new\nline.png"}
        assert {line.partition("%  ")[2] for line in lines[1:4]} == {"[red]a[/", r"\x1b[2Jb", r"caf\xe9"}


def test_json_holds_names_as_they_are(iformer: Command, trained: Path, images: Path) -> None:
    status, out, _ = iformer("predict", images, "--checkpoint", trained, "--json")
    assert status == 0
    assert {Path(result["image"]).name for result in json.loads(out)} == set(os.listdir(images))
    assert {entry["name"] for entry in json.loads(out)[0]["classes"]} == {"[red]a[/", "\x1b[2Jb", "caf\udce9"}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("cannot\nallocate"), ValueError("too large")])
def test_an_image_that_the_model_cannot_take_is_one_line(
    error: Exception, iformer: Command, trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_transform(**arguments: Any) -> Any:
        transform = timm.data.create_transform(**arguments)

        def fussy(image: Image.Image) -> Any:
            if image.width < 40:
                raise error
            return transform(image)

        return fussy

    monkeypatch.setattr(saved, "create_transform", create_transform)
    Image.new("RGB", (1, 400)).save(images / "narrow.png")
    status, out, err = iformer("predict", images, "--checkpoint", trained, "--top", 1)
    assert status == 0
    assert out.count("%") == 3
    assert err.count("\n") == 1
    assert "narrow.png: " in err


def test_what_was_finished_before_ctrl_c_is_printed(
    iformer: Command, trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = batches.read_item, []

    def interrupted(path: Any, channels: int) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(path)
        return read(path, channels)

    monkeypatch.setattr(batches, "read_item", interrupted)
    status, out, err = iformer("predict", images, "--checkpoint", trained, "--batch-size", 1, "--json")
    assert (status, len(json.loads(out))) == (130, 2)
    assert err.endswith("iformer: interrupted\n")
    status, out, err = iformer("predict", images, "--checkpoint", trained, "--json")
    assert (status, json.loads(out)) == (130, {"error": "interrupted"})


def test_ctrl_c_ends_any_verb_with_130() -> None:
    measuring = (
        "import signal, sys; from iformer.paper import listing; from iformer_command import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background is started without
        "presets = listing.presets\n"
        "listing.presets = lambda: (print('measuring', file=sys.stderr, flush=True), presets(), signal.pause())\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", measuring, "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert process.stderr.readline() == b"measuring\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, json.loads(out)) == (130, {"error": "interrupted"})
    assert b"Traceback" not in err


@pytest.mark.parametrize("verb", ["--help", "predict"])
def test_a_reader_that_has_enough_ends_the_command_quietly(verb: str, trained: Path, images: Path) -> None:
    arguments = [verb] if verb == "--help" else [verb, str(images / "a.png"), "--checkpoint", str(trained)]
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full disk")
@pytest.mark.parametrize("arguments", ["--help", "tables 9 --json"])
def test_a_full_disk_under_standard_output_is_one_line(arguments: str) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, *arguments.split()], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("iformer: error: ")
    assert result.stderr.count("\n") == 1

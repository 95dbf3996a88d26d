"""The demo and the command, from the outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
from PIL import Image

from iformer import demo
from tests.conftest import Command

PICTURE = str(Path(__file__).parents[1] / "docs/results/cifar10/curve.png")


@pytest.fixture
def trained(small_fashion_mnist: Path, tmp_path: Path) -> Path:
    """A folder that the demo has left behind."""
    demo.run(tmp_path / "run", small_fashion_mnist, epochs=4)
    return tmp_path / "run"


def test_demo_learns_reports_and_predicts(trained: Path, tmp_path: Path, iformer: Command) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["accuracy"] > 0.5  # chance is 0.1
    assert summary["completed"] is True
    assert summary["test_images"] == 100
    assert {"loss", "seed", "seconds", "versions", "command"} <= summary.keys()
    for name in ("training_curve", "confusion_matrix", "predictions", "branch_spectra", "grad_cam"):
        assert Image.open(trained / f"{name}.png").width > 500
    page = (trained / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert 'src="http' not in page

    model = timm.create_model(f"local-dir:{trained}", pretrained=True)
    assert model.pretrained_cfg["label_names"][0] == "T-shirt/top"

    Image.effect_noise((50, 70), 60).save(tmp_path / "a.png")
    status, out, _ = iformer("predict", tmp_path / "a.png", "--checkpoint", trained, "--top", 3, "--json")
    assert status == 0
    (result,) = json.loads(out)
    probabilities = [entry["probability"] for entry in result["classes"]]
    assert len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)


def test_ctrl_c_keeps_what_there_is(small_fashion_mnist: Path, tmp_path: Path) -> None:
    script = (
        "import json, signal, sys; from pathlib import Path; from iformer import demo;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # which a job in the background is started without
        "from iformer.classification import fashion_mnist;"
        "fashion_mnist.FASHION_MNIST.update(json.loads(sys.argv[1]));"
        "print(demo.run(Path(sys.argv[2]), Path(sys.argv[3]), epochs=10**6)['completed'])"
    )
    from iformer.classification.fashion_mnist import FASHION_MNIST

    output = tmp_path / "run"
    arguments = [sys.executable, "-c", script, json.dumps(FASHION_MNIST), str(output), str(small_fashion_mnist)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    metrics = output / "metrics.csv"
    deadline = time.monotonic() + 240
    try:
        while not (metrics.exists() and "val" in metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=240)[0].strip() == "False"
    finally:
        process.kill()
    assert json.loads((output / "summary.json").read_text())["completed"] is False
    assert "interrupted" in (output / "report.html").read_text()
    steps = json.loads((output / "summary.json").read_text())["steps"]
    again = demo.run(output, small_fashion_mnist, epochs=1 + steps // 12)  # 12 steps are an epoch of this data
    assert again["completed"]
    assert again["steps"] > steps
    demo._forget_ended(output)
    assert not (output / "checkpoints").exists()  # so that the next demo begins anew: this one had ended
    timm.create_model(f"local-dir:{output}", pretrained=True)


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/full").exists(), reason="needs root to mount a small disk")
def test_full_disk_is_told_before_training(small_fashion_mnist: Path, tmp_path: Path, iformer: Command) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        status, _, err = iformer("demo", "--output", disk / "run", "--data-dir", small_fashion_mnist)
        assert status == 2
    finally:
        subprocess.run(["umount", disk], check=True)
    assert "No space left" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["predict"], "IMAGE"),
        (["predict", "a.png", "--checkpoint", "missing-folder"], "a.png"),
        (["predict", PICTURE, "--checkpoint", "missing-folder"], "missing-folder"),
        (["demo", "--epochs", "0"], "--epochs"),
        (["demo", "--output", "/proc/none"], "/proc/none"),
        (["convert", "missing.pth", "out.safetensors"], "missing.pth"),
        (["convert", "in.pth", "out.bin"], "out.bin"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], named: str, iformer: Command) -> None:
    status, _, error = iformer(*arguments)
    assert status == 2
    assert named in error
    assert error.count("\n") == 1


def test_python_m() -> None:
    result = subprocess.run([sys.executable, "-m", "iformer", "--help"], capture_output=True, text=True, check=True)
    assert "predict" in result.stdout


def test_help_imports_no_torch() -> None:
    script = "import sys; from iformer_command import cli; sys.argv = ['iformer', '--help']; cli.main()"
    checked = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {script}"
    result = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("False\n")
    assert "predict" in result.stdout


@pytest.mark.parametrize("first", ["iformer", "timm"])
def test_models_are_registered_whatever_is_imported_first(first: str) -> None:
    second = {"iformer": "timm", "timm": "iformer"}[first]
    script = f"import {first}, {second}; import timm; assert timm.is_model('iformer_small')"
    subprocess.run([sys.executable, "-c", script], check=True)

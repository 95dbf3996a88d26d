"""The demo and the command, from the outside."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from iformer import demo
from iformer.classification import fashion_mnist
from tests.conftest import Command
from tests.processes import CONTEXT, wait_for

PICTURE = str(Path(__file__).parents[1] / "docs/results/cifar10/curve.png")


def endless_demo(checksums: dict[str, str], output: Path, data: Path) -> None:
    """Run a demo until Ctrl-C, and write whether it was completed beside its folder."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background is started without
    fashion_mnist.FASHION_MNIST.update(checksums)
    completed = demo.run(output, data, epochs=10**6)["completed"]
    output.with_name("completed").write_text(str(completed))


def test_demo_is_interrupted_goes_on_learns_reports_and_predicts(
    small_fashion_mnist: Path, tmp_path: Path, iformer: Command
) -> None:
    trained = tmp_path / "run"
    process = CONTEXT.Process(target=endless_demo, args=(fashion_mnist.FASHION_MNIST, trained, small_fashion_mnist))
    process.start()
    metrics = trained / "metrics.csv"
    wait_for(lambda: metrics.exists() and "val" in metrics.read_text(), process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert (tmp_path / "completed").read_text() == "False"
    interrupted = json.loads((trained / "summary.json").read_text())
    assert interrupted["completed"] is False
    assert "interrupted" in (trained / "report.html").read_text()
    timm.create_model(f"local-dir:{trained}", pretrained=True)

    epochs = 5 * (interrupted["steps"] // 12)  # 12 steps are an epoch of this data; a fifth of the schedule is over
    demo.run(trained, small_fashion_mnist, epochs)
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["steps"] > interrupted["steps"]
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

    demo._forget_ended(trained)
    assert not (trained / "checkpoints").exists()  # so that the next demo begins anew


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


def test_models_are_registered_also_if_timm_is_imported_last() -> None:
    script = "import iformer, timm; assert timm.is_model('iformer_small')"  # these tests have imported it first
    subprocess.run([sys.executable, "-c", script], check=True)

"""The wheel in an environment that has nothing else: ``make package``, which builds it first, runs this."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from PIL import Image

from iformer.models import saved
from iformer_command import extras
from tests import installations

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """The programs of a virtual environment into which the wheel was installed without extras.

    torch, and what it needs itself, are links to what is installed here, for they are gigabytes. They stand outside of
    the environment, where pip changes nothing.
    """
    (wheel,) = (ROOT / "dist").glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep it
        linked = installations.link(Path(folder, "torch"), installations.distributions(name="torch") - {"setuptools"})
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        (packages,) = Path(folder).glob("venv/lib/python*/site-packages")
        (packages / "torch.pth").write_text(str(linked))
        programs = Path(folder, "venv/bin")
        pip(programs, str(wheel))
        yield programs


def pip(programs: Path, *wanted: str) -> None:
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    subprocess.run([programs / "pip", "install", "--quiet", "--no-compile", *constraints, *wanted], check=True)


def run(programs: Path, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program, *arguments = map(str, command)
    return subprocess.run(
        [programs / program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photograph and a saved classifier."""
    folder = tmp_path_factory.mktemp("work")
    Image.effect_noise((48, 40), 50).convert("RGB").save(folder / "photo.png")
    saved.save(timm.create_model("iformer_nano", num_classes=2, img_size=32), folder / "classifier", ["cat", "dog"])
    return folder


def test_it_has_none_of_the_optional_packages(environment: Path, work: Path) -> None:
    listed = json.loads(run(environment, work, "pip", "list", "--format", "json").stdout)
    installed = {each["name"].lower().replace("_", "-") for each in listed}
    print(f"{len(installed)} packages with pip and setuptools, instead of what dev has.")
    optional = set.union(*extras.contents().values()) - {"filelock"}  # which torch needs too
    assert not installed & optional
    shown = run(environment, work, "pip", "show", extras.DISTRIBUTION).stdout
    assert "torch" in re.findall(r"[\w-]+", shown.partition("Requires:")[2].partition("\n")[0])  # though it was there


def test_it_lists_the_models(environment: Path, work: Path) -> None:
    ended = run(environment, work, "iformer", "list", "--json")
    assert ended.returncode == 0, ended.stderr
    assert "iformer_small" in ended.stdout


def test_it_predicts_and_installs_what_it_says(environment: Path, work: Path) -> None:
    predict = ("iformer", "predict", "photo.png", "--model", "classifier")
    ended = run(environment, work, *predict, "--json")
    assert ended.returncode == 0, ended.stderr
    assert {each["name"] for each in json.loads(ended.stdout)[0]["classes"]} == {"cat", "dog"}
    ended = run(environment, work, *predict, "--output", "results.parquet")
    assert ended.returncode == 2
    advice = "iformer: error: pyarrow is not installed; run pip install '"
    assert ended.stderr.startswith(advice)
    pip(environment, ended.stderr.removeprefix(advice).rstrip("'\n"))
    ended = run(environment, work, *predict, "--output", "results.parquet")
    assert ended.returncode == 0, ended.stderr


def test_a_model_of_timm_comes_with_an_import(environment: Path, work: Path) -> None:
    program = (
        "import iformer, timm; print(timm.create_model('iformer_small', features_only=True).feature_info.reduction())"
    )
    assert run(environment, work, "python", "-c", program).stdout == "[4, 8, 16, 32]\n"

"""The programs in examples/ run."""

import os
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
from packaging.requirements import Requirement
from PIL import Image

from iformer.models import saved
from tests.explorer.browser import explore

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_prediction_on_a_ray_cluster_of_one_machine(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    saved.save(timm.create_model("iformer_nano", num_classes=3), tmp_path / "run", ["x", "y", "z"])
    (tmp_path / "images").mkdir()
    for number in range(9):
        Image.effect_noise((40, 50), 10 * number + 10).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no image")
    arguments = ["images", "--model", "run", "--output", "results", "--processes", "1", "--batch-size", "4"]
    subprocess.run(
        [sys.executable, EXAMPLES / "predict_with_ray.py", *arguments],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    rows = sorted(pq.read_table(tmp_path / "results").to_pylist(), key=lambda row: row["image"])
    assert [Path(row["image"]).name for row in rows] == [*(f"{number}.png" for number in range(9)), "bad.jpg"]
    assert "bad.jpg: not an image" in rows[-1]["error"]
    assert all({entry["name"] for entry in row["classes"]} == {"x", "y", "z"} for row in rows[:-1])


def test_the_space_serves_the_explorer(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    saved.save(timm.create_model("iformer_nano", num_classes=3), tmp_path / "run", ["x", "y", "z"])
    command = [sys.executable, str(EXAMPLES / "space/app.py")]
    models = f"{tmp_path / 'run'} iformer_nano"
    with explore((), tmp_path, command, MODELS=models, GRADIO_SERVER_NAME="127.0.0.1") as server:
        page = urllib.request.urlopen(server.address).read().decode()
    assert "iFormer explorer" in page
    assert str(tmp_path / "run") in page


def test_the_space_requires_what_there_is() -> None:
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    for line in (EXAMPLES / "space/requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        assert requirement.name == project["name"]
        assert requirement.extras <= set(project["optional-dependencies"])

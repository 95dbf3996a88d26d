"""The programs in examples/ run."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image

from iformer.models import saved

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

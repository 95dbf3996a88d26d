"""Files of many results: the same after any kill, and readable by others."""

import csv
import json
import os
import resource
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from iformer.common import results
from iformer.common.results import open_results
from tests.processes import exit_status

SCHEMA: dict[str, Any] = {"classes": [{"name": str, "probability": float}], "height": int}
FORMATS = (".jsonl", ".csv", ".parquet")
ABOUT = {"settings": {"model": "a"}}


def result(number: int) -> dict[str, Any]:
    if number % 7 == 3:
        return {"image": f"{number}.png", "error": f'{number}.png: no "image",\nor so'}
    return {"image": f"{number}.png", "classes": [{"name": "=a, b", "probability": number / 8}], "height": number}


def write(file: Path, count: int, resume: bool = False, about: dict[str, Any] = ABOUT) -> None:
    with open_results(file, SCHEMA, about, resume) as opened:
        for number in range(opened.count, count):
            opened.write(result(number))


@pytest.mark.parametrize("suffix", FORMATS)
def test_they_hold_what_was_written(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PART", 4)
    file = tmp_path / f"results{suffix}"
    write(file, 10)
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows == [result(number) for number in range(10)]
    elif suffix == ".csv":
        with open(file, newline="") as opened:
            rows = list(csv.DictReader(opened))
        assert [row["image"] for row in rows] == [f"{number}.png" for number in range(10)]
        assert rows[2] == {"image": "2.png", "error": "", "name": "'=a, b", "probability": "0.25", "height": "2",
                           "classes": '[{"name": "=a, b", "probability": 0.25}]'}  # fmt: skip
        assert "no" in rows[3]["error"]
    else:
        rows = pq.read_table(file).to_pylist()
        expected = [{"image": None, "error": None, "classes": None, "height": None, **result(i)} for i in range(10)]
        assert rows == expected
    assert json.loads((tmp_path / f"results{suffix}.about.json").read_text()) == ABOUT
    assert len(list(tmp_path.iterdir())) == 2


def killed_while_writing(file: Path, after: int) -> None:
    results.PART = 4
    with open_results(file, SCHEMA, ABOUT) as opened:
        for number in range(1000):
            opened.write(result(number))
            if number == after:
                os._exit(9)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("killed_at", [0, 3, 998])
def test_a_killed_file_ends_as_one_that_was_not(
    suffix: str, killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PART", 4)
    whole, killed = tmp_path / f"whole{suffix}", tmp_path / f"killed{suffix}"
    write(whole, 1000)
    assert exit_status(killed_while_writing, killed, killed_at) == 9
    write(killed, 1000, resume=True)
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_row_that_was_cut_off_anywhere_is_written_again(suffix: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole{suffix}"
    write(whole, 5)
    content = whole.read_bytes()
    for end in range(len(content)):
        file = tmp_path / f"cut{suffix}"
        file.write_bytes(content[:end])
        write(file, 5, resume=True)
        assert file.read_bytes() == content, end


def test_results_are_not_mixed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write(file, 3)
    with pytest.raises(FileExistsError, match=r"a\.jsonl: there are results already; go on with --resume"):
        write(file, 3)
    with pytest.raises(ValueError, match=r"a\.jsonl: was written with model a, and cannot be resumed with b"):
        write(file, 3, resume=True, about={"settings": {"model": "b"}})
    with pytest.raises(ValueError, match=r"a\.txt: expected a name that ends in \.jsonl, \.csv, \.parquet, \.npy"):
        write(tmp_path / "a.txt", 3)
    write(file, 3, resume=True)  # complete: nothing is added
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_named(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PART", 1000)
    file = tmp_path / f"results{suffix}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"results{suffix}|results{suffix}\.parts"):
            write(file, 3000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write(file, 3000, resume=True)  # when there is room again
    write(tmp_path / f"whole{suffix}", 3000)
    assert file.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    for suffix in FORMATS:
        with open_results(tmp_path / f"r{suffix}", SCHEMA, ABOUT) as opened:
            opened.write({"image": "caf\udce9.png", "classes": []})
    assert json.loads((tmp_path / "r.jsonl").read_text())["image"] == "caf\udce9.png"
    assert pq.read_table(tmp_path / "r.parquet").to_pylist()[0]["image"] == r"caf\udce9.png"

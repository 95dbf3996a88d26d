"""Files are complete or as they were, whatever happens while they are written."""

import errno
import os
import signal
from pathlib import Path

import pytest

from iformer.common.files import replaced
from tests.processes import exit_status


def killed_while_writing(folder: Path) -> None:
    with replaced(folder) as temporary:
        (temporary / "model.onnx").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("old")
    (tmp_path / ".iformer-notes-of-mine").mkdir()
    assert exit_status(killed_while_writing, tmp_path) == -signal.SIGKILL
    assert (tmp_path / "model.onnx").read_text() == "old"
    (left,) = {path.name for path in tmp_path.iterdir()} - {"model.onnx", ".iformer-notes-of-mine"}
    assert left.startswith(".iformer-")
    with replaced(tmp_path) as temporary:
        (temporary / "model.onnx").write_text("new")
    assert (tmp_path / "model.onnx").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", ".iformer-notes-of-mine"}


def test_two_that_write_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    with replaced(tmp_path) as first, replaced(tmp_path) as second:
        (first / "a").write_text("a")
        (second / "b").write_text("b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"model\.onnx: cannot be written \(No space left on device\)"),
        replaced(tmp_path, named=tmp_path / "model.onnx"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'elsewhere'"), replaced(tmp_path):
        Path("elsewhere").read_bytes()

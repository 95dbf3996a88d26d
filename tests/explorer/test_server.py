"""How the explorer's command begins: its models, its port, and mistakes."""

import importlib
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from iformer.explorer.workbench import Workbench
from iformer.models import saved
from tests.conftest import Command
from tests.explorer.conftest import CLASSES, Folders


def test_without_models_it_is_the_demo_that_was_trained(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved.save(saved.resolve(folders.grey).network, tmp_path / "runs/demo", CLASSES)
    with closing(Workbench()) as bench:
        assert bench.names == ["runs/demo"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--model", "a.onnx"], "a.onnx"),
        (["--port", "0"], "--port"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1"),
    ],
)
def test_mistakes_of_the_command_get_one_line(arguments: list[str], named: str, iformer: Command) -> None:
    pytest.importorskip("gradio")
    status, _, error = iformer("explore", *arguments, "--no-browser")
    assert status == 2
    assert named in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_told(iformer: Command) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, _, error = iformer("explore", "--port", port, "--no-browser")
    assert status == 2
    assert error.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is taken" in error


def test_a_missing_package_is_told_with_its_extra(iformer: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "iformer.explorer.server", raising=False)
    status, _, error = iformer("explore")
    assert status == 2
    assert "gradio is not installed; run pip install 'iformer-inception[explore]'" in error


def test_gradio_keeps_no_statistics_of_events() -> None:
    gradio = pytest.importorskip("gradio")
    importlib.import_module("iformer.explorer.server")
    queue = gradio.Blocks().queue()._queue  # nothing public tells whether Gradio still knows these variables
    assert queue.ANALYTICS_MAX_EVENTS == 1
    queue.events_recorded = 10_000
    assert queue.compute_analytics_summary([{"function": "f"}]) == {"functions": {}}

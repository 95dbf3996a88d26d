"""The progress bar as a person sees it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from iformer.training import callbacks
from iformer.training.launcher import run
from tests.training.tiny import recipe


@pytest.mark.parametrize("width", [80, 160])
def test_one_line_and_epochs_from_one(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen = io.StringIO()

    def console(*_: object, **__: object) -> Console:
        return Console(file=screen, force_terminal=True, width=width, color_system=None)

    monkeypatch.setattr(callbacks, "Console", console)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.get_console", console)
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.reconfigure", lambda **_: None)
    run("fit", ["--config", str(recipe(tmp_path, trainer__enable_progress_bar=True, trainer__max_epochs=2))])
    lines = [line for line in screen.getvalue().replace("\r", "\n").split("\n") if "━" in line]
    assert any("Epoch 1/2" in line for line in lines)
    assert any("Epoch 2/2" in line and "loss: " in line and "images/s: " in line for line in lines)
    assert not any("Epoch 0" in line for line in lines)
    shown = screen.getvalue().replace("\r", "\n").split("\n")
    assert max(len(line.replace("\x1b[2K", "").replace("\x1b[1A", "")) for line in shown) <= width
    assert not any(line.strip().startswith(("loss", "images", "val_")) for line in shown)  # nothing wraps

"""The explorer's command as a process, and a browser that looks at its page."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",  # root may not have one
    "--use-fake-device-for-media-stream",  # a camera that films a drawing
    "--use-fake-ui-for-media-stream",  # and may be used
]
"""What Chromium is started with."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")


@dataclass
class Server:
    """A running ``iformer explore``."""

    address: str
    process: subprocess.Popen[str]

    @property
    def memory(self) -> float:
        """Its resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 2**10  # type: ignore[index]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def explore(models: Sequence[str], folder: Path, command: Sequence[str] = (), **environment: str) -> Iterator[Server]:
    """Run ``iformer explore``, or another command that serves the page, with its temporary files in ``folder``."""
    port = free_port()
    words = [*(word for model in models for word in ("--model", model)), "--no-browser", "--port", str(port)]
    line = command or [sys.executable, "-m", "iformer", "explore", *words]
    log = folder / "explore.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            line,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(folder), "GRADIO_SERVER_PORT": str(port), **environment},
        )
    try:
        deadline = time.monotonic() + 240
        while not (found := re.search(r"Explorer: (http\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Server(found[1], process)
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert not list(folder.glob("iformer-explorer-*"))  # with what was uploaded


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def choose(page: Any, place: str, option: str) -> None:
    """Choose in one of the page's lists."""
    page.locator(f"{place} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def upload(page: Any, file: str) -> None:
    """Give the page a picture."""
    clear = page.locator("#ex-picture").get_by_role("button", name="Remove Image")
    if clear.count():
        clear.first.click()
    page.locator("#ex-picture input[type=file]").first.set_input_files(file)


def set_slider(page: Any, place: str, value: float) -> None:
    number = page.locator(f"{place} input[type=number]")
    number.fill(str(value))
    number.press("Enter")

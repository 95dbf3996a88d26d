"""Executes pages of Markdown, whose fences ```sh and ```python are programs, one after the other."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DRAW = Path(__file__).parent / "tutorials/draw.py"
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
EPOCHS = re.compile(r"((?:^Epoch \d+/.*\n){2})(?:^Epoch \d+/.*\n)+(^Epoch \d+/.*\n)", re.MULTILINE)
QUIET = re.compile(r"^(?:Seed set to|GPU available|TPU available|`Trainer\.fit` stopped|Looking at ).*\n", re.MULTILINE)
"""What the libraries say of the machine and themselves."""
WARNING = re.compile(r"^\S+\.py:\d+: (\w+Warning: .*\n)(?:  .*\n)?", re.MULTILINE)


class FailedError(Exception):
    """A program of a page has failed; the message says which, and how its output ended."""


def execute(docs: Path, lanes: Sequence[Sequence[str]], work: Path) -> None:
    """Write pages with the output of their programs, unless those that are there are of the same sources.

    Args:
        docs: The folder of the pages.
        lanes: The pages, relative to that folder. Those of a lane are executed one after the other, and two lanes at a
            time.
        work: The folder in which the programs run; the pages go into ``pages`` there.

    Raises:
        FailedError: A program failed.
    """
    sources = [DRAW, *(docs / page for lane in lanes for page in lane)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    if (work / "sources").is_file() and (work / "sources").read_text() == digest:
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copy(DRAW, work)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda lane: [_execute(docs, page, work) for page in lane], lanes))
    (work / "sources").write_text(digest)


def _execute(docs: Path, page: str, work: Path) -> None:
    text = FENCE.sub(lambda fence: fence[0] + _output(page, fence[1], fence[2], work), (docs / page).read_text())
    target = work / "pages" / page
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def pictures(text: str) -> list[str]:
    """Return the files of the pictures in a page."""
    return PICTURE.findall(text)


def _output(page: str, language: str, program: str, work: Path) -> str:
    """Return a fence with what a program prints, or nothing if that is nothing."""
    command = ["bash", "-e", "-c", program] if language == "sh" else [sys.executable, "-c", program]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        command,
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    output = readable(done.stdout)
    if done.returncode:
        raise FailedError(f"{page}: exit status {done.returncode} of\n{program}{output[-2000:]}")
    return f"\n```text\n{output}```\n" if output.strip() else ""


def readable(output: str) -> str:
    """Return what a terminal would show in the end, with the first two and the last of many epochs."""
    lines = (line.rsplit("\r", 1)[-1].rstrip() for line in ESCAPE.sub("", output).split("\n"))
    text = "".join(f"{line}\n" for line in lines)
    text = WARNING.sub(r"\1", QUIET.sub("", text)).strip("\n")  # a warning without the place in the program
    return EPOCHS.sub(r"\1...\n\2", f"{text}\n")

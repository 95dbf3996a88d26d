"""Runs of ``iformer fit`` in processes of their own."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from iformer_command import cli

# Each process is a fork of one that has imported what it needs, which takes seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["iformer.training.launcher", "iformer.classification.task", "tests.training.tiny"])


def fit(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    """``iformer fit`` at the head of its process group, with its standard error in a file."""
    os.setsid()
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(environment)
    sys.argv = ["iformer", "fit", *arguments]
    cli.main()


def start(file: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Start ``iformer fit --config FILE ARGUMENTS``."""
    output = file.with_name(f"stderr{environment.get('RANK', '')}")
    process = CONTEXT.Process(target=fit, args=(["--config", str(file), *arguments], output, environment))
    process.start()
    return process


def start_ranks(count: int, file: Path, *arguments: str) -> list[BaseProcess]:
    """What ``torchrun --nproc-per-node COUNT`` starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
    return [start(file, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(count)]


def wait_for(condition: Callable[[], object], process: BaseProcess) -> None:
    """Until ``condition`` holds, or the process has ended."""
    while not condition() and process.exitcode is None:
        time.sleep(0.002)

"""Commands and functions in processes of their own, which are forks of one that has imported what they need."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from iformer_command import cli

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["iformer.training.launcher", "iformer.classification.task", "iformer.models.prediction", "tests.training.tiny"]
)


def exit_status(function: Callable[..., object], *arguments: Any) -> int:
    """What a function of a module ends with in a process of its own: 0, a status, or minus the number of a signal."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def iformer(arguments: list[str], errors: Path, environment: dict[str, str], standard_input: Path) -> None:
    """``iformer ARGUMENTS`` at the head of its process group, with its standard error in a file."""
    os.setsid()
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background is started without
    os.environ.update(environment)
    sys.argv = ["iformer", *arguments]
    sys.stdin = standard_input.open()
    cli.main()


def command(
    errors: Path, *arguments: object, standard_input: Path = Path(os.devnull), **environment: str
) -> BaseProcess:
    """Start ``iformer ARGUMENTS``."""
    process = CONTEXT.Process(target=iformer, args=([*map(str, arguments)], errors, environment, standard_input))
    process.start()
    return process


def start(file: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Start ``iformer fit --config FILE ARGUMENTS``."""
    errors = file.with_name(f"stderr{environment.get('RANK', '')}")
    return command(errors, "fit", "--config", file, *arguments, **environment)


def start_ranks(count: int, file: Path, *arguments: str) -> list[BaseProcess]:
    """Start ``iformer fit --config FILE ARGUMENTS`` as ``torchrun --nproc-per-node COUNT`` does."""
    return [start(file, *arguments, **environment) for environment in environments(count)]


def environments(count: int) -> list[dict[str, str]]:
    """What ``torchrun --nproc-per-node COUNT`` tells each of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(count)]


def wait_for(condition: Callable[[], object], process: BaseProcess) -> None:
    """Until ``condition`` holds, or the process has ended."""
    while not condition() and process.exitcode is None:
        time.sleep(0.002)

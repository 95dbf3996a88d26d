"""The server of the explorer's page, on this machine only unless told otherwise."""

import ctypes
import errno
import functools
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

# Gradio reads these. It would otherwise report its use and look for a newer version, keep 10,000 events, and summarise
# all of them with pandas after each one, for a page of statistics that is not served.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_MAX_EVENTS="1",
    GRADIO_ANALYTICS_CACHE_FREQUENCY=str(2**31),
)

import gradio as gr
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from iformer.explorer import examples, pictures
from iformer.explorer.page import build
from iformer.explorer.workbench import Workbench
from iformer_command.terminal import say

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Parameters of glibc's ``mallopt``."""

STYLE = Path(__file__).with_name("explorer.css")

PORTS = range(7860, 7960)
"""The ports that are tried if none is given."""

WAITING, AT_ONCE = 32, 4
"""The most requests that wait, and the threads that answer them."""

BETWEEN = 2
"""The seconds from one time that free memory is given back to the next."""

SESSIONS = 16
"""The most pages of which it is kept what they show; Gradio keeps it for an hour after a page is closed."""


def spare_memory() -> Callable[[], object]:
    """Bound what native code keeps for later in this process, and return a function that gives free memory back.

    In an hour of pictures of many sizes it is not Python's objects that grow, but what lies below them:

    - oneDNN keeps compiled kernels for the last 1024 shapes that PyTorch has asked for, and each size of picture brings
      new ones for each layer. 128 are enough for two networks side by side.
    - glibc keeps what was freed, up to tens of MiB in each thread. Here blocks from 1 MiB on go back to the system at
      once, and threads share what is kept of smaller ones. Of these, free pages between blocks in use go back only
      when the returned function is called, which takes a few milliseconds. Without glibc it does nothing.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")  # oneDNN reads it at its first kernel
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        return lambda: None
    for parameter, value in ((M_MMAP_THRESHOLD, 2**20), (M_ARENA_MAX, 1)):
        library.mallopt(parameter, value)
    return functools.partial(library.malloc_trim, 0)


def first_picture(bench: Workbench) -> str:
    """Return the name of the example that suits the first model."""
    name = bench.names[0]
    if bench.whole(name).task != "classification":
        return "street"
    return "boot" if bench.models[name].channels == 1 else "portrait"  # clothes, as those that the demo learns


def free_port(host: str, port: int | None) -> int:
    """Return the port on which to listen; None for the first free one of :data:`PORTS`.

    Raises:
        OSError: The port is taken, or the host is no address of this machine.
    """
    for candidate in PORTS if port is None else [port]:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                tried.bind((host, candidate))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise OSError(f"--host {host}: {error.strerror}; expected an address of this machine") from None
            else:
                return candidate
    if port is None:
        raise OSError(f"all ports from {PORTS[0]} to {PORTS[-1]} are taken; give another one: --port N")
    raise OSError(f"port {port} of {host} is taken or not allowed; give another one, or leave --port out")


def pass_proxies_by(host: str) -> None:
    """Let this process reach its own page directly where a proxy is set; Gradio asks it whether it has started."""
    for variable in ("no_proxy", "NO_PROXY"):
        exceptions = [os.environ.get(variable), "localhost", "127.0.0.1", host]
        os.environ[variable] = ",".join(filter(None, exceptions))


async def given_up(request: Request, error: Exception) -> Response:
    """Answer a request whose browser was closed in the middle of an upload, which would be a traceback otherwise."""
    return Response(status_code=400)


@contextmanager
def serving(
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    analysis: Path = Path("runs/analysis"),
    search: Path = Path("runs/ramp_search"),
    browser: bool = False,
) -> Iterator[str]:
    """Serve the page, and provide its address. In the end what was uploaded is deleted.

    Args:
        models: The models, see :class:`iformer.explorer.workbench.Workbench`.
        host: The address on which to listen; ``0.0.0.0`` for all networks.
        port: The port; None for the first free one of :data:`PORTS`.
        analysis: The folder of ``iformer analyze`` from which measured accuracies are taken.
        search: The folder of ``iformer search`` from which ramps are taken.
        browser: Whether to open a browser.

    Raises:
        ValueError: There is no such model.
        OSError: A model cannot be read, or the port is taken.
    """
    port = free_port(host, port)
    uploads = tempfile.TemporaryDirectory(prefix="iformer-explorer-")
    with uploads as folder, closing(Workbench(models, analysis, search)) as bench:
        os.environ["GRADIO_TEMP_DIR"] = folder
        pass_proxies_by(host)
        blocks = build(bench, examples.write(Path(folder), first_picture(bench)))
        blocks.queue(max_size=WAITING, default_concurrency_limit=1)
        font: Any = ["system-ui", "sans-serif"]  # Gradio's own would be fetched
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                inbrowser=browser,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                max_threads=AT_ONCE,
                state_session_capacity=SESSIONS,
                max_file_size=pictures.LARGEST_FILE,
                allowed_paths=[],
                footer_links=[],
                run_history=False,
                app_kwargs={"exception_handlers": {ClientDisconnect: given_up}},
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                theme=gr.themes.Default(primary_hue="blue", font=font, font_mono=["ui-monospace", "monospace"]),
                css_paths=STYLE,
            )
            yield address
        finally:
            blocks.close(verbose=False)


def serve(page: AbstractContextManager[str]) -> None:
    """Serve a page, see :func:`serving`, until Ctrl-C or a request to end."""
    give_back = spare_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was uploaded is deleted
    with page as address:
        say(f"Explorer: {address} (Ctrl-C ends it)")
        sys.stdout.flush()
        try:
            while True:
                time.sleep(BETWEEN)
                give_back()
        except KeyboardInterrupt:
            say("")

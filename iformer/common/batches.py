"""The loop that reads and prepares image files in batches."""

import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from iformer.common.images import ImageFile, read_item
from iformer_command.terminal import ITEM_ERRORS, item_error, markup


class Sample(NamedTuple):
    """An image file with its prepared image, or with the reason why there is none.

    Attributes:
        path: The file.
        image: The prepared image; None where reading or preparing it failed.
        error: The reason of the failure, in one line that names the file; empty where there was none.
    """

    path: ImageFile
    image: Any
    error: str = ""


def batches(
    files: Iterable[ImageFile],
    prepare: Callable[[Image.Image], Any],
    channels: int = 3,
    batch_size: int = 1,
    description: str = "Reading",
    total: int | None = None,
    workers: int = 0,
) -> Iterator[list[Sample]]:
    """Read and prepare image files in batches, in the order in which they are given.

    The progress is shown on standard error where there may be more than one batch; of several processes, by the first.

    Args:
        files: The image files; they are taken as they are needed, so that there may be any number of them.
        prepare: The function that turns an image into the model's input.
        channels: The number of channels to read: 3 for RGB, 1 for greyscale.
        batch_size: The number of files in a batch.
        description: The text beside the progress bar.
        total: The number of files, if it is known and ``files`` has no length.
        workers: The number of threads that read ahead, up to two batches; 0 reads a file when its turn comes.

    Yields:
        Lists of samples, including those that could not be read or prepared.
    """
    total = len(files) if isinstance(files, Sized) else total
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(compact=True),
    )
    silent = (total is not None and total <= batch_size) or os.environ.get("RANK", "0") != "0"
    sample = partial(_sample, prepare=prepare, channels=channels)
    shared = sys.stdout is not None and sys.stdout.isatty()  # else what is printed would go to standard error
    with Progress(*columns, console=Console(stderr=True), disable=silent, redirect_stdout=shared) as progress:
        task = progress.add_task(markup(description), total=total)
        samples = _read_ahead(sample, files, workers, 2 * batch_size) if workers else map(sample, files)
        while batch := list(itertools.islice(samples, batch_size)):
            yield batch
            progress.advance(task, len(batch))


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


def _sample(file: ImageFile, prepare: Callable[[Image.Image], Any], channels: int) -> Sample:
    try:
        return Sample(file, prepare(read_item(file, channels)))
    except ITEM_ERRORS as error:
        return Sample(file, None, item_error(file, error))


def _read_ahead(
    sample: Callable[[ImageFile], Sample], files: Iterable[ImageFile], workers: int, most: int
) -> Iterator[Sample]:
    """Yield samples in order, of which up to ``most`` are read before they are asked for."""
    pending: deque[Future[Sample]] = deque()
    pool = ThreadPoolExecutor(workers)  # Pillow decodes and resizes without the interpreter's lock
    try:
        for file in files:
            pending.append(pool.submit(sample, file))
            if len(pending) > most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

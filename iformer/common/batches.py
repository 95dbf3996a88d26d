"""Image files as a model wants them: the one loop over people's files."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.progress import track

from iformer.common.images import read_image
from iformer_command.terminal import ITEM_ERRORS, item_error, markup


class Sample(NamedTuple):
    """An image file and what became of it.

    Attributes:
        path: The file.
        image: What was prepared of it; None where that failed.
        error: Why it failed, in one line that names the file; empty where it did not.
    """

    path: Path
    image: Any
    error: str = ""


def batches(
    paths: Sequence[Path],
    prepare: Callable[[Image.Image], Any],
    channels: int = 3,
    batch_size: int = 1,
    description: str = "Reading",
) -> Iterator[list[Sample]]:
    """Read and prepare image files, some at a time, in their order.

    Shows its progress on standard error where there is more than one batch.

    Args:
        paths: The files.
        prepare: Makes of an image what the model takes.
        channels: 3 for RGB, 1 for greyscale.
        batch_size: Files in a batch.
        description: What is being done, for the progress bar.

    Yields:
        Lists of samples, among them those that could not be read or prepared.
    """
    alone = len(paths) <= batch_size
    rest = track(map(Path, paths), markup(description), len(paths), console=Console(stderr=True), disable=alone)
    samples = (_sample(path, prepare, channels) for path in rest)
    while batch := list(itertools.islice(samples, batch_size)):
        yield batch


def _sample(path: Path, prepare: Callable[[Image.Image], Any], channels: int) -> Sample:
    try:
        return Sample(path, prepare(read_image(path, channels)))
    except ITEM_ERRORS as error:
        return Sample(path, None, item_error(path, error))

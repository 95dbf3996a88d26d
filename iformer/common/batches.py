"""The loop that reads and prepares image files in batches."""

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
    """An image file with its prepared image, or with the reason why there is none.

    Attributes:
        path: The file.
        image: The prepared image; None where reading or preparing it failed.
        error: The reason of the failure, in one line that names the file; empty where there was none.
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
    """Read and prepare image files in batches, in the order in which they are given.

    The progress is shown on standard error where there is more than one batch.

    Args:
        paths: The image files.
        prepare: The function that turns an image into the model's input.
        channels: The number of channels to read: 3 for RGB, 1 for greyscale.
        batch_size: The number of files in a batch.
        description: The text beside the progress bar.

    Yields:
        Lists of samples, including those that could not be read or prepared.
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

"""Writing files completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of ``folder`` when they are complete.

    Args:
        folder: The folder, made if it is not there.

    Raises:
        OSError: The files could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        try:
            yield Path(temporary)
        except SafetensorError as error:
            raise OSError(f"{folder}: the checkpoint could not be written ({error})") from error
        for file in Path(temporary).iterdir():
            file.chmod(0o644)  # temporary files are private
            os.replace(file, folder / file.name)

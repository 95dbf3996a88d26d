"""Work whose memory is known, for the tests of measuring it."""

from collections.abc import Callable

import numpy as np


def take(mebibytes: int) -> Callable[[], object]:
    """Return a step that takes memory."""
    return lambda: np.ones(mebibytes * 2**17)

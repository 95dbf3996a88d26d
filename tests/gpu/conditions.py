"""Under which conditions tests compare a GPU with the CPU, or one run with another."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

real = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 in float32: by default a GPU's convolutions round their inputs to 10 bits (TF32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let operations without a deterministic implementation fail."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)

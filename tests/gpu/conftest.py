"""The device that a test runs on: a GPU, and the CPU, where the test of what is tested is tested itself."""

from collections.abc import Iterator

import pytest

from tests.gpu.conditions import full_precision, real


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, real])])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with full_precision():
        yield request.param

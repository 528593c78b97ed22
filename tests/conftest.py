"""Settings that all tests share."""

import os
from contextlib import contextmanager

# The references run on one thread: NumPy's pool and torch's would fight over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fastlr",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fastlr")


@pytest.fixture
def threads():
    """A context manager that sets torch's number of threads."""

    @contextmanager
    def use(number: int):
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return use

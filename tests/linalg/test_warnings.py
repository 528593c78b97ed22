"""Warnings name the line that called the package."""

import warnings

import pytest
import torch

import fastlr.linalg as la
from fastlr.linalg._warnings import warn

A = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: la.nmf(A.abs(), 3, max_iters=1, tol=1e-12, seed=0),
        lambda: la.cp(A.reshape(5, 6, 20), 2, max_sweeps=1, seed=0),
        lambda: la.robust_pca(A, max_iters=1, tol=1e-12, seed=0),
    ],
)
def test_the_line_of_the_caller(call) -> None:
    for lowered in (False, True):
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered),
        ):
            warnings.simplefilter("always")
            call()
        (record,) = [w for w in caught if w.category is la.ConvergenceWarning]
        assert record.filename == __file__
        assert record.lineno == call.__code__.co_firstlineno


def test_from_outside() -> None:
    with pytest.warns(UserWarning, match="at once") as caught:
        warn("at once", UserWarning)
    assert caught[0].filename == __file__

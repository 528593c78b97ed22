import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, unit_roundoff
from strategies import matrices, seeds


@given(A=matrices(), size=st.integers(1, 70), axis=st.sampled_from([0, 1, -1, -2]), seed=seeds)
def test_is_the_product_with_the_random_matrix_of_the_seed(A, size, axis, seed):
    got = la.sketch(A, size, axis=axis, seed=seed)
    inner = A.shape[axis]
    omega = exact(la.random_matrix(inner, size, seed=seed, dtype=A.dtype)) / math.sqrt(size)
    expected = omega.T @ exact(A) if axis in (0, -2) else exact(A) @ omega
    assert got.dtype == A.dtype
    # |error| ≤ (inner + 2)·u·Σ|a||ω| entrywise, whatever the order of summation.
    bound = (
        np.abs(omega).T @ np.abs(exact(A)) if axis in (0, -2) else np.abs(exact(A)) @ np.abs(omega)
    )
    assert np.all(np.abs(exact(got) - expected) <= (inner + 2) * unit_roundoff(A) * bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_rows_than_a_cache_block(dtype):
    # 4 MiB of Ω a block: 60 000 rows of 40 columns take several blocks in both types.
    n = 60_000
    A = torch.randn(3, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = exact(A) @ exact(la.random_matrix(n, 40, seed=2, dtype=dtype)) / math.sqrt(40)
    # Random signs: the error of a sum of n terms is about √n·u of its size; 8 deviations.
    tolerance = 8 * math.sqrt(n) * unit_roundoff(A) * float(np.abs(expected).max())
    assert np.abs(exact(la.sketch(A, 40, axis=1, seed=2)) - expected).max() <= tolerance


def test_thread_count_only_changes_rounding(threads):
    A = torch.randn(200, 5000, generator=torch.Generator().manual_seed(0))
    results = []
    for number in (1, 2):
        with threads(number):
            results.append(la.sketch(A, 30, axis=1, seed=1))
    difference = (results[0] - results[1]).abs().max() / results[0].abs().max()
    assert difference <= math.sqrt(5000) * 2.0**-24


def test_norms_are_kept_in_expectation():
    x = torch.randn(300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    squares = [float(la.sketch(x, 50, seed=s).square().sum()) for s in range(400)]
    # E = ‖x‖², and the standard deviation of the mean of 400 is √(2/50/400) = 1 % of it.
    assert np.mean(squares) == pytest.approx(float(x.square().sum()), rel=5 * 0.01)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradient(axis):
    A = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda X: la.sketch(X, 4, axis=axis, seed=3), A)
    assert torch.autograd.gradgradcheck(lambda X: la.sketch(X, 4, axis=axis, seed=3), A)


def test_numpy_in_numpy_out_and_half_types():
    A = np.random.default_rng(0).standard_normal((6, 4))
    assert isinstance(la.sketch(A, 3, seed=0), np.ndarray)
    half = torch.from_numpy(A).half()
    assert la.sketch(half, 3, seed=0).dtype == torch.float16
    assert torch.equal(la.sketch(half, 3, seed=0), la.sketch(half.float(), 3, seed=0).half())


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 1.0}, TypeError, "size must be an integer, got 1.0"),
        ({"axis": 2}, ValueError, "axis must be 0 or 1, got 2"),
        ({"kind": "srft"}, ValueError, "kind must be one of gaussian, .* got 'srft'"),
        ({"A": torch.ones(3)}, ValueError, "A must have at least 2 dimensions"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        la.sketch(**({"A": torch.ones(3, 3), "size": 2} | arguments))

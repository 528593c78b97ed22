import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, singular_values, tail_norm, unit_roundoff
from strategies import matrices, seeds, with_spectrum

FLOATS = [torch.float32, torch.float64]


def reconstruct(A, result, axis):
    A, coefficients, chosen = exact(A), exact(result.coefficients), np.asarray(result.indices)
    return coefficients @ A[chosen] if axis == 0 else A[:, chosen] @ coefficients


def check(A, rank, axis, result):
    m, n = A.shape
    assert result.indices.shape == (rank,)
    assert len(set(result.indices.tolist())) == rank
    assert result.coefficients.shape == ((m, rank) if axis == 0 else (rank, n))
    assert result.coefficients.abs().max() <= 2
    identity = result.coefficients if axis == 0 else result.coefficients.T
    assert torch.equal(identity[result.indices], torch.eye(rank, dtype=A.dtype))


def rounding(A, rank) -> float:
    """Rounding of A[:, J]·T with |T| ≤ 2: 40·rank·u of ‖A‖_F."""
    return 40 * rank * unit_roundoff(A) * float(np.linalg.norm(exact(A)))


@given(A=matrices(), axis=st.sampled_from([0, 1]), seed=seeds, data=st.data())
def test_strong_rank_revealing_bounds(A, axis, seed, data):
    rank = data.draw(st.integers(1, min(A.shape)))
    result = la.interpolative(A, rank, axis=axis, seed=seed)
    check(A, rank, axis, result)
    # Gu and Eisenstat with f = 2, on a compression that is near-optimal itself (factor 1.5).
    factor = math.sqrt(1 + 4 * rank * (A.shape[axis] - rank))
    error = exact(A) - reconstruct(A, result, axis)
    values = singular_values(A)
    best = values[rank] if rank < len(values) else 0.0
    slack = rounding(A, rank)
    assert np.linalg.norm(error, 2) <= 1.5 * factor * best + 1.5 * tail_norm(A, rank) + slack
    chosen = exact(A)[result.indices.numpy()] if axis == 0 else exact(A)[:, result.indices.numpy()]
    assert (singular_values(chosen)[:rank] * factor * 1.5 >= values[:rank] - slack).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_exact_on_exact_rank(dtype, axis):
    A = with_spectrum(80, 60, np.linspace(2, 1, 12), dtype)
    for rank in (12, 20, 55):
        result = la.interpolative(A, rank, axis=axis, seed=0)
        check(A, rank, axis, result)
        error = np.linalg.norm(exact(A) - reconstruct(A, result, axis))
        assert error <= rounding(A, rank)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (30, 30)])
@pytest.mark.parametrize("axis", [0, 1])
def test_full_rank_is_exact(dtype, shape, axis):
    A = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    result = la.interpolative(A, 30, axis=axis, seed=0)
    check(A, 30, axis, result)
    assert np.linalg.norm(exact(A) - reconstruct(A, result, axis)) <= rounding(A, 30)


def test_kahan_matrix_needs_the_exchanges():
    """Column pivoting alone is off by an exponential factor here; strong pivoting is not."""
    n, c = 60, 0.285
    s = math.sqrt(1 - c * c)
    kahan = np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
    kahan *= 1 + 1e-13 * np.arange(n, 0, -1)  # keeps the pivots of plain QRCP in order
    R = scipy.linalg.qr(kahan, pivoting=True, mode="r")[0]
    plain = np.linalg.solve(R[: n - 1, : n - 1], R[: n - 1, n - 1 :])
    assert np.abs(plain).max() > 100
    A = torch.from_numpy(kahan)
    result = la.interpolative(A, n - 1, axis=1, seed=0)
    check(A, n - 1, 1, result)
    error = np.linalg.norm(kahan - reconstruct(A, result, 1), 2)
    assert error <= math.sqrt(1 + 4 * (n - 1)) * singular_values(A)[-1]


@pytest.mark.parametrize("decay", [0.7, 0.9])
def test_as_accurate_as_column_pivoting(decay):
    A = with_spectrum(200, 150, decay ** np.arange(150))
    result = la.interpolative(A, 20, axis=1, seed=0)
    R = scipy.linalg.qr(A.numpy(), pivoting=True, mode="r")[0]
    pivoted = np.linalg.norm(R[20:, 20:])
    # Both pick good columns; neither is always the better one.
    assert np.linalg.norm(exact(A) - reconstruct(A, result, 1)) <= 1.25 * pivoted


@pytest.mark.parametrize("dtype", FLOATS)
def test_orthonormal_factor_of_a_wide_layer(dtype):
    U = with_spectrum(400, 250, np.ones(250), dtype)
    result = la.interpolative(U, 250, axis=0)
    check(U, 250, 0, result)
    assert np.linalg.norm(exact(U) - reconstruct(U, result, 0)) <= rounding(U, 250)


def test_duplicated_rows_are_chosen_once():
    A = torch.randn(10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A = torch.cat([A, A, A])
    result = la.interpolative(A, 8, axis=0, seed=0)
    assert len({i % 10 for i in result.indices.tolist()}) == 8


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_zero_matrix(dtype, axis):
    A = torch.zeros(40, 30, dtype=dtype)
    for rank in (1, 12, 30):
        result = la.interpolative(A, rank, axis=axis, seed=0)
        check(A, rank, axis, result)
        assert result.info.error == 0


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 30), (torch.float64, 200)])
def test_scale(dtype, power):
    A = with_spectrum(60, 50, 0.8 ** np.arange(50), dtype)
    base = la.interpolative(A, 6, axis=1, seed=0)
    for exponent in (power, -power):
        scaled = la.interpolative(A * 2.0 ** (3 * exponent), 6, axis=1, seed=0)
        assert torch.equal(scaled.indices, base.indices)
        # The coefficients are bounded by 2 and come from a factor of condition 0.8^-6.
        np.testing.assert_allclose(
            scaled.coefficients, base.coefficients, rtol=0, atol=1e4 * unit_roundoff(A)
        )


def test_info_estimates_the_error():
    A = with_spectrum(100, 80, 0.9 ** np.arange(80))
    ratios = []
    for seed in range(60):
        result = la.interpolative(A, 10, axis=1, seed=seed)
        truth = np.linalg.norm(exact(A) - reconstruct(A, result, 1))
        ratios.append(result.info.error_estimate / truth)
        assert result.info.error == pytest.approx(1.9771 * result.info.error_estimate)
    # Unbiased squares; the deviation of one is at most √(2/10).
    assert np.mean(np.square(ratios)) == pytest.approx(1, abs=5 * math.sqrt(2 / 10 / 60))


def test_thread_count_changes_neither_choice_nor_more_than_rounding(threads):
    U = with_spectrum(500, 200, np.ones(200))
    results = []
    for number in (1, 2):
        with threads(number):
            results.append(la.interpolative(U, 200, axis=0, seed=0))
    assert torch.equal(results[0].indices, results[1].indices)


def test_numpy_in_numpy_out():
    result = la.interpolative(np.random.default_rng(0).normal(size=(9, 7)), 3, axis=0, seed=0)
    assert isinstance(result.indices, np.ndarray)
    assert result.indices.dtype == np.int64
    assert result.coefficients.dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rank": 0}, ValueError, r"rank must be between 1 and min\(m, n\) = 4, got 0"),
        ({"rank": 5}, ValueError, r"rank must be between 1 and min\(m, n\) = 4, got 5"),
        ({"axis": 2}, ValueError, "axis must be 0 or 1, got 2"),
        ({"A": torch.full((5, 4), math.nan)}, ValueError, r"A must be finite.*\(0, 0\)"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        la.interpolative(**({"A": torch.ones(5, 4), "rank": 2, "axis": 1} | arguments))

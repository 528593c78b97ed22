"""Haar's measure by its moments and marginals, each with its standard error; orthogonality."""

import functools
import math
import re

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import orthonormality_error, unit_roundoff

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
FIELDS = [torch.float64, torch.complex128]


@functools.cache
def draws(n, dtype, count=2000):
    return torch.stack([la.random_orthogonal(n, dtype=dtype, seed=seed) for seed in range(count)])


def by_plain_qr(n, dtype, count=2000):
    """The negative control: signs of LAPACK."""
    return torch.linalg.qr(torch.randn(count, n, n, dtype=dtype, generator=torch.Generator()))[0]


def check_mean(values, expected):
    """Within four and a half standard errors, those of the sample: wrong once in 150000."""
    standard_error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected) < 4.5 * standard_error


@pytest.mark.parametrize("dtype", FIELDS)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_traces(n, dtype):
    # Those of O(n), n ≥ 2, and U(n), n ≥ 2: the moments of a real or complex normal variable, as
    # long as their order is below n (Diaconis and Shahshahani); E|tr|⁴ for n ≥ 2.
    Q = draws(n, dtype)
    trace = Q.diagonal(dim1=1, dim2=2).sum(1)
    check_mean(trace.real, 0)
    check_mean(trace.abs().square(), 1)
    check_mean(trace.abs() ** 4, 2 if dtype.is_complex else 3)
    square = (Q @ Q).diagonal(dim1=1, dim2=2).sum(1)
    check_mean(square.real, 0 if dtype.is_complex else 1)
    if dtype.is_complex:
        check_mean(trace.imag, 0)
        check_mean(trace.square().real, 0)
        check_mean(square.abs().square(), 2)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_moments_of_entries_that_share_rows_and_columns(n):
    Q = draws(n, torch.float64)
    check_mean(Q[:, 0, 0], 0)
    check_mean(Q[:, 0, 0].square(), 1 / n)
    check_mean(Q[:, 0, 0] ** 4, 3 / (n * (n + 2)))
    check_mean((Q[:, 0, 0] * Q[:, 1, 0]).square(), 1 / (n * (n + 2)))
    check_mean((Q[:, 0, 0] * Q[:, 1, 1]).square(), (n + 1) / ((n - 1) * n * (n + 2)))
    crossed = Q[:, 0, 0] * Q[:, 0, 1] * Q[:, 1, 0] * Q[:, 1, 1]
    check_mean(crossed, -1 / ((n - 1) * n * (n + 2)))


@pytest.mark.parametrize("dtype", FIELDS)
def test_every_entry_and_direction_has_the_distribution_of_a_coordinate_on_the_sphere(dtype):
    n = 5
    Q = draws(n, dtype)
    # |q|² of a real sphere is Beta(½, (n − 1)/2), of a complex one Beta(1, n − 1).
    a = 1.0 if dtype.is_complex else 0.5
    law = scipy.stats.beta(a, a * (n - 1))
    fixed = by_plain_qr(n, dtype, 1)[0]
    for entries in (Q[:, 0, 0], Q[:, 4, 4], Q[:, 1, 3], (fixed @ Q)[:, 2, 4], (Q @ fixed)[:, 4, 0]):
        assert scipy.stats.kstest(entries.abs().square(), law.cdf).pvalue > 1e-3
        if dtype.is_complex:
            assert scipy.stats.kstest(entries.angle() / math.tau + 0.5, "uniform").pvalue > 1e-3
        else:
            check_mean(entries.sign(), 0)


def test_phases_of_eigenvalues_are_uniform():
    def phases(Q):
        return torch.linalg.eigvals(Q).angle().flatten() / math.tau + 0.5

    # Eigenvalues of one matrix repel, so that their sample is closer to the law than independent.
    assert scipy.stats.kstest(phases(draws(5, torch.complex128)), "uniform").pvalue > 1e-3
    # Without the phases of R's diagonal they are not uniform.
    control = phases(by_plain_qr(5, torch.complex128))
    assert scipy.stats.kstest(control, "uniform").pvalue < 1e-6


def test_both_determinants_are_as_likely():
    # A deviation of √2000/2 = 22.
    for n in (1, 2, 5):
        positive = int((torch.linalg.det(draws(n, torch.float64)) > 0).sum())
        assert abs(positive - 1000) < 4.5 * 23
        # LAPACK's reflections: n − 1 of them, or n.
        control = int((torch.linalg.det(by_plain_qr(n, torch.float64)) > 0).sum())
        assert control in (0, 2000)


@given(
    n=st.integers(0, 60),
    fraction=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_orthonormal_to_rounding(n, fraction, dtype, seed):
    k = round(fraction * n)
    Q = la.random_orthogonal(n, k, dtype=dtype, seed=seed)
    assert (Q.shape, Q.dtype) == ((n, k), dtype)
    assert orthonormality_error(Q) <= 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(300, None), (20000, 10)])
def test_large_ones(n, k, dtype):
    Q = la.random_orthogonal(n, k, dtype=dtype, seed=0)
    assert orthonormality_error(Q) <= 10


def test_rows_are_orthonormal_too():
    for dtype in DTYPES:
        Q = la.random_orthogonal(50, dtype=dtype, seed=0)
        # ‖QQᴴ − I‖ = ‖QᴴQ − I‖ for a square matrix.
        assert orthonormality_error(Q.mH.contiguous()) <= 10


@pytest.mark.parametrize("dtype", DTYPES)
def test_fewer_columns_are_the_first_of_more(dtype):
    whole = la.random_orthogonal(40, dtype=dtype, seed=3)
    for k in (0, 1, 7, 39):
        part = la.random_orthogonal(40, k, dtype=dtype, seed=3)
        # In float64 to rounding times the condition number of k Gaussian columns, below 1e3 here.
        torch.testing.assert_close(part, whole[:, :k], rtol=0, atol=1e3 * unit_roundoff(whole))


def test_a_lower_precision_is_a_higher_one_rounded():
    for high, low in ((torch.float64, torch.float32), (torch.complex128, torch.complex64)):
        exact, rounded = (la.random_orthogonal(30, dtype=dtype, seed=2) for dtype in (high, low))
        assert (rounded - exact).abs().max() <= math.sqrt(2) * 2.0**-24


def test_seeds_and_defaults():
    one, same, other = (la.random_orthogonal(9, seed=seed) for seed in (5, 5, 6))
    assert one.dtype == torch.get_default_dtype()
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    drawn = [la.random_orthogonal(9, seed=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(la.random_orthogonal(9), la.random_orthogonal(9))
    # Not the entries that a random matrix of the seed has.
    first = la.random_orthogonal(9, dtype=torch.float64, seed=5)[:, 0]
    entries = la.random_matrix(9, 1, dtype=torch.float64, seed=5)[:, 0]
    assert float((first @ entries).abs()) < 0.9 * float(entries.norm())
    # Real and imaginary parts are different draws.
    column = la.random_orthogonal(9, 1, dtype=torch.complex128, seed=5)
    assert float((column.real - column.imag).abs().max()) > 0.01


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"random_orthogonal: n must be at least 0, got -1"):
        la.random_orthogonal(-1)
    for k in (-1, 6):
        message = f"random_orthogonal: k must be between 0 and n = 5, got {k}"
        with pytest.raises(ValueError, match=re.escape(message)):
            la.random_orthogonal(5, k)
    with pytest.raises(TypeError, match=r"n must be an integer, got 2\.5"):
        la.random_orthogonal(2.5)
    with pytest.raises(TypeError, match="k must be an integer, got True"):
        la.random_orthogonal(2, True)
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.complex32):
        with pytest.raises(TypeError, match=f"complex64 or complex128, got {dtype}"):
            la.random_orthogonal(3, dtype=dtype)
    with pytest.raises(ValueError, match="seed must fit 64 bits"):
        la.random_orthogonal(3, seed=2**64)
    with pytest.raises(TypeError, match="seed must be an int"):
        la.random_orthogonal(3, seed=1.5)

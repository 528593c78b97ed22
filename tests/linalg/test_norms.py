"""Norms and ranks within their intervals, against SciPy's singular values."""

import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import (
    exact,
    operator,
    orthonormality_error,
    rounding,
    singular_values,
    unit_roundoff,
)
from strategies import matrices, seeds, with_spectrum


def complex_phases(A):
    return A * torch.exp(1j * torch.arange(A.shape[1], dtype=torch.float64)).to(
        torch.complex64 if A.dtype == torch.float32 else torch.complex128
    )


# ---- norms ----


@given(A=matrices(), ord=st.sampled_from([2, "fro"]), hidden=st.booleans(), seed=seeds)
def test_small_matrices_are_known_to_rounding(A, ord, hidden, seed):
    # The Krylov space of so narrow an interval would be larger than the matrix.
    estimate = la.estimate_norm(operator(A) if hidden else A, ord, rtol=1e-3, seed=seed)
    truth = np.linalg.norm(exact(A), ord)
    assert estimate.lower <= estimate.value <= estimate.upper
    assert estimate.lower <= truth <= estimate.upper
    assert estimate.info.failure_probability == 0
    # The interval is of the width of rounding: 2·10·√60·u.
    assert estimate.upper - estimate.lower <= 160 * unit_roundoff(A) * truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
@pytest.mark.parametrize("spectrum", ["flat", "linear", "outlier"])
def test_spectral_norm(dtype, shape, spectrum):
    values = {
        "flat": np.ones(300),
        "linear": np.linspace(1, 0, 300),
        "outlier": np.r_[1, 0.1 * np.ones(299)],
    }[spectrum]
    A = with_spectrum(*shape, 7 * values, dtype.to_real())
    A = complex_phases(A) if dtype.is_complex else A
    value, lower, upper = estimate = la.estimate_norm(A, rtol=0.1, seed=0)
    assert estimate.info.method == "block Lanczos"
    assert lower <= 7 <= upper
    # (1 + rtol) and rounding of 10·√400·u on both sides.
    assert upper / lower <= 1.1 * (1 + 500 * unit_roundoff(A))
    assert value == pytest.approx(7, rel=0.05)
    # Two passes a step and the one that checks A.
    steps = math.ceil(
        (
            (math.log(1.648 * math.sqrt(300 * (1 + dtype.is_complex))) - math.log(0.01) / 4)
            / math.sqrt(1 - 1.1**-2)
            + 1
        )
        / 2
    )
    assert estimate.info.passes == 2 * steps + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectral_norm_of_low_rank(dtype):
    # The Krylov space is invariant after the first block.
    for matrix in (torch.ones(300, 300), torch.diag(torch.arange(300.0) < 2).float()):
        A = matrix.to(dtype)
        truth = np.linalg.norm(exact(A), 2)
        value, lower, upper = la.estimate_norm(A, seed=0)
        assert lower <= truth <= upper
        assert value == pytest.approx(truth, rel=200 * unit_roundoff(A))


def test_spectral_norm_fails_no_more_often_than_it_says():
    # A spectrum near the worst for Lanczos: dense near the top.
    A = torch.diag(torch.cos(torch.linspace(0, math.pi / 2, 600, dtype=torch.float64)))
    failures = widest = 0
    for seed in range(40):
        estimate = la.estimate_norm(A, rtol=0.3, failure_probability=0.3, seed=seed)
        failures += estimate.upper < 1
        widest = max(widest, 1 / estimate.value)
        assert estimate.lower <= 1
    assert failures <= 18  # of 12 at most: more has a chance of 2 %, and the bound is no tight one
    # The negative control: the value alone is no upper bound.
    assert widest > 1.001


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_frobenius_norm_of_an_operator(dtype):
    A = with_spectrum(200, 150, 0.9 ** np.arange(150.0))
    rank_one = with_spectrum(200, 150, [1.0])
    for matrix in (A, rank_one):
        M = complex_phases(matrix) if dtype.is_complex else matrix
        truth = float(torch.linalg.matrix_norm(M))
        known = la.estimate_norm(M, "fro")
        assert known.value == pytest.approx(truth, rel=1e-14)
        assert known.info.failure_probability == 0
        squares, failures = [], 0
        for seed in range(60):
            value, lower, upper = la.estimate_norm(
                operator(M), "fro", failure_probability=0.1, seed=seed
            )
            squares.append((value / truth) ** 2)
            failures += not lower <= truth <= upper
        # A square has a variance of 2/64 at most, in the case of rank one.
        assert abs(np.mean(squares) - 1) <= 3 * math.sqrt(2 / 64 / 60)
        assert failures <= 13  # of 6 expected: more has a chance of 5e-3
        assert upper / lower < 1.4
    narrow = la.estimate_norm(operator(A), "fro", failure_probability=0.5, seed=0)
    assert narrow.upper / narrow.lower < upper / lower


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_at_the_ends_of_the_range(scale):
    A = with_spectrum(300, 250, 0.9 ** np.arange(250.0))
    for ord in (2, "fro"):
        one = la.estimate_norm(A, ord, seed=0)
        two = la.estimate_norm(A * scale, ord, seed=0)
        assert two.upper == pytest.approx(one.upper * scale, rel=1e-9)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 5), (300, 200)])
@pytest.mark.parametrize("ord", [2, "fro"])
def test_norm_of_zero(shape, ord):
    assert tuple(la.estimate_norm(torch.zeros(shape), ord, seed=0)) == (0, 0, 0)


# ---- ranks ----


@given(A=matrices(), tol=st.floats(1e-5, 0.5), seed=seeds)
def test_rank_of_any_matrix(A, tol, seed):
    rank, lower, upper = la.estimate_rank(A, tol, seed=seed)
    values = singular_values(A)
    assert lower <= rank <= upper
    assert lower <= (values > tol * values[0]).sum() <= upper


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
@pytest.mark.parametrize("rank", [1, 7, 60])
def test_exact_rank_at_the_default_tolerance(dtype, shape, rank):
    A = with_spectrum(*shape, np.linspace(1, 0.5, rank), dtype.to_real())
    A = complex_phases(A) if dtype.is_complex else A
    for given_as in (A, operator(A), A.to_sparse_csr()):
        estimate = la.estimate_rank(given_as, seed=0)
        assert tuple(estimate) == (rank, rank, rank)
        assert estimate.info.method == "blocked QB"
        assert estimate.info.norm == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9, 1e-12])
def test_graded_spectrum(tol):
    values = 10.0 ** (-np.arange(400) / 10)
    A = with_spectrum(600, 400, values)
    rank, lower, upper = estimate = la.estimate_rank(A, tol, seed=0)
    assert estimate.info.method == "blocked QB"
    truth = (values > tol).sum()
    # The band [0.87, 1]·tol holds one value of ten to a decade, rounding none.
    assert lower <= truth <= upper <= lower + 1
    assert abs(rank - truth) <= 1


def test_hilbert_matrix():
    A = torch.from_numpy(scipy.linalg.hilbert(300))
    estimate = la.estimate_rank(A, 1e-12, seed=0)
    values = singular_values(A)
    assert abs(estimate.rank - (values > 1e-12 * values[0]).sum()) <= 1
    assert estimate.upper - estimate.lower <= 1


def test_full_rank_zero_and_identity():
    assert tuple(la.estimate_rank(torch.zeros(200, 100), seed=0)) == (0, 0, 0)
    assert tuple(la.estimate_rank(torch.zeros(0, 5), seed=0)) == (0, 0, 0)
    identity = la.estimate_rank(torch.eye(150), seed=0)
    assert tuple(identity) == (150, 150, 150)
    assert identity.info.method == "dense singular values"
    assert identity.info.failure_probability == 0


def test_too_few_columns_are_never_silent():
    A = with_spectrum(300, 200, np.ones(200))
    with pytest.warns(la.ConvergenceWarning, match="most=40 columns did not capture"):
        rank, lower, upper = estimate = la.estimate_rank(A, 0.1, most=40, seed=0)
    # Nothing is known of the norm beyond what was captured, so that `lower` may be less than 40.
    assert lower <= rank == 40
    assert upper == 200
    assert not estimate.info.converged
    assert la.estimate_rank(with_spectrum(300, 200, np.ones(20)), 0.1, most=40, seed=0).rank == 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_that_are_rounding_beside_the_first(dtype):
    A = torch.ones(400, 300, dtype=dtype)
    with pytest.warns(la.ConvergenceWarning):
        estimate = la.estimate_rank(A, 1e-17, most=100, seed=0)
    truth = math.sqrt(400 * 300)
    # The basis stays orthonormal: a projection has no larger norm.
    assert estimate.info.norm == pytest.approx(truth, rel=40 * 20 * unit_roundoff(A))
    assert estimate.info.residual <= rounding(A)
    with pytest.warns(la.ConvergenceWarning):
        result = la.randomized_svd(A, 100, tol=1e-17, seed=0)
    assert orthonormality_error(result.U) <= 10
    assert float(result.S[0]) == pytest.approx(truth, rel=40 * 20 * unit_roundoff(A))


def test_ranks_at_the_ends_of_the_range():
    A = with_spectrum(300, 250, 0.5 ** np.arange(100.0))
    one = la.estimate_rank(A, 1e-6, seed=0)
    for scale in (1e-200, 1e200):
        two = la.estimate_rank(A * scale, 1e-6, seed=0)
        assert tuple(two) == tuple(one)
        assert two.info.norm == pytest.approx(scale, rel=1e-9)


# ---- both ----


def test_every_kind():
    A = scipy.sparse.random(300, 200, density=0.05, random_state=0).toarray()
    T = torch.from_numpy(A)
    kinds = [
        A,
        T,
        T.mT.contiguous().mT,
        T.to_sparse(),
        T.to_sparse_csr(),
        scipy.sparse.csc_array(A),
        scipy.sparse.linalg.aslinearoperator(A),
        operator(T),
    ]
    norm, rank = np.linalg.norm(A, 2), (singular_values(T) > 0.1 * singular_values(T)[0]).sum()
    for kind in kinds:
        estimate = la.estimate_norm(kind, rtol=0.2, seed=3)
        assert estimate.lower <= norm <= estimate.upper
        again = la.estimate_norm(kind, rtol=0.2, seed=3)
        assert again == estimate
        assert la.estimate_rank(kind, 0.1, seed=3).rank == rank
    copied = pickle.loads(pickle.dumps(estimate))
    assert (copied, copied.info) == (estimate, estimate.info)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: la.estimate_norm(torch.eye(3), 1), ValueError, "estimate_norm: ord must be 2"),
        (lambda: la.estimate_norm(torch.eye(3), rtol=0), ValueError, "rtol must be positive"),
        (
            lambda: la.estimate_norm(torch.eye(3), "fro", failure_probability=1),
            ValueError,
            "failure_probability must be between",
        ),
        (lambda: la.estimate_norm(torch.ones(2, 3, 3)), ValueError, "one matrix and no batch"),
        (
            lambda: la.estimate_norm(torch.tensor([[1.0, math.inf]]), "fro"),
            ValueError,
            r"estimate_norm: A must be finite, got inf at index \(0, 1\)",
        ),
        (
            lambda: la.estimate_norm(torch.full((400, 300), math.nan), seed=0),
            ValueError,
            r"estimate_norm: A must be finite, got nan at index \(0, 0\)",
        ),
        (lambda: la.estimate_rank(torch.eye(3), 1.5), ValueError, "estimate_rank: tol must be"),
        (lambda: la.estimate_rank(torch.eye(3), most=0), ValueError, "most must be positive"),
        (lambda: la.estimate_rank(torch.eye(3), most=1.5), TypeError, "most must be an integer"),
        (lambda: la.estimate_rank(torch.ones(2, 3, 3)), ValueError, "one matrix and no batch"),
        (
            lambda: la.estimate_rank(torch.full((400, 300), math.nan), seed=0),
            ValueError,
            r"estimate_rank: A must be finite, got nan at index \(0, 0\)",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()

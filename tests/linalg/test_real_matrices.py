"""Matrices that nobody made for a test."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

import fastlr.linalg as la
from references import backward_error

DATA = Path(__file__).parents[3] / "shared" / "data"


def digits():
    return pytest.importorskip("sklearn.datasets").load_digits().data


def matrix_market(name):
    with lzma.open(DATA / "sparse" / f"{name}.mtx.xz") as file:
        return scipy.io.mmread(file).tocsr()


def bcsstk16():
    with lzma.open(DATA / "sparse" / "bcsstk16.xz", "rt") as file:
        rows, columns, values = np.loadtxt(file, unpack=True)
    triangle = scipy.sparse.csr_array((values, (rows.astype(int), columns.astype(int))))
    return triangle + triangle.T - scipy.sparse.diags_array(triangle.diagonal())


def scores():
    (scores,) = np.load(DATA / "score_matrix" / "minilm_maxsim_movie_reviews_500.npz").values()
    return scores


def ratings():
    with lzma.open(DATA / "movietweetings" / "ratings_100K.dat.xz", "rt") as file:
        user, movie, rating = np.array([line.split("::")[:3] for line in file], dtype=float).T
    _, user = np.unique(user, return_inverse=True)
    _, movie = np.unique(movie, return_inverse=True)
    return scipy.sparse.csr_array((rating, (user, movie)))


def protein():
    with gzip.open(DATA / "uci" / "protein.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")[:, :-1]
    return table / table.std(0)


MATRICES = {
    "digits": digits,
    "bcsstk13": lambda: matrix_market("bcsstk13"),
    "bcsstk16": bcsstk16,
    "lp_e226": lambda: matrix_market("lp_e226"),
    "Groebner": lambda: matrix_market("Groebner_id2003_aug"),
    "scores": scores,
    "ratings": ratings,
    "protein": protein,
}


@pytest.fixture(params=MATRICES)
def matrix(request):
    if request.param != "digits" and not DATA.is_dir():
        pytest.skip(f"needs the data in {DATA}")
    return MATRICES[request.param]()


def frobenius(A):
    return scipy.sparse.linalg.norm(A) if scipy.sparse.issparse(A) else np.linalg.norm(A)


def reference_values(A, k):
    if scipy.sparse.issparse(A) and min(A.shape) > 600:
        return np.sort(scipy.sparse.linalg.svds(A.astype(np.float64), k, tol=1e-12)[1])[::-1]
    dense = A.toarray() if scipy.sparse.issparse(A) else A
    return scipy.linalg.svd(dense.astype(np.float64), compute_uv=False)[:k]


def error(A, result):
    """‖A − U·diag(S)·Vh‖_F from ‖A‖² and inner products with A: in float64, to √u of ‖A‖_F."""
    U, S, Vh = (np.asarray(factor, dtype=np.float64) for factor in result)
    A = A.astype(np.float64)
    cross = np.einsum("ij,ij->", A.T @ U, Vh.T * S)
    return np.sqrt(max(frobenius(A) ** 2 - 2 * cross + np.sum(S**2), 0))


def test_krylov_values_are_those_of_scipy(matrix):
    k = min(8, min(matrix.shape) - 1)
    result = la.randomized_svd(matrix, k, method="krylov", seed=0)
    assert result.info.converged
    expected = reference_values(matrix, k)
    u = np.finfo(result.S.dtype).eps / 2
    # A residual of 1e-10·σ_1 (or 40·√l·u·σ_1 where that is more) moves a value by as much at most.
    bound = max(2e-10, 80 * np.sqrt(k + 10) * u) * expected[0]
    np.testing.assert_allclose(result.S, expected, rtol=0, atol=bound)


def test_default_is_near_the_optimum_and_certified(matrix):
    k = min(5, min(matrix.shape) - 1)
    result = la.randomized_svd(matrix, k, seed=0)
    total, values = frobenius(matrix.astype(np.float64)), reference_values(matrix, k)
    optimum = np.sqrt(max(total**2 - np.sum(values**2), 0))
    # √u: what `error` and the optimum can see.
    slack = 1e-7 * total if result.S.dtype == np.float64 else 1e-3 * total
    assert error(matrix, result) <= 1.1 * optimum + slack
    assert error(matrix, result) <= result.info.error + slack


def test_tolerance_is_kept(matrix):
    # Large sparse matrices have no low rank to find at 0.3.
    tol = 0.3 if min(matrix.shape) <= 600 else 0.8
    norm = frobenius(matrix.astype(np.float64))
    result = la.randomized_svd(matrix, tol=tol, seed=0)
    assert result.info.converged
    assert error(matrix, result) <= tol * norm
    # And by no more ranks than the oversampling, 10, above what is needed.
    fewer = np.asarray(result.S, np.float64)[: max(len(result.S) - 11, 0)]
    assert np.sum(fewer**2) < (1 - tol**2) * norm**2


@pytest.mark.parametrize("method", ["auto", "refined", "direct"])
@pytest.mark.parametrize("name", ["elevators", "kin40k", "pol", "protein"])
def test_regression_tables(name, method):
    """Squares and products of the columns, as accurate as LAPACK's SVD; one has condition 1e13."""
    if not DATA.is_dir():
        pytest.skip(f"needs the data in {DATA}")
    with gzip.open(DATA / "uci" / f"{name}.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    inputs, b = table[:, :-1], table[:, -1]
    inputs = (inputs - inputs.mean(0)) / np.where(inputs.std(0) > 0, inputs.std(0), 1)
    i, j = np.triu_indices(min(inputs.shape[1], 12))
    A = np.column_stack([np.ones(len(inputs)), inputs, inputs[:, i] * inputs[:, j]])
    result = la.lstsq(A, b, method=method, seed=0)
    assert result.info.converged
    u = 2.0**-53
    peer = np.linalg.lstsq(A, b, rcond=30 * u)[0]
    # Ten times that of LAPACK, or ten roundoffs.
    allowed = 10 * max(backward_error(A, b, peer), u)
    assert backward_error(A, b, result.x) <= allowed
    # Residuals agree to the square root of what the backward error allows; ‖A‖·‖x‖ is of b's size.
    size = np.linalg.norm(A) * np.linalg.norm(result.x) + np.linalg.norm(b)
    assert np.linalg.norm(result.residual) <= np.linalg.norm(b - A @ peer) + 100 * u * size

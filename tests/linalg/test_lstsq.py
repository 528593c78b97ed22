"""Least squares against LAPACK and extended precision: solutions, residuals, backward errors."""

import math
import pickle
import warnings

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
    backward_error,
    exact,
    lstsq_in_extended_precision,
    operator,
    unit_roundoff,
)
from strategies import dtypes, matrices, seeds, with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SKETCHED = ["sketch_and_solve", "precondition", "iterative", "refined"]
EXACT = ["precondition", "iterative", "refined", "direct", "lsqr"]


def gaussian(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def problem(m, n, condition, distance, seed=0):
    """A with singular values from 1 down to 1/condition, and b at a distance from its range."""
    basis = exact(with_spectrum(m, n + 1, np.ones(n + 1), seed=seed))
    values = np.logspace(0, -math.log10(condition), n)
    A = (basis[:, :n] * values) @ scipy.linalg.qr(exact(gaussian(n, n, seed=seed + 1)))[0]
    b = A @ exact(gaussian(n, seed=seed + 2)) / math.sqrt(n) + distance * basis[:, n]
    return torch.from_numpy(A), torch.from_numpy(b)


def shortest(A, b, damp=0.0):
    """By LAPACK's SVD."""
    U, values, Vh = scipy.linalg.svd(exact(A), full_matrices=False)
    kept = values > 1e-10 * values.max(initial=0)
    factors = (values[kept] / (values[kept] ** 2 + damp**2))[:, None]
    parts = U[:, kept].conj().T @ exact(b).reshape(len(U), -1)
    return (Vh[kept].conj().T @ (factors * parts)).reshape(Vh.shape[1], *b.shape[1:])


def close(A, x, truth, b, condition):
    """Within 100·u·(κ·‖x‖ + κ²·‖b − A·x‖/‖A‖): the perturbation theory of least squares with a
    hundred roundoffs, what LAPACK itself is granted."""
    A, x, truth, b = exact(A), exact(x), exact(truth), exact(b)
    u = 2.0**-24 if max(A.dtype.itemsize, x.dtype.itemsize) <= 8 else 2.0**-53
    norm = np.linalg.norm(A, 2)
    least = np.linalg.norm(b - A @ truth)
    allowed = condition * np.linalg.norm(truth) + condition**2 * least / norm
    assert np.linalg.norm(x - truth) <= 100 * u * allowed


# ---- small matrices of any kind ----


@given(A=matrices(max_size=40), columns=st.integers(1, 3), seed=seeds)
def test_any_matrix(A, columns, seed):
    b = gaussian(A.shape[0], columns).to(A.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, residual = result = la.lstsq(A, b, seed=seed)
    assert x.shape == (A.shape[1], columns)
    assert residual.shape == b.shape
    # One rounding of A·x and one of the difference, n terms to a sum.
    size = np.abs(exact(A)) @ np.abs(exact(x)) + np.abs(exact(b))
    assert (
        np.abs(exact(b) - exact(A) @ exact(x) - exact(residual))
        <= ((A.shape[1] + 4) * unit_roundoff(A) * size)
    ).all()
    assert result.info.rank <= min(A.shape)
    # x is the exact solution for a matrix and right-hand sides within some roundoffs.
    assert np.all(np.asarray(result.info.backward_error) <= 8 * unit_roundoff(A))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(60, 7), (7, 60), (12, 12), (1, 9), (9, 1), (1, 1)])
def test_the_solution_is_that_of_lapack(shape, dtype):
    A, b = gaussian(*shape, dtype=dtype), gaussian(shape[0], 2, dtype=dtype, seed=1)
    x, _ = la.lstsq(A, b)
    assert x.dtype == dtype
    values = scipy.linalg.svdvals(exact(A))
    truth = shortest(A, b)
    u = unit_roundoff(A)
    least = np.linalg.norm(exact(b) - exact(A) @ truth)
    condition = values[0] / values[-1]
    allowed = condition * np.linalg.norm(truth) + condition**2 * least / values[0]
    assert np.linalg.norm(exact(x) - truth) <= 100 * u * allowed


@pytest.mark.parametrize("method", ["auto", "direct", "refined", "precondition"])
@pytest.mark.parametrize("shape", [(400, 12), (12, 400), (40, 40)])
def test_the_shortest_solution_of_a_matrix_not_of_full_rank(shape, method):
    A = with_spectrum(*shape, np.linspace(3, 1, 7))
    b = gaussian(shape[0], 2, seed=1)
    x, _ = result = la.lstsq(A, b, method=method, seed=0)
    truth = shortest(A, b)
    assert result.info.rank == 7
    # κ = 3; the space of the rows is known to u over the gap between 1 and the rounding.
    assert np.linalg.norm(exact(x) - truth) <= 1000 * 2.0**-53 * np.linalg.norm(exact(b))
    # A power of two changes nothing but exponents.
    scaled = la.lstsq(2.0**40 * A, b, method=method, seed=0)
    assert scaled.info.rank == 7
    assert np.allclose(scaled.info.backward_error, result.info.backward_error, rtol=1e-6, atol=0)


def test_columns_of_any_size_do_not_count_as_a_low_rank():
    A = gaussian(300, 6) * torch.tensor([1e-150, 1e-9, 1, 1e9, 1e100, 1e150], dtype=torch.double)
    truth = torch.tensor([1e150, 1e9, 1, 1e-9, 1e-100, 1e-150], dtype=torch.double)
    for method in ("direct", "refined", "precondition", "iterative"):
        result = la.lstsq(A, A @ truth, method=method, seed=0)
        assert result.info.rank == 6
        # Every column has a unit of its own: relative errors of some 100·u for each.
        assert ((result.x / truth - 1).abs() <= 1e-13).all()


@pytest.mark.parametrize("exponent", [-600, -150, 150, 600])
@pytest.mark.parametrize("method", ["direct", "refined", "iterative", "lsqr"])
def test_right_hand_sides_and_matrices_of_any_magnitude(method, exponent):
    A, b = problem(500, 8, 10, 0.1)
    scale = 2.0**exponent
    plain = la.lstsq(A, b, method=method, seed=0).x
    # A power of two changes nothing but exponents.
    for scaled in (
        la.lstsq(A, b * scale, method=method, seed=0).x / scale,
        la.lstsq(A * scale, b, method=method, seed=0).x * scale,
    ):
        assert np.linalg.norm(exact(scaled - plain)) <= 1e-13 * np.linalg.norm(exact(plain))


def test_zeros_and_nothing():
    for method in ("auto", *SKETCHED, "direct"):
        result = la.lstsq(torch.zeros(300, 4), torch.ones(300), method=method)
        assert result.x.tolist() == [0, 0, 0, 0]
        assert result.residual.tolist() == [1] * 300
        assert result.info.rank == 0
    for shape in ((0, 3), (3, 0), (0, 0)):
        x, residual = la.lstsq(torch.zeros(shape), torch.ones(shape[0], 2))
        assert x.shape == (shape[1], 2)
        assert torch.equal(residual, torch.ones(shape[0], 2))
        assert (x == 0).all()
    assert la.lstsq(torch.ones(3, 2), torch.ones(3, 0)).x.shape == (2, 0)
    # b = 0 has the solution 0 exactly.
    assert (la.lstsq(gaussian(400, 5), torch.zeros(400).double(), method="refined").x == 0).all()


# ---- accuracy ----


@pytest.mark.parametrize("distance", [1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8, 1e12])
@pytest.mark.parametrize("method", ["refined", "direct"])
def test_as_accurate_as_qr(method, condition, distance):
    """Forward, residual and backward errors within ten times those of Householder QR in LAPACK, or
    ten roundoffs where QR happened to do better than that."""
    A, b = problem(4000, 50, condition, distance)
    truth = lstsq_in_extended_precision(A, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = la.lstsq(A, b, method=method, seed=0)
    u = 2.0**-53

    def errors(x):
        wide = exact(x).astype(np.longdouble) - truth
        return np.linalg.norm(wide), np.linalg.norm(exact(A).astype(np.longdouble) @ wide)

    # The errors of QR change by an order of magnitude with the order of the rows: the largest.
    orders = [torch.randperm(4000, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    by_qr = [torch.linalg.lstsq(A[o], b[o, None], driver="gels").solution[:, 0] for o in orders]
    of_qr = np.max([errors(x) for x in by_qr], axis=0)
    for error, other, least in zip(errors(result.x), of_qr, (u * condition, u), strict=True):
        assert error <= 10 * max(other, least)
    backward = max(backward_error(A, b, x) for x in by_qr)
    assert backward_error(A, b, result.x) <= 10 * max(backward, u)
    # And it is known: the sketched estimate within a factor of 3 of the exact one.
    measured = max(backward_error(A, b, result.x), u / 4)
    assert max(result.info.backward_error, u / 4) <= 3 * measured
    assert max(result.info.backward_error, u / 4) >= measured / 3
    lengths = np.linalg.norm(exact(A), axis=0)
    assert result.info.condition == pytest.approx(np.linalg.cond(exact(A) / lengths), rel=0.5)


def test_iterations_gain_the_factor_of_the_sketch():
    A, b = problem(4000, 50, 10, 1.0)
    sketch = la.SketchOperator("sparse_sign", 200, 4000, seed=0)
    result = la.lstsq(A, b, method="refined", sketch=sketch)
    # √(n/rows) = 1/2: 53 for 16 digits. Without conjugate directions 4/5 each: 165.
    assert result.info.converged
    assert result.info.iterations <= 60


def test_many_right_hand_sides_are_as_accurate():
    A, b = problem(4000, 30, 1e8, 1.0)
    B = torch.stack([b, *problem(4000, 30, 1e8, 1.0, seed=5)[1:], b.flip(0), 1e-3 * b], 1)
    result = la.lstsq(A, B, method="refined", seed=0)
    assert result.info.converged
    for column, estimate in zip(B.T, result.info.backward_error, strict=True):
        x = result.x[:, int((column == B.T).all(1).nonzero()[0])]
        measured = max(backward_error(A, column, x), 2.0**-55)
        assert measured / 3 <= max(estimate, 2.0**-55) <= 3 * measured


def test_the_best_of_the_corrections_is_returned():
    """Near 1/(30·u) rounding moves the error from one correction to the next."""
    A, b = problem(2000, 40, 1e12, 1e-3)
    for seed in range(10):
        with pytest.warns(la.ConvergenceWarning):
            result = la.lstsq(A, b, method="refined", tol=0.0, seed=seed)
        measured = max(backward_error(A, b, result.x), 2.0**-55)
        assert measured / 3 <= max(result.info.backward_error, 2.0**-55) <= 3 * measured
        assert np.allclose(result.residual, exact(b) - exact(A) @ exact(result.x), atol=1e-12)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_any_number_of_threads(order):
    A, b = problem(20000, 20, 100, 0.1)
    A = A if order == "rows" else A.T.contiguous().T
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result = la.lstsq(A, b, method="refined", seed=0)
            assert result.info.converged
            close(A, result.x, shortest(A, b), b, 100)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["precondition", "iterative", "lsqr"])
def test_other_methods_reach_the_accuracy_that_they_promise(method):
    A, b = problem(2000, 20, 100, 0.1)
    result = la.lstsq(A, b, method=method, seed=0)
    assert result.info.converged
    assert result.info.method == method
    assert backward_error(A, b, result.x) <= 3 * max(result.info.backward_error, 2.0**-53)
    close(A, result.x, shortest(A, b), b, 100)


def test_the_sketched_solution_is_only_as_good_as_its_sketch():
    A, b = problem(4000, 20, 100, 1.0)
    best = np.linalg.norm(exact(la.lstsq(A, b, method="direct").residual))
    result = la.lstsq(A, b, method="sketch_and_solve", seed=0)
    assert result.info.converged
    assert result.info.passes <= 3
    ratio = np.linalg.norm(exact(result.residual)) / best
    # 1/√(1 − n/rows) in the mean, n/rows being 1/6 at most; and no miracle (the negative control).
    assert 1 + 1e-6 < ratio < 1.3
    with pytest.warns(la.ConvergenceWarning, match="above tol"):
        la.lstsq(A, b, method="sketch_and_solve", tol=1e-10, seed=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("shape", [(1200, 9), (9, 1200)])
def test_every_type_and_shape(method, shape, dtype):
    A, b = gaussian(*shape, dtype=dtype), gaussian(shape[0], 3, dtype=dtype, seed=1)
    x, residual = result = la.lstsq(A, b, method=method, seed=0)
    assert x.dtype == residual.dtype == dtype
    assert result.info.converged
    assert result.info.backward_error.shape == (3,)
    # κ < 2 for Gaussian matrices of this shape; LSQR stops at u^(2/3).
    tol = unit_roundoff(A) ** (2 / 3) if method == "lsqr" else 100 * unit_roundoff(A)
    size = np.linalg.norm(exact(b)) / np.linalg.norm(exact(A), 2)
    assert np.linalg.norm(exact(x) - shortest(A, b)) <= 4 * math.sqrt(9) * tol * size


@pytest.mark.parametrize("shape", [(900, 8), (8, 900)])
@pytest.mark.parametrize("method", ["auto", *EXACT])
def test_columns_are_solved_as_if_alone(method, shape):
    A = gaussian(*shape)
    # Right-hand sides in and out of the range, of very different length.
    b = torch.stack([A @ gaussian(shape[1], seed=1), 1e-200 * gaussian(shape[0]), 0 * A[:, 0]], 1)
    together = la.lstsq(A, b, method=method, seed=0)
    for j in range(3):
        alone = la.lstsq(A, b[:, j], method=method, seed=0)
        assert alone.x.shape == (shape[1],)
        assert isinstance(alone.info.backward_error, float)
        # To the tolerance of LSQR, or 100 roundoffs.
        tol = 1e-10 if method == "lsqr" else 1e-14
        size = max(np.linalg.norm(exact(alone.x)), 1e-300)
        assert np.linalg.norm(exact(together.x[:, j] - alone.x)) <= 10 * tol * size


@given(seed=seeds, damp=st.sampled_from([1e-3, 1.0, 1e3]), dtype=dtypes)
@pytest.mark.parametrize("shape", [(500, 6), (6, 500), (20, 20)])
@pytest.mark.parametrize("method", ["auto", "refined", "lsqr"])
def test_ridge_regression(method, shape, damp, seed, dtype):
    A, b = gaussian(*shape, dtype=dtype), gaussian(shape[0], 2, dtype=dtype, seed=1)
    x, residual = la.lstsq(A, b, damp=damp, method=method, seed=seed)
    truth = shortest(A, b, damp)
    # One sum of products and a difference, of numbers of that size.
    size = np.linalg.norm(exact(A)) * np.linalg.norm(exact(x)) + np.linalg.norm(exact(b))
    off = np.linalg.norm(exact(b) - exact(A) @ exact(x) - exact(residual))
    assert off <= 4 * math.sqrt(shape[1]) * unit_roundoff(A) * size
    values = np.linalg.svd(exact(A), compute_uv=False)
    condition = np.hypot(values[0], damp) / np.hypot(values[-1], damp)
    tol = unit_roundoff(A) ** (2 / 3) if method == "lsqr" else 100 * unit_roundoff(A)
    scale = np.linalg.norm(exact(b)) / np.hypot(values[-1], damp)
    assert np.linalg.norm(exact(x) - truth) <= 10 * tol * condition * scale


def test_damping_a_matrix_not_of_full_rank():
    A = with_spectrum(600, 10, [3, 2, 1])
    b = gaussian(600, seed=1)
    for method in ("direct", "refined", "precondition", "iterative"):
        result = la.lstsq(A, b, damp=1e-2, method=method, seed=0)
        assert result.info.rank == 10
        # κ = 300 with the damping, squared for the part of b outside the range.
        assert np.linalg.norm(exact(result.x) - shortest(A, b, 1e-2)) <= 1e5 * 2.0**-53 * 25


def test_weights():
    A, b = gaussian(700, 6), gaussian(700, seed=1)
    weights = torch.linspace(0, 2, 700).double()
    roots = weights.sqrt()
    truth = shortest(roots[:, None] * A, roots * b)
    for matrix in kinds_of(A):
        x, residual = la.lstsq(matrix, b, weights=weights, seed=0)
        # κ < 2 for Gaussian columns.
        assert np.linalg.norm(exact(x) - truth) <= 1e-12
        # Residuals are those of the caller's rows, also of those without weight.
        assert np.linalg.norm(exact(residual) - (exact(b) - exact(A) @ truth)) <= 1e-10
    assert np.linalg.norm(truth - shortest(A, b)) > 1e-3  # the negative control


# ---- kinds of matrices ----


def kinds_of(A):
    """The same matrix as an array, sparse, an operator, and in blocks."""
    array = exact(A)
    return [
        A,
        array,
        A.to_sparse_csr(),
        A.to_sparse_coo(),
        scipy.sparse.csr_array(array),
        scipy.sparse.csc_matrix(array),
        operator(A),
        scipy.sparse.linalg.aslinearoperator(array),
        list(A.split(97)),
    ]


@pytest.mark.parametrize("method", ["auto", *EXACT])
@pytest.mark.parametrize("shape", [(600, 7), (7, 600)])
def test_every_kind_of_matrix(shape, method):
    A, b = gaussian(*shape), gaussian(shape[0], seed=1)
    truth = shortest(A, b)
    for matrix in kinds_of(A):
        with warnings.catch_warnings():
            warnings.simplefilter("error", la.ConvergenceWarning)
            x, residual = la.lstsq(matrix, b, method=method, seed=0)
        numpy = not isinstance(matrix, torch.Tensor | la.LinearOperator | list)
        assert isinstance(x, np.ndarray if numpy else torch.Tensor)
        assert np.linalg.norm(exact(x) - truth) <= 1e-9
        assert np.linalg.norm(exact(residual) - (exact(b) - exact(A) @ truth)) <= 1e-8


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_is_read_twice(tmp_path, order):
    A, b = problem(3000, 20, 1e10, 1e-2)
    np.save(tmp_path / "A.npy", np.asarray(exact(A), order=order))
    result = la.lstsq(tmp_path / "A.npy", exact(b))
    assert backward_error(A, b, result.x) <= 10 * 2.0**-53
    assert result.info.converged
    if order == "C":
        # One read for the triangle, one for the backward error, one for the residual.
        assert result.info.method == "direct"
        assert result.info.passes <= 3


def test_large_sparse_matrices():
    rng = np.random.default_rng(0)
    A = scipy.sparse.random_array((20000, 60), density=0.05, rng=rng, format="csr")
    b = rng.standard_normal(20000)
    result = la.lstsq(A, b, seed=0)
    assert result.info.method == "refined"
    truth = scipy.linalg.lstsq(A.toarray(), b)[0]
    # κ of such matrices is below 10 after its columns are scaled.
    assert np.linalg.norm(result.x - truth) <= 1e-12
    wide = la.lstsq(scipy.sparse.csr_array(A.T), b[:60], seed=0)
    assert np.linalg.norm(wide.x - np.linalg.lstsq(A.T.toarray(), b[:60], rcond=None)[0]) <= 1e-12
    # Beyond some thousands of columns there is no room for a triangle.
    many = scipy.sparse.random_array((30000, 5000), density=0.001, rng=rng, format="csr")
    many = scipy.sparse.vstack([many, scipy.sparse.eye_array(5000)]).tocsr()
    result = la.lstsq(many, np.ones(35000), seed=0)
    assert result.info.method == "lsqr"
    gradient = many.T @ result.residual
    assert np.linalg.norm(gradient) <= 1e-8 * np.linalg.norm(result.residual) * 10


def test_indices_of_a_sparse_matrix_in_any_order():
    """As SciPy's own products leave them, and entries that are given twice."""
    rng = np.random.default_rng(0)
    A = scipy.sparse.csr_array(
        (rng.standard_normal(6), [2, 0, 1, 1, 2, 0], [0, 2, 4, 4, 6]), shape=(4, 3)
    )
    kept = A.indices.copy()
    b = rng.standard_normal(4)
    assert np.allclose(la.lstsq(A, b).x, np.linalg.lstsq(A.toarray(), b, rcond=None)[0])
    assert (A.indices == kept).all()


def test_a_complex_right_hand_side_and_a_real_matrix():
    A, b = gaussian(500, 5), gaussian(500, 2, dtype=torch.complex128)
    for matrix in kinds_of(A):
        result = la.lstsq(matrix, b, seed=0)
        assert np.linalg.norm(exact(result.x) - shortest(A, b)) <= 1e-12
        assert result.info.backward_error.shape == (2,)
    assert la.lstsq(A, b[:, 0]).x.shape == (5,)


def test_types_are_promoted_as_numpy_does():
    A, b = gaussian(50, 3).float(), gaussian(50)
    assert la.lstsq(A, b).x.dtype == torch.float64
    assert la.lstsq(A.double(), b.float()).x.dtype == torch.float64
    assert la.lstsq(A.half(), b.half()).x.dtype == torch.float16
    assert la.lstsq(np.ones((5, 2), int), np.ones(5, int)).x.dtype == np.float64
    assert la.lstsq(A.to_sparse_csr(), b).x.dtype == torch.float64
    assert la.lstsq(A, b, out="numpy").x.dtype == np.float64
    with pytest.raises(TypeError, match="b must not be of a wider type"):
        la.lstsq(operator(A), b)


# ---- seeds ----


def test_no_bad_seed_escapes_the_certificate():
    """A CountSketch of few rows loses a direction of this matrix for many a seed: then the result
    is not called converged, or it is right after all."""
    A = torch.zeros(2000, 12).double()
    A[:12] = torch.eye(12)
    A[12:] = 1e-6 * gaussian(1988, 12)
    b = gaussian(2000, seed=1)
    lost = 0
    for seed in range(200):
        sketch = la.SketchOperator("countsketch", 24, 2000, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", la.ConvergenceWarning)
            result = la.lstsq(A, b, method="iterative", sketch=sketch, max_iters=60)
            recovered = la.lstsq(A, b, method="refined", sketch=sketch)
        lost += not result.info.converged
        for each in (result, recovered):
            if each.info.converged:
                assert backward_error(A, b, each.x) <= 10 * 2.0**-53
    assert lost > 20  # the negative control: there are bad seeds


def test_automatic_recovers():
    A, b = problem(20000, 300, 1e3, 0.1)
    sketch = la.SketchOperator("uniform", 300, 20000, seed=0)
    result = la.lstsq(A, b, sketch=sketch, max_iters=1)
    assert result.info.converged
    assert result.info.recovered
    assert result.info.method == "direct"
    assert backward_error(A, b, result.x) <= 10 * 2.0**-53


@pytest.mark.parametrize(
    "kind", ["gaussian", "rademacher", "sparse_sign", "countsketch", "srht", "uniform"]
)
def test_every_kind_of_sketch(kind):
    A, b = gaussian(3000, 10), gaussian(3000, seed=1)
    for seed in range(20):
        result = la.lstsq(A, b, method="refined", sketch=kind, seed=seed)
        assert result.info.converged
        assert np.linalg.norm(exact(result.x) - shortest(A, b)) <= 1e-13


def test_seeds():
    A, b = problem(3000, 10, 100, 1.0)
    first, again, other = (
        la.lstsq(A, b, method="sketch_and_solve", seed=seed).x for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- the guarantee for every entry ----


def test_linf_guarantee():
    A, b = problem(60000, 2, 10, 1.0)
    truth = shortest(A, b)
    bound = 0.9 / math.sqrt(2) * np.linalg.norm(exact(b) - exact(A) @ truth) * 10
    for seed in range(20):
        result = la.lstsq(A, b, guarantee="linf", tol=0.9, seed=seed)
        assert result.info.method == "sketch_and_solve"
        assert np.abs(exact(result.x) - truth).max() <= bound
    # Where it asks for more rows than there are, the problem is solved.
    result = la.lstsq(A, b, guarantee="linf", tol=0.1)
    assert result.info.backward_error <= 8 * 2.0**-53


def test_a_countsketch_fails_where_the_dense_sketch_holds():
    """Rows that are unit vectors: in a CountSketch an entry of the residual that falls into the
    same row goes into one entry of x as a whole, in a dense sketch into all of them a little."""
    m, n, rows, heavy = 4096, 64, 1024, 48
    A = torch.zeros(m, n).double()
    A[:n] = torch.eye(n)
    b = torch.zeros(m).double()
    b[-heavy:] = 1 / math.sqrt(heavy)
    largest = {"countsketch": [], "srht": []}
    for kind, errors in largest.items():
        for seed in range(40):
            sketch = la.SketchOperator(kind, rows, m, seed=seed)
            errors.append(la.lstsq(A, b, method="sketch_and_solve", sketch=sketch).x.abs().max())
    # x* = 0, ‖A⁺‖ = ‖b‖ = 1, and √(n/rows) = ε: the bound is ε/√n up to the logarithm's root.
    bound = math.sqrt(n / rows) / math.sqrt(n) * math.sqrt(2 * math.log(n * 40))
    assert max(largest["srht"]) <= bound
    assert np.mean([float(error) > bound for error in largest["countsketch"]]) > 0.5


# ---- gradients ----


@pytest.mark.parametrize("damp", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5)])
def test_gradients(shape, dtype, damp):
    A = gaussian(*shape, dtype=dtype).requires_grad_()
    b = gaussian(shape[0], 2, dtype=dtype, seed=1).requires_grad_()
    weights = torch.linspace(0.5, 2, shape[0])
    # Differences of 1e-6 of solutions with κ of some 10 are good to 1e-8·κ².
    assert torch.autograd.gradcheck(
        lambda A, b: tuple(la.lstsq(A, b, damp=damp, weights=weights)), (A, b), atol=1e-5
    )


def test_gradients_at_constant_rank():
    left, right = gaussian(8, 3), gaussian(3, 6, seed=1)
    b = gaussian(8, seed=2)

    def solution(left, right):
        return la.lstsq(left @ right, b)[0]

    inputs = left.requires_grad_(), right.requires_grad_()
    assert torch.autograd.gradcheck(solution, inputs, atol=1e-5)


def test_gradients_of_a_sketched_problem_are_those_of_torch():
    A, b = gaussian(3000, 12), gaussian(3000, seed=1)

    def gradients(solve):
        inputs = A.clone().requires_grad_(), b.clone().requires_grad_()
        solve(*inputs).square().sum().backward()
        return [each.grad for each in inputs]

    ours = gradients(lambda A, b: la.lstsq(A, b, method="refined", seed=0).x)
    theirs = gradients(lambda A, b: torch.linalg.lstsq(A, b[:, None], driver="gels").solution)
    for got, expected in zip(ours, theirs, strict=True):
        # κ < 1.2; sums of 3000 terms.
        assert (got - expected).norm() <= 1e-12 * expected.norm()
    single = A.float().requires_grad_()
    la.lstsq(single, b, seed=0).residual.sum().backward()  # through the promotion
    assert single.grad.dtype == torch.float32


# ---- errors ----


def test_bad_arguments():
    A, b = gaussian(30, 4), gaussian(30)
    cases = [
        ({"b": b[:29]}, ValueError, r"b must have the 30 rows of A, got 29"),
        ({"b": b[None, None]}, ValueError, r"b must be a dense vector or matrix"),
        ({"damp": -1.0}, ValueError, r"damp must be non-negative and finite, got -1"),
        ({"damp": math.nan}, ValueError, r"damp must be non-negative and finite, got nan"),
        ({"tol": -1e-3}, ValueError, r"tol must be non-negative"),
        ({"max_iters": -1}, ValueError, r"max_iters must be at least 0, got -1"),
        ({"max_iters": 1.5}, TypeError, r"max_iters must be an integer"),
        ({"method": "qr"}, ValueError, r"method must be 'auto', .* got 'qr'"),
        ({"sketch": "fourier"}, ValueError, r"lstsq: sketch must be .* got 'fourier'"),
        ({"sketch": 3}, TypeError, r"sketch must be the name of a kind or a SketchOperator"),
        ({"sketch": la.SketchOperator("gaussian", 40, 30)}, ValueError, r"between 4 and 30 rows"),
        ({"sketch": la.SketchOperator("gaussian", 3, 30)}, ValueError, r"between 4 and 30 rows"),
        ({"sketch": la.SketchOperator("gaussian", 8, 31)}, ValueError, r"must have 30 cols"),
        ({"weights": torch.ones(29)}, ValueError, r"weights must have shape \(30,\), got \(29,\)"),
        (
            {"weights": -torch.ones(30)},
            ValueError,
            r"weights must be non-negative .* index \(0,\)",
        ),
        ({"guarantee": "l1"}, ValueError, r'guarantee must be "linf" or None'),
        ({"guarantee": "linf"}, ValueError, r'guarantee="linf" needs'),
        ({"guarantee": "linf", "tol": 0.5, "method": "direct"}, ValueError, r"give neither"),
        ({"out": "jax"}, ValueError, r"out must be"),
        ({"A": A[None]}, ValueError, r"one matrix and no batch"),
        (
            {"A": operator(A), "b": b.clone().requires_grad_()},
            ValueError,
            r"b must not require grad",
        ),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            la.lstsq(**{"A": A.detach(), "b": b, **arguments})


@pytest.mark.parametrize("method", ["auto", *SKETCHED, "direct", "lsqr"])
@pytest.mark.parametrize("shape", [(400, 4), (4, 400)])
def test_what_is_not_finite_is_named(shape, method):
    A, b = gaussian(*shape), gaussian(shape[0], 2)
    for value in (math.nan, math.inf):
        bad = A.clone()
        bad[2, 3] = value
        with pytest.raises(ValueError, match=r"lstsq: A must be finite, got .* at index \(2, 3\)"):
            la.lstsq(bad, b, method=method, seed=0)
        bad = b.clone()
        bad[1, 1] = value
        with pytest.raises(ValueError, match=r"lstsq: b must be finite, got .* at index \(1, 1\)"):
            la.lstsq(A, bad, method=method, seed=0)


def test_an_operator_that_raises():
    def fail(X):
        raise RuntimeError("no more products")

    A = la.LinearOperator((300, 3), fail, fail, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="no more products"):
        la.lstsq(A, torch.ones(300).double())


def test_an_unmet_tolerance_is_not_silent():
    A, b = problem(2000, 20, 1e6, 0.1)
    with pytest.warns(la.ConvergenceWarning, match="above tol"):
        result = la.lstsq(A, b, method="lsqr", max_iters=3, seed=0)
    assert not result.info.converged
    assert result.info.iterations == 3


def test_results_unpack_and_pickle():
    result = la.lstsq(gaussian(30, 3), gaussian(30))
    again = pickle.loads(pickle.dumps(result))
    assert again.info == result.info
    assert torch.equal(again.x, result.x)
    assert len(result) == 2


def test_inputs_are_not_written_to():
    A, b = gaussian(400, 4), gaussian(400, 2)
    kept = A.clone(), b.clone()
    for method in ("auto", *SKETCHED, "direct", "lsqr"):
        la.lstsq(A, b, method=method, weights=torch.ones(400), damp=0.1, seed=0)
    assert torch.equal(A, kept[0])
    assert torch.equal(b, kept[1])

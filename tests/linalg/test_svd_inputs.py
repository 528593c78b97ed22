"""One matrix in every shape that it may come in, complex and batched ones, and tolerances."""

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import (
    exact,
    orthonormality_error,
    residual,
    rounding,
    singular_values,
    tail_norm,
    unit_roundoff,
)
from strategies import matrices, seeds, with_spectrum

METHODS = ["subspace", "krylov", "single_pass", "nystrom"]


def complex_matrix(m, n, values, dtype=torch.complex128):
    left = torch.linalg.qr(
        torch.complex(with_spectrum(m, n, values), with_spectrum(m, n, values, seed=1))
    )[0]
    right = torch.linalg.qr(
        torch.complex(with_spectrum(n, n, values, seed=2), torch.eye(n).double())
    )[0]
    return ((left[:, : len(values)] * torch.as_tensor(values)) @ right.mH).to(dtype)


def sparse_matrix(shape, dtype):
    dense = scipy.sparse.random(*shape, density=0.2, random_state=0).toarray()
    if np.issubdtype(dtype, np.complexfloating):
        dense = dense * np.exp(1j * np.arange(shape[1]))
    return dense.astype(dtype)


def kinds(A):
    T = torch.from_numpy(A)
    yield "torch COO", T.to_sparse()
    yield "torch CSR", T.to_sparse_csr()
    yield "torch CSC", T.to_sparse_csc()
    for name in ("coo", "csr", "csc"):
        yield f"SciPy {name} array", getattr(scipy.sparse, f"{name}_array")(A)
        yield f"SciPy {name} matrix", getattr(scipy.sparse, f"{name}_matrix")(A)
    yield "operator", la.LinearOperator(A.shape, lambda X: T @ X, lambda Y: T.mH @ Y, dtype=T.dtype)
    yield "SciPy operator", scipy.sparse.linalg.aslinearoperator(A)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_gives_the_factors_of_the_dense_matrix(shape, dtype, method):
    A = sparse_matrix(shape, dtype)
    power_iters = 2 if method in ("subspace", "krylov") else "auto"
    options = {"method": method, "power_iters": power_iters, "seed": 3}
    expected = la.randomized_svd(A, 6, **options)
    for name, given_as in kinds(A):
        result = la.randomized_svd(given_as, 6, **options)
        torch_in = name.startswith("torch") or name == "operator"
        assert isinstance(result.S, torch.Tensor if torch_in else np.ndarray), name
        # The same draws; sums in another order. rounding() bounds what that does to singular
        # values, 20 times it to a sketch that is solved for.
        np.testing.assert_allclose(
            np.asarray(result.S),
            expected.S,
            rtol=0,
            atol=20 * rounding(torch.from_numpy(A)),
            err_msg=name,
        )
        assert result.info.error == pytest.approx(expected.info.error, rel=1e-3), name


@pytest.mark.parametrize("kind", ["SciPy", "torch"])
def test_center_is_the_svd_of_the_centered_matrix(kind):
    A = sparse_matrix((90, 60), np.float64)
    sparse = scipy.sparse.csr_array(A) if kind == "SciPy" else torch.from_numpy(A).to_sparse()
    centered = A - A.mean(0)
    result = la.randomized_svd(sparse, 6, center=True, seed=0)
    dense = la.randomized_svd(centered, 6, seed=0)
    np.testing.assert_allclose(
        np.asarray(result.S), dense.S, rtol=0, atol=rounding(torch.from_numpy(A))
    )
    # The negative control: without centring the leading value is another.
    assert abs(la.randomized_svd(sparse, 6, seed=0).S[0] - dense.S[0]) > 0.1 * dense.S[0]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(70, 50), (50, 70)])
@pytest.mark.parametrize("method", METHODS)
def test_complex(dtype, shape, method):
    A = complex_matrix(max(shape), min(shape), 0.5 ** np.arange(min(shape)), dtype)
    A = A if A.shape == shape else A.mH
    result = la.randomized_svd(A, 8, method=method, seed=0)
    U, S, Vh = result
    assert S.dtype == dtype.to_real()
    assert orthonormality_error(U) <= 10
    assert orthonormality_error(Vh.mH) <= 10
    # One-read methods see every direction once: an excess of 2 covers their sketches' expectation
    # √(1 + k/(l − k − 1)) twice over at l = 2·8 + 10.
    factor = 1.4 if method in ("subspace", "krylov") else 2
    assert residual(A, result) <= factor * tail_norm(A, 8) + rounding(A)
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    # The phase is divided out in floating point: 4·u of it may remain.
    assert (largest.imag.abs() <= 4 * unit_roundoff(A)).all()
    assert (largest.real > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("batch", [(3,), (2, 3), (0,)])
def test_batch_equals_loop(dtype, batch):
    A = torch.randn(*batch, 30, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    result = la.randomized_svd(A, 4, seed=1)
    assert result.U.shape == (*batch, 30, 4)
    assert result.S.shape == (*batch, 4)
    assert result.Vh.shape == (*batch, 4, 40)
    if 0 in batch:
        return
    flat = A.flatten(0, -3)
    for i, (U, S, Vh) in enumerate(
        zip(result.U.flatten(0, -3), result.S.flatten(0, -2), result.Vh.flatten(0, -3), strict=True)
    ):
        one = la.randomized_svd(flat[i], 4, seed=1)
        # A thread of a batch multiplies alone: sums in another order. Gaps of the leading values
        # are near 1 % of them: 1e4·u covers the condition of the vectors.
        for a, b in zip((U, S, Vh), one, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e4 * unit_roundoff(A))
        assert result.info.error.flatten()[i].item() == pytest.approx(one.info.error, rel=1e-3)


@given(A=matrices(), tol=st.floats(1e-4, 0.9), seed=seeds)
def test_tolerance_is_met_by_the_smallest_rank(A, tol, seed):
    result = la.randomized_svd(A, tol=tol, seed=seed)
    values = singular_values(A)
    norm = float(np.linalg.norm(values))
    assert result.info.converged
    assert residual(A, result) <= tol * norm + rounding(A)
    assert residual(A, result) <= result.info.error + rounding(A)
    best = next(k for k in range(len(values) + 1) if np.linalg.norm(values[k:]) <= tol * norm)
    assert best <= len(result.S) + 1  # + 1: a tail within rounding of the tolerance
    assert len(result.S) <= best + 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("tol", [1e-3, 1e-9, 1e-12])
def test_tolerances_below_the_cancellation_of_the_projected_norm(dtype, tol):
    values = 0.5 ** np.arange(150)
    make = with_spectrum if dtype == torch.float64 else complex_matrix
    A = make(400, 150, values, dtype)
    result = la.randomized_svd(A, tol=tol, seed=0)
    assert result.info.method == "blocked QB"
    assert result.info.failure_probability == (0.0 if tol == 1e-3 else 0.01)
    assert residual(A, result) <= tol * np.linalg.norm(values)
    best = math.ceil(-math.log2(tol))
    # A probe's factor of 2 to 3 costs two more ranks at a ratio of 1/2.
    assert best - 1 <= len(result.S) <= best + 3


def test_unmet_tolerance_is_never_silent():
    A = with_spectrum(100, 80, np.ones(80))
    with pytest.warns(la.ConvergenceWarning, match=r"tol=0\.01 not met"):
        result = la.randomized_svd(A, 5, tol=0.01, seed=0)
    assert not result.info.converged
    assert len(result.S) == 5


def test_zero_matrix_has_rank_zero_within_any_tolerance():
    result = la.randomized_svd(torch.zeros(80, 60), tol=0.1, seed=0)
    assert (result.U.shape, result.S.shape, result.Vh.shape) == ((80, 0), (0,), (0, 60))
    assert result.info.converged


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_krylov_reaches_ten_digits(dtype):
    values = 0.95 ** np.arange(300)
    make = with_spectrum if dtype == torch.float64 else complex_matrix
    A = make(500, 300, values, dtype)
    result = la.randomized_svd(A, 20, method="krylov", seed=0)
    assert result.info.converged
    np.testing.assert_allclose(exact(result.S).real, values[:20], rtol=1e-10)
    # ‖A v − s u‖ of every triplet, twice the criterion for the rounding of its estimate.
    gap = exact(A) @ exact(result.Vh).conj().T - exact(result.U) * exact(result.S)
    assert np.linalg.norm(gap, axis=0).max() <= 2e-10
    # The negative control: two subspace iterations do not get there.
    plain = la.randomized_svd(A, 20, power_iters=2, seed=0)
    assert np.abs(exact(plain.S).real - values[:20]).max() > 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_error_of_a_tall_matrix_at_the_ends_of_the_range(method, scale):
    # So tall that its error is summed up in blocks of rows.
    A = la.random_matrix(60_000, 40, seed=0, dtype=torch.float64)
    one, two = (la.randomized_svd(B, 5, method=method, seed=0).info for B in (A, A * scale))
    assert two.error / scale == pytest.approx(one.error, rel=1e-9)
    assert two.spectral_error / scale == pytest.approx(one.spectral_error, rel=1e-9)


@pytest.mark.parametrize("decay", [0.9, 0.4])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_krylov_on_one_side_and_on_both(decay, scale):
    # 0.9^19 = 0.1 is seen by AᴴA; 0.4^19 = 3e-8 is below its rounding.
    values = decay ** np.arange(300.0)
    A = with_spectrum(500, 300, values) * scale
    result = la.randomized_svd(A, 20, method="krylov", seed=0)
    S, U, V = exact(result.S) / scale, exact(result.U), exact(result.Vh).T
    assert result.info.converged
    assert result.info.passes <= 20
    assert np.abs(S - values[:20]).max() <= rounding(A / scale)
    # Of both sides, twice the criterion for the rounding of its estimate.
    for gap in (exact(A) @ V / scale - U * S, exact(A).T @ U / scale - V * S):
        assert np.linalg.norm(gap, axis=0).max() <= 2e-10


def test_krylov_finds_every_copy_of_a_repeated_value():
    # More copies than half of the sketch is wide, and than a narrower block could see.
    values = np.where(np.arange(200) < 20, 1.0, 0.5)
    result = la.randomized_svd(with_spectrum(300, 200, values), 20, method="krylov", seed=0)
    assert result.info.converged
    np.testing.assert_allclose(exact(result.S), 1, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_krylov_beyond_the_rank(dtype):
    ones = torch.ones(600, 500, dtype=dtype)
    result = la.randomized_svd(ones, 5, method="krylov", seed=0)
    # Sums of 600 numbers of one sign round to one side: 600·u.
    assert result.S[0].item() == pytest.approx(math.sqrt(300000), rel=600 * unit_roundoff(ones))
    assert (result.S[1:] == 0).all()
    assert orthonormality_error(result.U) <= 10
    assert orthonormality_error(result.Vh.mT) <= 10


class Interrupted(Exception):
    pass


def operator(matmat):
    return la.LinearOperator(
        (60, 50), matmat, lambda Y: torch.ones(50, Y.shape[1]), dtype=torch.float32
    )


@pytest.mark.parametrize(
    ("matmat", "error", "words"),
    [
        (
            lambda X: torch.ones(60, 3),
            ValueError,
            r"matmat must return shape \(60, 15\), got \(60, 3\)",
        ),
        (lambda X: torch.ones(60, 15).double(), TypeError, "must return dtype torch.float32"),
        (lambda X: np.ones((60, 15)), TypeError, "must return a Tensor, got ndarray"),
        (lambda X: torch.full((60, 15), math.nan), ValueError, r"got nan at index \(0, 0\)"),
    ],
)
def test_bad_callbacks(matmat, error, words):
    with pytest.raises(error, match=words):
        la.randomized_svd(operator(matmat), 5, oversample=0, seed=0)


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_what_a_callback_raises_passes_through(error):
    def matmat(X):
        raise error("stop")

    with pytest.raises(error, match="stop"):
        la.randomized_svd(operator(matmat), 5, seed=0)


def test_non_finite_sparse_entry_is_named():
    A = sparse_matrix((60, 50), np.float64)
    A[7, 9] = math.inf
    with pytest.raises(ValueError, match=r"A must be finite, got inf at index \(7, 9\)"):
        la.randomized_svd(scipy.sparse.csr_array(A), 4, seed=0)


def test_malformed_sparse_indices_are_an_error():
    A = scipy.sparse.csr_array(np.eye(40))
    A.indices[3] = 1000
    with pytest.raises(RuntimeError, match="col_indices"):
        la.randomized_svd(A, 4, seed=0)


@pytest.mark.parametrize("out", ["torch", "numpy"])
def test_out(out):
    result = la.randomized_svd(np.eye(30), 3, seed=0, out=out)
    assert isinstance(result.U, torch.Tensor if out == "torch" else np.ndarray)

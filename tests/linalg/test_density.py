"""Spectral densities against SciPy's eigenvalues: exact moments, counts within their errors."""

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
from references import exact, unit_roundoff
from strategies import hermitian, seeds

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def start(n, count, seed, dtype=torch.float64):
    """The vectors that the draws of the seed make, normalized."""
    V = exact(la.random_matrix(n, count, seed=seed, dtype=dtype))
    return V / np.linalg.norm(V, axis=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_quadrature_is_exact_to_degree_2_steps_minus_1(dtype, steps):
    n = 80
    A = hermitian(np.linspace(-1, 1, n), dtype)
    density = la.spectral_density(A, n_vectors=6, steps=steps, seed=4)
    X, V = exact(A), start(n, 6, 4, dtype)
    nodes, weights = exact(density.nodes), exact(density.weights)
    for k in range(2 * steps):
        # ‖A‖ = 1: rounding of k products of n terms, times n.
        truth = n * np.sum(V.conj() * (np.linalg.matrix_power(X, k) @ V), axis=0)
        np.testing.assert_allclose(
            np.sum(weights * nodes**k, axis=1),
            truth,
            atol=40 * (k + 1) * math.sqrt(n) * unit_roundoff(A) * n,
        )
        estimate = density.moment(k)
        assert estimate.quadrature_error == 0
        assert estimate.value == pytest.approx(truth.mean(), rel=1e-3, abs=1e-3)
        samples_error = truth.std(ddof=1) / math.sqrt(6)
        assert estimate.std_error == pytest.approx(samples_error, rel=1e-3, abs=1e-3)
    # The negative control: the next one is off, and says that nothing is known.
    k = 2 * steps
    truth = n * np.sum(V.conj() * (np.linalg.matrix_power(X, k) @ V), axis=0)
    assert np.abs(np.sum(weights * nodes**k, axis=1) - truth).max() > 1e-6
    assert math.isnan(density.moment(k).quadrature_error)


@given(
    n=st.integers(1, 40),
    n_vectors=st.integers(1, 4),
    steps=st.integers(1, 50),
    distinct=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_any_matrix(n, n_vectors, steps, distinct, dtype, seed):
    values = np.linspace(-2, 3, 5)[np.arange(n) % distinct]
    density = la.spectral_density(
        hermitian(values, dtype), n_vectors=n_vectors, steps=steps, seed=seed
    )
    nodes, weights = exact(density.nodes), exact(density.weights)
    assert nodes.shape == weights.shape == (n_vectors, min(n, steps))
    near = 100 * math.sqrt(n) * unit_roundoff(torch.empty(0, dtype=dtype))
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(1), n, rtol=near)
    assert nodes.min() >= values.min() - 3 * near
    assert nodes.max() <= values.max() + 3 * near
    if steps >= len(set(values)):
        # The Krylov space is invariant: the nodes that have weight are the eigenvalues.
        assert not density.resolution.isnan().any()
        heavy = nodes[weights > n * math.sqrt(near)]
        assert np.abs(heavy[:, None] - values[None, :]).min(1).max() <= 10 * math.sqrt(near)
        # Between eigenvalues the counts of all vectors are those of their whole measures.
        value, _, quadrature_error = density.count(-9, 9)
        assert (value, quadrature_error) == pytest.approx((n, 0), abs=n * near)


def test_counts_are_within_their_errors():
    n = 400
    values = np.sort(np.r_[np.linspace(0, 1, 300), 2 + 0.1 * np.sin(np.arange(100.0))])
    A = hermitian(values)
    points = torch.linspace(-0.5, 2.5, 13, dtype=torch.float64)
    outside = total = 0
    for seed in range(10):
        density = la.spectral_density(A, n_vectors=20, steps=30, seed=seed)
        estimate = density.cdf(points)
        truth = torch.from_numpy(np.searchsorted(values, points.numpy(), side="right"))
        allowed = 2.5 * estimate.std_error + estimate.quadrature_error
        outside += int(((estimate.value - truth).abs() > allowed + 1e-9).sum())
        total += len(points)
        # Both ends are known: all and none.
        assert estimate.value[0] == 0
        assert estimate.value[-1] == pytest.approx(n, rel=1e-12)
        # The gap between 1 and 1.9 is seen whole: the quadrature puts nothing of note there.
        gap = density.count(1.2, 1.7)
        assert gap.value <= 0.05 * n
        # A count is the difference of two cdfs.
        a, b = (density.cdf(x).value for x in (0.25, 1.5))
        assert density.count(0.25, 1.5).value == pytest.approx(b - a, abs=1e-9)
    # 2.5 standard errors of 19 degrees of freedom: 2 % for each point, and points of one seed are
    # dependent.
    assert outside <= 0.06 * total
    # Neither error alone is the whole: the negative control.
    assert estimate.quadrature_error.max() > 1
    assert estimate.std_error.max() > 1


def test_more_steps_and_more_vectors_are_closer():
    A = hermitian(np.linspace(-1, 1, 300))
    coarse = la.spectral_density(A, n_vectors=4, steps=5, seed=0).cdf(0.3)
    fine = la.spectral_density(A, n_vectors=64, steps=60, seed=0).cdf(0.3)
    assert fine.quadrature_error < 0.25 * coarse.quadrature_error
    assert abs(fine.value - 195) <= 3 * fine.std_error + fine.quadrature_error
    assert fine.std_error < 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_identity_and_zero(dtype):
    for value in (0.0, 1.0):
        A = value * torch.eye(70, dtype=dtype)
        density = la.spectral_density(A, n_vectors=3, seed=0)
        assert not density.resolution.isnan().any()
        assert not density.nodes.isnan().any()
        inside = density.count(value - 1e-3, value + 1e-3)
        assert inside.value == pytest.approx(70, rel=1e-5)
        assert inside.std_error == pytest.approx(0, abs=1e-4)
        assert inside.quadrature_error == 0
        assert density.moment(3).value == pytest.approx(70 * value, rel=1e-5)
        # One step was taken: the first product showed it.
        assert density.passes <= 2 + 2 * (value == 0)


def test_what_an_outlier_hides_is_not_called_exact():
    # float32 resolves 10·√300·u·1e5 = 1 here: the recurrence ends before it sees the bulk.
    A = torch.diag(torch.cat([torch.tensor([1e5]), torch.linspace(0, 1, 299)]))
    density = la.spectral_density(A, n_vectors=10, seed=0)
    value, std_error, quadrature_error = density.count(-2, 0.5)
    assert abs(value - 150) <= 3 * std_error + quadrature_error
    assert quadrature_error > 50
    # The outlier stands alone; its weight is n·v², known to the error of the mean of ten.
    value, std_error, quadrature_error = density.count(5e4, 2e5)
    assert quadrature_error <= 1e-3
    assert abs(value - 1) <= 4 * std_error
    # What does not end is resolved: the negative control.
    fine = la.spectral_density(A.double(), n_vectors=10, seed=0).count(-2, 0.5)
    assert abs(fine.value - 150) <= 3 * fine.std_error + fine.quadrature_error
    assert fine.quadrature_error < 30


def test_density_integrates_to_n():
    A = hermitian(np.linspace(-1, 1, 200))
    density = la.spectral_density(A, seed=0)
    x = np.linspace(-2, 2, 2001)
    smooth = density.density(x, 0.1)
    assert isinstance(smooth, np.ndarray)
    # Six standard deviations of margin, a grid of a fiftieth of the width.
    assert smooth.sum() * (x[1] - x[0]) == pytest.approx(200, rel=1e-9)
    # 100 for each unit within, of which twenty vectors and forty nodes see some per cent.
    assert density.density(0.0, 0.1) == pytest.approx(100, rel=0.15)
    assert density.density(1.9, 0.1) < 1e-6


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ends_of_the_range(scale):
    A = hermitian(np.linspace(-1, 2, 60))
    one, two = (la.spectral_density(B, steps=10, seed=0) for B in (A, A * scale))
    np.testing.assert_allclose(two.nodes / scale, one.nodes, atol=1e-12)
    np.testing.assert_allclose(two.weights, one.weights, atol=1e-9)


def test_every_kind():
    A = scipy.sparse.random(150, 150, density=0.05, random_state=0).toarray()
    A = A + A.T
    T = torch.from_numpy(A)
    expected = la.spectral_density(A, steps=8, seed=3)
    assert isinstance(expected.nodes, np.ndarray)
    assert isinstance(expected.cdf(0.0).value, float)
    for kind in (
        T,
        T.mT,
        T.to_sparse_csr(),
        scipy.sparse.csc_array(A),
        scipy.sparse.linalg.aslinearoperator(A),
        la.LinearOperator(A.shape, lambda X: T @ X, lambda Y: T.mT @ Y, dtype=T.dtype),
    ):
        density = la.spectral_density(kind, steps=8, seed=3)
        # The same draws; Lanczos amplifies the rounding by its conditioning: 1e-9 for 8 steps.
        np.testing.assert_allclose(np.asarray(density.nodes), expected.nodes, atol=1e-9)
        np.testing.assert_allclose(np.asarray(density.weights), expected.weights, atol=1e-7)
        assert isinstance(density.nodes, torch.Tensor) == isinstance(
            kind, torch.Tensor | la.LinearOperator
        )
    copied = pickle.loads(pickle.dumps(density))
    assert copied.count(0, 1) == density.count(0, 1)
    assert isinstance(la.spectral_density(A, seed=0, out="torch").nodes, torch.Tensor)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: la.spectral_density(torch.ones(3, 4)), ValueError, "A must be square"),
        (lambda: la.spectral_density(torch.eye(0)), ValueError, "A must have rows"),
        (lambda: la.spectral_density(torch.eye(3), steps=0), ValueError, "steps must be positive"),
        (
            lambda: la.spectral_density(torch.eye(3), n_vectors=0),
            ValueError,
            "n_vectors must be positive",
        ),
        (
            lambda: la.spectral_density(torch.ones(9, 9).triu()),
            torch.linalg.LinAlgError,
            "spectral_density: A must be Hermitian",
        ),
        (lambda: la.spectral_density(torch.ones(2, 3, 3)), ValueError, "one matrix and no batch"),
        (
            lambda: la.spectral_density(torch.full((9, 9), math.nan)),
            ValueError,
            r"spectral_density: A must be finite, got nan at index \(0, 0\)",
        ),
        (lambda: la.spectral_density(torch.eye(3)).count(2, 1), ValueError, "a must be at most b"),
        (lambda: la.spectral_density(torch.eye(3)).density(0, 0), ValueError, "width must be"),
        (lambda: la.spectral_density(torch.eye(3)).moment(-1), ValueError, "k must be non-neg"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()

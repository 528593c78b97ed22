"""Traces against the sum of the diagonal, and the honesty of their standard errors."""

import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, unit_roundoff
from strategies import dtypes, seeds, with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def square(n, dtype=torch.float64, seed=0):
    """A matrix without any symmetry."""
    return torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rounding(A) -> float:
    """Ten products of n terms each, summed over n entries of the diagonal: 10·√n·u·‖A‖_F."""
    return 10 * math.sqrt(len(A)) * unit_roundoff(A) * float(np.linalg.norm(exact(A)))


@given(n=st.integers(1, 60), products=st.integers(6, 90), dtype=dtypes, seed=seeds)
def test_any_matrix(n, products, dtype, seed):
    A = square(n, dtype)
    value, std_error = estimate = la.hutchpp(A, products=products, seed=seed)
    assert math.isfinite(value)
    assert math.isfinite(std_error)
    assert estimate.info.products <= max(products, n)
    if products >= n:
        assert estimate.info.method == "diagonal"
        assert value == pytest.approx(float(exact(A).trace()), abs=rounding(A))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_ranks_up_to_a_third_of_the_products(dtype):
    A = square(300, dtype)[:, :20] @ square(300, dtype, seed=1)[:20]
    truth = exact(A).trace()
    value, std_error = estimate = la.hutchpp(A, products=60, seed=0)
    assert estimate.info.products == 60
    assert estimate.info.passes == 2
    assert isinstance(value, complex if dtype.is_complex else float)
    assert abs(value - truth) <= rounding(A)
    assert std_error <= rounding(A)
    # The negative control: products for half of the rank.
    assert la.hutchpp(A, products=30, seed=0).std_error > 100 * rounding(A)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_multiples_of_the_identity(dtype):
    A = (3 - 2j * dtype.is_complex) * torch.eye(500, dtype=dtype)
    value, std_error = la.hutchpp(A if dtype.is_complex else A.real, products=30, seed=0)
    assert abs(value - (1500 - 1000j * dtype.is_complex)) <= rounding(A)
    assert std_error <= rounding(A)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["decaying", "noise", "indefinite"])
def test_standard_errors_are_honest(dtype, kind):
    n, seeds_ = 200, 200
    A = {
        "decaying": with_spectrum(n, n, 1.0 / np.arange(1, n + 1)).to(dtype),
        "noise": square(n, dtype),
        "indefinite": torch.diag((-0.98) ** torch.arange(n, dtype=torch.float64)).to(dtype),
    }[kind]
    truth = exact(A).trace()
    errors, stated, within = [], [], 0
    for seed in range(seeds_):
        value, std_error = la.hutchpp(A, products=60, seed=seed)
        errors.append(value - truth)
        stated.append(std_error)
        within += abs(value - truth) <= 2 * std_error
    spread = math.sqrt(np.mean(np.abs(errors) ** 2))
    # Unbiased: the mean of 200 is within three of its standard errors.
    assert abs(np.mean(errors)) <= 3 * spread / math.sqrt(seeds_)
    # Root mean squares agree: both are known to 1/√400 or so, 4 of which are 20 %.
    assert math.sqrt(np.mean(np.square(stated))) == pytest.approx(spread, rel=0.2)
    # 2 standard errors from 20 probes: 94 % of Student's, 98 % where two parts (complex) share
    # them; 0.89·200 is missed by a chance of 1e-3.
    assert within >= 0.89 * seeds_
    # The negative control: a third of that is no such interval.
    thirds = [abs(error) <= std / 2 for error, std in zip(errors, stated, strict=True)]
    assert np.mean(thirds) < 0.6


def test_error_falls_as_the_number_of_products():
    A = torch.diag(1.0 / torch.arange(1, 1001, dtype=torch.float64))
    spread = {}
    for products in (30, 240):
        errors = [
            la.hutchpp(A, products=products, seed=seed).value - A.trace() for seed in range(30)
        ]
        spread[products] = math.sqrt(np.mean(np.square(errors)))
    # 8 times the products: plain probes would gain √8 = 2.8, this at least 8·√8/2 here, as the
    # tail of 1/i² beyond k falls as k^-3/2·… and the probes as their root.
    assert spread[30] / spread[240] > 8


def test_tolerance():
    A = torch.diag(1.0 / torch.arange(1, 1001, dtype=torch.float64))
    before = 0
    for tol in (0.1, 0.01, 0.001):
        value, std_error = estimate = la.hutchpp(A, tol=tol, seed=0)
        assert estimate.info.converged
        assert std_error <= tol * value
        assert abs(value - A.trace()) <= 4 * std_error
        assert estimate.info.products >= before
        before = estimate.info.products
    assert before > 100
    # Where no product is saved the diagonal is summed.
    all_of_it = la.hutchpp(square(100), tol=1e-9, seed=0)
    assert all_of_it.info.method == "diagonal"
    assert all_of_it.value == pytest.approx(square(100).trace().item(), abs=1e-11)
    with pytest.warns(la.ConvergenceWarning, match=r"tol=1e-06 not met by 9\d products"):
        capped = la.hutchpp(A, tol=1e-6, products=99, seed=0)
    assert not capped.info.converged


def test_a_tolerance_below_rounding_leaves_the_basis_orthonormal():
    # Sketches of later blocks are rounding beside the first: completed at random, not twice by the
    # same directions.
    A = torch.ones(400, 400, dtype=torch.float64)
    with pytest.warns(la.ConvergenceWarning):
        value = la.hutchpp(A, tol=1e-17, products=300, seed=0).value
    assert value == pytest.approx(400, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_ends_of_the_range(scale):
    A = square(200)
    one, two = (la.hutchpp(B, products=60, seed=0) for B in (A, A * scale))
    assert two.value == pytest.approx(one.value * scale, rel=1e-6)
    assert two.std_error == pytest.approx(one.std_error * scale, rel=1e-6)


def test_zero_and_tiny():
    assert tuple(la.hutchpp(torch.zeros(200, 200), seed=0)) == (0, 0)
    assert tuple(la.hutchpp(torch.zeros(0, 0), seed=0)) == (0, 0)
    assert la.hutchpp(torch.tensor([[2.5]]), seed=0).value == 2.5


def test_every_kind_and_no_adjoint():
    A = scipy.sparse.random(200, 200, density=0.05, random_state=0).toarray()
    T = torch.from_numpy(A)

    def no_adjoint(Y):
        raise AssertionError("the adjoint is not needed")

    expected = la.hutchpp(A, products=60, seed=3)
    for kind in (
        T,
        T.mT.contiguous().mT,
        T.to_sparse_csr(),
        scipy.sparse.csc_array(A),
        scipy.sparse.linalg.aslinearoperator(A),
        la.LinearOperator(A.shape, lambda X: T @ X, no_adjoint, dtype=T.dtype),
    ):
        estimate = la.hutchpp(kind, products=60, seed=3)
        # The same draws; sums in another order.
        assert estimate.value == pytest.approx(expected.value, abs=rounding(T))
    copied = pickle.loads(pickle.dumps(estimate))
    assert (copied, copied.info) == (estimate, estimate.info)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: la.hutchpp(torch.ones(3, 4)), ValueError, "hutchpp: A must be square"),
        (lambda: la.hutchpp(torch.eye(9), products=5), ValueError, "products must be at least 6"),
        (lambda: la.hutchpp(torch.eye(9), tol=0), ValueError, "tol must be positive"),
        (lambda: la.hutchpp(torch.eye(9), products=7.5), TypeError, "products must be an integer"),
        (lambda: la.hutchpp(torch.ones(2, 3, 3)), ValueError, "one matrix and no batch"),
        (
            lambda: la.hutchpp(torch.full((200, 200), math.nan), seed=0),
            ValueError,
            r"hutchpp: A must be finite, got nan at index \(0, 0\)",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()

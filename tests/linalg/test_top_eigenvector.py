"""Leading eigenvectors of streams of rows, against SciPy's eigenvalues of the Gram matrix."""

import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given

import fastlr.linalg as la
from references import exact, unit_roundoff
from strategies import dtypes, matrices, seeds

METHODS = ("random_order", "oja")


def reference(A):
    """Eigenvalues, descending, and the leading eigenvector of AᴴA."""
    X = exact(A)
    values, vectors = scipy.linalg.eigh(X.conj().T @ X)
    return values[::-1], vectors[:, -1]


def correlation(A, vector):
    return float(np.abs(np.vdot(reference(A)[1], exact(vector))))


def spiked(gap, m=6000, n=30, seed=0, dtype=torch.float64):
    """Gaussian rows, so in random order, with λ₁/λ₂ near `gap`."""
    A = la.random_matrix(m, n, seed=seed, dtype=torch.float64)
    v = la.random_matrix(n, 1, seed=seed + 1, dtype=torch.float64)[:, 0]
    v /= v.norm()
    return (A + (math.sqrt(gap) - 1) * torch.outer(A @ v, v)).to(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_correlation_grows_with_the_gap(method):
    """1 − O(1/R) in random order; 0.2/R holds for the worst of five streams, with R from 4 on."""
    losses = []
    for gap in (4, 16, 64):
        streams = [spiked(gap, seed=10 * seed) for seed in range(5)]
        worst = max(
            1 - correlation(A, la.top_eigenvector_stream(A, method=method, seed=1).vector)
            for A in streams
        )
        assert worst <= 0.2 / gap
        losses.append(worst)
    assert losses[0] > losses[2]


def test_without_a_gap_there_is_nothing_to_find():
    """The negative control: the correlation is not 1 by construction."""
    A = la.random_matrix(6000, 200, seed=0, dtype=torch.float64)
    assert correlation(A, la.top_eigenvector_stream(A, seed=0).vector) < 0.9


def adversarial(n=10):
    """λ₁/λ₂ = 3, and the last half is nothing but the six next eigenvectors."""
    along = torch.cat([torch.zeros(6000), torch.arange(1, 7).repeat_interleave(2000)]).long()
    A = torch.eye(n, dtype=torch.float64)[along]
    return A + 1e-3 * la.random_matrix(len(A), n, seed=3, dtype=torch.float64)


def test_an_adversarial_order_needs_the_other_method():
    A = adversarial()
    assert correlation(A, la.top_eigenvector_stream(A, seed=0).vector) < 0.5
    found = la.top_eigenvector_stream(A, method="oja", seed=0)
    assert correlation(A, found.vector) > 0.99
    assert found.info.converged
    # In random order it was easy.
    shuffled = A[torch.from_numpy(np.random.default_rng(0).permutation(len(A)))]
    assert correlation(A, la.top_eigenvector_stream(shuffled, seed=0).vector) > 0.99


def oja_at(rate, A, v):
    """Oja's method with one rate."""
    for row in A:
        v = v + rate * row * (row @ v)
        v /= v.norm()
    return v


def test_a_fixed_rate_fails_where_the_mass_comes_late():
    early = spiked(16, m=1000)
    start = la.random_matrix(30, 1, seed=5, dtype=torch.float64)[:, 0]
    # Growth by 2·log n + 4 over the first rows: right for them.
    rate = (2 * math.log(30) + 4) / reference(early)[0][0]
    assert correlation(early, oja_at(rate, early, start)) > 0.97
    # The same rows again, a hundred times as large: the last ones decide.
    stream = torch.cat([early, 100 * early])
    assert correlation(stream, oja_at(rate, stream, start)) < 0.95
    assert (
        correlation(stream, la.top_eigenvector_stream(stream, method="oja", seed=0).vector) > 0.98
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_rows_in_groups_are_taken_one_by_one(dtype):
    A = spiked(16, m=30).to(dtype)
    if dtype.is_complex:
        A = A * torch.exp(1j * torch.arange(30.0))
    found = la.top_eigenvector_stream(A, method="oja", seed=5)
    # All rates begin with the first rows; the start is the Gaussian vector of the seed.
    start = torch.ops.fastlr.gaussian_product(torch.eye(30, dtype=dtype), 30, 1, 5, False)[:, 0]
    vector = start
    for row in A:
        vector = vector + found.info.rate / float(A.norm()) ** 2 * row.conj() * (row @ vector)
    vector /= vector.norm()
    assert float(torch.vdot(vector, found.vector).abs()) == pytest.approx(1, abs=1e-12)
    assert not math.isclose(correlation(A, vector), 1, abs_tol=1e-6)  # the method's error is there


def with_heavy_rows(h=16, n=40, m=8000):
    """What makes the leading eigenvector is in h rows alone, which happen to come early."""
    A = la.random_matrix(m, n, seed=0, dtype=torch.float64)
    where = np.random.default_rng(2).choice(m // 4, h, replace=False)
    A[:, 6] *= 2
    A[where, 5] = math.sqrt(8 * m / h)
    return A


def test_heavy_rows_are_kept():
    A = with_heavy_rows()
    found = la.top_eigenvector_stream(A, seed=0)
    assert found.info.heavy_rows == 16
    assert found.info.converged
    assert correlation(A, found.vector) > 0.99
    too_few = la.top_eigenvector_stream(A, heavy_rows=1, seed=0)
    assert not too_few.info.converged
    # Both vectors come from the blocks that had the rows; those after them have lost most of them.
    assert 1 - correlation(A, too_few.vector) > 20 * (1 - correlation(A, found.vector))
    truth = reference(A)[0][0]
    assert found.eigenvalue == pytest.approx(truth, rel=0.05)
    assert too_few.eigenvalue < truth / 2


def test_the_eigenvalue_is_as_good_as_it_says():
    A = spiked(8, m=3000)
    truth = reference(A)[0][0]
    within = 0
    for seed in range(40):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(3000))
        found = la.top_eigenvector_stream(A[order], seed=seed)
        assert found.eigenvalue == found.info.singular_value**2
        within += abs(found.eigenvalue - truth) <= 2 * found.info.std_error * truth + 0.02 * truth
    # Two standard errors, and 2 % for a vector that is not quite the eigenvector: 95 % of 40, less
    # two standard deviations of a binomial.
    assert within >= 35


@given(A=matrices(max_size=40), seed=seeds)
def test_as_many_rows_as_are_kept_give_the_svd(A, seed):
    found = la.top_eigenvector_stream(A, heavy_rows=40, seed=seed)
    values, _ = reference(A)
    # A vector is as good as its Rayleigh quotient, also of equal eigenvalues.
    quotient = np.linalg.norm(exact(A) @ exact(found.vector)) ** 2
    # The vector is rounded to its dtype: n·u of the norm.
    near = 100 * A.shape[1] * unit_roundoff(A) * values[0]
    assert quotient >= values[0] - near
    assert found.eigenvalue == pytest.approx(values[0], rel=1e-10)
    assert found.info.residual == 0
    assert np.linalg.norm(exact(found.vector)) == pytest.approx(1, abs=10 * unit_roundoff(A))


def test_few_complex_rows_give_the_svd():
    A = spiked(4, m=20) * torch.exp(1j * torch.outer(torch.arange(20.0), torch.arange(30.0)))
    found = la.top_eigenvector_stream(A, seed=0)
    assert correlation(A, found.vector) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("height", [1, 7, 128, 1000])
def test_blocks_and_kinds_do_not_matter(method, height, tmp_path):
    A = spiked(16, m=1000)
    whole = la.top_eigenvector_stream(A, method=method, seed=0)
    empty = A[:0]
    blocks = [empty, *A.split(height), empty]
    for given_as in (blocks, iter(blocks), A.mT.contiguous().mT):
        found = la.top_eigenvector_stream(given_as, method=method, seed=0)
        # Groups of the same rows: the same sums but for the order of what a layout makes of them,
        # amplified by λ₁/(λ₁ − λ₂) and the steps.
        assert torch.dist(found.vector, whole.vector) < 1e-10
        assert found.info.rows == 1000
    np.save(tmp_path / "A.npy", A.numpy())
    from_file = la.top_eigenvector_stream(tmp_path / "A.npy", method=method, seed=0)
    assert isinstance(from_file.vector, np.ndarray)
    np.testing.assert_allclose(from_file.vector, whole.vector.numpy(), atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128, torch.float16])
def test_dtypes(method, dtype):
    A = spiked(32, m=2000)
    if dtype.is_complex:
        A = A * torch.exp(1j * torch.arange(30))
    A = A.to(dtype)
    found = la.top_eigenvector_stream(A, method=method, seed=0)
    assert found.vector.dtype == dtype
    assert correlation(A if A.is_complex() else A.double(), found.vector) > 0.98
    largest = found.vector[found.vector.abs().argmax()]
    assert largest.real > 0
    assert abs(complex(largest).imag) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        (torch.float64, 2.0**664),
        (torch.float64, 2.0**-664),
        (torch.float32, 2.0**100),
        (torch.float32, 2.0**-100),
    ],
)
def test_scale(method, dtype, factor):
    A = spiked(16, m=1000, dtype=dtype)
    plain = la.top_eigenvector_stream(A, method=method, seed=0)
    large = la.top_eigenvector_stream(A * factor, method=method, seed=0)
    assert torch.dist(plain.vector, large.vector) < 1e-6
    assert large.info.singular_value == pytest.approx(plain.info.singular_value * factor, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_that_grows_by_orders_of_magnitude(method):
    A, B = spiked(16, m=3000), spiked(16, m=400, seed=7)
    found = la.top_eigenvector_stream([A * 1e-170, B * 1e100], method=method, seed=0)
    assert correlation(B, found.vector) > 0.97
    truth = math.sqrt(reference(B)[0][0]) * 1e100
    # Rows in this order are not random: what there is of an estimate has the right magnitude.
    assert truth / 2 < found.info.singular_value < 2 * truth


@pytest.mark.parametrize("method", METHODS)
def test_few_rows_and_none(method):
    row = torch.tensor([[3.0, 0.0, -4.0]])
    found = la.top_eigenvector_stream(row, method=method, seed=0)
    if method == "random_order":
        torch.testing.assert_close(found.vector, torch.tensor([-0.6, 0.0, 0.8]))
        assert found.eigenvalue == pytest.approx(25)
    # Oja's vector keeps a part of its start, e^-growth of it.
    assert correlation(row, found.vector) > 0.99
    for nothing in (torch.zeros(5, 3), torch.zeros(0, 3), [torch.zeros(0, 3)] * 2):
        found = la.top_eigenvector_stream(nothing, method=method, seed=0)
        assert found.eigenvalue == 0
        assert float(found.vector.norm()) == pytest.approx(1, rel=1e-6)
        assert found.info.converged
    found = la.top_eigenvector_stream(torch.full((300, 1), 2.0), method=method, seed=0)
    assert found.vector.tolist() == [1.0]


@given(dtype=dtypes, seed=seeds)
def test_a_seed_gives_the_same_vector(dtype, seed):
    A = spiked(4, m=500, dtype=dtype)
    one, two = (la.top_eigenvector_stream(A, seed=seed) for _ in range(2))
    assert torch.equal(one.vector, two.vector)
    assert not torch.equal(one.vector, la.top_eigenvector_stream(A, seed=(seed + 1) % 2**63).vector)
    again = pickle.loads(pickle.dumps(one))
    assert again.info.blocks == one.info.blocks
    assert torch.equal(again.vector, one.vector)


def test_input_is_not_written_to():
    A = spiked(4, m=500)
    before = A.clone()
    for method in METHODS:
        la.top_eigenvector_stream(A, method=method, seed=0)
    assert torch.equal(A, before)


def with_nan():
    A = torch.ones(300, 4)
    A[211, 2] = math.nan
    return A


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: la.top_eigenvector_stream(with_nan()),
            ValueError,
            r"top_eigenvector_stream: rows must be finite, got nan at index \(211, 2\)",
        ),
        (
            lambda: la.top_eigenvector_stream(iter(with_nan().split(50)), method="oja"),
            ValueError,
            r"nan at index \(211, 2\)",
        ),
        (
            lambda: la.top_eigenvector_stream(torch.ones(3, 2), method="power"),
            ValueError,
            """method must be "random_order" or "oja", got 'power'""",
        ),
        (
            lambda: la.top_eigenvector_stream(torch.ones(3, 2), heavy_rows=0),
            ValueError,
            "at least 1, got 0",
        ),
        (
            lambda: la.top_eigenvector_stream(torch.ones(3, 2), heavy_rows=0.5),
            TypeError,
            "heavy_rows",
        ),
        (lambda: la.top_eigenvector_stream(torch.ones(3, 0)), ValueError, "at least one column"),
        (
            lambda: la.top_eigenvector_stream(torch.ones(3)),
            ValueError,
            "rows must have 2 dimensions",
        ),
        (lambda: la.top_eigenvector_stream(torch.eye(3).to_sparse()), TypeError, "dense matrix"),
        (
            lambda: la.top_eigenvector_stream(iter([torch.ones(2, 3), torch.ones(2, 4)])),
            ValueError,
            "must have the 3 columns",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()

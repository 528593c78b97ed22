import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, singular_values, unit_roundoff
from strategies import gaussian, kahan, matrices, seeds, with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def hilbert(n):
    return torch.from_numpy(scipy.linalg.hilbert(n))


def hard_cases():
    half = gaussian(150, 150)
    half[:, ::2] = 0
    graded = gaussian(150, 150) * torch.logspace(0, -15, 150, dtype=torch.float64)
    repeated = gaussian(150, 70)
    return {
        "gaussian": gaussian(150, 150),
        "wide": gaussian(70, 200),
        "a little taller": gaussian(300, 150),
        "tall": gaussian(900, 150),
        "zero": torch.zeros(150, 100, dtype=torch.float64),
        "half zero": half,
        "kahan": kahan(150),
        "graded": graded,
        "graded rows": graded.T.contiguous(),
        "repeated columns": torch.cat([repeated, repeated], 1),
        "tall, repeated": torch.cat([gaussian(900, 70)] * 2, 1),
        "hilbert": hilbert(150),
        "one row": gaussian(1, 90),
        "one column": gaussian(90, 1),
        "ones": torch.ones(80, 90, dtype=torch.float64),
    }


def check(A, qr):
    """What every factorization is, but for its error."""
    Q, R, pivots = qr
    (m, n), k, u = A.shape, qr.info.rank, unit_roundoff(A)
    assert (Q.shape, R.shape, pivots.shape) == ((m, k), (k, n), (n,))
    assert (Q.dtype, R.dtype, pivots.dtype) == (A.dtype, A.dtype, torch.int64)
    assert sorted(pivots.tolist()) == list(range(n))
    assert torch.equal(R, R.triu())
    diagonal = R.diagonal()
    assert (diagonal.real >= 0).all()
    assert not diagonal.is_complex() or (diagonal.imag == 0).all()
    if k:
        gram = exact(Q).conj().T @ exact(Q)
        # The promise, and the rounding of this product of float64 numbers itself.
        assert np.linalg.norm(gram - np.eye(k), 2) <= 10 * math.sqrt(k) * u + m * 2.0**-53


def residual(A, qr):
    return exact(A)[:, qr.pivots.numpy()] - exact(qr.Q) @ exact(qr.R)


def rounding(A):
    """Some 10 √n u of ‖A‖_F: a block of reflections errs by a few u of each column."""
    return 10 * math.sqrt(max(A.shape)) * unit_roundoff(A) * float(np.linalg.norm(exact(A)))


@pytest.mark.parametrize("name", hard_cases())
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_cases(name, dtype):
    A = hard_cases()[name].to(dtype)
    if dtype.is_complex:
        # A unitary diagonal on both sides changes no singular value and makes all entries complex.
        m, n = A.shape
        turned = [torch.exp(1j * torch.arange(size, dtype=torch.float64)) for size in (m, n)]
        A = (turned[0][:, None] * A * turned[1]).to(dtype)
    qr = la.pivoted_qr(A, seed=0)
    check(A, qr)
    assert qr.info.rank == min(A.shape)
    assert qr.info.error == 0
    assert np.linalg.norm(residual(A, qr)) <= rounding(A)


@pytest.mark.parametrize("name", hard_cases())
def test_the_diagonal_reveals_the_rank_as_scipys_does(name):
    A = hard_cases()[name]
    values = singular_values(A)
    reference = np.abs(np.diag(scipy.linalg.qr(A.numpy(), mode="r", pivoting=True)[0]))
    seen = values > 1e4 * unit_roundoff(A) * values[0]  # of the others the digits are rounding
    if not seen.any():
        return
    for seed in range(5):
        diagonal = exact(la.pivoted_qr(A, seed=seed).R.diagonal())
        ours, theirs = values[seen] / diagonal[seen], values[seen] / reference[seen]
        # A diagonal entry that is below its singular value has missed a part of it.
        assert ours.max() <= 2 * max(theirs.max(), 1)


@pytest.mark.parametrize("f", [1.01, 2.0])
@pytest.mark.parametrize("name", ["kahan", "gaussian", "wide", "hilbert", "tall", "graded"])
def test_strong_bounds(name, f):
    A = hard_cases()[name]
    n, values = A.shape[1], singular_values(A)
    for k in (1, 7, 60, 69):
        qr = la.pivoted_qr(A, k, strong=f, seed=0)
        check(A, qr)
        factor = math.sqrt(1 + f**2 * k * (n - k))
        assert qr.info.bound == factor
        slack = rounding(A)
        chosen = np.linalg.svd(exact(qr.R)[:, :k], compute_uv=False)
        assert (chosen * factor >= values[:k] - slack).all()
        assert np.linalg.norm(residual(A, qr), 2) <= factor * values[k] + slack


@pytest.mark.parametrize("name", ["gaussian", "wide", "a little taller"])
def test_no_exchange_is_left(name):
    A, k, f = hard_cases()[name], 40, 1.01
    qr = la.pivoted_qr(A, k, strong=f, seed=0)
    triangle, others = exact(qr.R)[:, :k], exact(qr.R)[:, k:]
    inverse = np.linalg.inv(triangle)
    rest = np.linalg.norm(residual(A, qr)[:, k:], axis=0)
    ratio = (inverse @ others) ** 2 + np.outer(np.sum(inverse**2, 1), rest**2)
    # Squares of numbers near one, known to u times the condition number, which is below 1e4.
    assert ratio.max() <= f**2 * (1 + 1e-11)


def test_small_pivots_in_single_precision_are_exchanged():
    """Below n·u of the largest, and above √n·u: no rounding."""
    rows = torch.logspace(0, -5, 60, dtype=torch.float64)[:, None]
    A, k, f = (rows * gaussian(60, 2000)).float(), 50, 1.01

    def largest_ratio(qr):
        R = exact(qr.R)
        inverse = np.linalg.inv(R[:, :k])
        rest = np.linalg.norm(residual(A, qr)[:, k:], axis=0)
        return ((inverse @ R[:, k:]) ** 2 + np.outer(np.sum(inverse**2, 1), rest**2)).max()

    strong = la.pivoted_qr(A, k, strong=f, seed=0)
    assert strong.R[-1, k - 1] < 10 * 2000 * 2.0**-24 * strong.R[0, 0]
    # Known to some 10·√k·u times the condition number, which is below 4e4.
    slack = 1 + 10 * math.sqrt(k) * 2.0**-24 * 4e4
    assert largest_ratio(strong) <= f**2 * slack
    assert largest_ratio(la.pivoted_qr(A, k, seed=0)) > f**2 * slack


def test_an_exchange_enlarges_the_volume():
    A = gaussian(150, 150)
    plain, strong = la.pivoted_qr(A, 40, seed=0), la.pivoted_qr(A, 40, strong=1.01, seed=0)
    assert plain.info.exchanges == 0
    assert plain.info.bound == math.inf
    assert strong.info.exchanges > 0
    gained = float(strong.R.diagonal().log().sum() - plain.R.diagonal().log().sum())
    # Each one by the factor f at least; sums of 40 logarithms below 4 err by 40 · 4 · 2⁻⁵³ or so.
    assert gained >= strong.info.exchanges * math.log(1.01) - 1e-13


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "rank"), [(40, 30, None), (200, 30, None), (40, 30, 7)])
def test_a_batch_is_a_loop(dtype, m, n, rank, threads):
    A = torch.randn(2, 3, m, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    A[1, 2, :, 3] = A[1, 2, :, 4]
    strong = None if rank is None else 2.0
    with threads(2):
        batch = la.pivoted_qr(A, rank, strong=strong, seed=3)
    for i in range(2):
        for j in range(3):
            with threads(1):  # as each of a batch is computed
                one = la.pivoted_qr(A[i, j], rank, strong=strong, seed=3)
            for of_batch, alone in zip(batch, one, strict=True):
                assert torch.equal(of_batch[i, j], alone)
            assert batch.info.error[i, j] == one.info.error
            assert batch.info.exchanges[i, j] == one.info.exchanges
            assert one.info.method in batch.info.method
    # The matrix with a repeated column is not preconditioned.
    assert (" and " in batch.info.method) == (m == 200)
    nothing = la.pivoted_qr(A[:, :0], rank, seed=3)
    k = n if rank is None else rank
    assert [part.shape for part in nothing] == [(2, 0, m, k), (2, 0, k, n), (2, 0, n)]


def test_conjugated_views():
    A = torch.randn(30, 50, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    for view in (A.conj(), A.mH, A.imag, (-A).imag):
        qr = la.pivoted_qr(view, seed=0)
        check(view.resolve_conj(), qr)
        assert np.linalg.norm(residual(view.resolve_conj(), qr)) <= rounding(view)


@given(A=matrices(), seed=seeds, data=st.data())
def test_truncated(A, seed, data):
    k = data.draw(st.integers(1, min(A.shape)))
    qr = la.pivoted_qr(A, k, seed=seed)
    check(A, qr)
    assert qr.info.rank == k
    norm = np.linalg.norm(residual(A, qr))
    assert abs(norm - qr.info.error) <= rounding(A)
    # The triangle is that of a QR factorization of these columns.
    chosen = exact(A)[:, qr.pivots.numpy()[:k]]
    volume = np.linalg.svd(chosen, compute_uv=False)
    assert abs(np.linalg.svd(exact(qr.R)[:, :k], compute_uv=False) - volume).max() <= rounding(A)


@given(A=matrices(), seed=seeds, tol=st.sampled_from([0.5, 0.1, 1e-3, 1e-6]))
def test_tolerance_is_kept_by_as_few_columns_as_do(A, seed, tol):
    qr = la.pivoted_qr(A, tol=tol, seed=seed)
    check(A, qr)
    assert qr.info.converged
    norm, allowed = np.linalg.norm(exact(A)), tol * np.linalg.norm(exact(A))
    assert np.linalg.norm(residual(A, qr)) <= allowed + rounding(A)
    k = qr.info.rank
    if k > 0:
        # One column less, with these pivots: the last row of R is left too.
        more = math.hypot(qr.info.error, np.linalg.norm(exact(qr.R)[-1]))
        assert more > allowed - rounding(A)
    assert k == 0 or norm > 0


def test_tolerance_with_exchanges():
    A = hilbert(100)
    qr = la.pivoted_qr(A, tol=1e-6, strong=2.0, seed=0)
    check(A, qr)
    assert qr.info.converged
    assert qr.info.error <= 1e-6 * np.linalg.norm(exact(A))
    assert qr.info.rank < 20


def test_tolerance_that_is_not_met():
    A = gaussian(40, 30)
    with pytest.warns(la.ConvergenceWarning, match=r"tol = 0\.001 is not met by 5 columns"):
        qr = la.pivoted_qr(A, 5, tol=1e-3, seed=0)
    assert not qr.info.converged
    assert qr.info.rank == 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(200, 150), (150, 200), (700, 120)])
def test_exact_rank(dtype, shape):
    A = with_spectrum(*shape, np.linspace(2, 1, 12), torch.float64).to(dtype)
    u = unit_roundoff(A)
    qr = la.pivoted_qr(A, tol=100 * u, seed=0)
    check(A, qr)
    assert qr.info.rank == 12
    # What is left is the rounding of A itself, and of the factorization.
    assert np.linalg.norm(residual(A, qr)) <= 100 * u * np.linalg.norm(exact(A)) + rounding(A)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_scale(dtype):
    A = gaussian(150, 100, dtype=dtype)
    expected = la.pivoted_qr(A, seed=0)
    top = 100 if dtype == torch.float32 else 1000
    for exponent in (-top, top):
        qr = la.pivoted_qr(torch.ldexp(A, torch.tensor(exponent)), seed=0)
        assert torch.equal(qr.pivots, expected.pivots)
        # Powers of two are exact: the factors are the same but for where the scale is taken.
        torch.testing.assert_close(torch.ldexp(qr.R, torch.tensor(-exponent)), expected.R)


def test_long_matrices_are_preconditioned():
    A = gaussian(2000, 60) * torch.logspace(0, -9, 60, dtype=torch.float64)
    qr = la.pivoted_qr(A, seed=0)
    assert qr.info.method == "preconditioned Cholesky"
    check(A, qr)
    assert np.linalg.norm(residual(A, qr)) <= rounding(A)
    # Column by column, small ones too: Cholesky QR is backward stable for each.
    lengths = np.linalg.norm(exact(A)[:, qr.pivots.numpy()], axis=0)
    errors = np.linalg.norm(residual(A, qr), axis=0)
    assert (errors <= 1e3 * unit_roundoff(A) * lengths).all()
    singular = torch.cat([A, A[:, :3]], 1)
    assert la.pivoted_qr(singular, seed=0).info.method == "blocked Householder"


def test_seeds_and_threads():
    A = gaussian(300, 250)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, again = la.pivoted_qr(A, seed=5), la.pivoted_qr(A, seed=5)
        torch.set_num_threads(2)
        two = la.pivoted_qr(A, seed=5)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert torch.equal(one.pivots, two.pivots)
    # Q moves by the rounding of R, ‖A‖ √n u, over its smallest diagonal entry.
    smallest = float(one.R.diagonal().min())
    assert float((one.Q - two.Q).norm()) <= rounding(A) / smallest
    assert la.pivoted_qr(A, seed=6).pivots.tolist() != one.pivots.tolist()


def test_order_of_rows_does_not_matter():
    A = gaussian(120, 90) * torch.logspace(0, -6, 90, dtype=torch.float64)
    turned = A[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    tol = 1e-3
    first, second = (la.pivoted_qr(X, tol=tol, seed=0) for X in (A, turned))
    # Another sketch may choose other columns; their number is that of the spectrum.
    assert abs(first.info.rank - second.info.rank) <= 2


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_empty(shape):
    A = torch.zeros(shape, dtype=torch.float64)
    qr = la.pivoted_qr(A, seed=0)
    check(A, qr)
    assert qr.info.rank == 0


def test_kinds_of_input():
    A = gaussian(60, 50)
    expected = la.pivoted_qr(A, 20, seed=0)
    Q, R, pivots = la.pivoted_qr(A.numpy(), 20, seed=0)
    assert all(isinstance(part, np.ndarray) for part in (Q, R, pivots))
    assert np.array_equal(pivots, expected.pivots.numpy())
    assert np.array_equal(R, expected.R.numpy())
    strided = A.T.contiguous().T
    assert torch.equal(la.pivoted_qr(strided, 20, seed=0).R, expected.R)
    half = la.pivoted_qr(A.half(), 20, seed=0)
    assert half.Q.dtype == torch.float16
    kept = A.clone()
    la.pivoted_qr(A, seed=0)
    assert torch.equal(A, kept)


def test_bad_arguments():
    A = gaussian(30, 20)
    cases = [
        ({"rank": 0}, ValueError, r"rank must be between 1 and min\(m, n\) = 20, got 0"),
        ({"rank": 21}, ValueError, r"rank must be between 1 and min\(m, n\) = 20, got 21"),
        ({"rank": 1.5}, TypeError, r"rank must be an integer"),
        ({"tol": -1.0}, ValueError, r"tol must be non-negative and finite, got -1"),
        ({"tol": math.nan}, ValueError, r"tol must be non-negative and finite, got nan"),
        ({"tol": "x"}, TypeError, r"tol must be a real number, got 'x'"),
        ({"strong": 0.5}, ValueError, r"strong must be at least 1 and finite, got 0.5"),
        ({"A": A[0]}, ValueError, r"A must have at least 2 dimensions, got shape \(20,\)"),
        ({"A": A[None], "tol": 0.1}, ValueError, r"tol takes one matrix.*\(1, 30, 20\)"),
        ({"A": A.to_sparse()}, TypeError, r"A must be a dense matrix"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=f"pivoted_qr: {message}"):
            la.pivoted_qr(**{"A": A, **arguments})
    for value in (math.nan, math.inf):
        bad = A.clone()
        bad[3, 4] = value
        with pytest.raises(ValueError, match=r"pivoted_qr: A must be finite, got .* \(3, 4\)"):
            la.pivoted_qr(bad)

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, singular_values, tail_norm, unit_roundoff
from strategies import matrices, seeds, with_spectrum

FLOATS = [torch.float32, torch.float64]
DTYPES = [*FLOATS, torch.complex64, torch.complex128]


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_exact_on_exact_rank(dtype, axis):
    A = with_spectrum(80, 60, np.linspace(2, 1, 12), dtype)
    for rank in (12, 20, 55):
        result = la.interpolative(A, rank, axis=axis, seed=0)
        check(A, rank, axis, result)
        error = np.linalg.norm(exact(A) - reconstruct(A, result, axis))
        assert error <= rounding(A, rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (30, 30)])
@pytest.mark.parametrize("axis", [0, 1])
def test_full_rank_is_exact(dtype, shape, axis):
    A = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    result = la.interpolative(A, 30, axis=axis, seed=0)
    check(A, 30, axis, result)
    assert np.linalg.norm(exact(A) - reconstruct(A, result, axis)) <= rounding(A, 30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exchanges_bound_what_elimination_leaves(dtype):
    """Wilkinson's matrix: its pivots stay where they are, and coefficients grow like 2⁸."""
    rows = np.eye(40, 8) - 0.99 * np.tril(np.ones((40, 8)), -1)
    # A triangle on the right changes neither, and leaves orthonormal columns.
    basis = np.linalg.qr(rows)[0]
    assert np.abs(basis[8:] @ np.linalg.inv(basis[:8])).max() > 100
    A = torch.from_numpy(basis.T.copy())
    if dtype.is_complex:
        # LAPACK's pivots are largest in the sum of both parts: phases between the axes move them.
        A = A * torch.tensor([1, 1j, -1, -1j])[torch.arange(40) % 4]
    A = A.to(dtype)
    result = la.interpolative(A, 8, axis=1, seed=0)
    check(A, 8, 1, result)
    assert np.linalg.norm(exact(A) - reconstruct(A, result, 1)) <= rounding(A, 8)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_error_of_a_triangle_is_known(axis):
    A = with_spectrum(40, 25, 0.8 ** np.arange(25))
    result = la.interpolative(A, 10, axis=axis, seed=0)
    truth = np.linalg.norm(exact(A) - reconstruct(A, result, axis))
    assert result.info.failure_probability == 0
    assert truth <= result.info.error
    # 8·√10·u of ‖A‖_F for rounding, and twice that for the rounding of this comparison
    assert result.info.error <= truth + 24 * math.sqrt(10) * 2.0**-53 * float(A.norm())


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
        size = 2.0 ** (3 * exponent)
        assert scaled.info.error == pytest.approx(
            base.info.error * size, rel=1e3 * unit_roundoff(A)
        )
        # The coefficients are bounded by 2 and come from a factor of condition 0.8^-6.
        np.testing.assert_allclose(
            scaled.coefficients, base.coefficients, rtol=0, atol=1e4 * unit_roundoff(A)
        )


def test_info_estimates_the_error():
    A = with_spectrum(100, 80, 0.9 ** np.arange(80))
    # Ten probes fall short of this with a probability of 1 %.
    factor = math.sqrt(10 / scipy.stats.chi2.ppf(0.01, 10))
    ratios = []
    for seed in range(60):
        result = la.interpolative(A, 10, axis=1, seed=seed)
        truth = np.linalg.norm(exact(A) - reconstruct(A, result, 1))
        ratios.append(result.info.error_estimate / truth)
        assert result.info.error == pytest.approx(factor * result.info.error_estimate)
    # Unbiased squares; the deviation of one is at most √(2/10).
    assert np.mean(np.square(ratios)) == pytest.approx(1, abs=5 * math.sqrt(2 / 10 / 60))


def test_thread_count_changes_neither_choice_nor_more_than_rounding(threads):
    U = with_spectrum(500, 200, np.ones(200))
    results = []
    for number in (1, 2):
        with threads(number):
            results.append(la.interpolative(U, 200, axis=0, seed=0))
    assert torch.equal(results[0].indices, results[1].indices)


@pytest.mark.parametrize("axis", [0, 1])
def test_every_kind_of_matrix(axis, tmp_path):
    A = with_spectrum(70, 60, 0.8 ** np.arange(60))
    A[A.abs() < 0.01] = 0
    np.save(tmp_path / "A.npy", A.numpy())
    kinds = [
        A.to_sparse_csr(),
        A.to_sparse_coo(),
        scipy.sparse.csc_array(A.numpy()),
        la.LinearOperator(A.shape, A.__matmul__, A.mT.__matmul__, dtype=A.dtype),
        str(tmp_path / "A.npy"),
    ]
    dense = la.interpolative(A, 8, axis=axis, seed=0)
    for kind in kinds:
        result = la.interpolative(kind, 8, axis=axis, seed=0, out="torch")
        assert torch.equal(result.indices, dense.indices)
        # Coefficients come from columns of a condition number below 100; a product errs by 70 u.
        atol = 100 * 70 * 2.0**-53
        np.testing.assert_allclose(result.coefficients, dense.coefficients, rtol=0, atol=atol)
        # One pass for the columns, which are not at hand.
        assert result.info.passes == dense.info.passes + 1 == 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_batch_is_a_loop(dtype, rank, axis, threads):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 3, 50, 20, dtype=dtype, generator=generator)
    with threads(2):
        batch = la.interpolative(A, rank, axis=axis, seed=3)
    assert batch.info.error.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            with threads(1):  # as each of a batch is computed
                one = la.interpolative(A[i, j], rank, axis=axis, seed=3)
            assert torch.equal(batch.indices[i, j], one.indices)
            assert torch.equal(batch.coefficients[i, j], one.coefficients)
            assert batch.info.error[i, j] == one.info.error
    nothing = la.interpolative(A[:, :0], rank, axis=axis, seed=3)
    assert nothing.indices.shape == (2, 0, rank)
    assert nothing.coefficients.shape == ((2, 0, 50, rank) if axis == 0 else (2, 0, rank, 20))


@pytest.mark.parametrize("rank", [6, 30])
def test_rows_are_columns_of_the_adjoint(rank):
    A = torch.randn(60, 30, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    columns = la.interpolative(A, rank, axis=1, seed=0)
    for view in (A.mH, A.mH.clone()):
        rows = la.interpolative(view, rank, axis=0, seed=0)
        assert torch.equal(rows.indices, columns.indices)
        # Products in another order: 60 u of columns of a condition number below 100.
        difference = rows.coefficients - columns.coefficients.mH
        assert difference.abs().max() <= 100 * 60 * 2.0**-53


@pytest.mark.parametrize("rank", [6, 30, 40])
def test_the_order_of_the_others_does_not_matter(rank):
    """Neither a permutation of the rows nor a rotation of them changes which columns count."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(60, 40, dtype=torch.float64, generator=generator)
    turned = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=generator))[0]
    base = la.interpolative(A, rank, axis=1, seed=0)
    for other in (A[torch.randperm(60, generator=generator)], turned @ A):
        result = la.interpolative(other, rank, axis=1, seed=0)
        assert torch.equal(result.indices, base.indices)
        # 60 u of columns of a condition number below 100
        assert (result.coefficients - base.coefficients).abs().max() <= 100 * 60 * 2.0**-53


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tol", [1e-1, 1e-6, 1e-10])
@given(A=matrices(dtype=st.just(torch.float64)), seed=seeds)
def test_tolerance(axis, tol, A, seed):
    result = la.interpolative(A, axis=axis, tol=tol, seed=seed)
    check(A, result.info.rank, axis, result)
    values = singular_values(A)
    norm = float(np.linalg.norm(values))
    assert result.info.converged
    assert np.linalg.norm(exact(A) - reconstruct(A, result, axis)) <= tol * norm
    # No columns leave less than as many singular triplets do.
    least = next(k for k in range(len(values) + 1) if tail_norm(A, k) <= tol * norm)
    assert result.info.rank >= least


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("decay", ["0.95^i", "1/i"])
@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-4])
def test_tolerance_takes_no_more_columns_than_pivoted_qr(axis, decay, tol):
    i = np.arange(400)
    A = with_spectrum(500, 400, 0.95**i if decay == "0.95^i" else 1 / (1 + i))
    result = la.interpolative(A, axis=axis, tol=tol, seed=0)
    by_columns = (A if axis == 1 else A.mT).numpy()
    R = scipy.linalg.qr(by_columns, pivoting=True, mode="r")[0]
    tails = [np.linalg.norm(R[k:, k:]) for k in range(min(R.shape) + 1)]
    enough = next(k for k, tail in enumerate(tails) if tail <= tol * tails[0])
    # Half of the tolerance is the sketch's: √(1 − 1/4) is left for the pivots, 13 % less.
    enough_with_less = next(k for k, tail in enumerate(tails) if tail <= 0.8 * tol * tails[0])
    assert result.info.rank <= max(enough_with_less, enough + 2)
    assert np.linalg.norm(exact(A) - reconstruct(A, result, axis)) <= tol * tails[0]


def test_tolerance_on_hilberts_matrix():
    A = torch.from_numpy(scipy.linalg.hilbert(300))
    values = singular_values(A)
    truth = int((values > 1e-12 * values[0]).sum())
    for axis in (0, 1):
        for seed in range(5):
            result = la.interpolative(A, axis=axis, tol=1e-12, seed=seed)
            assert abs(result.info.rank - truth) <= 4
            error = np.linalg.norm(exact(A) - reconstruct(A, result, axis))
            assert error <= result.info.error <= 1e-12 * np.linalg.norm(values)


def test_tolerance_of_an_operator():
    A = with_spectrum(300, 250, 0.9 ** np.arange(250))
    operator = la.LinearOperator(A.shape, A.__matmul__, A.mT.__matmul__, dtype=A.dtype)
    for tol in (1e-2, 1e-9):
        result = la.interpolative(operator, tol=tol, axis=1, seed=0)
        assert np.linalg.norm(exact(A) - reconstruct(A, result, 1)) <= tol * A.norm()
        # The smaller one takes the triangle of A, of which all is known.
        assert result.info.failure_probability == pytest.approx(0.01 if tol == 1e-2 else 0.0)


def test_an_unmet_tolerance_is_said():
    A = with_spectrum(200, 150, 0.9 ** np.arange(150))
    with pytest.warns(la.ConvergenceWarning, match=r"tol=1e-06 not met by 12; the error is 0\."):
        result = la.interpolative(A, 12, tol=1e-6, axis=1, seed=0)
    assert not result.info.converged
    assert result.info.rank == 12
    error = np.linalg.norm(exact(A) - reconstruct(A, result, 1))
    assert error <= result.info.error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = la.interpolative(A, 140, tol=0.1, axis=1, seed=0)
    assert few.info.rank < 40


@pytest.mark.parametrize("axis", [0, 1])
def test_tolerance_of_zeros_and_of_nothing(axis):
    for shape in [(40, 30), (0, 5), (5, 0)]:
        result = la.interpolative(torch.zeros(shape), tol=0.1, axis=axis, seed=0)
        assert result.indices.shape == (0,)
        assert result.coefficients.shape == ((shape[0], 0) if axis == 0 else (0, shape[1]))
        assert result.info.error == 0


def test_large_coefficients_of_least_squares_are_not_returned():
    """Columns that differ by what their projection does not show: least squares would weigh it."""
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(400, 60, dtype=torch.float64, generator=generator))[0]
    base = U[:, :1] @ torch.ones(1, 200, dtype=torch.float64)
    A = base + 1e-13 * torch.randn(400, 200, dtype=torch.float64, generator=generator)
    result = la.interpolative(A, 30, axis=1, seed=0)
    check(A, 30, 1, result)
    assert np.linalg.norm(exact(A) - reconstruct(A, result, 1)) <= rounding(A, 30) + tail_norm(A, 1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rank", [2, 20, 40])
def test_the_entry_that_is_not_finite_is_named(axis, rank):
    A = torch.ones(60, 40)
    A[7, 3] = math.inf
    with pytest.raises(ValueError, match=r"A must be finite, got inf at index \(7, 3\)"):
        la.interpolative(A, rank, axis=axis)


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
        ({"rank": None}, ValueError, "give rank, tol, or both"),
        ({"tol": 0.0}, ValueError, "tol must be between 0 and 1, got 0"),
        ({"tol": 1.0}, ValueError, "tol must be between 0 and 1, got 1"),
        ({"tol": math.nan}, ValueError, "tol must be between 0 and 1, got nan"),
        ({"tol": "a"}, TypeError, "tol must be a real number, got 'a'"),
        ({"rank": 2.0}, TypeError, "rank must be an integer, got 2.0"),
        ({"A": torch.ones(2, 5, 4), "tol": 0.1}, ValueError, r"tol takes one matrix.*\(2, 5, 4\)"),
        ({"out": "cupy"}, ValueError, 'out must be "torch", "numpy" or None'),
        ({"A": torch.full((5, 4), math.nan)}, ValueError, r"A must be finite.*\(0, 0\)"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        la.interpolative(**({"A": torch.ones(5, 4), "rank": 2, "axis": 1} | arguments))

"""Cross approximation of kernels, of exact rank, and of matrices that are made to deceive it."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from references import unit_roundoff
from strategies import with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
PIVOTING = ["partial", "rook", "full"]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def low_rank(m, n, rank, dtype=torch.float64, seed=0):
    return draw(m, rank, dtype=dtype, seed=seed) @ draw(rank, n, dtype=dtype, seed=seed + 1)


def of(A):
    """The entries of a matrix that is at hand."""
    return lambda rows, cols: A[rows][:, cols]


def cross(A, **options):
    return la.cross(of(A), tuple(A.shape), **{"seed": 0, **options})


def relative_error(A, result):
    return float(torch.dist(result.C @ result.coefficients, A) / A.norm())


def coulomb(m=1000, n=1200):
    x = torch.linspace(0, 1, m, dtype=torch.float64)
    return 1 / (x[:, None] - torch.linspace(1.2, 3, n, dtype=torch.float64)).abs()


def gaussian(m=1000, n=1200):
    x = torch.linspace(0, 1, m, dtype=torch.float64)
    y = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.exp(-10 * (x[:, None] - y).square())


def isolated(block, m=600, scale=1.0):
    """A kernel, and one more in a corner that shares no row and no column with it."""
    A = torch.zeros(m, m, dtype=torch.float64)
    A[:-block, :-block] = gaussian(m - block, m - block)
    A[-block:, -block:] = scale * coulomb(block, block)
    return A


def check_indices(result, A):
    C, coefficients, rows, cols = result
    k = len(rows)
    assert C.shape == (A.shape[0], k)
    assert coefficients.shape == (k, A.shape[1])
    for indices, size in ((rows, A.shape[0]), (cols, A.shape[1])):
        assert indices.dtype == torch.int64
        assert len(set(indices.tolist())) == len(indices) == k
        assert all(0 <= index < size for index in indices.tolist())
    # The columns are those of A to the bit.
    assert torch.equal(C, A[:, cols])


@pytest.mark.parametrize("pivoting", PIVOTING)
@pytest.mark.parametrize("kernel", [coulomb, gaussian])
def test_kernels_to_ten_digits_from_rank_many_rows_and_columns(kernel, pivoting):
    A = kernel()
    result = cross(A, tol=1e-10, pivoting=pivoting)
    check_indices(result, A)
    info = result.info
    assert info.converged
    assert relative_error(A, result) <= 1e-10
    # The least rank that has this error, and three more for pivots that are not the best.
    k, values = len(result.rows), torch.linalg.svdvals(A)
    best = sum(float(values[r:].norm()) > 1e-10 * float(A.norm()) for r in range(60))
    assert best <= k <= best + 3
    if pivoting == "full":
        assert (info.entries, info.calls) == (A.numel(), 1)
    else:
        # One row and column a cross; rook moves to some more. Two samples of 700·4 entries.
        most = k if pivoting == "partial" else 3 * k
        assert k <= info.row_evaluations <= most
        assert k <= info.col_evaluations <= most
        assert info.entries == 1200 * info.row_evaluations + 1000 * info.col_evaluations + 5600
    # A looser tolerance is met with less, and is not the same.
    loose = cross(A, tol=1e-4, pivoting=pivoting)
    assert len(loose.rows) < k
    assert 1e-10 < relative_error(A, loose) <= 1e-4


@pytest.mark.parametrize("kernel", [coulomb, gaussian])
def test_an_inverse_of_the_intersection_would_not_do(kernel):
    # Why coefficients are returned: G⁻¹ has entries of 1e10/‖A‖, whose rounding is u·1e10.
    A = kernel()
    C, _, rows, cols = result = cross(A, tol=1e-10)
    G = A[rows][:, cols]
    with_inverse = C @ torch.linalg.inv(G) @ A[rows]
    assert float(torch.dist(with_inverse, A) / A.norm()) > 1e-9
    # They are what they are said to be: a solution with a residual of some k·u.
    remaining = torch.dist(G @ result.coefficients, A[rows])
    assert float(remaining) <= 10 * len(rows) * 2.0**-53 * float(A[rows].norm())
    # Gaussian elimination keeps them small: 2^(k − 1) at worst, next to 1 in practice.
    assert float(result.coefficients.abs().max()) < 3


def test_no_call_sees_more_than_rows_columns_and_samples():
    A, shapes = coulomb(), []

    def entry(rows, cols):
        shapes.append((len(rows), len(cols)))
        rows_and_cols = rows.clone(), cols.clone()
        rows.zero_()  # what a function does to its arguments is its own business
        cols.zero_()
        return A[rows_and_cols[0]][:, rows_and_cols[1]]

    result = la.cross(entry, (1000, 1200), tol=1e-10, seed=0)
    assert set(shapes) == {(1, 1200), (1000, 1), (4, 4)}
    assert len(shapes) == result.info.calls
    assert sum(m * n for m, n in shapes) == result.info.entries
    assert relative_error(A, result) <= 1e-10


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("pivoting", ["partial", "rook"])
def test_an_isolated_block_is_found(pivoting, scale):
    # 4 % of the entries are missed by 700 positions with a probability of 4e-13. Rows and columns
    # of the rest show zeros there, wherever they lead.
    A = isolated(120, scale=scale)
    for seed in range(20):
        result = cross(A, tol=1e-8, pivoting=pivoting, seed=seed)
        assert result.info.converged
        assert relative_error(A, result) <= 1e-8
        assert (result.rows >= 480).any()
        assert (result.rows < 480).any()
    # The negative control: without samples worth the name, the step alone is believed.
    missed = [
        relative_error(A, cross(A, tol=1e-8, samples=4, pivoting=pivoting, seed=seed)) > 1e-8
        for seed in range(20)
    ]
    assert sum(missed) > 5


def test_how_often_a_small_block_is_missed():
    # 8 × 8 of 600 × 600, p = 1.8e-4. The two samples have 1400 independent positions, 5600 in all:
    # they miss it with a probability between (1 − p)^5600 = 0.37 and (1 − p)^1400 = 0.78.
    A = isolated(8)
    seeds = 60
    missed = 0
    for seed in range(seeds):
        result = cross(A, tol=1e-6, seed=seed)
        # The estimate is of the rest, and what no sample hits is left as it is.
        assert result.info.converged
        if not (result.rows >= 592).any():
            missed += 1
            assert relative_error(A, result) > 0.02
    p, deviations = 64 / 600**2, 3 * math.sqrt(seeds) / 2
    assert seeds * (1 - p) ** 5600 - deviations <= missed <= seeds * (1 - p) ** 1400 + deviations


def test_a_sample_that_led_the_pivots_is_not_believed():
    # Spikes in 2 % of the entries, far from low rank: crosses take those away that the guide sees,
    # some sixty in all, and the guide shows nothing then.
    A = coulomb(800, 800)
    spikes = torch.rand(800, 800, generator=torch.Generator().manual_seed(0)) < 0.02
    A[spikes] += 3
    for seed in range(3):
        with pytest.warns(la.ConvergenceWarning, match=r"cross: tol=1e-06 not met by 150 crosses"):
            result = cross(A, tol=1e-6, rank=150, seed=seed)
        error = relative_error(A, result)
        assert error > 0.1
        assert not result.info.converged
        # 700 positions, of which 2 % or more have all of the residual: a deviation of a quarter
        # for its square, an eighth for it.
        assert result.info.relative_error == pytest.approx(error, rel=0.4)


def test_noise_is_approximated_by_all_of_it():
    # What is left after many crosses lies in few rows and columns: there it is looked for.
    A = draw(150, 170)
    result = cross(A, tol=1e-6)
    check_indices(result, A)
    assert len(result.rows) == 150
    assert relative_error(A, result) <= 1e-6


@pytest.mark.parametrize("seed", range(10))
def test_the_estimate_is_of_the_error(seed):
    A = gaussian()
    result = cross(A, rank=6, seed=seed)
    # A smooth residual: 700 independent squares with a kurtosis of ten at most have a deviation of
    # an eighth in the mean, a sixteenth in the norm; four of them.
    assert result.info.relative_error == pytest.approx(relative_error(A, result), rel=0.25)
    assert result.info.converged
    exact = cross(A, rank=6, pivoting="full")
    assert exact.info.relative_error == pytest.approx(relative_error(A, exact), rel=1e-6)


@pytest.mark.parametrize("pivoting", PIVOTING)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 7, 40])
def test_exact_rank_is_found_and_exact(rank, dtype, pivoting):
    A = low_rank(200, 300, rank, dtype)
    u = unit_roundoff(A)
    for options in ({"rank": 200}, {"tol": 1e3 * u}, {"rank": 60, "tol": 1e3 * u}):
        result = cross(A, pivoting=pivoting, **options)
        check_indices(result, A)
        assert len(result.rows) == rank
        assert result.C.dtype == result.coefficients.dtype == dtype
        # Every cross adds an error of u times entries that pivoting keeps in the size of A's.
        assert relative_error(A, result) <= 10 * rank * u
        assert result.info.converged
    # A smaller rank is the rank that is returned, and is not exact.
    if rank > 1:
        fewer = cross(A, pivoting=pivoting, rank=rank - 1)
        assert len(fewer.cols) == rank - 1
        assert relative_error(A, fewer) > 1e-2


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 120),
    n=st.integers(1, 120),
    rank=st.integers(0, 12),
    pivoting=st.sampled_from(PIVOTING),
    samples=st.sampled_from([1, 50, 700]),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_rank(m, n, rank, pivoting, samples, seed):
    A = low_rank(m, n, rank, seed=seed)
    result = la.cross(of(A), (m, n), rank=min(m, n), pivoting=pivoting, samples=samples, seed=seed)
    check_indices(result, A)
    # A dense matrix shows what it is at any position. Condition numbers of small Gaussian matrices
    # are 1e4 or so at worst here: pivots are above rounding.
    assert len(result.rows) == min(m, n, rank)
    error = float(torch.dist(result.C @ result.coefficients, A))
    assert error <= 100 * (rank + 1) * 2.0**-53 * float(A.norm())
    # The identity at the chosen columns, but for the rounding of a triangular solve.
    identity = torch.eye(len(result.cols), dtype=torch.float64)
    assert (result.coefficients[:, result.cols] - identity).abs().sum() <= 1e-10


@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (9000, 1), (0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("pivoting", PIVOTING)
def test_thin_and_empty(shape, pivoting):
    A = draw(*shape)
    result = cross(A, tol=1e-12, pivoting=pivoting)
    check_indices(result, A)
    assert len(result.rows) == min(shape)
    # One product and one quotient an entry.
    assert float(torch.dist(result.C @ result.coefficients, A)) <= 4 * 2.0**-53 * float(A.norm())


@pytest.mark.parametrize("pivoting", PIVOTING)
@pytest.mark.parametrize("size", [10, 400])
def test_zero(size, pivoting):
    A = torch.zeros(size, size)
    for options in ({"tol": 1e-3}, {"rank": 4}):
        result = cross(A, pivoting=pivoting, **options)
        check_indices(result, A)
        assert torch.equal(result.C @ result.coefficients, A)
        assert (len(result.rows), result.info.relative_error, result.info.converged) == (0, 0, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [-1, 1])
def test_scaling_by_powers_of_two_changes_nothing(dtype, side):
    A = coulomb(300, 300).to(dtype)
    factor = 2.0 ** (side * (90 if dtype == torch.float32 else 900))
    one, other = cross(A, tol=1e-4), cross(A * factor, tol=1e-4)
    assert torch.equal(other.C, one.C * factor)
    assert torch.equal(other.coefficients, one.coefficients)
    assert other.info == one.info


def test_numpy_and_torch_agree():
    x, y = np.linspace(0, 1, 500), np.linspace(1.5, 3, 400)

    def kernel(rows, cols):
        return 1 / np.abs(x[rows.numpy(), None] - y[cols.numpy()])

    result = la.cross(kernel, (500, 400), tol=1e-8, seed=3)
    same = la.cross(lambda *at: torch.from_numpy(kernel(*at)), (500, 400), tol=1e-8, seed=3)
    for field, other in zip(result, same, strict=True):
        assert isinstance(field, np.ndarray)
        assert isinstance(other, torch.Tensor)
        assert np.array_equal(field, other.numpy())
    assert result.rows.dtype == np.int64
    assert result.info == same.info


def test_half_types_and_integers():
    A = low_rank(200, 300, 3, torch.float32).half()
    result = cross(A, tol=1e-2)
    assert result.C.dtype == result.coefficients.dtype == torch.float16
    assert torch.equal(result.C, A[:, result.cols])
    # Entries of rank 3 to u = 2⁻¹¹, which is all that is asked for.
    product = result.C.float() @ result.coefficients.float()
    assert float(torch.dist(product, A.float()) / A.float().norm()) <= 1e-2
    counted = la.cross(lambda i, j: i[:, None] + j, (200, 300), rank=5, seed=0)
    assert (counted.C.dtype, len(counted.cols)) == (torch.float32, 2)


def test_seeds():
    A = gaussian(400, 400)
    one, same, other = (cross(A, tol=1e-6, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert one.rows.tolist() != other.rows.tolist()
    drawn = cross(A, tol=1e-6, seed=torch.Generator().manual_seed(1))
    assert torch.equal(drawn.rows, cross(A, tol=1e-6, seed=torch.Generator().manual_seed(1)).rows)


def test_rook_pivots_are_the_largest_of_their_row_and_column():
    A = with_spectrum(300, 300, 0.7 ** np.arange(60))
    result = cross(A, rank=20, pivoting="rook")
    E = A.clone()
    for i, j in zip(result.rows.tolist(), result.cols.tolist(), strict=True):
        pivot = E[i, j].abs()
        # Residuals here and there differ by rounding, at most k²·u of the largest entry.
        slack = 400 * 2.0**-53 * A.abs().max()
        assert E[i].abs().max() <= pivot + slack
        assert E[:, j].abs().max() <= pivot + slack
        E = E - torch.outer(E[:, j], E[i]) / E[i, j]
    # Partial pivots are not, in their columns.
    partial = cross(A, rank=20, pivoting="partial")
    E, larger = A.clone(), 0
    for i, j in zip(partial.rows.tolist(), partial.cols.tolist(), strict=True):
        larger += bool(E[:, j].abs().max() > 1.01 * E[i, j].abs())
        E = E - torch.outer(E[:, j], E[i]) / E[i, j]
    assert larger > 0
    # Full ones are the largest of all, to begin with.
    full = cross(A, rank=1, pivoting="full")
    assert A[full.rows[0], full.cols[0]].abs() == A.abs().max()


def test_a_tolerance_below_rounding_is_not_met():
    A = coulomb(300, 300)
    with pytest.warns(la.ConvergenceWarning, match=r"cross: tol=1e-18 not met by \d+ crosses"):
        result = cross(A, tol=1e-18)
    check_indices(result, A)
    assert not result.info.converged
    assert len(result.rows) < 40
    # A pivot is taken to be rounding below 4·k·eps of the largest entry, 5, where ‖A‖ is 300 or so.
    assert relative_error(A, result) <= 1e-13


def test_the_first_of_both_limits_ends():
    A = gaussian(400, 400)
    by_tol = cross(A, tol=1e-4, rank=100)
    assert len(by_tol.rows) == len(cross(A, tol=1e-4).rows) < 100
    with pytest.warns(la.ConvergenceWarning, match="cross: tol=0.0001 not met by 3 crosses"):
        by_rank = cross(A, tol=1e-4, rank=3)
    assert len(by_rank.rows) == 3
    assert by_rank.info.relative_error > 1e-4
    # No tolerance, no warning.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cross(A, rank=3).info.converged


def test_a_function_that_changes_its_mind_ends():
    # Noise of its own in every call has no rank, and no pivot leads anywhere.
    generator = torch.Generator().manual_seed(0)

    def entry(rows, cols):
        noise = torch.randn(len(rows), len(cols), dtype=torch.float64, generator=generator)
        return 1 + 1e-3 * noise

    with pytest.warns(la.ConvergenceWarning):
        result = la.cross(entry, (400, 25), tol=1e-8, rank=20, seed=0)
    assert not result.info.converged
    # Not even then is a row or a column taken twice.
    for indices in (result.rows, result.cols):
        assert len(set(indices.tolist())) == len(indices) == 20


def test_pickle():
    result = cross(coulomb(300, 300), tol=1e-6)
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.coefficients, result.coefficients)
    assert again.info == result.info


def test_errors_of_the_function_are_passed_on():
    def entry(rows, cols):
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        la.cross(entry, (100, 100), rank=3)


def spoiled(value, i, j):
    A = low_rank(300, 400, 5)
    A[i, j] = value
    return of(A)


def after(calls, first, then):
    """Two functions in one: another one after some calls."""
    count = 0

    def entry(rows, cols):
        nonlocal count
        count += 1
        return (first if count <= calls else then)(rows, cols)

    return entry


ONES = of(low_rank(300, 400, 5))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: la.cross(ONES, (300, 400), rank=512),
            ValueError,
            r"cross: rank must be between 1 and min\(m, n\) = 300, got 512",
        ),
        (lambda: la.cross(ONES, (300, 400), rank=0), ValueError, r"= 300, got 0"),
        (lambda: la.cross(ONES, (300, 400), rank=2.5), TypeError, "rank must be an integer"),
        (lambda: la.cross(ONES, (300, 400)), ValueError, "cross: rank or tol must be given"),
        (lambda: la.cross(ONES, (300, 400), tol=0), ValueError, "tol must be positive, got 0"),
        (lambda: la.cross(ONES, (300, 400), tol=math.nan), ValueError, "must be positive, got nan"),
        (lambda: la.cross(ONES, (300, 400), tol="a"), TypeError, "tol must be a real number"),
        (lambda: la.cross(ONES, (300, 400), rank=3, samples=0), ValueError, "samples must be at"),
        (lambda: la.cross(ONES, 300, rank=3), ValueError, "shape must be two integers, got 300"),
        (lambda: la.cross(ONES, (-1, 3), rank=3), ValueError, r"shape\[0\] must be at least 0"),
        (lambda: la.cross(torch.eye(3), (3, 3), rank=1), TypeError, "entry must be a function"),
        (
            lambda: la.cross(ONES, (300, 400), rank=3, pivoting="best"),
            ValueError,
            r"pivoting must be one of \('partial', 'rook', 'full'\), got 'best'",
        ),
        (
            lambda: la.cross(lambda rows, cols: torch.ones(len(rows)), (300, 400), rank=3),
            ValueError,
            r"entry must return shape \(4, 4\) for 4 rows and 4 columns, got \(4,\)",
        ),
        (
            lambda: la.cross(lambda rows, cols: ONES(cols % 300, rows), (300, 400), rank=3),
            ValueError,
            r"entry must return shape \(1, 400\) for 1 rows and 400 columns, got \(400, 1\)",
        ),
        (
            lambda: la.cross(spoiled(math.nan, 7, slice(None)), (300, 400), rank=300, samples=4000),
            ValueError,
            r"cross: entry must return finite numbers, got nan at row 7, column \d+",
        ),
        (
            lambda: la.cross(spoiled(math.inf, 2, 3), (300, 400), tol=1e-6, pivoting="full"),
            ValueError,
            r"cross: entry must return finite numbers, got inf at row 2, column 3",
        ),
        (
            lambda: la.cross(
                after(175, ONES, spoiled(math.nan, slice(None), 9)), (300, 400), rank=9
            ),
            ValueError,
            r"got nan at row \d+, column 9",
        ),
        (
            lambda: la.cross(
                after(180, ONES, lambda *at: ONES(*at).float()), (300, 400), tol=1e-10
            ),
            ValueError,
            "one kind, dtype and device, got torch torch.float32 on cpu after torch torch.float64",
        ),
        (
            lambda: la.cross(
                after(180, ONES, lambda *at: ONES(*at).numpy()), (300, 400), tol=1e-10
            ),
            ValueError,
            "got NumPy torch.float64 on cpu after torch torch.float64",
        ),
        (
            lambda: la.cross(lambda rows, cols: np.full((4, 4), "a"), (300, 400), rank=3),
            TypeError,
            "cross: what entry returns must be a NumPy array or torch tensor of numbers",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()

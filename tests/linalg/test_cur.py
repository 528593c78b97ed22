import math
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
from references import exact, operator, tail_norm, unit_roundoff
from strategies import gaussian, kahan, matrices, seeds, with_spectrum

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SELECTS = ["rrqr", "leverage", "deim", "volume", "uniform"]
MIDDLES = ["projection", "intersection"]


def kernel(n):
    points = np.random.default_rng(0).random((n, 2))
    return torch.from_numpy(np.exp(-4 * ((points[:, None] - points) ** 2).sum(-1)))


def ratings(users, films):
    """One to five stars where a user has seen a film; few users have seen most of them."""
    rng = np.random.default_rng(0)
    taste = rng.standard_normal((users, 8)) @ rng.standard_normal((8, films)) / 3
    stars = np.clip(np.round(3.5 + taste + 0.7 * rng.standard_normal((users, films))), 1, 5)
    seen = rng.random((users, films)) < rng.random((users, 1)) ** 3 * rng.random((1, films))
    return torch.from_numpy(stars * seen)


def families():
    index = np.arange(120)
    return {
        "fast decay": with_spectrum(160, 120, 0.6**index),
        "slow decay": with_spectrum(160, 120, 1 / (1 + index)),
        "very slow decay": with_spectrum(120, 160, 1 / np.sqrt(1 + index)),
        "step": with_spectrum(160, 120, np.where(index < 20, 1, 1e-3)),
        "exact rank": with_spectrum(160, 120, np.linspace(2, 1, 30)),
        "kahan": kahan(120),
        "hilbert": torch.from_numpy(scipy.linalg.hilbert(120)),
        "kernel": kernel(150),
        "ratings": ratings(200, 120),
        "vanishing columns": gaussian(120, 120) * torch.logspace(0, -320, 120, dtype=torch.float64),
        "heavy rows": gaussian(120, 120) * torch.logspace(3, -3, 120, dtype=torch.float64)[:, None],
    }


def difference(A, result):
    C, U, R = (exact(part) for part in result[:3])
    return exact(A) - C @ U @ R


def error_of(A, result):
    return float(np.linalg.norm(difference(A, result)))


def rounding(A, result):
    """Of U and of the products: each entry of U, and sums over k terms, err by some √k·u.

    Three standard deviations and the constants of two products: 10; the entries of A·Ω and of the
    bases err by another √k·u of ‖A‖.
    """
    C, U, R = (exact(part) for part in result[:3])
    sizes = np.linalg.norm(C, axis=0)[:, None] * np.abs(U) * np.linalg.norm(R, axis=1)
    noise = math.sqrt(len(U)) * unit_roundoff(A)
    return 10 * noise * float(np.linalg.norm(sizes) + np.linalg.norm(exact(A)))


def floor(A, k):
    """What any explicit U of the precision of A may have to lose.

    Leaving out what is below s loses some g·s, rounding adds √k·u·‖A‖²·g/s: together √(√k·u)·‖A‖·g
    at least, with g the growth of C⁺A and A·R⁺, 10 allowed.
    """
    return 10 * math.sqrt(math.sqrt(k) * unit_roundoff(A)) * float(np.linalg.norm(exact(A)))


def check(A, result, k, middle="projection"):
    C, U, R, rows, cols = result
    m, n = A.shape
    count = min(2 * k, m) if middle == "intersection" else k
    assert (C.shape, U.shape, R.shape) == ((m, k), (k, count), (count, n))
    assert (C.dtype, U.dtype, R.dtype) == (A.dtype,) * 3
    for index, number, size in ((rows, count, m), (cols, k, n)):
        assert index.dtype == torch.int64
        assert len(set(index.tolist())) == len(index) == number
        assert index.min() >= 0
        assert index.max() < size
    assert torch.equal(C, A[:, cols])
    assert torch.equal(R, A[rows])
    assert torch.isfinite(U).all()
    assert result.info.rank == k
    assert 0 <= result.info.kept <= k


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", ["rrqr", "deim", "volume"])
@pytest.mark.parametrize("name", families())
def test_within_ten_times_the_best(name, select, middle):
    A = families()[name]
    for k in (1, 6, 20, 40):
        result = la.cur(A, k, select=select, middle=middle, seed=1)
        check(A, result, k, middle)
        assert error_of(A, result) <= 10 * tail_norm(A, k) + floor(A, k)


@given(
    A=matrices(),
    select=st.sampled_from(SELECTS),
    middle=st.sampled_from(MIDDLES),
    seed=seeds,
    data=st.data(),
)
def test_any_matrix(A, select, middle, seed, data):
    k = data.draw(st.integers(1, min(A.shape)))
    result = la.cur(A, k, select=select, middle=middle, seed=seed)
    check(A, result, k, middle)
    if select in ("rrqr", "deim"):
        assert error_of(A, result) <= 10 * tail_norm(A, k) + floor(A, k)


@pytest.mark.parametrize("name", families())
def test_projection_is_the_best_middle(name):
    A = families()[name]
    for k in (1, 6, 20):
        result = la.cur(A, k, seed=0)
        C, R = exact(result.C), exact(result.R)
        left, right = scipy.linalg.orth(C, 1e-13), scipy.linalg.orth(R.T, 1e-13)
        best = np.linalg.norm(exact(A) - left @ (left.T @ exact(A) @ right) @ right.T)
        slack = floor(A, k) if result.info.kept < k else rounding(A, result)
        assert error_of(A, result) <= best + slack
    # The control: that of another matrix is not.
    other = result._replace(U=la.cur(A + A.mean(), k, seed=0).U)
    assert error_of(A, other) > best + slack


@pytest.mark.parametrize("name", ["slow decay", "step", "fast decay", "ratings", "heavy rows"])
@pytest.mark.parametrize("select", SELECTS[:4])
def test_intersection_bound(name, select):
    A, k = families()[name], 12
    result = la.cur(A, k, select=select, middle="intersection", seed=0)
    basis = scipy.linalg.orth(exact(result.C))
    outside = np.linalg.norm(exact(A) - basis @ (basis.T @ exact(A)))
    smallest = np.linalg.svd(basis[result.rows.numpy()], compute_uv=False)[-1]
    assert error_of(A, result) <= outside / smallest + rounding(A, result)


def test_more_rows_than_columns_steady_the_intersection():
    A, k = families()["slow decay"], 12
    result = la.cur(A, k, middle="intersection", seed=0)
    basis = scipy.linalg.orth(exact(result.C))
    few, many = (
        np.linalg.svd(basis[result.rows.numpy()[:count]], compute_uv=False)[-1]
        for count in (k, 2 * k)
    )
    assert many > 1.3 * few
    C, R = exact(result.C), exact(result.R)
    square = C @ np.linalg.solve(C[result.rows[:k]], R[:k])
    assert error_of(A, result) < np.linalg.norm(exact(A) - square)


def test_the_rows_that_are_added_make_up_for_bad_ones():
    """Rows that are drawn uniformly miss the one row with a direction of its own."""
    A = with_spectrum(200, 60, np.linspace(2, 1, 9))
    A[:, 0] = 0
    A[177, 0] = 1e3
    seen = 0
    for seed in range(100):
        result = la.cur(A, 12, select="uniform", middle="intersection", seed=seed)
        first, added = result.rows[:12].tolist(), result.rows[12:].tolist()
        if 0 in result.cols.tolist() and 177 not in first:
            seen += 1
            # Among the first rows that are added, and with it the whole of A.
            assert 177 in added
            assert error_of(A, result) <= floor(A, 12)
    assert seen > 5


def test_volume_sampling_bound_in_expectation():
    """E‖A − C·C⁺·A‖² ≤ (k + 1)·‖A − A_k‖² for the process of exact singular vectors."""
    k, draws = 4, 300
    A = exact(with_spectrum(40, 30, 1 / (1 + np.arange(30.0))))
    A[:, 3] *= 20  # coherent
    squares = {"volume": [], "uniform": []}
    for select, found in squares.items():
        for seed in range(draws):
            cols = la.cur(A, k, select=select, seed=seed).cols
            basis = scipy.linalg.orth(A[:, cols])
            found.append(np.linalg.norm(A - basis @ (basis.T @ A)) ** 2)
    bound = (k + 1) * tail_norm(A, k) ** 2
    # Four standard errors of the mean.
    slack = 4 * np.std(squares["volume"]) / math.sqrt(draws)
    assert np.mean(squares["volume"]) <= bound + slack
    assert np.mean(squares["uniform"]) > bound + slack


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (400, 30), (30, 400)])
def test_exact_on_exact_rank(shape, dtype, middle):
    A = gaussian(shape[0], 12, dtype=dtype) @ gaussian(12, shape[1], dtype=dtype, seed=1)
    for select in SELECTS:
        result = la.cur(A, 12, select=select, middle=middle, seed=0)
        check(A, result, 12, middle)
        assert result.info.kept == 12
        slack = rounding(A, result)
        # κ(A) is below 10, and choices that do not look at volumes alone are at most ten times
        # worse conditioned, others a hundred times; Frobenius norms are √12 of the spectral ones.
        growth = 1e4 if select in ("uniform", "leverage") else 1e3
        assert slack <= 10 * 12 * growth * unit_roundoff(A) * np.linalg.norm(exact(A))
        assert error_of(A, result) <= slack


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rank_above_the_numerical_rank(dtype, select, middle):
    B = gaussian(60, 5, dtype=dtype) @ gaussian(5, 50, dtype=dtype, seed=1)
    integers = (gaussian(60, 5) * 4).round() @ (gaussian(5, 50, seed=1) * 4).round()
    for A in (B, integers.to(dtype), torch.cat([B, B]), torch.zeros_like(B)):
        for k in (5, 9, 30, 50):
            result = la.cur(A, k, select=select, middle=middle, seed=0)
            check(A, result, k, middle)
            assert error_of(A, result) <= floor(A, k)
            if select != "uniform" and k < 50:
                assert result.info.kept == (5 if A.any() else 0)
    assert error_of(A, result) == result.info.error == 0


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1), (2, 1)])
def test_one_row_or_column(shape, select, middle):
    A = gaussian(*shape)
    result = la.cur(A, 1, select=select, middle=middle, seed=0)
    check(A, result, 1, middle)
    assert error_of(A, result) <= rounding(A, result)


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("name", families())
def test_order_of_rows_and_transposition_leave_the_quality(name, middle):
    A, k = families()[name], 15
    order = torch.randperm(len(A), generator=torch.Generator().manual_seed(0))
    errors = [
        np.mean([error_of(B, la.cur(B, k, middle=middle, seed=seed)) for seed in range(4)])
        for B in (A, A[order], A.T)
    ]
    # Other sketches choose other columns; within a factor of two on average.
    assert max(errors) <= 2 * min(errors) + floor(A, k)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 30), (torch.float64, 200)])
def test_any_scale(dtype, power, select):
    A = with_spectrum(80, 60, 0.8 ** np.arange(60)).to(dtype)
    for middle in MIDDLES:
        expected = la.cur(A, 8, select=select, middle=middle, seed=0)
        for exponent in (-power, power):
            scale = 2.0 ** round(exponent * math.log2(10))
            result = la.cur(A * scale, 8, select=select, middle=middle, seed=0)
            assert torch.equal(result.cols, expected.cols)
            assert torch.equal(result.rows, expected.rows)
            # A power of two is exact; the sums on the way are scaled at other places.
            size = float(expected.U.abs().max())
            assert (result.U * scale - expected.U).abs().max() <= 1e4 * unit_roundoff(A) * size
            assert result.info.error == pytest.approx(expected.info.error * scale, rel=1e-3)


def test_a_middle_that_overflows_is_an_error():
    with pytest.raises(ValueError, match=r"cur: U, of the size of 1 / A, overflows in float"):
        la.cur(gaussian(20, 10, dtype=torch.float32) * 1e-40, 3, seed=0)


@pytest.mark.parametrize("middle", MIDDLES)
def test_info_estimates_the_error(middle):
    A = with_spectrum(100, 80, 0.9 ** np.arange(80))
    ratios = []
    for seed in range(80):
        result = la.cur(A, 10, middle=middle, seed=seed)
        ratios.append(result.info.error_estimate / error_of(A, result))
        assert result.info.error == pytest.approx(1.9771 * result.info.error_estimate, rel=1e-4)
    # Unbiased squares; the deviation of one is at most √(2/10).
    assert np.mean(np.square(ratios)) == pytest.approx(1, abs=5 * math.sqrt(2 / 10 / 80))


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_info_is_honest_about_rounding(dtype, middle):
    """Where all of the error is rounding of U and of the products, the estimate has it."""
    for A in (
        with_spectrum(90, 80, 0.4 ** np.arange(80)),
        torch.from_numpy(scipy.linalg.hilbert(90)),
    ):
        A = A.to(dtype)
        for k in (30, 60, 80):
            result = la.cur(A, k, middle=middle, seed=0)
            C, U, R = result[:3]
            error = float(np.linalg.norm(exact(A) - exact(C @ U @ R)))
            assert error > 10 * tail_norm(A, k)
            assert result.info.kept < k
            # The products with the probes round as those with the columns of R do, to a factor.
            assert error <= 2 * result.info.error
            assert error <= floor(A, k)


@pytest.mark.parametrize("middle", MIDDLES)
def test_info_is_honest_about_rounding_alone(middle):
    """Of an exact rank, with no direction to leave out: what there is is the rounding of U."""
    A = with_spectrum(120, 90, np.logspace(0, -2.7, 20)).float()
    for seed in range(5):
        result = la.cur(A, 20, middle=middle, seed=seed)
        assert result.info.kept == 20
        error = error_of(A, result)
        assert error > 10 * unit_roundoff(A) * float(A.norm())
        # The probes have the rounding of the products on top of it.
        assert error <= result.info.error <= 20 * error


def test_leaving_out_directions_is_better_than_keeping_them():
    A, k = torch.from_numpy(scipy.linalg.hilbert(100)).float(), 20
    result = la.cur(A, k, seed=0)
    C, R = exact(result.C), exact(result.R)
    naive = torch.from_numpy(np.linalg.pinv(C) @ exact(A) @ np.linalg.pinv(R)).float()
    errors = [
        float(np.linalg.norm(exact(A) - exact(result.C @ U @ result.R))) for U in (result.U, naive)
    ]
    assert errors[1] > 10 * errors[0]


@given(A=matrices(), tol=st.sampled_from([0.7, 0.1, 1e-2]), seed=seeds)
def test_tolerance_is_met_by_no_more_columns_than_it_takes(A, tol, seed):
    result = la.cur(A, tol=tol, seed=seed)
    k, norm = result.info.rank, float(np.linalg.norm(exact(A)))
    check(A, result, k)
    assert result.info.converged
    assert result.info.error <= tol * norm * (1 + 1e-6)
    # What the probes say is wrong once in a hundred draws, and then by a factor.
    assert error_of(A, result) <= 1.5 * tol * norm
    if k > 1:
        assert la.cur(A, k - 1, seed=seed).info.error > tol * norm * (1 - 1e-6)


@pytest.mark.parametrize("select", SELECTS)
def test_tolerance_with_every_choice(select):
    A = with_spectrum(90, 80, 0.7 ** np.arange(80))
    result = la.cur(A, tol=0.01, select=select, seed=0)
    assert result.info.converged
    assert error_of(A, result) <= 0.01 * np.linalg.norm(exact(A))
    best = int(np.argmax([tail_norm(A, k) <= 0.01 * np.linalg.norm(exact(A)) for k in range(80)]))
    # An error of 5 times the best, and bounded by twice its estimate, is that of
    # log(10) / log(1/0.7) = 7 columns less; uniform draws are worse.
    assert best <= result.info.rank <= (80 if select == "uniform" else best + 9)
    assert la.cur(torch.zeros(9, 8), tol=0.1, select=select, seed=0).info.rank == 1


def test_tolerance_that_is_not_met():
    A = gaussian(40, 30)
    with pytest.warns(la.ConvergenceWarning, match=r"tol = 0\.001 is not met by 5 columns"):
        result = la.cur(A, 5, tol=1e-3, seed=0)
    assert not result.info.converged
    assert result.info.rank == 5
    # Rounding of an explicit U does not allow this one, however many the columns.
    B = with_spectrum(300, 300, 0.5 ** np.arange(60))
    with pytest.warns(la.ConvergenceWarning):
        result = la.cur(B, tol=1e-14, seed=0)
    assert result.info.rank <= 128


def test_a_heavy_row_is_missed_by_uniform_draws():
    A = gaussian(300, 100)
    A[217] *= 1e4
    for select in SELECTS:
        found = [217 in la.cur(A, 3, select=select, seed=seed).rows.tolist() for seed in range(10)]
        # The row's leverage is 1 of 3: by leverage alone, three draws miss it now and then.
        least = {"leverage": 5, "uniform": 0}.get(select, 10)
        assert sum(found) >= least
        assert select != "uniform" or sum(found) < 5
    # Where it is missed, so is nearly all of A.
    worst = max(error_of(A, la.cur(A, 3, select="uniform", seed=seed)) for seed in range(10))
    assert worst > 100 * error_of(A, la.cur(A, 3, seed=0))


def test_elimination_is_deim():
    """The indices of the interpolation, vector by vector, in its own words."""
    A = families()["slow decay"]
    U, _, Vh = la.randomized_svd(A, 12, seed=5)
    result = la.cur(A, 12, select="deim", seed=5)
    for vectors, index in ((U.numpy(), result.rows), (Vh.numpy().T, result.cols)):
        chosen = [int(np.abs(vectors[:, 0]).argmax())]
        for j in range(1, 12):
            known = np.linalg.solve(vectors[chosen, :j], vectors[chosen, j])
            chosen.append(int(np.abs(vectors[:, j] - vectors[:, :j] @ known).argmax()))
        assert chosen == index.tolist()


@pytest.mark.parametrize("select", ["leverage", "volume"])
def test_first_draws_follow_the_scores(select):
    """Of a matrix of rank one, one column: with probability v², whichever the process."""
    left, right = np.array([3.0, 1, 2, 1, 1]), np.array([1.0, 2, 0.5, 3, 1, 1.5])
    A, draws = np.outer(left, right), 600
    counts = [np.zeros(5), np.zeros(6)]
    for seed in range(draws):
        result = la.cur(A, 1, select=select, seed=seed)
        counts[0][result.rows[0]] += 1
        counts[1][result.cols[0]] += 1
    for count, vector in zip(counts, (left, right), strict=True):
        expected = draws * vector**2 / np.sum(vector**2)
        # 0.1 % quantiles of chi-squared with 4 and 5 degrees of freedom are 18.5 and 20.5.
        assert np.sum((count - expected) ** 2 / expected) < 20.5


def test_draws_without_replacement():
    A = np.diag([3.0, 2.0, 1.0]) @ np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    # The two leading vectors are the first two rows: by leverage no draw has the third one.
    for select in ("leverage", "uniform"):
        rows = {tuple(la.cur(A, 2, select=select, seed=seed).rows.tolist()) for seed in range(60)}
        assert len(rows) == (6 if select == "uniform" else 2)


@pytest.mark.parametrize("select", ["leverage", "volume", "uniform"])
def test_rows_are_drawn_apart_from_columns(select):
    """Of a symmetric matrix, too: its left and right vectors are the same but for signs."""
    A = kernel(50)
    drawn = [la.cur(A, 3, select=select, seed=seed) for seed in range(20)]
    equal = sum(set(one.rows.tolist()) == set(one.cols.tolist()) for one in drawn)
    # Independent ones agree once in 10,000 draws if they are uniform, rarely if they are not.
    assert equal <= 2


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", SELECTS)
def test_seeds_and_threads(select, middle, threads):
    A = with_spectrum(300, 200, 0.9 ** np.arange(200))
    results = []
    for number in (1, 1, 2):
        with threads(number):
            results.append(la.cur(A, 20, select=select, middle=middle, seed=3))
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert torch.equal(results[0].cols, results[2].cols)
    assert torch.equal(results[0].rows, results[2].rows)
    others = [la.cur(A, 20, select=select, middle=middle, seed=seed).cols for seed in range(6)]
    if select != "deim":
        assert any(set(cols.tolist()) != set(others[0].tolist()) for cols in others)


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", SELECTS)
def test_kinds_of_dense_input(select, middle):
    def run(A):
        return la.cur(A, 5, select=select, middle=middle, seed=0)

    A = with_spectrum(40, 30, 0.7 ** np.arange(30))
    kept, expected = A.clone(), run(A)
    for part, tensor in zip(run(A.numpy()), expected, strict=True):
        assert isinstance(part, np.ndarray)
        assert np.array_equal(part, tensor.numpy())
    for view in (A.T.contiguous().T, A.repeat_interleave(2, 0)[::2]):
        result = run(view)
        assert torch.equal(result.cols, expected.cols)
        assert torch.equal(result.rows, expected.rows)
        check(view, result, 5, middle)
    Z = (A + 1j * A.flip(0)).clone()
    for view in (Z.conj(), Z.mH, Z.mT.conj()):
        check(view, result := run(view), 5, middle)
        assert error_of(view, result) <= 10 * tail_norm(view, 5) or select == "uniform"
    half = run(A.half())
    assert half.C.dtype == half.U.dtype == half.R.dtype == torch.float32
    assert torch.equal(half.C, A.half().float()[:, half.cols])
    assert run(A.numpy().astype(np.int64)).U.dtype == np.float64
    assert torch.equal(A, kept)


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", SELECTS)
def test_batches(select, middle):
    A = torch.stack([with_spectrum(20, 25, 0.7 ** np.arange(20), seed=i) for i in range(6)])
    A = A.reshape(2, 3, 20, 25)
    result = la.cur(A, 4, select=select, middle=middle, seed=0)
    assert result.info.error.shape == result.info.error_estimate.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = la.cur(A[i, j], 4, select=select, middle=middle, seed=0)
            assert all(torch.equal(a[i, j], b) for a, b in zip(result, one, strict=True))
            assert result.info.error[i, j] == one.info.error
    numpy = la.cur(A.numpy(), 4, select=select, middle=middle, seed=0)
    assert all(isinstance(part, np.ndarray) for part in (*numpy, numpy.info.error))
    empty = la.cur(A[:, :0], 4, select=select, middle=middle, seed=0)
    count = 8 if middle == "intersection" else 4
    assert empty.U.shape == (2, 0, 4, count)
    assert empty.rows.shape == (2, 0, count)


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("select", SELECTS)
def test_sparse_matrices_and_operators(select, middle):
    def run(A):
        return la.cur(A, 6, select=select, middle=middle, seed=0)

    S = scipy.sparse.random_array((60, 50), density=0.2, rng=np.random.default_rng(0))
    S = (S + scipy.sparse.diags_array(0.8 ** np.arange(50.0), shape=(60, 50)) * 9).tocsr()
    A = torch.from_numpy(S.toarray())
    expected = run(A)
    # Sums run in another order: of the same choice, U moves by u times the condition, below 1e3.
    size = float(expected.U.abs().max())
    for kind in (S, S.tocsc(), S.tocoo(), scipy.sparse.csr_matrix(S)):
        C, U, R, rows, cols = run(kind)
        assert scipy.sparse.issparse(C)
        assert scipy.sparse.issparse(R)
        assert isinstance(C, scipy.sparse.sparray) == isinstance(kind, scipy.sparse.sparray)
        assert np.array_equal(C.toarray(), S.toarray()[:, cols])
        assert np.array_equal(R.toarray(), S.toarray()[rows])
        assert np.array_equal(cols, expected.cols)
        assert np.array_equal(rows, expected.rows)
        assert np.abs(U - expected.U.numpy()).max() <= 1e4 * 2.0**-53 * size
        assert np.linalg.norm(S.toarray() - (C @ U) @ R) == pytest.approx(error_of(A, expected))
    for kind in (A.to_sparse(), A.to_sparse_csr(), A.to_sparse_csc()):
        C, U, R, rows, cols = run(kind)
        assert C.layout == R.layout == kind.layout
        assert torch.equal(C.to_dense(), A[:, cols])
        assert torch.equal(R.to_dense(), A[rows])
        assert (U - expected.U).abs().max() <= 1e4 * 2.0**-53 * size
        assert torch.dist(A, (C @ U) @ R).item() == pytest.approx(error_of(A, expected))
    wrapped = run(operator(A))
    check(A, wrapped, 6, middle)
    assert torch.equal(wrapped.cols, expected.cols)
    scipys = run(scipy.sparse.linalg.aslinearoperator(S))
    assert isinstance(scipys.C, np.ndarray)
    assert np.array_equal(scipys.C, wrapped.C.numpy())
    blocks = run([A[:25].numpy(), A[25:].numpy()])
    assert np.array_equal(blocks.R, A.numpy()[blocks.rows])
    assert np.array_equal(blocks.cols, expected.cols)
    if select in ("rrqr", "uniform"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", la.ConvergenceWarning)
            found = la.cur(operator(A), tol=0.2, select=select, middle=middle, seed=0)
        assert error_of(A, found) <= 0.3 * np.linalg.norm(exact(A))


def test_passes():
    A = gaussian(100, 80)
    assert la.cur(A, 5, seed=0).info.passes == 2
    assert la.cur(A, 5, middle="intersection", seed=0).info.passes == 2
    # And twice for C and R.
    assert la.cur(operator(A), 5, seed=0).info.passes == 4
    products = []

    def counted(X):
        products.append(X.shape[1])
        return A @ X

    known = la.LinearOperator(A.shape, counted, lambda Y: A.T @ Y, dtype=A.dtype)
    la.cur(known, 5, middle="intersection", seed=0)
    # C and the probes alone: no product with a basis.
    assert sorted(products) == [5, 10]


def test_no_gradient():
    A = gaussian(20, 15).requires_grad_()
    for select in SELECTS:
        U = la.cur(A, 3, select=select, seed=0).U
        with pytest.raises(RuntimeError, match=r"fastlr\.linalg\.cur is not differentiable"):
            U.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rank": 0}, ValueError, r"rank must be between 1 and min\(m, n\) = 20, got 0"),
        ({"rank": 21}, ValueError, r"rank must be between 1 and min\(m, n\) = 20, got 21"),
        ({"rank": 1.5}, TypeError, r"rank must be an integer, got 1.5"),
        ({"rank": None}, ValueError, "give rank, tol, or both"),
        ({"tol": -1.0}, ValueError, "tol must be non-negative and finite, got -1"),
        ({"tol": math.nan}, ValueError, "tol must be non-negative and finite, got nan"),
        ({"tol": "x"}, TypeError, "tol must be a real number, got 'x'"),
        (
            {"select": "best"},
            ValueError,
            'select must be "rrqr", "leverage", "deim", "volume" or "uniform", got \'best\'',
        ),
        (
            {"middle": None},
            ValueError,
            'middle must be "projection" or "intersection", got None',
        ),
        ({"A": torch.ones(3)}, ValueError, r"A must have at least 2 dimensions, got shape \(3,\)"),
        ({"A": torch.ones(3, 0)}, ValueError, r"rank must be between 1 and min\(m, n\) = 0, got 3"),
        ({"A": torch.ones(2, 9, 9), "tol": 0.1}, ValueError, r"tol takes one matrix.*\(2, 9, 9\)"),
        ({"A": iter([])}, ValueError, "A is an iterator, which can be read once"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"cur: {message}"):
        la.cur(**{"A": gaussian(30, 20), "rank": 3, **arguments})


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("tol", [None, 0.1])
def test_entries_that_are_not_finite(select, tol):
    for value in (math.nan, math.inf):
        A = gaussian(30, 20)
        A[3, 4] = value
        for kind in (A, A.numpy(), scipy.sparse.csr_array(A.numpy())):
            with pytest.raises(ValueError, match=r"cur: A must be finite, got .* \(3, 4\)"):
                la.cur(kind, 3, tol=tol, select=select, seed=0)

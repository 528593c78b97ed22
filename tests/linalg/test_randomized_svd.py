import itertools
import math
import pickle

import numpy as np
import pytest
import scipy.linalg
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

FLOATS = [torch.float32, torch.float64]


def check_factors(A, result, rank):
    U, S, Vh = result
    m, n = A.shape
    assert (U.shape, S.shape, Vh.shape) == ((m, rank), (rank,), (rank, n))
    assert U.dtype == S.dtype == Vh.dtype == A.dtype
    assert orthonormality_error(U) <= 10
    assert orthonormality_error(Vh.T) <= 10
    assert (S >= 0).all()
    assert (S.diff() <= 0).all()
    if m:
        largest = U.gather(0, U.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()


@given(A=matrices(), data=st.data())
def test_near_optimal_on_every_spectrum(A, data):
    rank = data.draw(st.integers(1, min(A.shape)))
    result = la.randomized_svd(A, rank, seed=data.draw(seeds))
    check_factors(A, result, rank)
    # One iteration and ten columns of oversampling at least: the expected excess of subspace
    # iteration is below √(1 + k/(p−1))^(1/3) − 1 (HMT theorem 10.6 with q = 1), for k ≤ 50 19 %;
    # twice that leaves room for the deviation from the mean.
    assert residual(A, result) <= 1.4 * tail_norm(A, rank) + rounding(A)
    # Ritz values never exceed the singular values.
    excess = exact(result.S) - singular_values(A)[:rank]
    assert excess.max() <= rounding(A)


@pytest.mark.parametrize("dtype", FLOATS)
def test_singular_values_of_a_decaying_matrix(dtype):
    values = 0.5 ** np.arange(60)
    A = with_spectrum(300, 200, values, dtype)
    S = la.randomized_svd(A, 10, seed=1).S
    # σ_11/σ_10 = 1/2 and ten more columns: (σ_21/σ_10)^(2(2q+1)) with q ≥ 1 is below 1e-9 relative.
    assert np.allclose(exact(S), values[:10], rtol=1e-9, atol=20 * unit_roundoff(A))


@pytest.mark.parametrize("dtype", FLOATS)
def test_noisy_tail_needs_power_iterations(dtype):
    """The negative control beside the default: without iterations, noise hides the signal."""
    values = np.concatenate([np.linspace(4, 2, 10), np.full(390, 1.0)])
    A = with_spectrum(500, 400, values, dtype)
    best = tail_norm(A, 10)
    signal = np.linalg.norm(values[:10])

    def captured(**options):
        return np.linalg.norm(exact(la.randomized_svd(A, 10, seed=0, **options).S)) / signal

    assert captured(power_iters=0) < 0.75
    assert captured() > 0.98
    assert residual(A, la.randomized_svd(A, 10, seed=0)) <= 1.01 * best


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("power_iters", [0, 1, 2, 5])
def test_fixed_number_of_iterations(dtype, power_iters):
    A = with_spectrum(120, 90, 1 / (1.0 + np.arange(90)), dtype)
    result = la.randomized_svd(A, 8, power_iters=power_iters, seed=0)
    check_factors(A, result, 8)
    assert result.info.power_iters == power_iters
    assert result.info.passes == 2 + 2 * power_iters
    assert result.info.converged


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_iterations_neither_overflow_nor_lose_orthogonality(dtype):
    A = with_spectrum(100, 80, 10.0 ** -np.arange(0, 40, 0.5), dtype) * 1e10
    result = la.randomized_svd(A, 20, power_iters=30, seed=0)
    check_factors(A, result, 20)
    assert residual(A, result) <= 1.1 * tail_norm(A, 20) + rounding(A)


@given(A=matrices(dtype=st.just(torch.float64)), data=st.data())
def test_transpose_swaps_the_factors(A, data):
    rank = data.draw(st.integers(1, min(A.shape)))
    one = la.randomized_svd(A, rank, seed=3)
    two = la.randomized_svd(A.T.contiguous(), rank, seed=3)
    np.testing.assert_allclose(one.S, two.S, rtol=0, atol=rounding(A))
    assert abs(residual(A, one) - residual(A.T, two)) <= rounding(A)


@pytest.mark.parametrize("dtype", FLOATS)
def test_orthogonal_rotation_keeps_the_singular_values(dtype):
    A = with_spectrum(60, 50, 0.7 ** np.arange(50), torch.float64)
    rotation = torch.from_numpy(scipy.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0])
    S = la.randomized_svd(A.to(dtype), 10, seed=0).S
    rotated = la.randomized_svd((rotation @ A).to(dtype), 10, seed=5).S
    # Different draws: equal to the accuracy of converged Ritz values, (σ_21/σ_10)^6 = 8e-10.
    np.testing.assert_allclose(exact(S), exact(rotated), rtol=1e-7, atol=40 * unit_roundoff(S))


@given(
    exponent=st.sampled_from([-40, -30, -12, 12, 30, 37]),
    exponent64=st.sampled_from([-310, -290, -200, 200, 300]),
    double=st.booleans(),
)
def test_scale_changes_nothing_but_the_scale(exponent, exponent64, double):
    dtype = torch.float64 if double else torch.float32
    A = with_spectrum(70, 50, 0.8 ** np.arange(50), dtype)
    power = round((exponent64 if double else exponent) * math.log2(10))
    scaled = (A * 2.0 ** (power // 2)) * 2.0 ** (power - power // 2)
    base = la.randomized_svd(A, 5, seed=2)
    result = la.randomized_svd(scaled, 5, seed=2)
    check_factors(A, result, 5)
    # Scaling by a power of two is exact, but for subnormal entries: they lose bits below 2^-149
    # and 2^-1074, which only the smallest exponents reach.
    smallest = 2.0**-1074 if double else 2.0**-149
    lost = 50 * smallest / 2.0 ** max(power, -1070) if power < -120 else 0.0
    tolerance = 40 * unit_roundoff(A) + lost
    unscaled = np.ldexp(exact(result.S), -power)
    np.testing.assert_allclose(unscaled, exact(base.S), rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        np.ldexp(result.info.error, -power), base.info.error, rtol=1e-3 + tolerance * 1e3
    )


@pytest.mark.parametrize("shape", [(90, 70), (70, 90)])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float32, 2.0**127),  # A @ Ω overflows
        (torch.float64, 2.0**1023),
        (torch.float32, 2.0**-140),  # all entries are subnormal
        (torch.float64, 2.0**-1060),
    ],
)
def test_ends_of_the_floating_point_range(shape, dtype, size):
    A = (with_spectrum(*shape, 0.5 ** np.arange(70)) * size).to(dtype)
    result = la.randomized_svd(A, 5, seed=0)
    check_factors(A, result, 5)
    assert math.isfinite(result.info.error)
    # Of the matrix as it was stored, scaled exactly: rounding in A is no error of the result.
    unit = torch.from_numpy(exact(A) / size)
    projected = torch.from_numpy(exact(result.U) @ (exact(result.U).T @ exact(unit)))
    error = float(torch.linalg.norm(unit - projected))
    bound = 40 * math.sqrt(70) * unit_roundoff(A) * float(torch.linalg.norm(unit))
    assert error <= 1.4 * tail_norm(unit, 5) + bound
    # Singular values are stored in A's type: to u, or to half the smallest subnormal number.
    quantum = 0.5 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / size
    top = singular_values(unit)[:5]
    np.testing.assert_allclose(exact(result.S) / size, top, rtol=1e-3, atol=bound + quantum)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (200, 90)])
@pytest.mark.parametrize("power_iters", ["auto", 0, 2])
def test_zero_matrix(dtype, shape, power_iters):
    A = torch.zeros(shape, dtype=dtype)
    for rank in (1, 5, min(shape)):
        result = la.randomized_svd(A, rank, power_iters=power_iters, seed=0)
        check_factors(A, result, rank)
        assert (result.S == 0).all()
        assert result.info.error == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(100, 80), (80, 100), (20, 20)])
@pytest.mark.parametrize("numerical_rank", [1, 3])
@pytest.mark.parametrize("power_iters", ["auto", 0, 3])
def test_rank_above_the_numerical_rank(dtype, shape, numerical_rank, power_iters):
    A = with_spectrum(*shape, np.arange(numerical_rank, 0, -1.0), dtype)
    for rank in (8, min(shape)):
        result = la.randomized_svd(A, rank, power_iters=power_iters, seed=0)
        check_factors(A, result, rank)
        assert (result.S[:numerical_rank] > 0.5).all()
        assert (result.S[numerical_rank:] == 0).all()


def test_ones_and_identity():
    ones = torch.ones(300, 200, dtype=torch.float64)
    result = la.randomized_svd(ones, 200, seed=0)
    check_factors(ones, result, 200)
    assert result.S[0].item() == pytest.approx(math.sqrt(60000), rel=1e-14)
    assert (result.S[1:] == 0).all()
    eye = torch.eye(120, dtype=torch.float64)
    for rank in (1, 30, 115, 120):
        result = la.randomized_svd(eye, rank, seed=0)
        check_factors(eye, result, rank)
        # Rounding: 40·√k·u again.
        np.testing.assert_allclose(result.S, 1, rtol=0, atol=40 * math.sqrt(120) * 2.0**-53)


@given(A=matrices(), power_iters=st.integers(1, 3), data=st.data())
def test_left_vectors_and_values_belong_together(A, power_iters, data):
    """Aᴴu = s·v, though the product that gives v was taken before u was orthonormal."""
    rank = data.draw(st.integers(1, min(A.shape)))
    result = la.randomized_svd(
        A, rank, power_iters=power_iters, oversample=0, precision="full", seed=data.draw(seeds)
    )
    U, S, Vh = (exact(factor) for factor in result)
    left, right = (U, Vh.T) if A.shape[0] >= A.shape[1] else (Vh.T, U)
    tall = exact(A) if A.shape[0] >= A.shape[1] else exact(A).T
    assert np.linalg.norm(tall.T @ left - right * S) <= rounding(A)


def test_first_of_equal_entries_decides_the_sign():
    ties = 0
    for dtype, length, first in itertools.product(FLOATS, range(2, 12), (1, -1)):
        signs = first * torch.tensor([1, -1] * 6, dtype=dtype)[:length]
        U = la.randomized_svd(torch.outer(signs, torch.ones(3, dtype=dtype)), 1, seed=0).U
        assert U[U.abs().argmax()] > 0
        ties += int(U.max() == -U.min())
    assert ties > 0  # elsewhere rounding has decided


def test_hilbert_300():
    A = torch.from_numpy(scipy.linalg.hilbert(300))
    result = la.randomized_svd(A, 40, seed=0)
    check_factors(A, result, 40)
    assert residual(A, result) <= 1.4 * tail_norm(A, 40) + rounding(A)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_vectors(dtype, shape):
    A = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    result = la.randomized_svd(A, 1, seed=0)
    check_factors(A, result, 1)
    assert residual(A, result) <= rounding(A)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(shape):
    U, S, Vh = la.randomized_svd(torch.empty(shape), 3, seed=0)
    assert (U.shape, S.shape, Vh.shape) == ((shape[0], 0), (0,), (0, shape[1]))


@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (12, 9)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entry_is_named(shape, bad):
    A = torch.ones(shape)
    A[5, 7] = bad
    with pytest.raises(ValueError, match=r"randomized_svd: A must be finite, got .* \(5, 7\)"):
        la.randomized_svd(A, 4, seed=0)


def test_seeds():
    A = torch.randn(80, 60, generator=torch.Generator().manual_seed(0))
    one, two = la.randomized_svd(A, 5, seed=1), la.randomized_svd(A, 5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one.S, la.randomized_svd(A, 5, power_iters=0, seed=2).S)


def test_thread_count_only_changes_rounding(threads):
    A = with_spectrum(300, 250, 0.9 ** np.arange(250), torch.float64)
    results = []
    for number in (1, 2):
        with threads(number):
            results.append(la.randomized_svd(A, 20, seed=1))
    np.testing.assert_allclose(results[0].S, results[1].S, rtol=0, atol=rounding(A))


def test_any_memory_layout_and_the_input_is_left_alone():
    base = torch.randn(60, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    view = base.T[::2, 5:]
    before = base.clone()
    result = la.randomized_svd(view, 6, seed=0)
    contiguous = la.randomized_svd(view.contiguous(), 6, seed=0)
    np.testing.assert_allclose(result.S, contiguous.S, rtol=0, atol=rounding(view))
    assert torch.equal(base, before)


@pytest.mark.parametrize(
    ("make", "dtype", "kind"),
    [
        (lambda A: A.numpy(), torch.float64, np.ndarray),
        (lambda A: A.numpy().astype(np.float32), torch.float32, np.ndarray),
        (lambda A: A.half(), torch.float16, torch.Tensor),
        (lambda A: A.bfloat16(), torch.bfloat16, torch.Tensor),
        (lambda A: (A * 10).long(), torch.float32, torch.Tensor),
        (lambda A: (A.numpy() * 10).astype(int), torch.float64, np.ndarray),
        (lambda A: A.tolist(), torch.float64, np.ndarray),
    ],
)
def test_kinds_and_dtypes(make, dtype, kind):
    result = la.randomized_svd(make(torch.arange(60.0, dtype=torch.float64).reshape(12, 5)), 2)
    assert all(isinstance(factor, kind) for factor in result)
    assert all(torch.as_tensor(factor).dtype == dtype for factor in result)


def test_read_only_numpy_raises_no_warning(recwarn):
    A = np.ones((30, 20))
    A.flags.writeable = False
    la.randomized_svd(A, 2, seed=0)
    assert not recwarn


@pytest.mark.parametrize("spectrum", ["flat", "one", "decaying", "exact"])
def test_error_bound_holds_with_its_probability(spectrum):
    tails = {
        "flat": np.ones(80),
        "one": np.concatenate([np.ones(5), [0.5], np.zeros(74)]),  # a residual of rank one
        "decaying": 0.8 ** np.arange(80),
        "exact": np.concatenate([np.ones(5), np.zeros(75)]),
    }
    A = with_spectrum(100, 80, tails[spectrum])
    runs = [la.randomized_svd(A, 5, seed=seed, power_iters=2) for seed in range(300)]
    failures = sum(residual(A, run) > run.info.error + rounding(A) for run in runs)
    # Failure probability 1 %: more than 10 of 300 have probability below 3e-4.
    assert failures <= 10
    if spectrum != "exact":
        # Not vacuous: an unbiased square, so the estimates surround the truth.
        ratios = [run.info.error_estimate / residual(A, run) for run in runs]
        assert np.mean(np.square(ratios)) == pytest.approx(1, abs=5 * math.sqrt(2 / 10 / 300))


def test_info_of_the_dense_svd():
    A = with_spectrum(30, 20, 1 / (1.0 + np.arange(20)))
    info = la.randomized_svd(A, 15, seed=0).info
    assert (info.method, info.passes, info.failure_probability) == ("dense SVD", 1, 0.0)
    assert info.error == pytest.approx(tail_norm(A, 15), rel=1e-10)


def test_result_unpacks_pickles_and_keeps_info():
    result = la.randomized_svd(torch.eye(4), 2, seed=0)
    U, S, Vh = result
    assert result.U is U
    assert result[1] is S
    copy = pickle.loads(pickle.dumps(result))
    assert torch.equal(copy.Vh, Vh)
    assert copy.info == result.info


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"rank": 0}, ValueError, r"rank must be between 1 and min\(m, n\) = 20, got 0"),
        ({"rank": 21}, ValueError, r"rank must be between 1 and min\(m, n\) = 20, got 21"),
        ({"rank": 2.0}, TypeError, "rank must be an integer, got 2.0"),
        ({"oversample": -1}, ValueError, "oversample must be non-negative, got -1"),
        ({"power_iters": -1}, ValueError, "non-negative integer, got -1"),
        ({"power_iters": "many"}, TypeError, r'power_iters \(or "auto"\) must be an integer'),
        ({"seed": 1.5}, TypeError, "seed must be an int"),
        ({"A": torch.ones(4)}, ValueError, "must have at least 2 dimensions"),
        ({"A": np.ones((3, 3), dtype=object)}, TypeError, "NumPy array or torch tensor of numbers"),
        ({"rank": None}, ValueError, "give rank, tol, or both"),
        ({"tol": 0.0}, ValueError, "tol must be between 0 and 1, got 0"),
        ({"tol": 1.0}, ValueError, "tol must be between 0 and 1, got 1"),
        ({"tol": "small"}, TypeError, "tol must be a real number, got 'small'"),
        ({"tol": 0.1, "method": "krylov"}, ValueError, 'tol goes with method "auto"'),
        ({"A": torch.ones(2, 30, 20), "tol": 0.1}, ValueError, "tol takes one matrix"),
        ({"method": "power"}, ValueError, "method must be 'auto', 'subspace'"),
        ({"method": "nystrom", "power_iters": 2}, ValueError, "has no power iterations"),
        ({"out": "list"}, ValueError, "out must be"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        la.randomized_svd(**({"A": torch.ones(30, 20), "rank": 2} | arguments))

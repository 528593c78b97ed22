"""What `info` promises, over many seeds and adversarial spectra."""

import numpy as np
import pytest
import torch

import fastlr.linalg as la
from references import exact, operator, rounding
from strategies import with_spectrum

M, N = 120, 90
INDEX = np.arange(N)
SPECTRA = {
    "flat": np.ones(N),
    "step": np.where(INDEX < 12, 1.0, 1e-3),
    "outlier": np.where(INDEX == 0, 1e3, 1.0),
    "clustered": 1.0 / (1 + INDEX // 5),
    "graded": 10.0 ** (-16.0 * INDEX / N),
    "rank one residual": np.where(INDEX < 8, 1.0, np.where(INDEX == 8, 0.5, 0.0)),
}


def errors(A, result):
    """The Frobenius and the spectral norm of A − U·diag(S)·Vh."""
    U, S, Vh = (exact(factor) for factor in result)
    difference = exact(A) - (U * S) @ Vh
    return np.linalg.norm(difference), np.linalg.norm(difference, 2)


# 200 runs that fail with a probability of 0.01 each fail 9 times or more with probability 2e-4.
RUNS, MOST_FAILURES = 200, 8


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("kind", ["dense", "operator"])
def test_tolerance_and_its_error_hold_with_their_probability(spectrum, kind):
    A = with_spectrum(M, N, SPECTRA[spectrum])
    norm = np.linalg.norm(SPECTRA[spectrum])
    given = A if kind == "dense" else operator(A)
    above_error = above_tolerance = 0
    for seed in range(RUNS):
        tol = (0.5, 0.1, 1e-3, 1e-6)[seed % 4]
        result = la.randomized_svd(given, tol=tol, seed=seed)
        error, _ = errors(A, result)
        assert result.info.converged
        above_error += error > result.info.error + rounding(A)
        above_tolerance += error > tol * norm + rounding(A)
    allowed = 0 if kind == "dense" and result.info.failure_probability == 0 else MOST_FAILURES
    assert above_error <= allowed
    assert above_tolerance <= allowed


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", ["subspace", "krylov", "single_pass", "nystrom"])
def test_both_errors_hold_with_their_probability(spectrum, method):
    A = with_spectrum(M, N, SPECTRA[spectrum])
    power_iters = 1 if method in ("subspace", "krylov") else "auto"
    failures = np.zeros(2)
    ratios = []
    for seed in range(RUNS):
        result = la.randomized_svd(A, 8, method=method, power_iters=power_iters, seed=seed)
        frobenius, spectral = errors(A, result)
        failures += [
            frobenius > result.info.error + rounding(A),
            spectral > result.info.spectral_error + rounding(A),
        ]
        ratios.append(result.info.spectral_error / max(spectral, rounding(A)))
    assert failures.max() <= MOST_FAILURES
    if frobenius > rounding(A):
        # Not vacuous. Each of the ten ‖E ω‖ is about ‖E‖_F, the largest below 3·‖E‖_F, and the
        # factor is 1.27; ‖E‖_F is within √82 of ‖E‖_2 for a residual of 82 values.
        assert np.median(ratios) <= 1.27 * 3 * np.sqrt(82)


def test_an_estimate_too_small_would_be_seen():
    """The negative control: the estimate itself, without its factor, fails about half the time."""
    A = with_spectrum(M, N, SPECTRA["clustered"])
    runs = [la.randomized_svd(A, 8, seed=seed, power_iters=1) for seed in range(RUNS)]
    low = sum(errors(A, run)[0] > run.info.error_estimate for run in runs)
    assert low > 5 * MOST_FAILURES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_and_a_rank_one_matrix_are_certified_exactly(dtype):
    zero = la.randomized_svd(torch.zeros(M, N, dtype=dtype), 3, power_iters=1, seed=0)
    assert zero.info.error == zero.info.spectral_error == 0
    A = with_spectrum(M, N, [3.0], dtype)
    one = la.randomized_svd(A, 3, power_iters=1, seed=0)
    assert one.info.error <= rounding(A)

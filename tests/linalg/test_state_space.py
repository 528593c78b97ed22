"""Matérn processes as linear systems: every answer against dense Gaussian process regression."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlr.linalg._state_space import Matern, between, join, smooth
from references import exact, matern

NUS = [0.5, 1.5, 2.5]
U = 2.0**-53
CPU = torch.device("cpu")


class Problem:
    """Observations of `rank` processes at sorted times, with precisions that may be singular."""

    def __init__(self, nu, rank, count, seed, *, noise=0.1, length=0.3):
        rng = np.random.default_rng(seed)
        self.nu, self.rank, self.length = nu, rank, length
        self.times = np.sort(rng.random(count))
        self.times[count // 2 :] += 1e-9  # a pair may be as close as this
        roots = rng.standard_normal((count, rank, max(1, rank - 1)))
        self.precision = roots @ roots.transpose(0, 2, 1) / noise
        seen = rng.standard_normal((count, rank))
        self.linear = np.einsum("jab,jb->ja", self.precision, seen)
        # The reference solves with I + K·Λ, |K| ≤ 1: n·u of its norm, and a few roundings.
        self.rounding = 4 * U * count * rank * (1 + float(np.abs(self.precision).sum()))
        self.kernel = Matern(nu, rank, CPU)

    @property
    def rate(self):
        return self.kernel.rate(self.length)

    def smoothed(self, lengths=None):
        gaps = torch.from_numpy(np.diff(self.times))
        if lengths is None:
            gaps = gaps * self.rate
        else:
            gaps = gaps[:, None] * gaps.new_tensor([self.kernel.rate(x) for x in lengths])
        return smooth(
            self.kernel, gaps, torch.from_numpy(self.linear), torch.from_numpy(self.precision)
        )

    def dense(self, points, length=None):
        """Means, covariances, log|I + KΛ| and the log evidence, by dense linear algebra."""
        every = np.concatenate([self.times, points])
        n = len(self.times) * self.rank
        K = np.kron(matern(every, every, self.nu, length or self.length), np.eye(self.rank))
        blocks = scipy.linalg.block_diag(*self.precision)
        ratio = np.eye(n) + blocks @ K[:n, :n]
        mean = K[:, :n] @ np.linalg.solve(ratio, self.linear.ravel())
        cov = K - K[:, :n] @ np.linalg.solve(ratio, blocks) @ K[:n]
        own = [slice(i * self.rank, (i + 1) * self.rank) for i in range(len(every))]
        log_det = np.linalg.slogdet(ratio)[1]
        evidence = (self.linear.ravel() @ mean[:n] - log_det) / 2
        covs = np.array([cov[i, i] for i in own])
        return mean.reshape(len(every), -1), covs, log_det, evidence


problems = st.builds(
    Problem,
    st.sampled_from(NUS),
    st.integers(1, 3),
    st.integers(1, 17),
    st.integers(0, 10**6),
    noise=st.sampled_from([1.0, 1e-2, 1e-4]),
    length=st.sampled_from([0.02, 0.3, 5.0]),
)


@settings(max_examples=40, deadline=None)
@given(problems)
def test_smoothing_is_dense_regression(problem):
    mean, cov, log_det, evidence = problem.dense([])
    smoothed = problem.smoothed()
    size = max(1.0, np.abs(mean).max())
    assert np.abs(exact(smoothed.mean) - mean).max() <= problem.rounding * size
    assert np.abs(exact(smoothed.cov) - cov).max() <= problem.rounding
    assert abs(float(smoothed.log_determinant) - log_det) <= problem.rounding
    scale = 1 + float(np.abs(problem.linear).sum()) * size
    assert abs(float(smoothed.log_evidence) - evidence) <= problem.rounding * scale


@settings(max_examples=40, deadline=None)
@given(problems, st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=5))
def test_any_time_is_dense_regression(problem, times):
    """Before, after, between, and at the times of observations."""
    times = np.array([*times, *problem.times[:3]])
    mean, cov, _, _ = problem.dense(times)
    smoothed = problem.smoothed()
    last = len(problem.times) - 1
    following = np.searchsorted(problem.times, times, side="right")
    past, future = (following - 1).clip(0), following.clip(max=last)
    back = np.where(following > 0, times - problem.times[past], np.inf)
    ahead = np.where(following <= last, problem.times[future] - times, np.inf)
    got_mean, got_cov = between(
        problem.kernel,
        tuple(part[past] for part in smoothed.past),
        tuple(part[future] for part in smoothed.future),
        torch.from_numpy(back * problem.rate),
        torch.from_numpy(ahead * problem.rate),
    )
    size = max(1.0, np.abs(mean).max())
    assert np.abs(exact(got_mean) - mean[last + 1 :]).max() <= problem.rounding * size
    assert np.abs(exact(got_cov) - cov[last + 1 :]).max() <= problem.rounding


@pytest.mark.parametrize("nu", NUS)
def test_several_length_scales_at_once(nu):
    problem = Problem(nu, 2, 9, 0)
    lengths = [0.1, 0.4, 2.0]
    smoothed = problem.smoothed(lengths)
    for index, length in enumerate(lengths):
        mean, cov, log_det, evidence = problem.dense([], length)
        assert np.abs(exact(smoothed.mean[:, index]) - mean).max() <= problem.rounding
        assert np.abs(exact(smoothed.cov[:, index]) - cov).max() <= problem.rounding
        assert abs(float(smoothed.log_determinant[index]) - log_det) <= problem.rounding
        assert abs(float(smoothed.log_evidence[index]) - evidence) <= problem.rounding * 100


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.1, 1.0, 7.0])
def test_transition_is_the_exponential(nu, gap):
    """Of the companion matrix of (s + 1)ᵖ; the noise by the integral of van Loan."""
    step = Matern(nu, 1, CPU).transition(torch.tensor(gap, dtype=torch.float64))
    p = round(nu + 0.5)
    A = np.diag(np.ones(p - 1), 1)
    A[-1] = [-math.comb(p, k) for k in range(p)]
    density = math.factorial(p - 1) ** 2 * 2.0 ** (2 * p - 1) / math.factorial(2 * p - 2)
    noise = np.zeros((p, p))
    noise[-1, -1] = density
    both = scipy.linalg.expm(gap * np.block([[-A, noise], [np.zeros((p, p)), A.T]]))
    F = both[p:, p:].T
    # e^gap is in the upper half: that much is lost in the product.
    assert np.abs(exact(step.F) - F).max() <= 100 * U * math.exp(gap)
    Q = F @ both[:p, p:]
    assert np.abs(exact(step.cov) - Q).max() <= 1000 * U * math.exp(2 * gap)


@pytest.mark.parametrize("nu", NUS)
def test_noise_of_short_steps_has_no_cancellation(nu):
    """To first order it is ∝ x²ᵖ⁻¹: 1e-35 for ν = 5/2, where 1 − F² would be rounding."""
    p, x = round(nu + 0.5), 1e-7
    step = Matern(nu, 1, CPU).transition(torch.tensor(x, dtype=torch.float64))
    leading = (2 * x) ** (2 * p - 1) / math.factorial(2 * p - 1)
    # The next term is 2x times a number below 1 smaller.
    assert abs(float(step.cov[0, 0]) / leading - 1) <= 2 * x + 100 * U


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("gap", [1e3, 1e300, math.inf])
def test_far_away_nothing_is_left(nu, gap):
    step = Matern(nu, 2, CPU).transition(torch.tensor(gap, dtype=torch.float64))
    assert not step.F.any()
    assert torch.allclose(step.cov[:2, :2], torch.eye(2).double(), rtol=0, atol=4 * U)


@pytest.mark.parametrize("nu", NUS)
def test_two_steps_are_one(nu):
    kernel = Matern(nu, 2, CPU)
    a, b, both = (
        kernel.transition(torch.tensor(x, dtype=torch.float64)) for x in (0.25, 0.5, 0.75)
    )
    for got, expected in zip(join(a, b), both, strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=16 * U)


@pytest.mark.parametrize("nu", NUS)
def test_joining_is_associative(nu):
    problem = Problem(nu, 2, 3, 1)
    kernel = problem.kernel
    seen = kernel.observation(torch.from_numpy(problem.linear), torch.from_numpy(problem.precision))
    steps = kernel.transition(torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64))
    a, b, c = (join(steps.at(slice(i, i + 1)), seen.at(slice(i, i + 1))) for i in range(3))
    for left, right in zip(join(join(a, b), c), join(a, join(b, c)), strict=True):
        size = float(left.abs().max())
        assert torch.allclose(left, right, rtol=0, atol=problem.rounding * size)

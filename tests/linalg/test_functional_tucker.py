"""Functional Tucker decomposition: its updates against dense Gaussians, and what it promises."""

import copy
import itertools
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg._tucker_posterior import Mode, Posterior, contract
from references import exact, matern

pytestmark = pytest.mark.filterwarnings("ignore::fastlr.linalg.ConvergenceWarning")

NUS = [0.5, 1.5, 2.5]
U = 2.0**-53
LETTERS = "abcdefgh"


def smooth_functions(t, rank, seed):
    """Sums of a few waves."""
    rng = np.random.default_rng(seed)
    phases, sizes = rng.uniform(0, 6, (2, 4, rank))
    waves = np.sin(np.arange(1, 5)[:, None] * 1.5 * t[:, None, None] + phases)
    return (sizes / np.arange(1, 5)[:, None] ** 2 * waves).sum(1)


class Planted:
    """Values of a functional Tucker decomposition with a mean square of 1, and noise.

    Coordinates are on a grid, as few distinct ones are faster.
    """

    def __init__(self, count, ranks, noise, seed, grid=32):
        rng = np.random.default_rng(seed)
        self.coordinates = rng.integers(0, grid, (count, len(ranks))) / grid
        product = rng.standard_normal(ranks).reshape(1, -1).repeat(count, 0)
        for d, rank in enumerate(ranks):
            u = smooth_functions(self.coordinates[:, d], rank, seed + d)
            product = (u[:, None] @ product.reshape(count, rank, -1))[:, 0]
        self.truth = product[:, 0] / np.sqrt(np.mean(product**2))
        self.values = self.truth + noise * rng.standard_normal(count)


def small_posterior(ranks=(2, 3), count=14, nu=1.5, sweeps=2, noise=None, steps=10):
    """After some sweeps, with duplicates among the coordinates."""
    planted = Planted(count, ranks, 0.1, 0)
    points = torch.from_numpy(np.round(planted.coordinates * steps) / steps)
    modes = [Mode(column, nu, r, None) for column, r in zip(points.T, ranks, strict=True)]
    posterior = Posterior(modes, torch.from_numpy(planted.values) / 4, noise, 0)
    for _ in range(sweeps):
        posterior.sweep()
    return posterior


def second_moments(posterior):
    """E[gg′] of the core, shape (*ranks, *ranks), and E[uu′] of each mode at each observation."""
    core = np.outer(*[exact(posterior.core)] * 2) + exact(posterior.core_cov)
    modes = []
    for mode in posterior.modes:
        mean, where = exact(mode.mean), mode.where.numpy()
        modes.append((exact(mode.cov) + mean[:, :, None] * mean[:, None, :])[where])
    return core.reshape(*posterior.ranks * 2), modes


def kernel_matrix(mode):
    knots = exact(mode.knots)
    return np.kron(matern(knots, knots, mode.kernel.nu, mode.length), np.eye(mode.rank))


def dense_messages(posterior, index):
    """What a mode is told, by sums over all pairs of entries of the core."""
    core, modes = second_moments(posterior)
    ranks = posterior.ranks
    mean = exact(posterior.core).reshape(ranks)
    means = [exact(mode.mean)[mode.where.numpy()] for mode in posterior.modes]
    tau, mode = posterior.noise.mean, posterior.modes[index]
    linear = np.zeros((len(mode.knots), mode.rank))
    precision = np.zeros((len(mode.knots), mode.rank, mode.rank))
    for i, j in enumerate(mode.where.tolist()):
        for k in itertools.product(*map(range, ranks)):
            others = [d for d in range(len(ranks)) if d != index]
            weight = math.prod(means[d][i, k[d]] for d in others)
            linear[j, k[index]] += tau * float(posterior.values[i]) * mean[k] * weight
            for m in itertools.product(*map(range, ranks)):
                weight = math.prod(modes[d][i, k[d], m[d]] for d in others)
                precision[j, k[index], m[index]] += tau * core[k + m] * weight
    return linear, precision


# ---------------------------------------------------------------- the updates


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(NUS),
    st.lists(st.floats(-1, 1), min_size=1, max_size=14),
    st.sampled_from([0.05, 0.4, 3.0]),
    st.sampled_from([0.5, 1e-2, 1e-3]),
    st.integers(0, 10**6),
)
def test_with_a_known_core_it_is_regression(nu, times, length, noise, seed):
    """One mode of rank 1: the posterior of a Gaussian process, with duplicates, in any order."""
    rng = np.random.default_rng(seed)
    t = np.array(times + times[:2])
    y = rng.standard_normal(len(t))
    mode = Mode(torch.from_numpy(t), nu, 1, length)
    posterior = Posterior([mode], torch.from_numpy(y), noise, 0)
    posterior.core = torch.tensor([2.0], dtype=torch.float64)
    mode.update(*posterior._messages(0), search=False)

    K = 4 * matern(t, t, nu, length) + noise * np.eye(len(t))
    points = np.unique(t)
    cross = 2 * matern(points, t, nu, length)
    mean = cross @ np.linalg.solve(K, y)
    cov = 1 - np.einsum("ij,ji->i", cross, np.linalg.solve(K, cross.T))
    # n·u of the condition number of K, for the reference.
    allowed = 16 * U * len(t) * (1 + 4 * len(t) / noise) * (1 + np.abs(y).max())
    assert np.abs(exact(mode.mean)[:, 0] - mean).max() <= allowed
    assert np.abs(exact(mode.cov)[:, 0, 0] - cov).max() <= allowed
    # log N(y; 0, K), less what does not depend on the process
    evidence = mode.divergence - (
        posterior.noise.mean
        * float(
            posterior.values @ (2 * mode.mean[mode.where, 0])
            - 2 * (mode.mean**2 + mode.cov[..., 0])[mode.where, 0].sum()
        )
    )
    expected = 0.5 * np.linalg.slogdet(K / noise)[1] + 0.5 * (
        y @ np.linalg.solve(K, y) - y @ y / noise
    )
    assert abs(evidence - expected) <= allowed * (1 + y @ y / noise)


@pytest.mark.parametrize("ranks", [(2,), (2, 3), (3, 1, 2), (1, 2, 1, 2)])
@pytest.mark.parametrize("nu", NUS)
def test_every_update_is_the_dense_one(ranks, nu):
    posterior = small_posterior(ranks, nu=nu)
    for index, mode in enumerate(posterior.modes):
        linear, precision = posterior._messages(index)
        dense_linear, dense_precision = dense_messages(posterior, index)
        size = np.abs(dense_precision).max()
        # Sums of n·R² products.
        assert np.abs(exact(linear) - dense_linear).max() <= 1000 * U * np.abs(dense_linear).max()
        assert np.abs(exact(precision) - dense_precision).max() <= 1000 * U * size

        mode.update(linear, precision, search=False)
        K = kernel_matrix(mode)
        blocks = scipy.linalg.block_diag(*dense_precision)
        ratio = np.eye(len(K)) + K @ blocks
        cov = np.linalg.solve(ratio, K)
        mean = cov @ dense_linear.ravel()
        allowed = 16 * U * len(K) * (1 + np.abs(blocks).sum())
        assert np.abs(exact(mode.mean).ravel() - mean).max() <= allowed * np.abs(mean).max()
        r = mode.rank
        own = np.array([cov[i : i + r, i : i + r] for i in range(0, len(K), r)])
        assert np.abs(exact(mode.cov) - own).max() <= allowed
        # The squares in the norm of the kernel, which balancing needs, and the divergence.
        joint = np.linalg.solve(K, cov + np.outer(mean, mean)).reshape(len(mode.knots), r, -1, r)
        squares = np.einsum("jajb->ab", joint)
        excess = allowed * (1 + np.abs(dense_linear).sum() * np.abs(mean).max())
        excess += 1e4 * U * np.linalg.cond(K)
        assert np.abs(exact(mode.squares) - squares).max() <= excess
        divergence = np.trace(squares) - len(K) + np.linalg.slogdet(ratio)[1]
        assert abs(mode.divergence - divergence / 2) <= r * excess


@pytest.mark.parametrize("ranks", [(2,), (2, 3), (3, 1, 2)])
def test_core_is_bayesian_regression(ranks):
    posterior = small_posterior(ranks)
    alpha, tau = posterior.scale.mean, posterior.noise.mean
    _, modes = second_moments(posterior)
    means = [exact(mode.mean)[mode.where.numpy()] for mode in posterior.modes]
    size = math.prod(ranks)
    gram, right = np.zeros((size, size)), np.zeros(size)
    for i, y in enumerate(posterior.values.tolist()):
        second, mean = np.ones((1, 1)), np.ones(1)
        for d in range(len(ranks)):
            second, mean = np.kron(second, modes[d][i]), np.kron(mean, means[d][i])
        gram += second
        right += y * mean
    posterior._update_core()
    precision = alpha * np.eye(size) + tau * gram
    allowed = 100 * U * np.linalg.cond(precision)
    cov = np.linalg.inv(precision)
    assert np.abs(exact(posterior.core_cov) - cov).max() <= allowed * np.abs(cov).max()
    core = tau * cov @ right
    assert np.abs(exact(posterior.core) - core).max() <= allowed * np.abs(core).max()
    assert abs(posterior.core_log_det - np.linalg.slogdet(cov)[1]) <= size * allowed
    shape, rate = posterior.scale.prior
    assert posterior.scale.shape == shape + size / 2
    squares = core @ core + np.trace(cov)
    assert posterior.scale.rate == pytest.approx(rate + squares / 2, rel=1e-10 + allowed)


@pytest.mark.parametrize("noise", [None, 0.01])
def test_bound_is_the_dense_one(noise):
    """Every expectation and divergence anew, from the moments and prior covariances."""
    posterior = small_posterior(noise=noise)
    core, modes = second_moments(posterior)
    squares = 0.0
    for i, y in enumerate(posterior.values.tolist()):
        means = [exact(mode.mean)[mode.where[i]] for mode in posterior.modes]
        fitted = np.einsum("ab,a,b->", exact(posterior.core).reshape(2, 3), *means)
        second = np.einsum("abcd,ac,bd->", core, modes[0][i], modes[1][i])
        squares += y * y - 2 * y * fitted + second
    n, size = len(posterior.values), 6

    def gamma(precision):
        (a0, b0), a, b = precision.prior, precision.shape, precision.rate
        mean_log = scipy.special.digamma(a) - np.log(b)
        prior = a0 * np.log(b0) - scipy.special.gammaln(a0) + (a0 - 1) * mean_log - b0 * a / b
        entropy = a - np.log(b) + scipy.special.gammaln(a) + (1 - a) * scipy.special.digamma(a)
        return mean_log, prior + entropy

    log_tau, of_noise = gamma(posterior.noise) if noise is None else (-np.log(noise), 0.0)
    log_alpha, of_scale = gamma(posterior.scale)
    tau, alpha = posterior.noise.mean, posterior.scale.mean
    bound = of_noise + of_scale + n / 2 * (log_tau - np.log(2 * np.pi)) - tau / 2 * squares
    bound += size / 2 * (log_alpha + 1) - alpha / 2 * np.einsum("abab->", core)
    bound += np.linalg.slogdet(exact(posterior.core_cov))[1] / 2
    bound -= sum(mode.divergence for mode in posterior.modes)  # tested above
    # Terms of the size of these cancel.
    assert abs(posterior.bound() - bound) <= 1e-12 * (abs(bound) + n * tau + n * abs(log_tau) + 100)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 10**6))
def test_moments_of_products(ranks, seed):
    """Mean and variance of core × u₁ × … × u_D for independent Gaussians."""
    rng = np.random.default_rng(seed)
    size = math.prod(ranks)

    def gaussians(count, n):
        root = rng.standard_normal((count, n, n)) * 10.0 ** rng.integers(-6, 1)
        return rng.standard_normal((count, n)), root @ root.transpose(0, 2, 1)

    core, core_cov = (part[0] for part in gaussians(1, size))
    factors = [gaussians(4, rank) for rank in ranks]
    mean, variance = contract(
        torch.from_numpy(core),
        torch.from_numpy(core_cov),
        [(torch.from_numpy(m), torch.from_numpy(c)) for m, c in factors],
    )
    for i in range(4):
        products, second = core, core_cov + np.outer(core, core)
        left, square = np.ones(1), np.ones((1, 1))
        for m, c in factors:
            left = np.kron(left, m[i])
            square = np.kron(square, c[i] + np.outer(m[i], m[i]))
        whole = np.sum(second * square)
        assert abs(float(mean[i, 0]) - products @ left) <= 100 * U * (
            np.abs(products) @ np.abs(left)
        )
        # The reference cancels.
        expected = whole - (products @ left) ** 2
        assert abs(float(variance[i, 0, 0]) - expected) <= 1000 * U * np.sum(
            np.abs(second * square)
        )
        assert float(variance[i, 0, 0]) >= 0


def test_small_variances_do_not_cancel():
    """Of u·v with variances 1e-20 around 1: 2e-20, where E[x²] − E[x]² is 0 or 1e-16."""
    one, small = torch.ones(1, 1).double(), torch.full((1, 1, 1), 1e-20, dtype=torch.float64)
    _, variance = contract(one[0], 0 * one, [(one, small), (one, small)])
    assert abs(float(variance) / 2e-20 - 1) <= 8 * U


# ---------------------------------------------------------------- the ascent


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([(2,), (1, 2), (2, 2), (2, 1, 2)]),
    st.sampled_from(NUS),
    st.sampled_from([0.0, 1e-3, 0.1, 3.0]),
    st.sampled_from([None, 0.01]),
    st.integers(0, 10**6),
)
def test_bound_never_falls(ranks, nu, noise, known, seed):
    """Through the balancing, the search for length scales, and the first sweeps."""
    planted = Planted(30, ranks, noise, seed, grid=12)
    fit = la.functional_tucker(
        planted.coordinates,
        planted.values,
        ranks,
        nu=nu,
        noise_variance=known,
        tol=0,
        max_sweeps=16,
        starts=1,
        seed=seed,
    )
    bounds = fit.history.bound
    assert len(bounds) == 16
    # Exponents of the size of values² / noise cancel in divergences and fit.
    size = float(np.sum(planted.values**2)) / fit.noise_variance + 30 * 100
    assert all(b >= a - 100 * U * size for a, b in itertools.pairwise(bounds))
    assert bounds[-1] > bounds[0]


def mixings(posterior):
    """The matrices that balancing multiplies the functions by, and their squares before."""
    before = [mode.squares.clone() for mode in posterior.modes]
    means = [mode.mean.clone() for mode in posterior.modes]
    posterior._balance()
    mixed = [
        torch.linalg.lstsq(old, mode.mean).solution.mT
        for mode, old in zip(posterior.modes, means, strict=True)
    ]
    for mode, old, T in zip(posterior.modes, before, mixed, strict=True):
        assert torch.allclose(T @ old @ T.mT, mode.squares, rtol=1e-7, atol=1e-7)
    return mixed, before


@pytest.mark.parametrize(
    ("ranks", "steps"), [((2, 3), 10), ((2, 2, 2), 10), ((4, 1, 2), 10), ((2,), 10), ((2, 3, 3), 2)]
)
def test_balancing_raises_the_bound_to_its_maximum(ranks, steps):
    """As a function of the mixing, log-determinants and squares: the fit does not change.

    With three coordinates the core has more dimensions than the functions.
    """
    posterior = small_posterior(ranks, count=25, sweeps=2, steps=steps)
    size = len(posterior.core)

    def step():
        moment = posterior.core_cov + torch.outer(posterior.core, posterior.core)
        (shape, rate), alpha = posterior.scale.prior, posterior.scale.mean
        mixed, before = mixings(posterior)
        gain, inverse = 0.0, torch.ones(1, 1).double()
        for mode, T, old in zip(posterior.modes, mixed, before, strict=True):
            log = float(torch.linalg.slogdet(T).logabsdet)
            gain += (len(mode.knots) - size // mode.rank) * log
            gain -= float(mode.squares.trace() - old.trace()) / 2
            inverse = torch.kron(inverse, torch.linalg.inv(T).mT)
        # E log p(core | α) with the new posterior of α, and its divergence from the prior.
        old_square = float(moment.trace())
        posterior.core = inverse @ posterior.core
        posterior.core_cov = inverse @ posterior.core_cov @ inverse.mT
        square = float(posterior.core_cov.trace() + posterior.core.square().sum())
        ratio = posterior.scale.mean / alpha
        gain += (size / 2 + shape) * math.log(ratio)
        gain -= (posterior.scale.mean * square - alpha * old_square) / 2
        gain -= rate * (posterior.scale.mean - alpha)
        return gain, mixed

    gain, _ = step()
    assert gain > 0
    for _ in range(300):
        last, mixed = step()
        assert last > -1e-9
    # At the maximum functions are only rotated.
    assert last < 1e-6 * max(gain, 1)
    for T in mixed:
        assert torch.allclose(T.mT @ T, torch.eye(len(T)).double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("ranks", [(2, 3), (2, 2, 2)])
def test_balancing_knows_what_the_core_becomes(ranks):
    """Its precision is that of a core that is mixed by T⁻ᵀ; without a prior, R/‖core‖² exactly."""
    posterior = small_posterior(ranks, count=25, sweeps=2)
    posterior.scale.prior = 0.0, 0.0
    mixed, _ = mixings(posterior)
    inverse = torch.ones(1, 1).double()
    for T in mixed:
        inverse = torch.kron(inverse, torch.linalg.inv(T).mT)
    core, cov = inverse @ posterior.core, inverse @ posterior.core_cov @ inverse.mT
    square = float(core.square().sum() + cov.trace())
    assert posterior.scale.mean == pytest.approx(len(core) / square, rel=1e-6)
    # The other way to mix it is another one.
    other = torch.ones(1, 1).double()
    for T in mixed:
        other = torch.kron(other, torch.linalg.inv(T))
    square = float(
        (other @ posterior.core).square().sum() + (other @ posterior.core_cov @ other.mT).trace()
    )
    assert posterior.scale.mean != pytest.approx(len(core) / square, rel=1e-3)


# ---------------------------------------------------------------- recovery


@pytest.mark.parametrize(("ranks", "seed"), [((2, 2), 1), ((2, 3), 2), ((2, 2, 2), 3)])
def test_recovers_and_knows_its_errors(ranks, seed):
    noise, held_out = 0.05, 300
    planted = Planted(400 + held_out, ranks, noise, seed, grid=20)
    seen, new = slice(0, 400), slice(400, None)
    fit = la.functional_tucker(
        planted.coordinates[seen], planted.values[seen], ranks, nu=2.5, seed=0
    )
    assert fit.info.converged
    mean, variance = fit.predict(planted.coordinates[new])
    error = mean - planted.truth[new]
    # With p parameters in effect, p/N of the variance of the noise, ‖error‖ ≈ noise·√(p/N): well
    # below the noise.
    assert np.sqrt(np.mean(error**2)) < 0.5 * noise
    assert abs(math.sqrt(fit.noise_variance) / noise - 1) < 4 / math.sqrt(2 * 400)
    # Of new observations 95.4 % are within 2σ: four standard deviations of the binomial.
    z = (mean - planted.values[new]) / np.sqrt(variance + fit.noise_variance)
    share, spread = np.mean(np.abs(z) < 2), math.sqrt(0.9545 * 0.0455 / held_out)
    assert abs(share - 0.9545) < 4 * spread
    # Errors of the truth hang together: their mean square is of the size of the variances.
    assert 0.25 < np.mean(error**2 / variance) < 2


def test_without_noise_it_is_found_to_the_least_noise():
    planted = Planted(250, (2, 2), 0.0, 5)
    fit = la.functional_tucker(planted.coordinates, planted.values, 2, nu=2.5, seed=0)
    largest = np.abs(planted.values).max()
    # Values below 2ᵉ are taken to have a noise of 2⁻²⁰·2ᵉ at least.
    assert fit.noise_variance >= (0.5 * 2.0**-20 * largest) ** 2
    assert fit.info.relative_residual < 1e-4
    new = np.random.default_rng(0).uniform(0.1, 0.9, (50, 2))
    assert (fit.predict(new).variance > 0).all()
    assert math.sqrt(fit.noise_variance) < 1e-3 * largest


def test_length_scales_follow_the_data():
    """A slow and a fast mode; and the bound is larger than with the wrong ones."""
    rng = np.random.default_rng(0)
    t = rng.integers(0, 64, (300, 2)) / 64
    values = np.sin(t[:, 0]) * np.sin(40 * t[:, 1]) + 0.01 * rng.standard_normal(300)
    fit = la.functional_tucker(t, values, 1, nu=2.5, tol=1e-4, starts=1, seed=0)
    slow, fast = fit.length_scales
    assert slow > 4 * fast
    wrong = la.functional_tucker(t, values, 1, nu=2.5, length_scale=(fast, slow), seed=0)
    assert wrong.length_scales == (fast, slow)
    assert wrong.info.bound < fit.info.bound
    right = la.functional_tucker(t, values, 1, nu=2.5, length_scale=[slow, fast], seed=0)
    assert right.length_scales == (slow, fast)


def test_ranks_above_the_truth_do_no_harm():
    planted = Planted(300, (1, 1), 0.05, 3, grid=16)
    few = la.functional_tucker(planted.coordinates, planted.values, 1, nu=2.5, seed=0)
    many = la.functional_tucker(planted.coordinates, planted.values, (3, 4), nu=2.5, seed=0)
    new = np.random.default_rng(1).random((200, 2))
    apart = few.predict(new).mean - many.predict(new).mean
    assert np.sqrt(np.mean(apart**2)) < 0.05
    assert few.info.bound > many.info.bound


# ---------------------------------------------------------------- invariances


def fitted(planted, ranks=(2, 2), **options):
    options = {"seed": 0, "max_sweeps": 12, "tol": 0, "starts": 1} | options
    return la.functional_tucker(planted.coordinates, planted.values, ranks, **options)


@pytest.fixture(scope="module")
def planted():
    return Planted(40, (2, 2), 0.1, 0, grid=12)


NEW = np.random.default_rng(8).random((20, 2)) * 1.4 - 0.2


def same(a, b, rtol=0.0):
    return all(
        np.allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())
        for x, y in zip(a.predict(NEW), b.predict(NEW), strict=True)
    )


def test_order_of_observations_does_not_matter(planted):
    order = np.random.default_rng(0).permutation(40)
    shuffled = copy.copy(planted)
    shuffled.coordinates, shuffled.values = planted.coordinates[order], planted.values[order]
    # Sums in another order; sweeps magnify it by the condition of their problems.
    assert same(fitted(planted), fitted(shuffled), 1e-9)


def test_two_observations_are_one_with_half_the_noise(planted):
    """A duplicate row with the same value, with the noise known."""
    twice = copy.copy(planted)
    twice.coordinates = np.repeat(planted.coordinates, 2, 0)
    twice.values = np.repeat(planted.values, 2)
    once = fitted(planted, noise_variance=0.01)
    assert same(once, fitted(twice, noise_variance=0.02), 1e-9)
    assert not same(once, fitted(twice, noise_variance=0.01), 1e-3)


@pytest.mark.parametrize("power", [-600, -3, 5, 600])
def test_values_times_a_power_of_two(planted, power):
    scaled = copy.copy(planted)
    scaled.values = planted.values * 2.0**power
    fit, other = fitted(planted), fitted(scaled)
    assert np.array_equal(fit.predict(NEW).mean * 2.0**power, other.predict(NEW).mean)
    assert np.array_equal(fit.core * 2.0**power, other.core)
    assert fit.info.relative_residual == other.info.relative_residual
    shift = 40 * power * math.log(2)
    assert fit.info.bound - shift == pytest.approx(other.info.bound, rel=1e-12, abs=1e-9)
    if abs(power) < 500:
        variance = fit.predict(NEW).variance * 4.0**power
        assert np.array_equal(variance, other.predict(NEW).variance)
        assert fit.noise_variance * 4.0**power == other.noise_variance
        assert np.array_equal(fit.core_covariance * 4.0**power, other.core_covariance)


def test_values_of_any_size(planted):
    """Not by a power of two: the priors of noise and core are relative to one."""
    scaled = copy.copy(planted)
    for factor in (3e-200, 7e200):
        scaled.values = planted.values * factor
        mean = fitted(scaled).predict(NEW).mean / factor
        expected = fitted(planted).predict(NEW).mean
        assert np.abs(mean - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("power", [-900, -2, 7, 900])
def test_coordinates_times_a_power_of_two(planted, power):
    scaled = copy.copy(planted)
    scaled.coordinates = planted.coordinates * 2.0**power
    fit, other = fitted(planted), fitted(scaled)
    for got, expected in zip(other.predict(NEW * 2.0**power), fit.predict(NEW), strict=True):
        assert np.array_equal(got, expected)
    assert other.length_scales == tuple(x * 2.0**power for x in fit.length_scales)
    lengths = np.array([0.3, 0.7])
    fit = fitted(planted, length_scale=lengths.tolist())
    other = fitted(scaled, length_scale=(lengths * 2.0**power).tolist())
    for got, expected in zip(other.predict(NEW * 2.0**power), fit.predict(NEW), strict=True):
        assert np.array_equal(got, expected)


def test_shifted_coordinates(planted):
    """By numbers that keep all bits, so that differences are the same."""
    near = copy.copy(planted)
    near.coordinates = np.round(planted.coordinates * 2**20) / 2**20
    far = copy.copy(near)
    shift = np.array([64, -1024])
    far.coordinates = near.coordinates + shift
    new = np.round(NEW * 2**20) / 2**20
    for got, expected in zip(
        fitted(far).predict(new + shift), fitted(near).predict(new), strict=True
    ):
        assert np.allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_order_of_modes_does_not_matter_in_the_end():
    """Of the path it does; both end at the same optimum."""
    planted = Planted(200, (1, 2), 0.05, 0, grid=16)
    turned = copy.copy(planted)
    turned.coordinates = planted.coordinates[:, ::-1]
    options = {"tol": 1e-6, "max_sweeps": 150, "length_scale": 0.5, "nu": 2.5}
    fit, other = fitted(planted, (2, 2), **options), fitted(turned, (2, 2), **options)
    new = np.random.default_rng(1).random((50, 2))
    apart = fit.predict(new).mean - other.predict(new[:, ::-1]).mean
    sigma = np.sqrt(fit.predict(new).variance)
    assert np.abs(apart).max() < 0.2 * sigma.max()
    assert fit.info.bound == pytest.approx(other.info.bound, abs=0.5)


def test_one_seed_is_one_result(planted):
    assert same(fitted(planted), fitted(planted))
    assert not same(fitted(planted), fitted(planted, seed=1), 1e-6)
    generator = torch.Generator().manual_seed(3)
    first = fitted(planted, seed=generator)
    assert not same(first, fitted(planted, seed=generator), 1e-6)
    state = torch.random.get_rng_state()
    fitted(planted)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_best_start_goes_on():
    """Of ten sweeps from each; the first one of several is the only one of one."""
    planted = Planted(200, (2, 2, 2), 0.05, 4, grid=10)
    bounds = [
        fitted(planted, 2, starts=starts, max_sweeps=10).info.bound for starts in (1, 2, 3, 4, 5)
    ]
    assert bounds == sorted(bounds)
    assert len(set(bounds)) > 1
    again = fitted(planted, 2, starts=5, max_sweeps=14)
    assert again.history.bound[9] == bounds[-1]


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize("nu", NUS)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_one_observation(nu, dimensions):
    t = np.full((1, dimensions), 0.3)
    fit = la.functional_tucker(t, [2.0], 2, nu=nu, seed=0)
    mean, variance = fit.predict(np.concatenate([t, t + 1e9]))
    assert np.isfinite(mean).all()
    assert (variance > 0).all()
    assert 0 <= mean[0] <= 2
    assert abs(mean[1]) < 1e-12
    assert fit.length_scales == (0.5,) * dimensions
    known = la.functional_tucker(t, [2.0], 2, nu=nu, noise_variance=0.01, seed=0)
    assert abs(known.predict(t).mean[0] - 2) < 0.1


def test_one_coordinate_for_all():
    """A constant column has a function of one value."""
    planted = Planted(60, (1, 1), 0.05, 0)
    planted.coordinates[:, 1] = 7.0
    planted.values = planted.coordinates[:, 0] ** 2
    fit = fitted(planted, (2, 2), max_sweeps=30)
    mean, variance = fit.predict(planted.coordinates)
    assert np.abs(mean - planted.values).max() < 0.05
    assert np.isfinite(variance).all()
    one = la.functional_tucker(np.zeros((5, 1)), np.ones(5), 1, seed=0)
    assert abs(one.predict([[0.0]]).mean[0] - 1) < 0.1


def test_zeros():
    fit = la.functional_tucker(np.random.default_rng(0).random((10, 2)), np.zeros(10), 2, seed=0)
    mean, variance = fit.predict(NEW)
    assert not mean.any()
    assert np.isfinite(variance).all()
    assert math.isfinite(fit.info.bound)
    assert fit.info.relative_residual == 0


def test_more_functions_than_observations():
    planted = Planted(6, (1, 1), 0.1, 0)
    fit = fitted(planted, (5, 7), max_sweeps=15)
    mean, variance = fit.predict(NEW)
    assert np.isfinite(mean).all()
    assert (variance > 0).all()
    assert np.all(np.diff(fit.history.bound) > -1e-6)


def test_far_from_the_data_the_prior_is_left(planted):
    fit = fitted(planted)
    mean, variance = fit.predict([[1e12, 0.5], [-1e300, 0.5]])
    assert not mean.any()
    assert variance[0] == variance[1] > 0
    factor = fit.factor(0, [1e12])
    assert not factor.mean.any()
    assert np.allclose(factor.covariance[0], np.eye(2), rtol=0, atol=8 * U)


def test_at_the_observations_prediction_is_the_smoothed_posterior(planted):
    """The bridge with a gap of zero; the error of the training is that of predictions."""
    fit = fitted(planted)
    left = planted.values - fit.predict(planted.coordinates).mean
    error = np.sqrt(np.mean(left**2))
    assert error == pytest.approx(fit.history.training_error[-1], rel=1e-9)
    size = np.sqrt(np.mean(planted.values**2))
    assert fit.info.relative_residual == pytest.approx(error / size, rel=1e-9)
    # and continuous: 1e-9 to either side is 1e-9 of the change over a length scale, or its root
    for nudge in (-1e-9, 1e-9):
        near = fit.predict(planted.coordinates + nudge)
        assert np.abs(near.mean - fit.predict(planted.coordinates).mean).max() < 1e-6


def test_factors_and_core_give_the_mean(planted):
    fit = fitted(planted, (2, 3))
    u, v = (fit.factor(mode, NEW[:, mode]) for mode in range(2))
    product = np.einsum("ab,na,nb->n", fit.core, u.mean, v.mean)
    mean, variance = fit.predict(NEW)
    assert np.abs(product - mean).max() <= 100 * U * np.abs(fit.core).sum() * 10
    assert fit.ranks == fit.core.shape == (2, 3)
    second = fit.core_covariance + np.outer(fit.core, fit.core)
    of_u, of_v = (f.covariance + f.mean[:, :, None] * f.mean[:, None] for f in (u, v))
    whole = np.einsum("abcd,nac,nbd->n", second.reshape(2, 3, 2, 3), of_u, of_v)
    assert np.allclose(whole - mean**2, variance, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- results and files


def test_kinds_and_dtypes(planted):
    t, y = planted.coordinates, planted.values
    expected = fitted(planted).predict(NEW).mean
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = torch.from_numpy(y).to(dtype)
        fit = la.functional_tucker(
            torch.from_numpy(t), values, 2, seed=0, tol=0, max_sweeps=12, starts=1
        )
        parts = [*fit.predict(NEW), fit.core, fit.core_covariance, *fit.factor(0, [0.1])]
        assert all(isinstance(part, torch.Tensor) and part.dtype == dtype for part in parts)
        error = (fit.predict(NEW).mean.double().numpy() - expected) / np.abs(expected).max()
        # Rounded values and a rounded result, within what 8 sweeps make of it.
        assert np.abs(error).max() <= 200 * torch.finfo(dtype).eps
    fit = la.functional_tucker(t, y.astype(np.float32), 2, seed=0, tol=0, max_sweeps=12, starts=1)
    assert all(part.dtype == np.float32 for part in [*fit.predict(NEW), fit.core])
    fit = la.functional_tucker([[0], [1], [2]], [1, 2, 4], 1, seed=0)
    assert fit.predict([[1]]).mean.dtype == np.float64
    fit = la.functional_tucker(torch.tensor([[0], [1]]), torch.tensor([1, 2]), 1, seed=0)
    assert fit.predict([[1]]).mean.dtype == torch.get_default_dtype()


def test_float32_of_any_size(planted):
    t = planted.coordinates
    y = torch.from_numpy(planted.values).float()
    fits = [
        la.functional_tucker(t, y * 2.0**power, 2, seed=0, tol=0, max_sweeps=12, starts=1)
        for power in (-100, 0, 100)
    ]
    means = [fit.predict(NEW).mean for fit in fits]
    assert torch.equal(means[0] * 2.0**100, means[1])
    assert torch.equal(means[2] * 2.0**-100, means[1])


def test_inputs_are_not_written_to(planted):
    t, y = planted.coordinates.copy(), planted.values.copy()
    t.flags.writeable = y.flags.writeable = False
    fit = la.functional_tucker(t, y, 2, seed=0, max_sweeps=3, tol=0, starts=1, validation=(t, y))
    fit.predict(t)
    assert np.array_equal(t, planted.coordinates)
    backward = la.functional_tucker(t[::-1], y[::-1], 2, seed=0, max_sweeps=3, tol=0, starts=1)
    assert same(fit, backward, 1e-9)


def test_history_and_validation(planted):
    held_out = Planted(15, (2, 2), 0.1, 1)
    validation = held_out.coordinates, held_out.values
    fit = fitted(planted, validation=validation)
    history = fit.history
    assert len(history.bound) == len(history.training_error) == fit.info.sweeps == 12
    left = held_out.values - fit.predict(held_out.coordinates).mean
    assert history.validation_error[-1] == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-12)
    assert fit.info.bound == history.bound[-1]
    # It is not fitted.
    assert same(fit, fitted(planted))
    assert fitted(planted).history.validation_error == ()


def test_save_and_load(planted, tmp_path):
    fit = fitted(planted, validation=(NEW, NEW[:, 0]))
    path = tmp_path / "fit"
    fit.save(path)
    other = la.FunctionalTucker.load(path)
    for copied in (other, pickle.loads(pickle.dumps(fit)), copy.deepcopy(fit)):
        assert same(fit, copied)
        assert copied.info == fit.info
        assert copied.history == fit.history
        assert copied.length_scales == fit.length_scales
        assert copied.noise_variance == fit.noise_variance
        assert copied.nu == fit.nu
        assert np.array_equal(copied.core, fit.core)
        for a, b in zip(fit.factor(1, NEW[:, 1]), copied.factor(1, NEW[:, 1]), strict=True):
            assert np.array_equal(a, b)
    state = torch.load(path, weights_only=True)
    state["noise_variance"] *= 2
    with pytest.raises(ValueError, match="altered"):
        other.load_state_dict(state)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        la.FunctionalTucker.load(path)
    with pytest.raises(TypeError, match="functional_tucker"):
        la.FunctionalTucker()


def test_convergence(planted):
    with pytest.warns(la.ConvergenceWarning, match="2 sweeps were not enough"):
        fit = fitted(planted, tol=1e-3, max_sweeps=2)
    assert not fit.info.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fitted(planted, tol=1e-2, max_sweeps=200)
        assert fit.info.converged
        assert fitted(planted, tol=0, max_sweeps=2).info.sweeps == 2
    rises = np.diff(fit.history.bound)[-2:]
    assert (rises <= 1e-2 * 40).all()
    assert fit.info.sweeps >= 12


def test_known_noise(planted):
    fit = fitted(planted, noise_variance=0.04)
    assert fit.noise_variance == 0.04
    vague = fitted(planted, noise_variance=4.0)
    assert vague.info.relative_residual > fit.info.relative_residual


GOOD = np.random.default_rng(0).random((5, 2))
VALUES = np.arange(5.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nu": 1}, ValueError, "nu must be one of 0.5, 1.5, 2.5, got 1"),
        ({"coordinates": VALUES}, ValueError, "coordinates must have 2 dimensions, got shape (5,)"),
        ({"values": GOOD}, ValueError, "values must have one dimension, got shape (5, 2)"),
        (
            {"values": VALUES[:4]},
            ValueError,
            "coordinates and values must have one length, got 5 and 4",
        ),
        (
            {"coordinates": GOOD[:0], "values": VALUES[:0]},
            ValueError,
            "values must have at least one entry, got none",
        ),
        (
            {"coordinates": GOOD[:, :0]},
            ValueError,
            "coordinates must have at least one column, got none",
        ),
        (
            {"coordinates": GOOD * [1, np.nan]},
            ValueError,
            "coordinates must be finite, got nan at index (0, 1)",
        ),
        (
            {"values": [1, 2, np.inf, 4, 5]},
            ValueError,
            "values must be finite, got inf at index (2,)",
        ),
        ({"values": VALUES * 1j}, TypeError, "values must be real, got torch.complex128"),
        ({"coordinates": GOOD * 1j}, TypeError, "coordinates must be real, got torch.complex128"),
        (
            {"values": ["a"] * 5},
            TypeError,
            "values must be a NumPy array or torch tensor of numbers",
        ),
        (
            {"coordinates": [[10**400, 0]] * 5},
            TypeError,
            "coordinates must be a NumPy array or torch tensor of numbers",
        ),
        ({"ranks": 0}, ValueError, "ranks must be at least 1, got 0"),
        ({"ranks": 1.5}, TypeError, "ranks must be an integer, got 1.5"),
        ({"ranks": "12"}, TypeError, "ranks must be an integer, got '12'"),
        (
            {"ranks": (1, 2, 3)},
            ValueError,
            "ranks must be 2 integers, one for each column of coordinates, got 3",
        ),
        ({"ranks": 10**30}, ValueError, "ranks must have a product of at most 4096"),
        ({"length_scale": 0}, ValueError, "length_scale must be positive and finite, got 0"),
        (
            {"length_scale": math.nan},
            ValueError,
            "length_scale must be positive and finite",
        ),
        ({"length_scale": [1]}, ValueError, "length_scale must be 2 numbers"),
        ({"length_scale": "1"}, TypeError, "length_scale must be a real number, got '1'"),
        ({"length_scale": 1e300}, ValueError, "length_scale must be within 2^±400 of the largest"),
        ({"noise_variance": 0}, ValueError, "noise_variance must be positive and finite, got 0"),
        (
            {"noise_variance": 1e-20},
            ValueError,
            "noise_variance must be at least 2^-40 and at most",
        ),
        (
            {"noise_variance": 1e300},
            ValueError,
            "noise_variance must be at least 2^-40 and at most",
        ),
        ({"tol": -1}, ValueError, "tol must be non-negative and finite, got -1"),
        ({"starts": 0}, ValueError, "starts must be at least 1, got 0"),
        ({"max_sweeps": 0}, ValueError, "max_sweeps must be at least 1, got 0"),
        ({"seed": 1.5}, TypeError, "seed must be an int, a torch.Generator or None, got float"),
        ({"validation": GOOD}, TypeError, "validation must be (coordinates, values), got ndarray"),
        (
            {"validation": (GOOD, VALUES[:2])},
            ValueError,
            "validation: coordinates and values must have one length",
        ),
        (
            {"validation": (GOOD[:, :1], VALUES)},
            ValueError,
            "validation: coordinates must have 2 columns, got shape (5, 1)",
        ),
    ],
)
def test_errors(options, error, message):
    arguments = {"coordinates": GOOD, "values": VALUES, "ranks": 1} | options
    with pytest.raises(error, match="^functional_tucker: " + re.escape(message)):
        la.functional_tucker(**arguments)


def test_sparse_tensors_are_refused():
    with pytest.raises(TypeError, match="coordinates must be dense, got layout"):
        la.functional_tucker(torch.eye(3).to_sparse(), torch.ones(3), 1)


def test_errors_of_the_result(planted):
    fit = fitted(planted)
    for call, error, message in (
        (lambda: fit.predict([[0.0]]), ValueError, "predict: coordinates must have 2 columns"),
        (
            lambda: fit.predict([0.0, 1.0]),
            ValueError,
            "predict: coordinates must have 2 dimensions",
        ),
        (lambda: fit.predict([[0.0, np.inf]]), ValueError, "predict: coordinates must be finite"),
        (lambda: fit.factor(2, [0.0]), ValueError, "factor: mode must be from 0 to 1, got 2"),
        (lambda: fit.factor(0.5, [0.0]), TypeError, "factor: mode must be an integer"),
        (lambda: fit.factor(0, 0.5), ValueError, "factor: t must have one dimension"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            call()
    assert fit.predict(np.zeros((0, 2))).mean.shape == (0,)
    assert fit.factor(0, []).covariance.shape == (0, 2, 2)

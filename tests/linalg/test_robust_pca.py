"""Low rank and sparse: exact recovery, minima against slow references, certificates, bad input."""

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg import robust_decomposition
from references import exact, orthonormality_error, unit_roundoff
from strategies import gaussian

robust = la.robust_pca

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
TOL = 1e-7  # the default in double precision


def default_tol(A):
    return max(TOL, 16 * unit_roundoff(A))


def planted(m, n, rank, share, dtype=torch.float64, seed=0):
    """Low rank of Gaussian factors, and entries of the same size and more at random places."""
    L = gaussian(m, rank, dtype=dtype, seed=seed) @ gaussian(rank, n, dtype=dtype, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(m, n, generator=generator) < share
    S = torch.where(wrong, 5 * math.sqrt(rank) * gaussian(m, n, dtype=dtype, seed=seed + 2), 0)
    return L, S


def distance(one, other):
    """Relative to the second."""
    return float(np.linalg.norm(exact(one) - exact(other)) / np.linalg.norm(exact(other)))


def objective(A, L, weight):
    return float(np.linalg.norm(exact(L), "nuc") + weight * np.abs(exact(A) - exact(L)).sum())


def check(A, result, tol=None):
    """What holds of every result that has converged."""
    tol = default_tol(A) if tol is None else tol
    U, S, Vh, sparse = result
    info = result.info
    assert info.converged
    assert info.rank == len(S) == U.shape[1] == len(Vh)
    assert sparse.shape == A.shape
    assert U.dtype == Vh.dtype == sparse.dtype == A.dtype
    assert S.dtype == A.dtype.to_real()
    assert info.nonzeros == int((sparse != 0).sum())
    assert orthonormality_error(U) < 10
    assert orthonormality_error(Vh.mH) < 10
    assert (S[:-1] >= S[1:]).all()
    assert (S > 0).all()
    assert 0 <= info.gap + 1e-14 <= tol
    assert info.residual <= tol
    assert len(info.history) == info.iterations
    if info.iterations:
        assert (info.history[-1][0], info.history[-1][2]) == (info.residual, info.rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "rank", "share"), [(100, 100, 5, 0.1), (200, 200, 10, 0.05), (60, 200, 3, 0.1)]
)
def test_exact_recovery(m, n, rank, share, dtype):
    L, S = planted(m, n, rank, share, dtype)
    result = robust(L + S, seed=0)
    check(L + S, result)
    assert result.info.rank == rank
    # The objective is sharp at such a minimum: errors are a small multiple of the gap. The rounding
    # of A itself is below 1/16 of tol, and is enlarged as little.
    bound = 10 * default_tol(L)
    assert distance(result.low_rank, L) <= bound
    assert distance(result.sparse, S) <= bound
    # Exact zeros but where entries are wrong, except that A is rounded: some more then.
    extra = (result.sparse != 0) & (S == 0)
    assert float(result.sparse[extra].abs().sum()) <= bound * float(S.abs().sum())
    if dtype.to_real() == torch.float64:
        assert not extra.any()
    # The singular values themselves see the wrong entries.
    assert distance(la.randomized_svd(L + S, rank, seed=0).S, result.S) > 0.01


def test_too_many_wrong_entries_are_not_recovered():
    # The negative control.
    L, S = planted(100, 100, 30, 0.3)
    result = robust(L + S, seed=0)
    check(L + S, result)
    assert distance(result.low_rank, L) > 0.1


def singular_shrink(W, threshold):
    U, S, Vh = np.linalg.svd(W, full_matrices=False)
    return (U * np.maximum(S - threshold, 0)) @ Vh


def soft(X, threshold):
    size = np.abs(X)
    return X * np.maximum(1 - threshold / np.where(size > 0, size, 1), 0)


def by_admm(A, weight, iterations=4000):
    """Alternating directions with one penalty, Candès, Li, Ma, Wright."""
    A = exact(A)
    mu = A.size / (4 * np.abs(A).sum())
    Y, S = np.zeros_like(A), np.zeros_like(A)
    for _ in range(iterations):
        L = singular_shrink(A - S + Y / mu, 1 / mu)
        S = soft(A - L + Y / mu, weight / mu)
        Y = Y + mu * (A - L - S)
    return L


def by_growing_penalty(A, weight):
    """The inexact augmented Lagrangian of Lin, Chen, Ma: stops when A = L + S."""
    A = exact(A)
    norm, size = np.linalg.norm(A, 2), np.linalg.norm(A)
    Y, mu, S = A / max(norm, np.abs(A).max() / weight), 1.25 / norm, np.zeros_like(A)
    while True:
        L = singular_shrink(A - S + Y / mu, 1 / mu)
        S = soft(A - L + Y / mu, weight / mu)
        Y, mu = Y + mu * (A - L - S), 1.5 * mu
        if np.linalg.norm(A - L - S) <= TOL * size:
            return L


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (0.08, torch.float64),
        (0.15, torch.float64),
        (0.4, torch.float64),
        (0.15, torch.complex128),
    ],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_minimum_of_a_slow_reference(noisy, weight, dtype):
    L, S = planted(30, 24, 4, 0.2, dtype)
    A = gaussian(30, 24, dtype=dtype) if noisy else L + S
    result = robust(A, sparsity=weight, seed=0)
    check(A, result)
    reference = objective(A, by_admm(A, weight), weight)
    # Both are above the minimum by a gap of tol at most.
    assert result.info.objective == pytest.approx(reference, rel=2 * TOL)
    # The bound is one: the reference, which knows nothing of it, is not below.
    assert result.info.objective * (1 - result.info.gap) <= reference * (1 + 1e-12)
    mine = objective(A, result.low_rank, weight)
    assert result.info.objective == pytest.approx(mine, rel=1e-12)
    assert result.info.objective <= objective(A, L, weight) * (1 + TOL)


def test_a_penalty_that_grows_is_not_enough():
    # Why the step stays: a residual of zero says that A = L + S, not that the sum is least.
    L, S = planted(100, 100, 10, 0.2)
    A, weight = L + S, 0.1
    result = robust(A, seed=0)
    check(A, result)
    stuck = objective(A, by_growing_penalty(A, weight), weight)
    assert stuck > (1 + 100 * TOL) * result.info.objective


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 30),
    n=st.integers(1, 30),
    rank=st.integers(0, 4),
    share=st.sampled_from([0, 0.1, 0.5]),
    dtype=st.sampled_from(DTYPES),
    observed=st.sampled_from([None, 0.3, 0.8]),
    seed=st.integers(0, 2**32),
)
def test_any_matrix(m, n, rank, share, dtype, observed, seed):
    L, S = planted(m, n, max(rank, 1), share, dtype, seed=seed % 1000)
    A = S if rank == 0 else L + S
    mask = None if observed is None else gaussian(m, n, seed=seed % 1000 + 3).abs() < 1.3 * observed
    result = robust(A, mask=mask, tol=1e-4, max_iters=5000, seed=seed)
    check(A, result, 1e-4)
    known = torch.ones(m, n, dtype=torch.bool) if mask is None else mask
    assert not result.sparse[~known].any()
    rest = torch.where(known, A - result.low_rank - result.sparse, 0)
    # The residual, and the rounding of factors and entries.
    size = float(torch.where(known, A, 0).norm()) + float(result.S.sum())
    assert float(rest.norm()) <= (1e-4 + 20 * unit_roundoff(A)) * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(90, 60), (60, 60)])
def test_transposition(shape, dtype):
    A = sum(planted(*shape, 4, 0.1, dtype))
    one, other = robust(A, seed=0), robust(A.mT, seed=0)
    if shape[0] != shape[1]:
        assert one.sparse.is_contiguous()
        assert other.sparse.is_contiguous()
        # The longer side is the first one, either way.
        assert torch.equal(one.S, other.S)
        assert torch.equal(one.sparse, other.sparse.mT)
    # Both within some tol of the one minimum.
    assert distance(other.low_rank.mT, one.low_rank) <= 20 * TOL


@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.float32, 90), (torch.float64, 660), (torch.complex128, 660)]
)
@pytest.mark.parametrize("side", [-1, 1])
def test_scaling_by_powers_of_two_changes_nothing(dtype, power, side):
    A = sum(planted(60, 40, 3, 0.1, dtype))
    factor = 2.0 ** (side * power)  # 1e±27, 1e±199
    one, other = robust(A, seed=0), robust(A * factor, seed=0)
    assert torch.equal(other.U, one.U)
    assert torch.equal(other.S, factor * one.S)
    assert torch.equal(other.sparse, factor * one.sparse)
    assert other.info.history == one.info.history
    assert other.info.objective == factor * one.info.objective


def test_permutation():
    L, S = planted(80, 60, 4, 0.1)
    A = L + S
    rows = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    cols = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    one, other = robust(A, seed=0), robust(A[rows][:, cols], seed=0)
    assert distance(other.low_rank, one.low_rank[rows][:, cols]) <= 20 * TOL
    assert distance(other.sparse, one.sparse[rows][:, cols]) <= 20 * TOL
    assert distance(other.sparse, one.sparse) > 1


@pytest.mark.parametrize("weight", [1.0, 3.0, 1e6])
def test_a_large_weight_leaves_nothing_sparse(weight):
    A = sum(planted(50, 40, 3, 0.1))
    result = robust(A, sparsity=weight, seed=0)
    check(A, result)
    assert not result.sparse.any()
    assert distance(result.low_rank, A) <= TOL


@pytest.mark.parametrize("weight", [1 / math.sqrt(50 * 40), 1e-3, 1e-9])
def test_a_small_weight_leaves_no_rank(weight):
    A = sum(planted(50, 40, 3, 0.1))
    result = robust(A, sparsity=weight, seed=0)
    check(A, result)
    assert result.info.rank == 0
    assert distance(result.sparse, A) <= TOL


def test_more_weight_makes_it_sparser():
    A = gaussian(60, 50)
    counts, ranks = [], []
    for weight in (0.05, 0.1, 0.2, 0.4):
        result = robust(A, sparsity=weight, tol=1e-6, seed=0)
        counts.append(result.info.nonzeros)
        ranks.append(result.info.rank)
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 4
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_missing_entries_are_filled(dtype):
    L, S = planted(120, 100, 4, 0.05, dtype)
    mask = gaussian(120, 100, seed=9) < 0.84  # 80 %
    A = torch.where(mask, L + S, math.nan)
    before = A.clone()
    result = robust(A, mask=mask, seed=0)
    assert torch.equal(A.nan_to_num(7), before.nan_to_num(7))
    check(A, result)
    bound = 10 * default_tol(L)
    assert distance(result.low_rank, L) <= bound
    assert distance(result.sparse, S * mask) <= bound
    assert not result.sparse[~mask].any()
    share = float(mask.double().mean())
    assert result.info.sparsity == pytest.approx(1 / math.sqrt(120 * share), rel=1e-12)
    # Whatever is at the others.
    other = robust(torch.where(mask, A, 1e30), mask=mask.numpy(), seed=0)
    assert torch.equal(other.sparse, result.sparse)
    # The negative control: taken for zeros, they are not filled.
    zeros = robust(A.nan_to_num(0), seed=0)
    assert distance(zeros.low_rank, L) > 0.01


@pytest.mark.parametrize("masked", [False, True])
def test_the_residual_is_that_of_what_is_returned(masked):
    A = sum(planted(50, 40, 3, 0.1))
    mask = gaussian(50, 40, seed=9) < (0.5 if masked else math.inf)
    with pytest.warns(la.ConvergenceWarning):
        result = robust(A, mask=mask if masked else None, max_iters=10, seed=0)
    residual = float((mask * (A - result.low_rank - result.sparse)).norm() / (mask * A).norm())
    assert residual > 1e-4
    # Entries are rounded by some u of themselves, 1e4 times less than the residual.
    assert result.info.residual == pytest.approx(residual, rel=1e4 * 100 * 2.0**-53)


def test_masks_of_all_and_of_nothing():
    A = sum(planted(50, 40, 3, 0.1))
    full = robust(A, mask=torch.ones(50, 40, dtype=torch.bool), seed=0)
    assert torch.equal(full.sparse, robust(A, seed=0).sparse)
    nothing = robust(A, mask=torch.zeros(50, 40, dtype=torch.bool), seed=0)
    assert nothing.info.rank == nothing.info.nonzeros == nothing.info.iterations == 0
    assert nothing.info.converged


def piecewise(side=20, frames=12, seed=1):
    """A video of two squares that change their brightness, each column a frame."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.zeros(side, side, frames, dtype=torch.float64)
    for corner in (2, 7):
        brightness = 0.5 + torch.rand(frames, generator=generator, dtype=torch.float64)
        video[corner : corner + side // 2, corner + 2 : corner + 2 + side // 2] += brightness
    return video.reshape(side * side, frames)


def test_total_variation_denoises():
    L = piecewise()
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(L.shape, generator=generator) < 0.1
    noise = 0.1 * torch.randn(L.shape, generator=generator, dtype=torch.float64)
    A = torch.where(wrong, 6 * torch.rand(L.shape, generator=generator) - 3, L + noise)
    # The best weight without it, of all that are sensible.
    without = min(
        distance(robust(A, sparsity=weight, tol=1e-4, seed=0).low_rank, L)
        for weight in (0.05, 0.065, 0.075, 0.085, 0.1)
    )
    pixels = {"grid": (20, 20, 12), "axes": (0, 1)}
    result = robust(A, sparsity=0.1, total_variation=0.03, **pixels, tol=1e-4, seed=0)
    check(A, result, 1e-4)
    assert distance(result.low_rank, L) < 0.6 * without
    # On a grid of another order the neighbours are none, and it does nothing good.
    wrong_grid = robust(A, sparsity=0.1, total_variation=0.03, grid=(12, 20, 20), tol=1e-4, seed=0)
    assert distance(wrong_grid.low_rank, L) > without


@pytest.mark.parametrize("weights", [0.0, (0.0, 0.0)])
def test_total_variation_without_weight_is_none(weights):
    A = sum(planted(40, 30, 3, 0.1))
    result = robust(A, total_variation=weights, grid=(5, 8, 30), tol=1e-6, seed=0)
    assert torch.equal(result.sparse, robust(A, tol=1e-6, seed=0).sparse)


def test_axes_count_once_and_where_they_have_neighbours():
    A = sum(planted(20, 15, 2, 0.1))
    options = {"total_variation": (0.02, 0.01), "tol": 1e-4, "seed": 0}
    one = robust(A, grid=(4, 5, 15), axes=(0,), **options)
    twice = robust(A, grid=(4, 5, 15), axes=(0, -3, 0), **options)
    assert torch.equal(one.sparse, twice.sparse)
    plain = robust(A, **options)
    assert torch.equal(plain.sparse, robust(A, grid=(20, 1, 15), **options).sparse)
    assert not torch.equal(plain.sparse, one.sparse)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_steps_are_as_long_as_convergence_allows(masked, transposed):
    shape, grid = ((30, 72), (30, 8, 9)) if transposed else ((72, 30), (8, 9, 30))
    variations = robust_decomposition._variations((0.1, 0.2), grid, None, shape, transposed)
    A = gaussian(72, 30)
    mask = gaussian(72, 30, seed=1) < 0.8 if masked else None
    problem = robust_decomposition._Problem(A, mask, 0.3, variations)
    assert len(problem.terms) == 7
    X = gaussian(72, 30, seed=2)
    for term in problem.terms:
        Y = term.forward(X)
        # ⟨KX, Y⟩ = ⟨X, K*Y⟩, sums of 2160 terms.
        back = float((X * term.adjoint(Y)).sum())
        assert back == pytest.approx(float(Y.square().sum()), rel=2160 * 2.0**-53)
    for _ in range(200):  # power iterations: a lower bound of the norm
        X = sum(term.step * term.adjoint(term.forward(X)) for term in problem.terms)
        norm = float(X.norm())
        X = X / norm
    assert 0.8 < norm <= 1


def difference_matrix(grid, axis):
    """Of neighbours along an axis, for entries in the order of the grid."""
    parts = [scipy.sparse.identity(size) for size in grid]
    size = grid[axis]
    parts[axis] = scipy.sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(size - 1, size))
    product = parts[0]
    for part in parts[1:]:
        product = scipy.sparse.kron(product, part)
    return scipy.sparse.csr_array(product)


def by_primal_dual(A, mask, weight, weights, grid, axes, iterations):
    """Chambolle and Pock's iteration with matrices and one step; the value of its last point."""
    shape, a = A.shape, exact(A).reshape(-1) * mask.reshape(-1)
    blocks = [(scipy.sparse.diags_array(mask.reshape(-1).astype(float)), a, weight)]
    for axis in axes:
        D = difference_matrix(grid, axis)
        blocks.append((D, np.zeros(D.shape[0]), weights[0]))
        blocks.append((D @ blocks[0][0], D @ a, weights[1]))
    K = scipy.sparse.csr_array(scipy.sparse.vstack([block[0] for block in blocks]))
    data = np.concatenate([block[1] for block in blocks])
    radius = np.concatenate([np.full(len(block[1]), block[2]) for block in blocks])
    sigma = 0.05
    tau = 1 / (sigma * (1 + 8 * len(axes)))
    x, y = np.zeros(a.shape, a.dtype), np.zeros(data.shape, data.dtype)
    for _ in range(iterations):
        new = singular_shrink((x - tau * (K.T @ y)).reshape(shape), tau).reshape(-1)
        y = y + sigma * (K @ (2 * new - x) - data)
        y = y / np.maximum(1, np.abs(y) / np.where(radius > 0, radius, 1e-300))
        x = new
    return np.linalg.norm(x.reshape(shape), "nuc") + float(radius @ np.abs(K @ x - data))


@pytest.mark.parametrize(
    ("shape", "grid", "axes", "weights", "dtype"),
    [
        ((15, 4), (5, 3, 4), (0, 1), (0.05, 0.0), torch.float64),
        ((15, 4), (5, 3, 4), (0, -1), (0.04, 0.07), torch.float64),
        ((4, 15), (4, 5, 3), (1, 2), (0.06, 0.03), torch.float64),
        ((12, 5), None, None, (0.0, 0.06), torch.float64),
        ((5, 12), None, None, (0.05, 0.05), torch.complex128),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_minimum_with_total_variation(shape, grid, axes, weights, dtype, masked):
    A = sum(planted(*shape, 2, 0.2, dtype))
    mask = (gaussian(*shape, seed=8) < 0.8) if masked else torch.ones(shape, dtype=torch.bool)
    result = robust(
        A,
        mask=mask,
        sparsity=0.3,
        total_variation=weights,
        grid=grid,
        axes=axes,
        tol=1e-6,
        max_iters=5000,
        seed=0,
    )
    check(A, result, 1e-6)
    reference = by_primal_dual(
        A, mask.numpy(), 0.3, weights, grid or shape, axes or (0, 1), iterations=4000
    )
    # The reference is no certificate of its own: its last point is above by less than 1e-5.
    assert result.info.objective <= reference * (1 + 1e-6)
    assert result.info.objective >= reference * (1 - 1e-5)


def test_partial_decompositions_find_what_full_ones_do(monkeypatch):
    A = sum(planted(150, 120, 6, 0.1))
    counts = []
    original = robust_decomposition._right_vectors

    def counted(W, threshold):
        counts.append(1)
        return original(W, threshold)

    monkeypatch.setattr(robust_decomposition, "_right_vectors", counted)
    partial = robust(A, seed=0)
    few = len(counts)
    assert few <= 0.1 * partial.info.iterations
    monkeypatch.setattr(robust_decomposition, "_SHARE", 0.0)
    full = robust(A, seed=0)
    assert len(counts) - few == full.info.iterations
    assert distance(partial.low_rank, full.low_rank) <= 20 * TOL


def test_small_singular_values_are_not_taken_from_squares(monkeypatch):
    # The largest one is 1e9 times the step: its square hides all that is below 10 steps.
    W = torch.diag(torch.tensor([1e9, 12.0, 2.0, 0.5], dtype=torch.float64))
    Q = torch.linalg.qr(gaussian(4, 4, seed=3)).Q
    S, _ = robust_decomposition._right_vectors(W @ Q, 1.0)
    assert torch.allclose(S[1:], torch.tensor([12.0, 2.0, 0.5], dtype=torch.float64), rtol=1e-6)
    monkeypatch.setattr(robust_decomposition, "_SQUARES", 0.0)
    S, _ = robust_decomposition._right_vectors(W @ Q, 1.0)
    assert not torch.allclose(S[1:], torch.tensor([12.0, 2.0, 0.5]).double(), rtol=1e-6)


def test_the_certificate_does_not_trust_the_singular_vectors(monkeypatch):
    # Half of what should be above the threshold is lost in every iteration.
    original = robust_decomposition._Shrinkage.__call__

    exact_ones = []

    def loses(self, W, threshold):
        exact_ones.append(self._exactly)
        left, right, S = original(self, W, threshold)
        keep = (len(S) + 1) // 2
        return left[:, :keep], right[:keep], S[:keep]

    monkeypatch.setattr(robust_decomposition._Shrinkage, "__call__", loses)
    A = sum(planted(60, 50, 4, 0.1))
    with pytest.warns(la.ConvergenceWarning):
        result = robust(A, max_iters=300, seed=0)
    assert not result.info.converged
    assert result.info.gap > 0.1
    # At every apparent end it was tried with all of them.
    assert any(exact_ones)
    assert result.info.objective == pytest.approx(
        objective(A, result.low_rank, 1 / math.sqrt(60)), rel=1e-12
    )


def test_too_few_iterations():
    A = sum(planted(60, 50, 4, 0.1))
    with pytest.warns(
        la.ConvergenceWarning, match=r"robust_pca: tol=1e-07 not met by 12 iter"
    ) as caught:
        result = robust(A, max_iters=12, seed=0)
    assert caught[0].filename == __file__
    info = result.info
    assert not info.converged
    assert info.iterations == len(info.history) == 12
    assert info.gap > TOL
    # The bound holds all the same.
    best = robust(A, seed=0).info.objective
    assert info.objective * (1 - info.gap) <= best <= info.objective


@pytest.mark.parametrize(
    ("residual", "bound", "expected"), [(0.0, 1.0, True), (1e-3, 1.0, False), (0.0, 0.999, False)]
)
def test_converged_takes_both_conditions(residual, bound, expected):
    values = torch.ones(1, dtype=torch.float64)
    point = robust_decomposition._Point(
        values, values, values, values, 1.0, bound, [(residual, 0.0, 1)]
    )
    assert robust_decomposition._info(point, 1, 1.0, 1.0, 1e-6).converged == expected


@pytest.mark.parametrize(
    ("dtype", "tol", "with_variation"),
    [
        (torch.float64, 1e-7, 1e-5),
        (torch.float32, 16 * 2.0**-24, 1e-5),
        (torch.float16, 16 * 2.0**-11, 16 * 2.0**-11),
    ],
)
def test_default_tolerance(dtype, tol, with_variation):
    A = sum(planted(60, 50, 3, 0.1)).to(dtype)
    for options, expected in (({}, tol), ({"total_variation": 0.02}, with_variation)):
        with pytest.warns(la.ConvergenceWarning, match=f"tol={expected:g} not met"):
            robust(A, max_iters=1, seed=0, **options)


def test_relaxation_and_balance_save_iterations(monkeypatch):
    # Of a Gaussian matrix: 152, 196 without relaxation, 1271 without balance.
    A = gaussian(60, 50)
    iterations = robust(A, tol=1e-6, seed=0).info.iterations
    monkeypatch.setattr(robust_decomposition, "_RELAXATION", 1.0)
    assert robust(A, tol=1e-6, seed=0).info.iterations > 1.15 * iterations
    monkeypatch.setattr(robust_decomposition, "_RELAXATION", 1.6)
    monkeypatch.setattr(robust_decomposition, "_BALANCE", math.inf)
    with pytest.warns(la.ConvergenceWarning):
        robust(A, tol=1e-6, max_iters=4 * iterations, seed=0)


def test_the_step_changes_after_ever_longer_times_and_within_bounds(monkeypatch):
    # The primal variable moves more than 0 times as far as the dual one: τ is doubled every time.
    monkeypatch.setattr(robust_decomposition, "_BALANCE", 0.0)
    problem = robust_decomposition._Problem(gaussian(30, 20), None, 0.2, [])
    iteration = robust_decomposition._Iteration(problem, 0)
    changes, tau = [], math.inf
    for count in range(250):
        iteration.step()
        if iteration._tau > tau:
            changes.append(count)
        tau = iteration._tau
    # From 0.3 to 32 · 0.3 of the mean.
    assert [b - a for a, b in itertools.pairwise(changes)] == [15, 22, 33, 49]
    assert tau == 32 * iteration._last_tau


def test_the_size_of_an_entry_is_that_of_the_observed_ones():
    A, mask = gaussian(30, 20), gaussian(30, 20, seed=1) < -0.5
    problem = robust_decomposition._Problem(A * mask, mask, 1.0, [])
    # A sum of 600 magnitudes, by pairs.
    assert problem.mean() == pytest.approx(float(A[mask].abs().mean()), rel=20 * 2.0**-53)


def test_directions_that_the_ones_before_do_not_see():
    # Singular values 40, 39, …, 1 and 1/2; the start sees the last 60 of 100 axes only.
    W = torch.diag(torch.cat([torch.arange(40.0, 0, -1), torch.full((60,), 0.5)]).double())
    start = torch.linalg.qr(torch.cat([torch.zeros(40, 20), gaussian(60, 20)]).double()).Q
    shrinkage = robust_decomposition._Shrinkage(start, 0)
    assert len(shrinkage(W, 30.5)[2]) == 0
    shrinkage = robust_decomposition._Shrinkage(start, 0)
    shrinkage.exactly()
    for _ in range(2):  # the second time from what the first one has found
        left, right, S = shrinkage(W, 30.5)
        # Rounding of 40.
        assert torch.allclose(
            S, torch.arange(9.5, 0, -1).double(), rtol=0, atol=100 * 2.0**-53 * 40
        )
        shrunk = torch.diag((W.diagonal() - 30.5).clamp(min=0))
        assert torch.allclose(left @ right, shrunk, rtol=0, atol=100 * 2.0**-53 * 40)
        assert not shrinkage._exactly


def test_all_above_the_threshold_are_found_however_few_are_followed():
    # 30 of 100 singular values are; 20 directions are followed.
    W = torch.diag(torch.cat([torch.full((30,), 100.0), torch.full((70,), 1e-3)]).double())
    shrinkage = robust_decomposition._Shrinkage(gaussian(100, 20), 0)
    assert len(shrinkage(W, 1.0)[2]) == 30


def test_random_directions_are_never_drawn_twice():
    shrinkage = robust_decomposition._Shrinkage(gaussian(30, 5), 0)
    drawn = []
    for _ in range(2):
        shrinkage._follow(torch.eye(5, 30, dtype=torch.float64), 8)
        drawn.append(shrinkage._basis[:, 5:])
    # The cosine of independent ones is 1/√90 on average.
    cosine = float((drawn[0] * drawn[1]).sum() / (drawn[0].norm() * drawn[1].norm()))
    assert abs(cosine) < 3 / math.sqrt(90)


def test_history():
    info = robust(sum(planted(100, 100, 5, 0.1)), seed=0).info
    residuals, gaps, ranks = zip(*info.history, strict=True)
    assert all(value >= 0 for value in residuals)
    assert residuals[0] > 0.1 > 1e-3 > residuals[len(residuals) // 2] > residuals[-1]
    assert abs(gaps[0]) > 0.1 > 1e-6 > abs(gaps[-1])
    assert ranks[-1] == info.rank == 5
    # A looser tolerance is met earlier, on the same way.
    loose = robust(sum(planted(100, 100, 5, 0.1)), tol=1e-3, seed=0).info
    assert loose.iterations < info.iterations
    assert loose.history == info.history[: loose.iterations]


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_thin(shape, dtype):
    A = gaussian(*shape, dtype=dtype)
    result = robust(A, seed=0)
    check(A, result)
    # Of a single row or column, ‖L‖_* is its length: for λ = 1/√30 below λ·Σ|a| as it is.
    total = result.low_rank + result.sparse
    assert distance(total, A) <= default_tol(A) + 10 * unit_roundoff(A)


@pytest.mark.parametrize("shape", [(6, 4), (1, 5), (5, 1), (0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_empty(shape, dtype):
    m, n = shape
    for options in ({}, {"total_variation": 0.1}):
        result = robust(torch.zeros(m, n, dtype=dtype), seed=0, **options)
        U, S, Vh, sparse = result
        assert (U.shape, S.shape, Vh.shape, sparse.shape) == ((m, 0), (0,), (0, n), shape)
        assert not sparse.any()
        assert (U.dtype, sparse.dtype, S.dtype) == (dtype, dtype, dtype.to_real())
        assert result.low_rank.shape == shape
        info = result.info
        assert (info.objective, info.gap, info.residual) == (0, 0, 0)
        assert (info.converged, info.history) == (True, ())


def test_numpy_and_torch_agree():
    A = sum(planted(60, 50, 3, 0.1))
    one, other = robust(A.numpy(), seed=0), robust(A, seed=0)
    for field, tensor in zip(one, other, strict=True):
        assert isinstance(field, np.ndarray)
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(field, tensor.numpy())
    assert one.info == other.info
    assert isinstance(one.low_rank, np.ndarray)
    # Ten products of numbers of the size of the result or less.
    assert distance(one.low_rank, other.low_rank) <= 10 * 2.0**-53


def test_half_types_and_integers():
    L = torch.ones(40, 30) * torch.arange(1, 31)
    A = L.clone()
    A[3, 4], A[20, 7] = 500, -100
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        result = robust(A.to(dtype), seed=0)
        kept = torch.float32 if dtype == torch.int32 else dtype
        assert result.U.dtype == result.S.dtype == result.sparse.dtype == kept
        assert result.sparse.nonzero().tolist() == [[3, 4], [20, 7]]
        # Three factors of the type's rounding.
        low_rank = (result.U.float() * result.S.float()) @ result.Vh.float()
        assert distance(low_rank, L) <= 6 * unit_roundoff(result.U) + default_tol(result.U)
    assert robust(A.int().numpy(), seed=0).U.dtype == np.float64


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 3e-6), (torch.float32, 1e-43)])
def test_entries_that_rounding_leaves_no_trace_of_are_not_counted(dtype, size):
    # Entries are subnormal, so that some of the sparse part are below the least number there is.
    A = (size * gaussian(40, 30)).to(dtype)
    result = robust(A, seed=0)
    assert result.info.nonzeros == int((result.sparse != 0).sum())
    # The negative control: in double precision none of them is lost.
    wide = robust(A.double(), tol=default_tol(A), seed=0)
    assert wide.info.nonzeros > result.info.nonzeros > 0


def test_seeds():
    A = sum(planted(100, 90, 4, 0.1))
    one, same, other = (robust(A, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.U, other.U)
    assert distance(one.low_rank, other.low_rank) <= 20 * TOL
    drawn = [robust(A, seed=torch.Generator().manual_seed(1)).U for _ in range(2)]
    assert torch.equal(*drawn)


def test_views_are_read_and_inputs_are_left_alone():
    L, S = planted(60, 50, 3, 0.1)
    A = L + S
    base = torch.empty(120, 100, dtype=torch.float64)
    base[::2, ::2] = A
    before = base.clone()
    strided = robust(base[::2, ::2], seed=0)
    assert torch.equal(strided.sparse, robust(A, seed=0).sparse)
    assert torch.equal(base.nan_to_num(), before.nan_to_num())
    tracked = A.clone().requires_grad_()
    assert not robust(tracked, seed=0).sparse.requires_grad
    conjugate = torch.complex(A, A.flip(0)).conj()
    assert torch.equal(robust(conjugate, seed=0).S, robust(conjugate.resolve_conj(), seed=0).S)


def test_signs():
    result = robust(sum(planted(60, 50, 3, 0.1, torch.complex128)), seed=0)
    largest = result.U.gather(0, result.U.abs().argmax(0, keepdim=True))
    assert (largest.real > 0).all()
    assert (largest.imag.abs() <= 4 * 2.0**-53).all()


def test_pickle():
    result = robust(sum(planted(30, 20, 2, 0.1)), seed=0)
    again = pickle.loads(pickle.dumps(result))
    assert torch.equal(again.low_rank, result.low_rank)
    assert again.info == result.info


def test_no_warning_where_it_converged():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robust(sum(planted(30, 20, 2, 0.1)), seed=0)


A34 = gaussian(3, 4)


def spoiled(value, dtype=torch.float64):
    A = gaussian(3, 4).to(dtype)
    A[1, 2] = value
    return A


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: robust(spoiled(math.nan)),
            ValueError,
            r"robust_pca: A must be finite where it is observed, got nan at index \(1, 2\)",
        ),
        (lambda: robust(spoiled(-math.inf)), ValueError, r"got -inf at index \(1, 2\)"),
        (lambda: robust(spoiled(math.inf).mT), ValueError, r"got inf at index \(2, 1\)"),
        (
            lambda: robust(spoiled(math.inf), mask=torch.ones(3, 4, dtype=torch.bool)),
            ValueError,
            r"got inf at index \(1, 2\)",
        ),
        (lambda: robust(torch.ones(2, 3, 4)), ValueError, "A must have 2 dimensions, got shape"),
        (lambda: robust(torch.ones(3)), ValueError, "A must have 2 dimensions"),
        (lambda: robust(A34.to_sparse()), TypeError, "A must be a dense matrix"),
        (lambda: robust("A"), TypeError, "robust_pca: A must be a NumPy array or torch tensor"),
        (lambda: robust(A34, sparsity=0), ValueError, "sparsity must be positive and finite, got"),
        (lambda: robust(A34, sparsity=-1), ValueError, "sparsity must be positive"),
        (lambda: robust(A34, sparsity=math.nan), ValueError, "sparsity must be positive"),
        (lambda: robust(A34, sparsity="a"), TypeError, "sparsity must be a real number"),
        (lambda: robust(A34, tol=0), ValueError, "tol must be between 0 and 1, got 0"),
        (lambda: robust(A34, tol=1), ValueError, "tol must be between 0 and 1, got 1"),
        (lambda: robust(A34, tol=True), TypeError, "tol must be a real number"),
        (lambda: robust(A34, max_iters=0), ValueError, "max_iters must be at least 1, got 0"),
        (lambda: robust(A34, max_iters=2.5), TypeError, "max_iters must be an integer"),
        (lambda: robust(A34, seed="a"), TypeError, "seed must be an int"),
        (lambda: robust(A34, mask=A34), TypeError, "mask must be boolean, got torch.float64"),
        (
            lambda: robust(A34, mask=np.ones((4, 3), dtype=bool)),
            ValueError,
            r"mask must have the shape of A, \(3, 4\), got \(4, 3\)",
        ),
        (lambda: robust(A34, grid=(3, 4)), ValueError, "grid goes with total_variation"),
        (lambda: robust(A34, axes=(0,)), ValueError, "axes goes with total_variation"),
        (
            lambda: robust(A34, total_variation=-1),
            ValueError,
            "total_variation must be non-negative and finite, got -1",
        ),
        (lambda: robust(A34, total_variation=(1, math.inf)), ValueError, "finite, got inf"),
        (lambda: robust(A34, total_variation=(1, 2, 3)), ValueError, "a weight or a pair of them"),
        (lambda: robust(A34, total_variation="a"), TypeError, "total_variation must be a real"),
        (
            lambda: robust(A34, total_variation=1, grid=(3, 5)),
            ValueError,
            r"grid must have as many points as A has entries, 12, got \(3, 5\)",
        ),
        (
            lambda: robust(A34, total_variation=1, grid=(-3, -4)),
            ValueError,
            "grid must have as many",
        ),
        (lambda: robust(A34, total_variation=1, grid=(3, 4.0)), TypeError, "grid must be integers"),
        (lambda: robust(A34, total_variation=1, grid=12.0), TypeError, "grid must be integers"),
        (lambda: robust(A34, total_variation=1, axes=1), TypeError, "axes must be integers, got 1"),
        (
            lambda: robust(A34, total_variation=1, axes=(2,)),
            ValueError,
            "axes must be among the 2 of the grid, got 2",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()

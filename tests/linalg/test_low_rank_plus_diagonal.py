"""low_rank_plus_diagonal: exact where there is such a sum, stationary and monotone elsewhere."""

import dataclasses
import itertools
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from fastlr.linalg._free_diagonal import FreeDiagonal
from references import exact, unit_roundoff
from strategies import gaussian

KINDS = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def planted(m, n, rank, spread=1.0, dtype=torch.float64, seed=0):
    """L + D with a diagonal as large as all of L."""
    values = spread ** torch.arange(rank)
    A = (gaussian(m, rank, dtype=dtype, seed=seed) * values) @ gaussian(
        rank, n, dtype=dtype, seed=seed + 1
    )
    p = min(m, n)
    A.diagonal().add_(A.norm() / math.sqrt(p) * gaussian(p, 1, dtype=dtype, seed=seed + 2)[:, 0])
    return A


def total(result):
    """The sum, by NumPy, in double precision."""
    left, right, diagonal = (exact(part) for part in result)
    found = left @ right
    np.einsum("ii->i", found[: len(diagonal), : len(diagonal)])[:] += diagonal
    return found


def alternation(A, rank, sweeps, start):
    """The errors of the two exact steps in turns, by NumPy."""
    A, errors, d = exact(A), [], np.array(exact(start))
    p = len(d)
    places = (np.arange(p), np.arange(p))
    for _ in range(sweeps):
        M = A.copy()
        M[places] -= d
        U, S, Vh = np.linalg.svd(M, full_matrices=False)
        L = (U[:, :rank] * S[:rank]) @ Vh[:rank]
        d = (A - L)[places]
        rest = A - L
        rest[places] = 0
        errors.append(float(np.linalg.norm(rest)))
    return errors


@given(st.integers(8, 24), st.integers(8, 24), st.floats(0.05, 0.4), st.integers(0, 99))
@settings(max_examples=30)
def test_a_sum_of_this_rank_is_found_to_rounding(m, n, part, seed):
    rank = max(1, int(part * min(m, n)))
    A = planted(m, n, rank, seed=seed)
    result = la.low_rank_plus_diagonal(A, rank)
    # A step ends at the rounding of the largest singular value, which is multiplied by the
    # condition of the second derivative on its way to the diagonal, but not to the error.
    assert result.info.error <= 100 * max(m, n) * unit_roundoff(A) * result.info.norm
    assert np.linalg.norm(exact(A) - total(result)) <= 100 * 24 * unit_roundoff(A) * A.norm()
    assert result.info.converged


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("m", "n"), [(30, 30), (30, 21), (21, 30)])
def test_both_parts_are_found(m, n, dtype):
    rank = 6
    L = gaussian(m, rank, dtype=dtype) @ gaussian(rank, n, dtype=dtype, seed=1)
    d = 10 * gaussian(min(m, n), 1, dtype=dtype, seed=2)[:, 0]
    A = L.clone()
    A.diagonal().add_(d)
    left, right, diagonal = result = la.low_rank_plus_diagonal(A, rank)
    assert left.shape == (m, rank)
    assert right.shape == (rank, n)
    assert left.dtype == right.dtype == diagonal.dtype == dtype
    # The second derivative at such a sum has eigenvalues above 0.05 for these sizes.
    bound = 2000 * unit_roundoff(A) * float(A.norm())
    assert torch.dist(left @ right, L) <= bound
    assert torch.dist(diagonal, d) <= bound
    lengths = left.norm(dim=0)
    torch.testing.assert_close(right.norm(dim=1), lengths, rtol=1e-5, atol=0)
    assert bool((lengths.diff() <= 0).all())
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    assert bool((largest.real > 0).all())
    assert bool((torch.sgn(largest) - 1).abs().max() <= 4 * unit_roundoff(A))
    assert result.info.norm == pytest.approx(float(A.norm()), rel=1e-6)
    hollow = A - torch.zeros_like(A).diagonal_scatter(A.diagonal())
    assert result.info.off_diagonal == pytest.approx(float(hollow.norm()), rel=1e-6)


@pytest.mark.parametrize("rank", [5, 30, 50])
def test_falling_singular_values_are_found_by_growing_ranks(rank):
    A = planted(100, 100, rank, spread=0.8)
    assert la.low_rank_plus_diagonal(A, rank).info.error <= 1e-13 * A.norm()
    # From a bare start, without the smaller ranks, the largest ends elsewhere.
    if rank == 50:
        hollow = A - torch.diag(A.diagonal())
        alone = FreeDiagonal(hollow)
        found, _ = alone.descend(alone.at(torch.zeros(100).double(), rank), 1e-6, 300)
        assert found.error > 1e-6 * A.norm()


@given(
    st.integers(2, 14),
    st.integers(2, 14),
    st.floats(0, 1),
    st.integers(0, 99),
    st.sampled_from(KINDS),
)
@settings(max_examples=60)
def test_never_worse_than_alternation_from_the_truncated_svd(m, n, part, seed, dtype):
    A = gaussian(m, n, dtype=dtype, seed=seed)
    p = min(m, n)
    rank = max(1, round(part * p))
    result = la.low_rank_plus_diagonal(A, rank, max_iters=2000)
    first = alternation(A, rank, 1, np.zeros(p))[0]
    # The error is measured of factors that are rounded to the dtype.
    slack = 20 * unit_roundoff(A) * float(A.norm())
    assert result.info.error <= first + slack
    assert np.linalg.norm(exact(A) - total(result)) == pytest.approx(
        result.info.error, rel=1e-6, abs=1e-14 * float(A.norm())
    )
    # Alternation from there gains nothing that could be told from rounding.
    if result.info.converged:
        further = alternation(A, rank, 3, exact(result.diagonal))[-1]
        assert further >= result.info.error * (1 - 1e-4) - slack


def test_the_error_falls_faster_than_by_alternation():
    A = gaussian(40, 40)
    info = la.low_rank_plus_diagonal(A, 20).info
    slow = alternation(A, 20, 100, A.diagonal())
    assert info.converged
    assert info.error < min(slow)
    assert info.decompositions < 100


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(("m", "n"), [(9, 9), (9, 6), (6, 9)])
def test_the_second_derivative(m, n, complex_):
    dtype = torch.complex128 if complex_ else torch.float64
    hollow = gaussian(m, n, dtype=dtype)
    hollow.diagonal().zero_()
    problem = FreeDiagonal(hollow)
    x, d = (gaussian(6, 1, dtype=dtype, seed=seed)[: min(m, n), 0] for seed in (1, 2))
    if min(m, n) == 9:
        x, d = (gaussian(9, 1, dtype=dtype, seed=seed)[:, 0] for seed in (1, 2))
    h = 1e-6
    difference = (problem.at(x - h * d, 3).step - problem.at(x + h * d, 3).step) / (2 * h)
    product = problem._hessian(problem.at(x, 3))
    # h² and u/h, times derivatives that grow with the inverse gaps of the singular values.
    torch.testing.assert_close(product(d), difference, rtol=0, atol=1e-7)
    # −2·step is the gradient.
    slope = (problem.at(x + h * d, 3).error ** 2 - problem.at(x - h * d, 3).error ** 2) / (2 * h)
    assert slope == pytest.approx(-2 * float(torch.vdot(problem.at(x, 3).step, d).real), rel=1e-6)


def test_no_step_rises():
    problem = FreeDiagonal(gaussian(30, 30) - torch.diag(gaussian(30, 30).diagonal()))
    errors, at = [], problem.at
    point = at(torch.zeros(30, dtype=torch.float64), 14)
    for _ in range(40):
        errors.append(point.error)
        problem.decompositions = 0
        # So many decompositions that one step may be refused, and few are taken.
        point, _ = problem.descend(point, 1e-9, 4)
    assert all(later <= before for before, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("part", [1, 0.7])
def test_full_and_nearly_full_ranks(dtype, part):
    A = gaussian(12, 15, dtype=dtype)
    result = la.low_rank_plus_diagonal(A, round(12 * part), max_iters=2000)
    if part == 1:
        assert result.info.error <= 30 * unit_roundoff(A) * A.norm()
    assert result.info.error <= 0.2 * float(A.norm())


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e30),
        (torch.float32, 1e-30),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
    ],
)
def test_scales(dtype, scale):
    A = gaussian(14, 11, dtype=dtype)
    one, other = la.low_rank_plus_diagonal(A, 3).info, la.low_rank_plus_diagonal(A * scale, 3).info
    assert other.error / other.norm == pytest.approx(one.error / one.norm, rel=1e-6)
    assert other.decompositions == one.decompositions


@pytest.mark.parametrize("size", [1e8, 1e-8, 1e250])
def test_the_diagonal_of_A_costs_no_accuracy(size):
    A = planted(25, 25, 4)
    other = A.clone()
    other.diagonal().copy_(size * gaussian(25, 1, seed=9)[:, 0])
    found, shifted = (la.low_rank_plus_diagonal(B, 4) for B in (A, other))
    # The same off-diagonal entries: the same matrix of low rank.
    torch.testing.assert_close(
        found.left @ found.right, shifted.left @ shifted.right, rtol=0, atol=1e-11
    )
    assert shifted.info.error <= 1e-12 * float(A.norm()) + 2**-52 * shifted.info.norm


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 5), (5, 1), (1, 1), (4, 4), (4, 6)])
def test_zeros_and_vectors(shape):
    p = min(shape)
    zero = la.low_rank_plus_diagonal(torch.zeros(shape), 1)
    assert [tuple(part.shape) for part in zero] == [(shape[0], 1), (1, shape[1]), (p,)]
    assert not any(bool(part.any()) for part in zero)
    assert zero.info.error == zero.info.norm == 0
    ones = torch.ones(shape)
    found = la.low_rank_plus_diagonal(ones, 1)
    assert found.info.error <= 1e-6 * (1 + float(ones.norm()))
    diagonal = torch.zeros(shape).diagonal_scatter(torch.arange(1.0, p + 1))
    found = la.low_rank_plus_diagonal(diagonal, 1)
    assert torch.equal(found.diagonal, diagonal.diagonal())
    assert not bool(found.left.any())


def test_without_a_nearest_sum_it_is_told():
    # With x₁ = t, x = (t, 0, 1) and y = (1, 1/t, 0) the error is 1/t, and never zero.
    A = torch.zeros(3, 3, dtype=torch.float64)
    A[0, 1] = A[2, 0] = 1
    with pytest.warns(la.ConvergenceWarning, match="not met by 10 decompositions"):
        result = la.low_rank_plus_diagonal(A, 1, max_iters=10)
    assert all(bool(part.isfinite().all()) for part in result)
    assert not result.info.converged
    assert 0 < result.info.error < 0.1


def test_a_pattern_is_no_trap():
    # All singular values are 1, and without a diagonal no step leads from here: f is 6 − rank.
    shifts = torch.eye(6, dtype=torch.float64).roll(1, 0)
    assert la.low_rank_plus_diagonal(shifts, 1).info.error ** 2 < 4.001
    assert la.low_rank_plus_diagonal(shifts, 3).info.error < 0.01


def test_too_few_decompositions_are_told():
    A = gaussian(30, 30)
    with pytest.warns(la.ConvergenceWarning, match="tol = 1e-06 not met by 3 decompositions"):
        result = la.low_rank_plus_diagonal(A, 12, max_iters=3)
    assert not result.info.converged
    assert result.info.error <= alternation(A, 12, 1, np.zeros(30))[0]


def test_kinds_of_arrays():
    A = gaussian(9, 7)
    reference = la.low_rank_plus_diagonal(A, 2)
    before = A.clone()
    for given_as in (A.numpy(), A.T.contiguous().T, A.clone().requires_grad_(), A.numpy()[:, ::1]):
        found = la.low_rank_plus_diagonal(given_as, 2)
        assert isinstance(found.left, np.ndarray) == isinstance(given_as, np.ndarray)
        for one, other in zip(found, reference, strict=True):
            np.testing.assert_allclose(exact(one), exact(other), rtol=0, atol=1e-12)
    assert torch.equal(A, before)
    assert la.low_rank_plus_diagonal(torch.arange(12).view(3, 4), 1).left.dtype == torch.float32
    copy = pickle.loads(pickle.dumps(reference))
    assert torch.equal(copy.right, reference.right)
    assert copy.info == reference.info
    assert len(dataclasses.fields(reference.info)) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    A = planted(20, 16, 3).to(dtype)
    result = la.low_rank_plus_diagonal(A, 3)
    assert {part.dtype for part in result} == {dtype}
    # The diagonal makes up for the rounding of the factors that are returned.
    best = (A.double() - result.left.double() @ result.right.double()).diagonal()
    assert bool(((result.diagonal - best).abs() <= 1.01 * unit_roundoff(A) * best.abs()).all())
    wide = la.low_rank_plus_diagonal(A.double(), 3).info
    u = unit_roundoff(A)
    # Both factors and the diagonal are rounded once.
    sizes = float(result.left.double().norm() * result.right.double().norm())
    assert result.info.error <= wide.error + 3 * u * (sizes + result.info.norm)


def test_bad_arguments():
    A = gaussian(4, 5)
    for rank in (0, 5, -1):
        message = f"low_rank_plus_diagonal: rank must be between 1 and min(m, n) = 4, got {rank}"
        with pytest.raises(ValueError, match=re.escape(message)):
            la.low_rank_plus_diagonal(A, rank)
    with pytest.raises(TypeError, match="rank must be an integer"):
        la.low_rank_plus_diagonal(A, 1.5)
    for tol in (0, 1, math.nan):
        with pytest.raises(ValueError, match="tol must be between 0 and 1"):
            la.low_rank_plus_diagonal(A, 1, tol=tol)
    with pytest.raises(ValueError, match="max_iters must be at least 1, got 0"):
        la.low_rank_plus_diagonal(A, 1, max_iters=0)
    with pytest.raises(ValueError, match="A must have 2 dimensions"):
        la.low_rank_plus_diagonal(A[None], 1)
    with pytest.raises(TypeError, match="dense matrix"):
        la.low_rank_plus_diagonal(A.to_sparse(), 1)
    A[2, 2] = math.inf
    with pytest.raises(ValueError, match=r"A must be finite, got inf at index \(2, 2\)"):
        la.low_rank_plus_diagonal(A, 1)

"""Weights with zeros, in a two-sided norm."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn.compression.sparse_solver import (
    ascending_values,
    fit_on_mask,
    inverse_diagonal,
    mask_of_largest,
    saliency,
)

U = torch.finfo(torch.float64).eps


def problem(rows, columns, seed, spread=2.0):
    """W, H and G, the weights with eigenvalues over `spread` decades."""
    generator = torch.Generator().manual_seed(seed)

    def weight(size):
        Q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        values = 10 ** (-spread * torch.rand(size, generator=generator, dtype=torch.float64))
        return (Q * values) @ Q.T

    W = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return W, weight(rows), weight(columns)


def mask_of(rows, columns, seed, density=0.6):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.rand(rows, columns, generator=generator) < density


def error(W, X, H, G):
    return float(((H @ (W - X) @ G) * (W - X)).sum())


def exact(W, mask, H, G):
    """The least squares solution, from the normal equations of the kept entries."""
    full = torch.kron(H, G)  # for rows of W stacked, row-major
    kept = mask.flatten()
    right = (full @ W.flatten())[kept]
    solution = torch.zeros_like(W).flatten()
    solution[kept] = torch.linalg.solve(full[kept][:, kept], right)
    return solution.view_as(W)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6))
def test_the_fit_is_the_least_squares_solution(rows, columns, seed):
    W, H, G = problem(rows, columns, seed)
    mask = mask_of(rows, columns, seed)
    found = fit_on_mask(W, mask, H, G, most=10 * rows * columns)
    assert not bool(found[~mask].any())
    least, start = error(W, exact(W, mask, H, G), H, G), error(W, W * mask, H, G)
    reached = error(W, found, H, G)
    # Solutions of systems of condition 1e4 have errors of 1e4·u; entries of H, G and W are near 1.
    rounding = 1e5 * U * error(W, 0 * W, H, G)
    # It ends where a step lowers the error by less than 1 %: it may have left a part of the way.
    assert reached <= least + 0.5 * (start - least) + rounding
    assert reached >= least - rounding


def test_as_many_steps_as_entries_are_enough():
    """Conjugate gradients end there, whatever the condition; steepest descent would not."""
    left_over = []
    for seed in range(40):
        W, H, G = problem(2, 3, seed, spread=3)
        mask = torch.tensor([[True, False, True], [False, True, False]])
        least, start = error(W, exact(W, mask, H, G), H, G), error(W, W * mask, H, G)
        reached = error(W, fit_on_mask(W, mask, H, G, most=3), H, G)
        left_over.append((reached - least) / (start - least))
    # Some end earlier, where a step lowers the error by less than 1 %.
    assert sorted(left_over)[30] < 1e-6


def test_many_steps_reach_the_optimum():
    W, H, G = problem(6, 8, 3, spread=0.5)
    mask = mask_of(6, 8, 3)
    least = error(W, exact(W, mask, H, G), H, G)
    reached = error(W, fit_on_mask(W, mask, H, G, most=200), H, G)
    # The steps end once one lowers the error by less than 1 %, so near the optimum for a condition
    # of 10: conjugate gradients gain a factor (√10 − 1)²/(√10 + 1)² = 0.27 in squares every step.
    assert reached <= 1.02 * least
    assert error(W, W * mask, H, G) > 1.1 * least  # the control: without a fit


@pytest.mark.parametrize("sides", ["none", "left", "right"])
def test_sides_may_be_missing(sides):
    W, H, G = problem(5, 6, 1)
    mask = mask_of(5, 6, 1)
    left, right = (H if sides == "left" else None), (G if sides == "right" else None)
    found = fit_on_mask(W, mask, left, right, most=400)
    full = fit_on_mask(
        W,
        mask,
        torch.eye(5).double() if left is None else left,
        torch.eye(6).double() if right is None else right,
        most=400,
    )
    assert (found - full).abs().max() <= 1e-9 * W.abs().max()
    if sides == "none":
        assert torch.equal(found, W * mask)


def test_all_and_nothing():
    W, H, G = problem(4, 5, 2)
    everything = torch.ones(4, 5, dtype=torch.bool)
    assert torch.equal(fit_on_mask(W, everything, H, G), W)
    assert not bool(fit_on_mask(W, ~everything, H, G).any())


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_saliency_is_the_least_error_of_one_zero(rows, columns, seed):
    W, H, G = problem(rows, columns, seed)
    found = saliency(W, inverse_diagonal(H, rows), inverse_diagonal(G, columns))
    row, column = seed % rows, seed % columns
    mask = torch.ones(rows, columns, dtype=torch.bool)
    mask[row, column] = False
    least = error(W, exact(W, mask, H, G), H, G)
    # Both come from a linear system of condition 1e4.
    assert float(found[row, column]) == pytest.approx(least, rel=1e7 * U, abs=1e7 * U)


def test_no_weight_at_all_is_plain_magnitude():
    W, _, _ = problem(3, 4, 0)
    found = saliency(W, inverse_diagonal(None, 3), inverse_diagonal(None, 4))
    assert torch.equal(found, W.square())


def test_a_matrix_that_is_not_positive_definite_is_refused():
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        inverse_diagonal(-torch.eye(3).double(), 3)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([2, 10**6]))
def test_the_mask_is_that_of_a_stable_sort(rows, columns, seed, levels):
    # With two levels nearly all entries are tied.
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (rows, columns), generator=generator).double()
    order = scores.flatten().argsort(descending=True, stable=True)
    assert torch.equal(ascending_values(scores), scores.flatten().sort().values)
    for count in range(rows * columns + 1):
        expected = torch.zeros(rows * columns, dtype=torch.bool)
        expected[order[:count]] = True
        assert torch.equal(mask_of_largest(scores, count).flatten(), expected)

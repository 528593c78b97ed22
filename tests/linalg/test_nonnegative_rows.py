"""The kernel of nmf and semi_nmf: nonnegative quadratic programs, row by row."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from references import unit_roundoff
from strategies import gaussian, with_spectrum

U = 2.0**-53


def solve(X, G, B, *, penalty=0.0, passes=1, tol=0.0):
    X, info = torch.ops.fastlr.nonnegative_rows(X, G, B, penalty, passes, tol)
    return X, info.tolist()


def problem(m, n, k, condition, seed=0, dtype=torch.float64):
    """A (m × n) and a well or badly conditioned H (k × n), G = H·Hᵀ and B = A·Hᵀ."""
    A = gaussian(m, n, seed=seed)
    H = with_spectrum(k, n, np.geomspace(1, 1 / condition, k), seed=seed)
    return A, H, (H @ H.T).to(dtype), (A @ H.T).to(dtype)


def nnls(A, H):
    """The rows x ≥ 0 with x·H nearest to those of A."""
    rows = [scipy.optimize.nnls(H.T.numpy(), a)[0] for a in A.numpy()]
    return torch.from_numpy(np.array(rows))


def objectives(X, G, B, penalty=0.0):
    X, G, B = X.double(), G.double(), B.double()
    return ((X @ G) * X).sum(1) / 2 - ((B - penalty) * X).sum(1)


def kkt_residual(X, G, B, penalty=0.0):
    roots = G.double().diagonal().sqrt()
    gradient = X.double() @ G.double() - B.double() + penalty
    steps = torch.minimum(X.double() * roots, torch.where(roots > 0, gradient / roots, 0))
    return float(steps.norm())


@pytest.mark.parametrize("condition", [1.0, 10.0, 300.0])
@pytest.mark.parametrize("k", [1, 5, 12])
def test_rows_are_those_of_nnls(k, condition):
    A, H, G, B = problem(43, 30, k, condition)
    X, (decrease, before, after) = solve(torch.zeros_like(B), G, B, passes=10**6)
    expected = nnls(A, H)
    # B has errors of some √n·u·‖a‖‖h‖ with ‖h‖ ≤ 1, ‖a‖ ≤ 10; G⁻¹ is of size condition².
    assert (X - expected).abs().max() <= 100 * U * condition**2 * 10
    assert (X >= 0).all()
    assert after <= 1e3 * U * before
    # From zero, where the objective is zero; 43 sums of k² terms of size ‖a‖² ≤ 100.
    reached = -float(objectives(X, G, B).sum())
    assert decrease == pytest.approx(reached, rel=1e3 * U * condition)
    # A few passes are not enough where H is ill-conditioned: this is no direct method.
    if condition > 100 and k > 1:
        few, _ = solve(torch.zeros_like(B), G, B, passes=5)
        assert (few - expected).abs().max() > 1e-3


def test_a_nearly_singular_gram():
    # G has a condition of 1e10: the minimiser is hardly determined, its objective is. Coordinate
    # descent is slow here, and says so by its residual.
    A, H, G, B = problem(20, 30, 8, 1e5)
    X, (_, before, after) = solve(torch.zeros_like(B), G, B, passes=20000)
    best = nnls(A, H)
    assert torch.isfinite(X).all()
    assert after < 0.02 * before
    gap = objectives(X, G, B) - objectives(best, G, B)
    assert (gap >= -1e3 * U * objectives(best, G, B).abs()).all()
    # An exactly singular one: two equal rows share what one has.
    H = torch.cat([H[:1], H[:1], with_spectrum(3, 30, [1, 1, 1], seed=5)])
    G, B = H @ H.T, A @ H.T
    X, (_, _, after) = solve(torch.zeros_like(B), G, B, passes=10**5)
    best = nnls(A, H[1:])
    assert after <= 1e-12
    assert torch.allclose(X[:, 0] + X[:, 1], best[:, 0], rtol=0, atol=1e-11)
    assert torch.allclose(X[:, 2:], best[:, 1:], rtol=0, atol=1e-11)


@given(
    m=st.integers(0, 40),
    k=st.integers(1, 20),
    passes=st.integers(0, 6),
    penalty=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_what_is_returned_is_what_happened(m, k, passes, penalty, dtype, seed):
    _, _, G, B = problem(m, 25, k, 10.0, seed, dtype)
    start = gaussian(m, k, seed=seed + 7).clamp_min(0).to(dtype)
    X, (decrease, before, after) = solve(start, G, B, penalty=penalty, passes=passes)
    u, size = unit_roundoff(X), 1 + float(B.double().norm()) + float(start.double().norm())
    assert (X.shape, X.dtype) == (start.shape, dtype)
    assert (X >= 0).all()
    gained = objectives(start, G, B, penalty) - objectives(X, G, B, penalty)
    # Gradients and objectives are sums of k² terms; X is rounded to its type.
    slack = 4 * k**2 * u * size**2
    assert decrease == pytest.approx(float(gained.sum()), rel=0, abs=slack)
    assert (gained >= -slack).all()
    assert before == pytest.approx(kkt_residual(start, G, B, penalty), rel=0, abs=slack)
    assert after == pytest.approx(kkt_residual(X, G, B, penalty), rel=0, abs=slack)
    if passes == 0:
        assert torch.equal(X, start)
        assert decrease == 0


def test_a_pass_is_exact_steps_in_turn():
    _, _, G, B = problem(11, 25, 6, 10.0)
    start = gaussian(11, 6, seed=3).clamp_min(0)
    X = start.clone()
    for j in range(6):
        X[:, j] = (X[:, j] - (X @ G[:, j] - B[:, j] + 0.2) / G[j, j]).clamp_min(0)
    found, _ = solve(start, G, B, penalty=0.2)
    # Gradients are sums of six terms of size 10 or less.
    assert torch.allclose(found, X, rtol=0, atol=200 * U / float(G.diagonal().min()))
    assert not torch.allclose(found, solve(start, G, B, penalty=0.2, passes=2)[0], atol=1e-3)


def test_rows_do_not_see_each_other():
    # Each row stops when its own passes gain little: its bits are the same beside any others.
    _, _, G, B = problem(50, 25, 7, 30.0)
    start = torch.zeros_like(B)
    X, (decrease, _, _) = solve(start, G, B, passes=200, tol=0.01)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    permuted, _ = solve(start, G, B[order], passes=200, tol=0.01)
    assert torch.equal(permuted, X[order])
    for row in (0, 7, 8, 49):
        assert torch.equal(
            solve(start[:1], G, B[row : row + 1], passes=200, tol=0.01)[0][0], X[row]
        )
    # The tolerance ends passes that would go on, and not all after the first.
    whole = solve(start, G, B, passes=200)[1][0]
    assert solve(start, G, B)[1][0] < decrease < whole
    assert decrease > 0.9 * whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit(dtype, threads):
    _, _, G, B = problem(1003, 25, 9, 10.0, dtype=dtype)
    results = []
    for number in (1, 2, 3):
        with threads(number):
            results.append(solve(torch.zeros_like(B), G, B, passes=5, tol=0.01))
    for X, info in results[1:]:
        assert torch.equal(X, results[0][0])
        assert info == results[0][1]


def test_zero_columns():
    # Where G_jj = 0, nothing depends on x_j, which is zero then; the others do not see it.
    A, H, _, _ = problem(20, 30, 6, 10.0)
    H[2] = 0
    G, B = H @ H.T, A @ H.T
    start = gaussian(20, 6).abs()
    X, (decrease, before, after) = solve(start, G, B, penalty=0.1, passes=10**5)
    kept = [0, 1, 3, 4, 5]
    others, (other, *_) = solve(
        start[:, kept], G[kept][:, kept], B[:, kept], penalty=0.1, passes=10**5
    )
    assert torch.equal(X[:, 2], torch.zeros(20, dtype=torch.float64))
    assert torch.equal(X[:, kept], others)
    assert decrease == other
    assert after < 1e-12 < before
    X, info = solve(start, torch.zeros(6, 6).double(), torch.zeros(20, 6).double(), passes=3)
    assert torch.equal(X, torch.zeros_like(X))
    assert info == [0.0, 0.0, 0.0]


def test_negative_entries_of_the_start_count_as_zeros():
    _, _, G, B = problem(9, 25, 4, 10.0)
    start = gaussian(9, 4)
    one, two = solve(start, G, B, passes=2), solve(start.clamp_min(0), G, B, passes=2)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"G": torch.eye(4)}, ValueError, r"G must have shape \(3, 3\), got \[4, 4\]"),
        ({"B": torch.ones(4, 3)}, ValueError, r"B must have shape \(5, 3\), got \[4, 3\]"),
        ({"B": torch.ones(5, 3).double()}, TypeError, "B must be Float, got Double"),
        ({"X": torch.ones(5, 3, dtype=torch.complex64)}, TypeError, "X must be real"),
        ({"penalty": -1.0}, ValueError, "penalty must be non-negative and finite, got -1"),
        ({"passes": -1}, ValueError, "passes must be non-negative, got -1"),
        ({"tol": float("nan")}, ValueError, "tol must be non-negative, got nan"),
    ],
)
def test_errors(arguments, error, match):
    given = {"X": torch.ones(5, 3), "G": torch.eye(3), "B": torch.ones(5, 3), **arguments}
    with pytest.raises(error, match=match):
        solve(**given)

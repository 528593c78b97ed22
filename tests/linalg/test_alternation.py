"""The steps of nmf and semi_nmf, where whole runs would not show that one of them is wrong."""

import pytest
import torch

import fastlr.linalg as la
from fastlr.linalg._alternation import Data, _seeded, least_squares_step, unit_ball_step
from fastlr.linalg._starts import nonnegative_start, random_start, signed_start
from references import unit_roundoff
from strategies import gaussian


def value(A, X, V, penalty=0.0):
    A, X, V = A.double(), X.double(), V.double()
    return float((A - X @ V.mT).square().sum()) / 2 + penalty * float(X.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [0.0, 1e-3])
def test_least_squares_of_codes_that_are_nearly_dependent(dtype, distance):
    # Two columns differ by 0.001·√u of their length: the Gram matrix does not show it.
    u = unit_roundoff(torch.empty(0, dtype=dtype))
    X = gaussian(60, 5).abs()
    X[:, 4] = X[:, 3] + distance * u**0.5 * gaussian(60, 1, seed=1)[:, 0].abs()
    X, V, A = X.to(dtype), gaussian(40, 5, seed=2).to(dtype), gaussian(60, 40, seed=3).to(dtype)
    G, Q = X.mT @ X, A.mT @ X
    _, found, decrease, _ = least_squares_step(X, V, G, Q)
    best = torch.linalg.lstsq(X[:, :4].double(), A.double()).solution
    least = value(A, X[:, :4], best.mT)
    # Sums of 5 terms; a cutoff of 5·eps magnifies their rounding to 5·u of the objective.
    slack = 200 * u * value(A, X, V)
    # What is left as it was in V: half of the two columns' differences, times the residual.
    apart = [float((F[:, 4] - F[:, 3]).double().norm()) for F in (X, V)]
    left = apart[0] * apart[1] / 2 * (2 * least) ** 0.5
    assert value(A, X, found) <= least + left + left**2 + slack
    assert value(A, X, V) - value(A, X, found) == pytest.approx(decrease, rel=0, abs=slack)
    assert found.abs().max() < 10 * V.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 3, 6, 7, 10])  # in float32 the last three round it upwards
def test_what_dependent_codes_do_not_determine_stays(dtype, seed):
    # The eigenvalue of the Gram matrix is rounding, and so is what Q − V·G has along its vector.
    X = gaussian(60, 4, seed=seed).abs()
    X = torch.cat([X, X @ torch.tensor([[2.0], [1], [3], [1]]).double()], 1).to(dtype)
    null = torch.tensor([2.0, 1, 3, 1, -1]).double()
    V, A = gaussian(40, 5, seed=seed + 10).to(dtype), gaussian(60, 40, seed=seed + 20).to(dtype)
    _, found, _, _ = least_squares_step(X, V, X.mT @ X, A.mT @ X)
    moved = (found - V).double()
    # In the metric of the equilibrated Gram matrix, the eigenvectors that are kept are orthogonal
    # to null but for its rounding, some 10 u, over the next eigenvalue, 0.1 at least.
    lengths = X.double().norm(dim=0)
    along = (moved * lengths) @ (null * lengths) / float((null * lengths).norm())
    u = unit_roundoff(X)
    assert float(along.norm()) <= 100 * u * float((found.double() * lengths).norm())
    assert float(moved.norm()) > 0.1 * float(V.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_nearly_dependent_codes_do_determine_is_found(dtype):
    # Of an eigenvalue of 1000 u or more, a hundred times the cutoff; all of A is in its direction.
    u = unit_roundoff(torch.empty(0, dtype=dtype))
    X = gaussian(60, 5).abs()
    apart = gaussian(60, 1, seed=1)[:, 0]
    X[:, 4] = X[:, 3] + (1e4 * u) ** 0.5 * apart * float(X[:, 3].norm() / apart.norm())
    X = X.to(dtype)
    A = torch.outer((X[:, 4] - X[:, 3]) / (1e4 * u) ** 0.5, gaussian(40, 1)[:, 0].to(dtype))
    V = X.new_zeros(40, 5)
    _, found, _, _ = least_squares_step(X, V, X.mT @ X, A.mT @ X)
    # The Gram matrix is rounded by some 10 u, 1 % of the eigenvalue; the objective is its square.
    assert value(A, X, found) <= 0.01**2 * value(A, X, V)


@pytest.mark.parametrize("seed", range(4))
def test_the_start_is_the_larger_part_of_each_pair(seed):
    # 12 columns: the subspace is all of them, the singular vectors those of LAPACK but for signs.
    A = gaussian(16, 12, seed=seed).abs()
    X, V = nonnegative_start(A, 6, seed)
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    others = 0
    for j in range(6):
        parts = [
            (sign * U[:, j]).clamp_min(0).outer((sign * Vh[j]).clamp_min(0)) * S[j]
            for sign in (1, -1)
        ]
        larger, smaller = sorted(parts, key=torch.linalg.matrix_norm, reverse=True)
        # Vectors are rounded by some u·‖A‖ over the gap of singular values, 0.009 of ‖A‖.
        assert float(torch.dist(X[:, j].outer(V[:, j]), larger)) <= 1000 * 2.0**-53 * float(S[0])
        others += float(smaller.norm()) > 0.1 * float(larger.norm())
    assert others >= 3  # a choice there was


@pytest.mark.parametrize("seed", range(4))
def test_the_signed_start_has_the_largest_parts(seed):
    A = gaussian(16, 12, seed=seed)
    X, V = signed_start(A, 6, seed)
    U, S, _ = torch.linalg.svd(A, full_matrices=False)
    sizes = torch.cat([(sign * U[:, :6]).clamp_min(0).norm(dim=0) * S[:6] for sign in (1, -1)])
    largest = sizes.sort(descending=True).values[:6]
    # Vectors are rounded by some u·‖A‖ over the gap of singular values, 0.014 of ‖A‖.
    bound = 1000 * 2.0**-53 * float(S[0])
    assert torch.allclose(X.norm(dim=0), largest, rtol=0, atol=bound)
    # Each with its direction, of length 1.
    assert torch.allclose((A @ V).clamp_min(0), X, rtol=0, atol=bound)
    assert torch.allclose(V.norm(dim=0), torch.ones(6).double(), rtol=1e-14)


@pytest.mark.parametrize(
    ("start", "kind"), [(nonnegative_start, "uniform"), (signed_start, "gaussian")]
)
def test_a_start_of_more_components_than_singular_vectors_is_random_in_the_rest(start, kind):
    A = gaussian(5, 4).abs()
    X, V = start(A, 11, 3)
    _, drawn = random_start(A, 11, 3, kind)
    parts = 4 if start is nonnegative_start else 8
    assert torch.equal(V[:, parts:], drawn[:, parts:])
    assert not X[:, parts:].any()
    assert X[:, : parts - 1].any(0).all()  # the leading left vector may have one sign


def test_short_directions_are_lengthened_and_their_codes_shortened():
    # A is a tenth of what the codes are made for: the best directions are shorter than 1.
    X, V = gaussian(60, 4).abs(), gaussian(30, 4, seed=1)
    V /= V.norm(dim=0)
    A = 0.1 * gaussian(60, 30, seed=2)
    data, penalty = Data(A, float(A.abs().max())), 0.05
    codes, found, decrease, _ = unit_ball_step(data, penalty)(X, V, X.mT @ X, A.mT @ X)
    assert torch.allclose(found.norm(dim=0), torch.ones(4).double(), rtol=1e-14)
    assert (codes.sum(0) < 0.9 * X.sum(0)).all()
    gained = value(A, X, V, penalty) - value(A, codes, found, penalty)
    assert gained == pytest.approx(decrease, rel=1e-12)


@pytest.mark.parametrize("signed", [False, True])
def test_a_seed_has_the_signs_that_it_may_have(signed):
    A = gaussian(20, 15).abs()
    X, V = 0.5 * gaussian(20, 3, seed=1).abs(), gaussian(15, 3, seed=2).abs()
    X[:, 1] = 0
    codes, found, seeded = _seeded(Data(A, float(A.max())), X, V, 0.0, signed)
    assert seeded
    assert not codes[:, 1].any()
    assert torch.equal(found[:, [0, 2]], V[:, [0, 2]])
    assert float(found[:, 1].norm()) == pytest.approx(1)
    assert bool((found[:, 1] < 0).any()) == signed


def test_rounding_is_no_seed():
    # What is left is rounding: the component stays zero.
    X, V = gaussian(20, 2).abs(), gaussian(15, 2, seed=1).abs()
    A = X @ V.mT
    X = torch.cat([X, torch.zeros(20, 1).double()], 1)
    V = torch.cat([V, torch.ones(15, 1).double()], 1)
    _, found, seeded = _seeded(Data(A, float(A.max())), X, V, 0.0, False)
    assert not seeded
    assert not found[:, 2].any()


@pytest.mark.parametrize("call", [la.nmf, la.semi_nmf])
def test_a_bad_entry_that_is_the_first_of_its_row(call):
    A = torch.ones(5, 4)
    A[2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"A must be finite, got nan at index \(2, 0\)"):
        call(A.to_sparse_csr(), 2)

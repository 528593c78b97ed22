"""The steps of nmf and semi_nmf, where whole runs would not show that one of them is wrong."""

import pytest
import torch

import fastlr.linalg as la
from fastlr.linalg._alternation import Data, _seeded, least_squares_step, unit_ball_step
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

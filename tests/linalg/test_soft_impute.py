"""soft_impute: the nuclear norm as the penalty of a completion."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlr.linalg as la
from strategies import gaussian


def noisy(m=60, n=50, rank=3, share=0.5, dtype=torch.float64, seed=0):
    """A matrix of low rank with noise, and which of its entries are known."""
    A = gaussian(m, rank, seed=seed) @ gaussian(rank, n, seed=seed + 1)
    A = (A + 0.3 * gaussian(m, n, seed=seed + 2)).to(dtype)
    return A, la.random_matrix(m, n, kind="uniform", seed=seed + 3) < share


def objective(X, A, known, penalty, weights=None):
    weights = torch.ones_like(A) if weights is None else weights
    loss = (weights * (A - X).square())[known].sum() / 2
    return float(loss + penalty * torch.linalg.svdvals(X).sum())


def by_proximal_steps(A, known, penalty, weights=None, steps=1000):
    """The minimum by accelerated steps of length 1 / max(weights)."""
    weights = torch.ones_like(A) if weights is None else weights
    length = 1 / float(weights.max())
    X = Y = torch.zeros_like(A)
    momentum = 1.0
    for _ in range(steps):
        gradient = torch.where(known, weights * (Y - A), 0.0)
        U, S, Vh = torch.linalg.svd(Y - length * gradient, full_matrices=False)
        after = (U * (S - length * penalty).clamp_min(0)) @ Vh
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        Y = after + (momentum - 1) / following * (after - X)
        X, momentum = after, following
    return X


@pytest.mark.parametrize("weighted", [False, True])
def test_reaches_the_minimum(weighted):
    A, known = noisy()
    weights = 0.5 + la.random_matrix(60, 50, kind="uniform", seed=9).double() if weighted else None
    penalties = [20.0, 8.0, 3.0]
    path = la.soft_impute(
        A, mask=known, weights=weights, penalties=penalties, tol=1e-6, seed=0, max_sweeps=5000
    )
    assert path.penalties == (20.0, 8.0, 3.0)
    for penalty, completion, found, gap in zip(
        *path, path.info.objectives, path.info.gaps, strict=True
    ):
        expected = by_proximal_steps(A, known, penalty, weights)
        least = objective(expected, A, known, penalty, weights)
        got = objective(completion.dense(), A, known, penalty, weights)
        # The gap bounds how far it is above the minimum; the peer stops at rounding.
        assert got <= least * (1 + gap + 1e-9)
        assert gap <= 1e-6
        assert found == pytest.approx(got, rel=1e-9)
        # The loss is strongly convex where entries are known, elsewhere not: near, no more.
        assert torch.linalg.norm(completion.dense() - expected) < 0.01 * torch.linalg.norm(expected)


@settings(max_examples=15)
@given(
    m=st.integers(1, 30), n=st.integers(1, 30), share=st.floats(0.2, 1), part=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_the_gap_is_a_bound(m, n, share, part, seed):
    A, known = noisy(m, n, 2, share, seed=seed)
    penalty = max(part * float(torch.linalg.matrix_norm(torch.where(known, A, 0.0), 2)), 1e-3)
    path = la.soft_impute(A, mask=known, penalties=penalty, tol=1e-3, seed=seed)
    (completion,), (gap,) = path.completions, path.info.gaps
    least = objective(by_proximal_steps(A, known, penalty, steps=300), A, known, penalty)
    got = objective(completion.dense(), A, known, penalty)
    assert gap <= 1e-3
    assert got * (1 - max(gap, 0)) <= least * (1 + 1e-9)


def test_a_large_gap_shows():
    # The negative control: stopped early, the gap is no less than what is missing.
    A, known = noisy()
    with pytest.warns(la.ConvergenceWarning, match="above tol = 1e-08"):
        path = la.soft_impute(A, mask=known, penalties=[1.0], tol=1e-8, max_sweeps=10, seed=0)
    (completion,), (gap,) = path.completions, path.info.gaps
    least = objective(by_proximal_steps(A, known, 1.0), A, known, 1.0)
    got = objective(completion.dense(), A, known, 1.0)
    assert not path.info.converged[0]
    assert (got - least) / got <= gap
    assert gap > 1e-6


def test_residual_certifies_the_minimum():
    A, known = noisy()
    path = la.soft_impute(A, mask=known, penalties=[5.0], tol=1e-7, max_sweeps=5000, seed=0)
    X = path.completions[0].dense()
    rest = torch.where(known, A - X, 0.0)
    # No singular value above the penalty, and as many at it as the rank: the gap is of the order of
    # the excess.
    S = torch.linalg.svdvals(rest)
    assert S[0] < 5 * (1 + 1e-4)
    assert S[path.completions[0].rank - 1] > 5 * (1 - 1e-3)


def test_default_path():
    A, known = noisy()
    path = la.soft_impute(A, mask=known, seed=0)
    norm = float(torch.linalg.matrix_norm(torch.where(known, A, 0.0), 2))
    assert len(path.penalties) == 20
    assert path.penalties[0] == pytest.approx(norm, rel=1e-3)
    assert path.penalties[-1] == pytest.approx(norm / 100, rel=1e-3)
    assert path.info.ranks[0] <= 1
    assert path.info.ranks[-1] > 10
    objectives = np.array(path.info.objectives)
    assert (np.diff(objectives) < 0).all()  # less penalty
    assert all(path.info.converged)


def test_zero_above_the_norm():
    A, known = noisy()
    norm = float(torch.linalg.matrix_norm(torch.where(known, A, 0.0), 2))
    above, below = la.soft_impute(A, mask=known, penalties=[1.01 * norm, 0.99 * norm], tol=1e-9,
                                  seed=0).completions  # fmt: skip
    assert above.rank == 0
    assert torch.equal(above.dense(), torch.zeros(60, 50).double())
    assert below.rank == 1
    assert above.history.training_error[-1] == pytest.approx(
        float(A[known].square().mean().sqrt()), rel=1e-12
    )


def test_best_is_chosen_on_what_is_left_out():
    A, known = noisy(share=0.6)
    left_out = torch.nonzero(~known, as_tuple=True)
    path = la.soft_impute(A, mask=known, validation=(*left_out, A[left_out]), seed=0)
    errors = [float((c.predict(*left_out) - A[left_out]).square().mean().sqrt())
              for c in path.completions]  # fmt: skip
    assert path.best is path.completions[int(np.argmin(errors))]
    assert path.best.history.validation_error[-1] == pytest.approx(min(errors), rel=1e-6)
    assert min(errors) < 0.7 < errors[0]  # noise of 0.3, and what the penalty takes
    with pytest.raises(ValueError, match="needs validation="):
        _ = la.soft_impute(A, mask=known, penalties=[3.0], seed=0).best


def test_max_rank():
    A, known = noisy()
    with pytest.warns(la.ConvergenceWarning, match="with rank 2"):
        path = la.soft_impute(A, mask=known, penalties=[1.0], max_rank=2, max_sweeps=100, seed=0)
    assert path.info.ranks == (2,)
    assert not path.info.converged[0]


@pytest.mark.parametrize(
    ("dtype", "exponent"), [(torch.float64, 660), (torch.float64, -660), (torch.float32, -100)]
)
def test_any_scale(dtype, exponent):
    A, known = noisy(dtype=dtype)
    one = la.soft_impute(A, mask=known, penalties=[5.0], seed=0).completions[0].dense()
    scale = 2.0**exponent
    other = la.soft_impute(A * scale, mask=known, penalties=[5.0 * scale], seed=0)
    rest = other.completions[0].dense() / scale - one
    assert torch.linalg.norm(rest) < 1e4 * torch.finfo(dtype).eps * torch.linalg.norm(one)


def test_kinds_and_types():
    A, known = noisy()
    rows, cols = torch.nonzero(known, as_tuple=True)
    expected = la.soft_impute(rows, cols, A[known], A.shape, penalties=[5.0], seed=0)
    missing = torch.where(known, A, torch.nan)
    sparse = torch.sparse_coo_tensor(torch.stack((rows, cols)), A[known], A.shape)
    for matrix in (missing, missing.numpy(), sparse):
        path = la.soft_impute(matrix, penalties=5, seed=0)
        assert isinstance(path.completions[0].U, type(matrix))
        got = torch.as_tensor(path.completions[0].dense())
        torch.testing.assert_close(got, expected.completions[0].dense())
    single = la.soft_impute(missing.float(), penalties=[5.0], seed=0).completions[0]
    assert single.U.dtype == torch.float32
    torch.testing.assert_close(
        single.dense().double(), expected.completions[0].dense(), rtol=0, atol=1e-2
    )


def test_nothing_and_zeros():
    for values in (np.zeros((4, 3)), np.full((4, 3), np.nan)):
        with warnings.catch_warnings():
            warnings.simplefilter("error", la.ConvergenceWarning)
            path = la.soft_impute(values, seed=0)
        assert path.info.ranks == (0,)
        assert np.array_equal(path.completions[0].dense(), np.zeros((4, 3)))


def test_fold_in_and_files(tmp_path):
    A, known = noisy()
    completion = la.soft_impute(A, mask=known, penalties=[5.0], tol=1e-8, seed=0).completions[0]
    folded = completion.fold_in(torch.where(known, A, torch.nan))
    # At the minimum every row of U is that for V.
    torch.testing.assert_close(folded.dense(), completion.dense(), rtol=0, atol=2e-3)
    completion.save(tmp_path / "path.pt")
    assert la.Completion.load(tmp_path / "path.pt").info.method == "soft_impute"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"penalties": [1.0, 0.0]}, ValueError, "penalties must be positive"),
        ({"penalties": [-1.0]}, ValueError, "penalties must be non-negative"),
        ({"penalties": [math.nan]}, ValueError, "penalties must be non-negative and finite"),
        ({"penalties": []}, ValueError, "penalties must be positive"),
        ({"penalties": "all"}, TypeError, "penalties must be a real number"),
        ({"max_rank": 0}, ValueError, "max_rank must be at least 1"),
        ({"tol": -1}, ValueError, "tol must be non-negative"),
        ({"max_sweeps": 0}, ValueError, "max_sweeps must be at least 1"),
        ({"validation": ([0], [50], [1.0])}, ValueError, "soft_impute: validation: cols"),
        ({"seed": 1.5}, TypeError, "seed must be"),
    ],
)
def test_bad_arguments(change, error, message):
    A, known = noisy()
    with pytest.raises(error, match=message):
        la.soft_impute(A, mask=known, **{"seed": 0, **change})

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import exact, orthonormality_error, unit_roundoff
from strategies import dtypes, matrices, with_spectrum


def span_error(Q, Y) -> float:
    """‖Y − QQᵀY‖_F relative to ‖Y‖_F, in units of roundoff."""
    if not Y.numel() or not Y.any():
        return 0.0
    u, Q, Y = unit_roundoff(Q), exact(Q), exact(Y)
    Y = Y / np.abs(Y).max()  # the squares of entries near the ends of the range are beyond it
    return float(np.linalg.norm(Y - Q @ (Q.T @ Y)) / np.linalg.norm(Y) / u)


def check(Y):
    Q = la.orthonormalize(Y)
    assert Q.shape == (Y.shape[0], min(Y.shape))
    assert orthonormality_error(Q) <= 10
    # Backward error of a few triangular solves and Householder sweeps: c·√k·u with c about 10.
    assert span_error(Q, Y) <= 10 * math.sqrt(Y.shape[1])


@given(Y=matrices())
def test_any_shape_and_spectrum(Y):
    check(Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0, 2, 4, 6, 8, 12, 16, 40, 300])
def test_condition_numbers_to_beyond_the_inverse_roundoff(dtype, power):
    check(with_spectrum(500, 40, np.logspace(0, -power, 40), dtype))


@given(
    dtype=dtypes,
    zeros=st.sets(st.integers(0, 11), max_size=12),
    copies=st.lists(st.integers(0, 11), max_size=5),
)
def test_zero_and_repeated_columns(dtype, zeros, copies):
    Y = with_spectrum(40, 12, np.ones(12), dtype)
    Y[:, list(zeros)] = 0
    Y = torch.cat([Y, Y[:, copies]], dim=1)
    check(Y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [0, 1, 20, 39])
def test_exact_rank_deficiency_is_completed(dtype, rank):
    check(with_spectrum(500, 40, np.ones(40)[:rank], dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graded_columns(dtype):
    Y = with_spectrum(200, 30, np.ones(30), torch.float64)
    check((Y * torch.logspace(0, -30, 30, dtype=torch.float64)).to(dtype))


@pytest.mark.parametrize(("dtype", "power"), [(torch.float32, 37), (torch.float64, 300)])
def test_scale_does_not_matter(dtype, power):
    Y = with_spectrum(100, 10, np.linspace(1, 0.1, 10), dtype)
    for scale in (10.0**power, 10.0**-power):
        check(Y * scale)
    power_of_two = 2.0 ** (3 * power)
    assert torch.equal(la.orthonormalize(Y * power_of_two), la.orthonormalize(Y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smallest_subnormals(dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    Y = torch.eye(5, 3, dtype=dtype) * smallest
    assert torch.equal(la.orthonormalize(Y).abs(), torch.eye(5, 3, dtype=dtype))


def test_long_float32_columns_stay_within_the_promise():
    # Householder QR alone gathers 19·√k·u over 200 000 rows.
    Y = torch.randn(100_000, 30, generator=torch.Generator().manual_seed(0))
    Y[:, 15:] = 0
    assert orthonormality_error(la.orthonormalize(Y)) <= 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1000, 4097])
def test_columns_whose_products_round_to_one_side(dtype, m):
    # All partial sums of a column of ones with itself, or with a step, round the same way.
    step = torch.ones(m, dtype=dtype)
    step[m // 2 :] = -1
    ramp = torch.arange(m, dtype=dtype)
    check(torch.stack([torch.ones(m, dtype=dtype), step, ramp], dim=1))


def test_cholesky_qr_alone_would_fail():
    """The negative control: one Cholesky pass loses u·κ², which the promise excludes."""
    Y = with_spectrum(500, 40, np.logspace(0, -3, 40), torch.float32)
    once = torch.linalg.solve_triangular(
        torch.linalg.cholesky(Y.T @ Y).mT, Y, upper=True, left=False
    )
    assert orthonormality_error(once) > 1000
    assert orthonormality_error(la.orthonormalize(Y)) <= 10


def test_empty():
    assert la.orthonormalize(torch.empty(0, 4)).shape == (0, 0)
    assert la.orthonormalize(torch.empty(4, 0)).shape == (4, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entry_is_named(bad):
    Y = torch.ones(5, 4)
    Y[3, 1] = bad
    with pytest.raises(ValueError, match=r"orthonormalize: Y must be finite.*\(3, 1\)"):
        la.orthonormalize(Y)


def test_numpy_of_any_layout():
    Y = np.random.default_rng(0).standard_normal((30, 6))
    expected = la.orthonormalize(Y)
    assert isinstance(expected, np.ndarray)
    for view in (np.asfortranarray(Y), Y[::-1][::-1], Y.astype(">f8"), np.repeat(Y, 2, 1)[:, ::2]):
        # Other layouts round differently: 100·u on entries below 1.
        np.testing.assert_allclose(la.orthonormalize(view), expected, rtol=0, atol=100 * 2.0**-53)


@pytest.mark.parametrize(
    ("Y", "error", "words"),
    [
        (torch.ones(3), ValueError, "Y must have 2 dimensions, got shape \\(3,\\)"),
        (torch.ones(3, 3).to_sparse(), TypeError, "must be a dense matrix"),
        (np.array([["a"]]), TypeError, "tensor of numbers"),
        (None, TypeError, "must be a NumPy array or torch tensor of numbers, got NoneType"),
    ],
)
def test_bad_input(Y, error, words):
    with pytest.raises(error, match=words):
        la.orthonormalize(Y)

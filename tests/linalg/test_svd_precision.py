"""The range finder in half the precision, and the result's error that must not show it."""

import numpy as np
import pytest
import torch

import fastlr.linalg as la
from references import exact, orthonormality_error, tail_norm
from strategies import with_spectrum

M, N, RANK = 600, 400, 20
HALF = {
    torch.float32: torch.bfloat16,
    torch.float64: torch.float32,
    torch.complex128: torch.complex64,
}


def run(A, precision, power_iters=2, rank=RANK):
    """The operator itself: "lowest" needs no hardware that is faster then, for a test alone."""
    *factors, info = torch.ops.fastlr.randomized_svd(
        A, rank, 10, power_iters, "subspace", precision, False, 0
    )
    return factors, info[2].item(), bool(info[8])


def error(A, factors):
    U, S, Vh = (exact(factor) for factor in factors)
    return float(np.linalg.norm(exact(A) - (U * S) @ Vh))


def matrix(values, dtype):
    A = with_spectrum(M, N, values)
    if dtype.is_complex:
        A = torch.complex(A, with_spectrum(M, N, values, seed=5))
    return A.to(dtype)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("power_iters", [None, 1, 2])
@pytest.mark.parametrize("decay", ["flat", "slow", "signal and noise"])
def test_the_error_is_that_of_the_full_precision(dtype, power_iters, decay):
    index = np.arange(N)
    values = {
        "flat": np.ones(N),
        "slow": 1 / np.sqrt(1.0 + index),
        "signal and noise": np.where(index < RANK, 2.0 - index / RANK, 0.9),
    }[decay]
    A = matrix(values, dtype)
    full, _, lowered = run(A, "full", power_iters)
    assert not lowered
    low, bound, lowered = run(A, "lowest", power_iters)
    assert lowered
    # The bound of the design: rounding makes ‖E‖² grow by less than 0.25 %, ‖E‖ by 0.13 %; an
    # iteration fewer in full than in low precision (settled earlier) may gain or lose 2 %.
    allowed = 1.0013 if power_iters else 1.02
    assert error(A, low) <= allowed * error(A, full)
    assert error(A, low) <= bound
    # The last step is that of A itself: Aᴴu = s·v to the rounding of its own type, 40·√n·u.
    gap = exact(A).conj().T @ exact(low[0]) - exact(low[2]).conj().T * exact(low[1])
    rounding = 40 * np.sqrt(N) * torch.finfo(dtype).eps / 2 * np.linalg.norm(exact(A))
    assert np.linalg.norm(gap) <= rounding
    assert orthonormality_error(low[0]) <= 10
    assert orthonormality_error(low[2].mH) <= 10


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("decay", [1e-3, 0.0])
def test_what_rounding_would_reach_is_computed_in_full(dtype, decay):
    """Kept values far below the rounding of the leading one: the lower precision is refused."""
    u = {torch.float32: 2.0**-9, torch.float64: 2.0**-24, torch.complex128: 2.0**-24}[dtype]
    values = np.where(np.arange(N) < 5, 1.0, np.maximum(u * decay, 0.0))
    A = matrix(values, dtype)
    factors, _, lowered = run(A, "lowest")
    assert not lowered
    rounding = 40 * np.sqrt(N) * torch.finfo(dtype).eps * np.linalg.norm(exact(A))
    assert error(A, factors) <= 1.4 * tail_norm(A, RANK) + rounding


def test_converged_vectors_keep_the_full_precision():
    index = np.arange(N)
    # Twenty values near one and a decay that six iterations make the most of: 0.028^12 < 1e-18.
    A = with_spectrum(M, N, np.where(index < RANK, 1 - 0.005 * index, 0.9 * 0.7 ** (index - RANK)))
    low, _, lowered = run(A, "lowest", 6)
    assert not lowered
    full, _, _ = run(A, "full", 6)
    assert all(torch.equal(one, two) for one, two in zip(low, full, strict=True))


@pytest.mark.parametrize("size", [1e60, 1e-60])
def test_a_size_beyond_the_lower_type_is_computed_in_full(size):
    A = matrix(1 / np.sqrt(1.0 + np.arange(N)), torch.float64)
    factors, _, lowered = run(A * size, "lowest")
    assert not lowered
    full, _, _ = run(A * size, "full")
    np.testing.assert_allclose(factors[1], full[1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_auto_halves_double_precision_on_any_hardware_and_says_so(dtype):
    A = matrix(1 / np.sqrt(1.0 + np.arange(N)), dtype)
    assert la.randomized_svd(A, RANK, seed=0).info.precision == HALF[dtype]
    assert la.randomized_svd(A, RANK, seed=0, precision="full").info.precision == dtype
    # Where the sketch is no small part of A, a copy does not pay.
    assert la.randomized_svd(A, 100, seed=0).info.precision == dtype
    wide = la.randomized_svd(A.mH.contiguous(), RANK, seed=0)
    tall = la.randomized_svd(A, RANK, seed=0)
    assert wide.info.precision == HALF[dtype]
    # The same draws: sums in another order, in the lower precision, move Ritz values of the last
    # step by the square of u_low·√m.
    np.testing.assert_allclose(wide.S, tall.S, rtol=(2.0**-24) ** 2 * M + 1e-12)


def test_unknown_precision():
    with pytest.raises(ValueError, match=r'precision must be "auto" or "full", got \'half\''):
        la.randomized_svd(torch.ones(30, 20), 2, precision="half")

"""Batches whose matrices take different ways through the algorithm."""

import math

import numpy as np
import pytest
import torch

import fastlr.linalg as la
from references import orthonormality_error, unit_roundoff
from strategies import with_spectrum

FLOATS = [torch.float32, torch.float64]
M, N = 50, 40
KINDS, FLAT = 8, (0, 7)  # of `mixed_batch`


def mixed_batch(dtype):
    """Matrices that settle at once, late or never, or on which the quick iteration breaks down."""
    index = np.arange(N)
    size = 1e30 if dtype == torch.float32 else 1e200
    spectra = {
        "flat": np.ones(N),
        "quick decay": 0.3**index,
        "slow decay": 0.95**index,
        "rank 2": np.where(index < 2, 1.0, 0.0),
        "zero": np.zeros(N),
        "huge": 0.5**index * size,
        "tiny": 0.5**index / size,
        "outlier": np.where(index == 0, 1e3, 1.0),
    }
    return torch.stack(
        [with_spectrum(M, N, values, dtype, seed=i) for i, values in enumerate(spectra.values())]
    ).repeat(6, 1, 1)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("power_iters", ["auto", 0, 1, 3])
def test_every_matrix_of_a_mixed_batch_is_that_of_the_loop(wide, dtype, power_iters):
    batch = mixed_batch(dtype)
    batch = batch.mT.contiguous() if wide else batch
    result = la.randomized_svd(batch, 4, power_iters=power_iters, seed=1)
    for i, A in enumerate(batch):
        one = la.randomized_svd(A, 4, power_iters=power_iters, seed=1)
        # The same draws, sums in another order: 40·√n·u of ‖A‖_F, as in the tests of one matrix,
        # and half the smallest subnormal number of the type that S is stored in. Squares of the
        # tiny matrix underflow: ‖A‖_F is at most √n times the largest singular value.
        norm = float(one.S.double().max()) * math.sqrt(N)
        quantum = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        bound = 40 * math.sqrt(N) * unit_roundoff(A) * norm + quantum
        assert float((result.S[i].double() - one.S.double()).abs().max()) <= bound
        assert orthonormality_error(result.U[i]) <= 10
        assert orthonormality_error(result.Vh[i].mT) <= 10
        largest = result.U[i].gather(0, result.U[i].abs().argmax(0, keepdim=True))
        assert (largest > 0).all()
        if i % KINDS not in FLAT:  # where any vectors are the leading ones, and so is any residual
            error = result.info.error[i].item()
            assert error == pytest.approx(one.info.error, rel=1e-2, abs=bound)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("count", "shape", "rank"),
    [
        (9, (300, 40), 1),  # rows in several blocks, the last one short
        (2, (61, 47), 7),  # fewer matrices than lanes, odd sizes
        (17, (100, 90), 18),  # width 28, the most for eigenvectors by rotations
        (10, (90, 100), 19),
        (9, (100, 90), 30),  # width 40, the most for singular vectors by rotations
        (9, (100, 90), 31),
        (9, (100, 90), 38),  # width 48, the most for products
        (9, (100, 90), 39),
    ],
)
def test_batches_of_all_widths_are_the_loop(count, shape, rank, dtype):
    m, n = shape
    spectrum = 1 / (1 + np.arange(min(m, n)))
    batch = torch.stack([with_spectrum(m, n, spectrum, dtype, seed=i) for i in range(count + 1)])
    result = la.randomized_svd(batch, rank, power_iters=2, seed=1)
    for i, A in enumerate(batch):
        one = la.randomized_svd(A, rank, power_iters=2, seed=1)
        # The same draws, sums in another order: 40·√n·u of ‖A‖_F, as above.
        bound = 40 * math.sqrt(n) * unit_roundoff(A) * float(A.norm())
        assert float((result.S[i] - one.S).abs().max()) <= bound
        assert orthonormality_error(result.U[i]) <= 10
        assert orthonormality_error(result.Vh[i].mT) <= 10
        # The vectors differ by rounding over gaps: compare what they make up.
        product = (result.U[i] * result.S[i]) @ result.Vh[i]
        expected = (one.U * one.S) @ one.Vh
        assert float((product - expected).norm()) <= 10 * bound * rank


def test_a_matrix_that_settles_is_not_iterated_with_the_others():
    """Ritz values of a quick decay settle before those of a slow one."""
    quick = with_spectrum(M, N, 0.5 ** np.arange(N))
    slow = with_spectrum(M, N, 1 / (1 + 0.02 * np.arange(N)))
    alone = [la.randomized_svd(A, 4, seed=0).info.power_iters for A in (quick, slow)]
    assert alone[0] < alone[1]
    together = la.randomized_svd(torch.stack([slow, quick, quick, slow]), 4, seed=0)
    assert together.info.power_iters == alone[1]
    loop = la.randomized_svd(quick, 4, seed=0)
    # The rounding of sums in another order, 1e4·u; a further iteration would turn the vectors by
    # the square of 0.5^10.
    gap = (together.U[1] - loop.U).abs().max()
    assert gap <= 1e4 * unit_roundoff(quick)


def test_a_bad_entry_in_a_batch_is_named():
    batch = torch.randn(5, M, N, generator=torch.Generator().manual_seed(0))
    batch[3, 7, 9] = math.nan
    with pytest.raises(ValueError, match=r"A must be finite, got nan at index \(7, 9\)"):
        la.randomized_svd(batch, 3, seed=0)


@pytest.mark.parametrize("method", ["subspace", "krylov", "single_pass", "nystrom"])
@pytest.mark.parametrize("center", [False, True])
def test_all_methods_take_batches(method, center):
    batch = torch.stack([with_spectrum(M, N, 0.5 ** np.arange(N), seed=i) + 1 for i in range(3)])
    result = la.randomized_svd(batch, 4, method=method, center=center, seed=2)
    for i, A in enumerate(batch):
        one = la.randomized_svd(A, 4, method=method, center=center, seed=2)
        # 40·√n·u·‖A‖_F times the condition of one-read sketches, some ten.
        bound = 400 * math.sqrt(N) * 2.0**-53 * float(A.norm())
        assert float((result.S[i] - one.S).abs().max()) <= bound

"""Perturb, then diagonalize: matrices without eigenvectors, and the errors that are measured."""

import itertools
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastlr.linalg as la
from references import unit_roundoff
from strategies import gaussian, hermitian

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def legs(n, dtype=torch.float64):
    """The HiPPO matrix of the scaled Legendre measure."""
    p = torch.arange(1, 2 * n, 2, dtype=torch.float64).sqrt()
    return (torch.arange(n).diag() - torch.outer(p, p).tril()).to(dtype)


def jordan(n, dtype=torch.float64):
    return torch.ones(n - 1, dtype=dtype).diag(1)


def low_rank(n, dtype):
    return gaussian(n, 2, dtype=dtype) @ gaussian(2, n, dtype=dtype, seed=1)


KINDS = {
    "legs": legs,
    "jordan": jordan,
    "random": lambda n, dtype: gaussian(n, n, dtype=dtype),
    "low rank": low_rank,
    "identity": lambda n, dtype: torch.eye(n, dtype=dtype),
    "symmetric": lambda n, dtype: hermitian(np.arange(n) - n / 2, dtype),
}


def norm(A):
    return float(torch.linalg.matrix_norm(A, 2))


def exact_errors(A, result):
    """Backward error and condition number of what was returned, in complex128."""
    A, values, V = (part.to(torch.complex128) for part in (A, *result))
    product = torch.linalg.solve(V, V * values, left=False)
    return norm(product - A) / norm(A), float(torch.linalg.cond(V))


@given(
    kind=st.sampled_from(list(KINDS)),
    n=st.integers(1, 24),
    dtype=st.sampled_from(DTYPES),
    exponent=st.floats(1, 5),
    seed=st.integers(0, 2**32),
)
def test_the_perturbation_and_rounding_are_the_whole_error(kind, n, dtype, exponent, seed):
    A = KINDS[kind](n, dtype)
    u, eps = unit_roundoff(A), 10.0**-exponent
    if norm(A) == 0:  # the Jordan block of one row
        eps = 0.0
    result = la.perturb_then_diagonalize(A, eps, seed=seed)
    info = result.info
    assert result.V.dtype == result.eigenvalues.dtype == dtype.to_complex()
    assert info.perturbation == pytest.approx(eps, rel=20 * n * u)
    if norm(A) == 0:
        return
    # LAPACK's eigenvalues are backward stable: some n·u.
    assert info.residual <= 20 * n * u
    # The solve with V has an error of n·u·cond(V), as have the residual and the product; the
    # constant is 1 in practice.
    rounding = 20 * n * u * info.condition
    backward, condition = exact_errors(A, result)
    assert abs(backward - eps) <= rounding + 20 * n * u
    assert abs(info.backward_error - backward) <= rounding
    # A smallest singular value changes by u, that is the inverse by cond².
    assert info.condition == pytest.approx(condition, rel=20 * n * u * condition)
    lengths = torch.linalg.vector_norm(result.V, dim=0)
    assert float((lengths - 1).abs().max()) <= 10 * n * u


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["legs", "jordan", "random"])
def test_real_matrices_have_pairs_of_conjugates(kind, dtype):
    values, V = la.perturb_then_diagonalize(KINDS[kind](15, dtype), 1e-3, seed=1)
    position = 0
    while position < 15:
        if values[position].imag == 0:
            assert not V[:, position].imag.any()
            position += 1
        else:
            assert values[position + 1] == values[position].conj()
            assert torch.equal(V[:, position + 1], V[:, position].conj())
            position += 2
    # Complex ones have none.
    values, _ = la.perturb_then_diagonalize(jordan(15, torch.complex128), 1e-3, seed=1)
    assert (values[:, None].conj() - values).abs().min() > 1e-9


@pytest.mark.parametrize("make", [legs, jordan])
@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize("eps", [1e-8, 1e-6, 1e-4])
def test_hippo_matrices_and_jordan_blocks_get_good_eigenvectors(make, n, eps):
    A = make(n)
    infos = [la.perturb_then_diagonalize(A, eps, seed=seed).info for seed in range(9)]
    # The bound of Banks, Kulkarni, Mukherjee and Srivastava for the best complex perturbation;
    # real Gaussian ones are a hundredth of it, but for one in a hundred.
    conditions = sorted(info.condition for info in infos)
    assert conditions[-1] <= 4 * n**1.5 * (1 + 1 / eps)
    assert conditions[4] <= n / eps
    for info in infos:
        # What is left to rounding: some n·u·cond(V).
        assert info.backward_error <= eps + n * 2.0**-53 * info.condition


def test_balancing_does_no_harm():
    # Noise of 1e-8 about a Jordan block: balanced, it has a residual of 4000·u or more, and of some
    # n·u otherwise.
    A = jordan(64)
    for seed in range(5):
        assert la.perturb_then_diagonalize(A, 1e-8, seed=seed).info.residual <= 5 * 64 * 2.0**-53
    noise = gaussian(64, 64)
    perturbed = A + 1e-8 * noise / norm(noise)
    values, V = torch.linalg.eig(perturbed)
    assert norm(perturbed.to(V.dtype) @ V - V * values) > 4000 * 2.0**-53


def test_hippo_matrices_do_not_have_them_without():
    # 10^10 for n = 16, and beyond 1/u for n = 32: the figures that perturbations are made for.
    assert la.perturb_then_diagonalize(legs(16), 0).info.condition > 1e10
    for A in (legs(32), legs(64), jordan(9)):
        with pytest.raises(torch.linalg.LinAlgError, match="take a larger eps"):
            la.perturb_then_diagonalize(A, 0)
    with pytest.raises(torch.linalg.LinAlgError, match=r"no inverse in torch\.float32"):
        la.perturb_then_diagonalize(jordan(9, torch.float32), 0)
    message = r"a condition number of \d\.\de\+\d+"
    with pytest.raises(torch.linalg.LinAlgError, match=message):
        la.perturb_then_diagonalize(torch.stack([torch.eye(32, dtype=torch.float64), legs(32)]), 0)


def test_stable_systems_stay_stable_under_small_perturbations():
    # (A + Aᵀ)/2 of LegS is −(I + p·pᵀ)/2: eigenvalues of A + E are left of −½ + ‖E‖.
    A = legs(48)
    for seed in range(10):
        values, _ = la.perturb_then_diagonalize(A, 0.25 / norm(A), seed=seed)
        assert float(values.real.max()) <= -0.25 + 1e-9


def test_rounding_that_outweighs_the_perturbation_is_told():
    for A in (legs(32), torch.stack([torch.eye(32).double(), legs(32)])):
        with pytest.warns(la.ConvergenceWarning, match="more than eps=1e-12"):
            result = la.perturb_then_diagonalize(A, 1e-12, seed=0)
        assert torch.as_tensor(result.info.backward_error).max() > 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.perturb_then_diagonalize(legs(32), 1e-8, seed=0)
        la.perturb_then_diagonalize(hermitian(range(9)), 1e-20, seed=0)
        la.perturb_then_diagonalize(legs(8, torch.float32), 1e-6, seed=0)


def test_eps_of_zero_is_the_plain_eigenproblem():
    A = hermitian(np.linspace(-3, 5, 12))
    result = la.perturb_then_diagonalize(A, 0)
    assert result.info.perturbation == 0
    assert result.info.backward_error <= 20 * 12 * 2.0**-53
    # Eigenvectors of a symmetric matrix with gaps: orthogonal up to rounding by the gaps.
    assert result.info.condition == pytest.approx(1, abs=1e-12)
    exact = torch.linalg.eigvalsh(A)
    torch.testing.assert_close(result.eigenvalues.real.sort().values, exact, rtol=0, atol=1e-13)


def test_larger_perturbations_condition_better():
    conditions = [
        la.perturb_then_diagonalize(legs(40), eps, seed=0).info.condition
        for eps in (1e-9, 1e-7, 1e-5, 1e-3)
    ]
    assert all(a > 10 * b for a, b in itertools.pairwise(conditions))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_batches(dtype):
    A = torch.stack([legs(8, dtype), jordan(8, dtype), torch.zeros(8, 8, dtype=dtype)])
    A = torch.stack([A, 2 * A.flip(0)])
    values, V = result = la.perturb_then_diagonalize(A, 1e-4, seed=3)
    assert (values.shape, V.shape) == ((2, 3, 8), (2, 3, 8, 8))
    assert result.info.condition.shape == (2, 3)
    product = torch.linalg.solve(V, V * values[..., None, :], left=False)
    norms = torch.linalg.matrix_norm(A, 2)
    errors = torch.linalg.matrix_norm(product - A, 2)
    # eps, and rounding of cond·n·u with a condition number of 1e6 or so.
    torch.testing.assert_close(errors, 1e-4 * norms, rtol=1e-4, atol=0)
    assert (result.info.perturbation[norms == 0] == 0).all()
    torch.testing.assert_close(
        result.info.backward_error, errors / norms.clamp(min=1e-300), rtol=1e-6, atol=1e-15
    )
    # The first is what it is alone; the same matrix elsewhere has another perturbation.
    alone = la.perturb_then_diagonalize(A[0, 0], 1e-4, seed=3)
    torch.testing.assert_close(values[0, 0], alone.eigenvalues, rtol=1e-9, atol=1e-9)
    assert (values[1, 2] - 2 * values[0, 0]).abs().max() > 1e-4
    # And so have the matrices of an empty batch none.
    empty = la.perturb_then_diagonalize(A[:0], 1e-4, seed=3)
    assert (empty.V.shape, empty.info.condition.shape) == ((0, 3, 8, 8), (0, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_small_matrices(dtype):
    for n in (1, 5):
        result = la.perturb_then_diagonalize(torch.zeros(n, n, dtype=dtype), 0.1, seed=0)
        assert torch.equal(result.eigenvalues, torch.zeros(n, dtype=dtype.to_complex()))
        info = result.info
        assert info.condition == pytest.approx(1, abs=20 * n * unit_roundoff(result.V))
        assert (info.perturbation, info.backward_error, info.residual) == (0, 0, 0)
    empty = la.perturb_then_diagonalize(torch.zeros(0, 0, dtype=dtype), 0.1)
    assert (empty.eigenvalues.shape, empty.V.shape) == ((0,), (0, 0))
    assert (*vars(empty.info).values(),) == (0, 0, 1, 0)
    # Relative to 3, of which 0.375 is an eighth.
    A = torch.tensor([[-3.0]], dtype=dtype)
    one = la.perturb_then_diagonalize(A, 0.125, seed=0)
    assert float((one.eigenvalues + 3).abs()) == pytest.approx(0.375, rel=20 * unit_roundoff(A) * 8)
    assert one.info.backward_error == pytest.approx(0.125, rel=20 * unit_roundoff(A) * 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", [-1, 1])
def test_scaling_by_powers_of_two_changes_nothing(dtype, side):
    A = gaussian(12, 12, dtype=dtype)
    factor = 2.0 ** (side * (100 if unit_roundoff(A) > 1e-10 else 900))
    one = la.perturb_then_diagonalize(A, 1e-3, seed=0)
    other = la.perturb_then_diagonalize(A * factor, 1e-3, seed=0)
    assert torch.equal(other.V, one.V)
    assert torch.equal(other.eigenvalues, one.eigenvalues * factor)
    assert other.info == one.info


@pytest.mark.parametrize("size", [1e-200, 5e-324, 1e200, 1e308])
def test_extreme_entries(size):
    A = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=torch.float64) * size
    result = la.perturb_then_diagonalize(A, 1e-3, seed=0)
    assert all(np.isfinite(value) for value in vars(result.info).values())
    assert result.info.backward_error == pytest.approx(1e-3, rel=1e-6)
    mixed = torch.stack([A, torch.eye(3, dtype=torch.float64)])
    together = la.perturb_then_diagonalize(mixed, 1e-3, seed=0)
    torch.testing.assert_close(together.info.perturbation, torch.full((2,), 1e-3).double())


def test_numpy_and_torch_agree():
    A = legs(10).numpy()
    before = A.copy()
    one, same = (la.perturb_then_diagonalize(X, 1e-5, seed=2) for X in (A, torch.from_numpy(A)))
    for field, other in zip(one, same, strict=True):
        assert isinstance(field, np.ndarray)
        assert np.array_equal(field, other.numpy())
    assert one.info == same.info
    assert np.array_equal(A, before)
    batch = la.perturb_then_diagonalize(np.stack([A, A]), 1e-5, seed=2)
    assert batch.V.shape == (2, 10, 10)


def test_half_types_integers_and_views():
    for dtype in (torch.float16, torch.bfloat16):
        result = la.perturb_then_diagonalize(legs(6).to(dtype), 1e-2, seed=0)
        assert result.V.dtype == torch.complex64
    assert la.perturb_then_diagonalize(np.eye(3, dtype=int), 1e-2).V.dtype == np.complex128
    assert la.perturb_then_diagonalize(torch.eye(3, dtype=int), 1e-2).V.dtype == torch.complex64
    A = gaussian(7, 7, dtype=torch.complex128)
    one = la.perturb_then_diagonalize(A.mH, 1e-3, seed=0)
    same = la.perturb_then_diagonalize(A.mH.resolve_conj().contiguous(), 1e-3, seed=0)
    assert torch.equal(one.eigenvalues, same.eigenvalues)
    leaf = legs(6).requires_grad_()
    assert not la.perturb_then_diagonalize(leaf, 1e-3, seed=0).V.requires_grad


def test_seeds_and_pickle():
    A = legs(9)
    one, same, other = (la.perturb_then_diagonalize(A, 1e-3, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.eigenvalues, other.eigenvalues)
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.V, one.V)
    assert again.info == one.info


def test_bad_arguments():
    A = legs(4)
    for shape in ((3, 4), (2, 3, 4)):
        message = f"perturb_then_diagonalize: A must be square, got shape {shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            la.perturb_then_diagonalize(torch.zeros(shape), 0.1)
    with pytest.raises(ValueError, match="A must have at least 2 dimensions"):
        la.perturb_then_diagonalize(torch.zeros(3), 0.1)
    for eps in (-0.1, 1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps must be at least 0 and below 1, got"):
            la.perturb_then_diagonalize(A, eps)
    with pytest.raises(TypeError, match="eps must be a real number, got 'small'"):
        la.perturb_then_diagonalize(A, "small")
    bad = torch.stack([A, A])
    bad[1, 2, 0] = float("nan")
    message = "A must be finite, got nan at index (1, 2, 0)"
    with pytest.raises(ValueError, match=re.escape(message)):
        la.perturb_then_diagonalize(bad, 0.1)
    with pytest.raises(ValueError, match=r"got inf at index \(0, 1\)"):
        la.perturb_then_diagonalize(np.array([[0, np.inf], [0, 0]]), 0.1)
    with pytest.raises(TypeError, match="must be a dense matrix"):
        la.perturb_then_diagonalize(A.to_sparse(), 0.1)
    with pytest.raises(ValueError, match="seed must fit 64 bits"):
        la.perturb_then_diagonalize(A, 0.1, seed=2**64)

"""Gradients of the truncated SVD: finite differences, torch.linalg.svd, Sylvester equations."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fastlr.linalg as la
from references import exact, unit_roundoff
from strategies import matrices, seeds, with_spectrum

OPS = torch.ops.fastlr
# Triplets to rounding: enough iterations for the spectra here, or a dense SVD.
EXACT = {"power_iters": 12, "seed": 0}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """A gradient that leaves something out warns: here only where the test says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def normal(*shape, dtype=torch.float64, seed=7):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def separated(*shape, dtype=torch.float64):
    """Singular values 2^-j."""
    *batch, m, n = shape
    k = min(m, n)
    left, right = (
        torch.linalg.qr(normal(*batch, size, k, dtype=dtype, seed=size))[0] for size in (m, n)
    )
    return (left * 0.5 ** torch.arange(k, dtype=dtype.to_real())) @ right.mH


def inner(seed, X):
    """Re tr(Wᴴ X), W Gaussian of a seed: the same for all precisions."""
    W = normal(*X.shape, dtype=torch.complex128 if X.is_complex() else torch.float64, seed=seed)
    return (W.to(X.dtype).conj() * X).sum().real


def gauge_invariant(U, S, Vh):
    """A loss of both projectors, of U f(S) Vh and of S."""
    values = S.unsqueeze(-2)
    return (
        inner(1, U @ U.mH)
        + inner(2, Vh.mH @ Vh)
        + inner(3, (U * values.sinh()) @ Vh)
        + S.exp().sum()
    )


def of_projector(U, S, Vh):
    return inner(1, U @ U.mH)


def gradient(A, loss, rank=None, **options):
    A = A.detach().clone().requires_grad_()
    loss(*la.randomized_svd(A, rank, **{**EXACT, **options})).backward()
    return A.grad


def projector_gradient(A, rank, W=None):
    """That of Re tr(Wᴴ U Uᴴ), by a Sylvester equation; W is that of `of_projector` if not given.

    Z S² − T² Z = U₂ᴴ (W + Wᴴ) U, S and T the values kept and left, U₂ the rest of the left space:
    Re tr((U₂ Z Uᴴ)ᴴ d(A Aᴴ)) is the differential, by perturbation of the eigenspaces of A Aᴴ.
    """
    if W is None:
        W = exact(normal(len(A), len(A), seed=1, dtype=torch.promote_types(A.dtype, torch.float64)))
    A = exact(A)
    U, values, _ = scipy.linalg.svd(A)
    squares = np.concatenate([values, np.zeros(len(U) - len(values))]) ** 2
    kept, rest = U[:, :rank], U[:, rank:]
    Z = scipy.linalg.solve_sylvester(
        -np.diag(squares[rank:]), np.diag(squares[:rank]), rest.conj().T @ (W + W.conj().T) @ kept
    )
    N = rest @ Z @ kept.conj().T
    return (N + N.conj().T) @ A


def distance(one, reference) -> float:
    """‖one − reference‖_F / ‖reference‖_F."""
    return float(np.linalg.norm(exact(one) - exact(reference)) / np.linalg.norm(exact(reference)))


def rounding(A, gap) -> float:
    """40·√min(m, n)·u/gap, relative, for a matrix with σ_1 = 1.

    Computed triplets are those of a matrix √min(m, n)·u away. That moves vectors by this over the
    gap, and the gap itself, which the gradient divides by, as much; 40 covers the constants of two
    such computations, ours and the reference's.
    """
    return 40 * math.sqrt(min(A.shape[-2:])) * unit_roundoff(A) / gap


# The solver is dense for the first four, and iterative for the others.
SHAPES = [
    (8, 6, 3),
    (6, 8, 3),
    (7, 4, 4),
    (2, 3, 7, 5, 2),
    (40, 30, 3),
    (30, 40, 3),
    (2, 40, 30, 2),
]
REAL, COMPLEX = [torch.float32, torch.float64], [torch.complex64, torch.complex128]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("center", [False, True])
def test_factors_by_finite_differences(shape, dtype, center):
    *shape, rank = shape
    A = separated(*shape, dtype=dtype).requires_grad_()
    # Real vectors up to their sign, which is constant; complex ones with the phase that is fixed.
    # All entries of small matrices, one random direction of others.
    assert torch.autograd.gradcheck(
        lambda X: tuple(la.randomized_svd(X, rank, center=center, **EXACT)),
        A,
        fast_mode=A.numel() > 100,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_agrees_with_the_gradient_of_the_full_svd(shape, dtype):
    *shape, rank = shape
    A = separated(*shape, dtype=dtype)
    wide = A.to(torch.promote_types(dtype, torch.float64), copy=True).requires_grad_()
    U, S, Vh = torch.linalg.svd(wide, full_matrices=False)
    gauge_invariant(U[..., :rank], S[..., :rank], Vh[..., :rank, :]).backward()
    # The nearest values are the last one kept and the next.
    assert distance(gradient(A, gauge_invariant, rank), wide.grad) <= rounding(A, 0.5**rank)


def test_phase_of_a_complex_pair_is_fixed_and_differentiated():
    A = separated(7, 5, dtype=torch.complex128)

    def of_phase(U, S, Vh):
        return inner(1, U) + inner(2, Vh)

    g = gradient(A, of_phase, 3)
    direction, step = normal(7, 5, dtype=torch.complex128, seed=9), 1e-5
    ends = [of_phase(*la.randomized_svd(A + s * direction, 3, **EXACT)) for s in (step, -step)]
    # Central differences: the third derivative is below gap^-3 = 500, times step²; u/step = 1e-11.
    measured = (ends[0] - ends[1]) / (2 * step)
    assert abs(measured - (g.conj() * direction).sum().real) <= 1e-6 * g.norm() * direction.norm()
    # torch fixes no phase, and says so.
    B = A.clone().requires_grad_()
    U, S, Vh = torch.linalg.svd(B, full_matrices=False)
    with pytest.raises(RuntimeError, match="phase"):
        of_phase(U[:, :3], S[:3], Vh[:3]).backward()


INDEX = np.arange(60)
SPECTRA = {
    "step": (np.where(INDEX < 6, 1.0, 0.5), 6, 0.5),
    "small step": (np.where(INDEX < 6, 1.0, 1 - 1e-3), 6, 1e-3),
    "clusters": (1.0 / (1 + INDEX // 3), 6, 1 / 6),
    "flat, then nothing": (np.where(INDEX < 6, 1.0, 0.0), 6, 1.0),
    "many clusters, dense": (1.0 / (1 + INDEX // 10), 30, 1 / 12),
    "no decay": (1 - INDEX / 600, 6, 1 / 600),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("shape", [(80, 60), (60, 80)])
@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_projector_of_repeated_values(name, shape, dtype):
    values, rank, gap = SPECTRA[name]
    A = with_spectrum(80, 60, values)
    if dtype.is_complex:
        A = A * torch.exp(1j * torch.arange(60.0, dtype=torch.float64))
    A = A.to(dtype) if shape == (80, 60) else A.mH.to(dtype)
    # A block Krylov space of all 60 dimensions, or a dense SVD: σ_7 is 1e-3 below σ_6.
    options = {"oversample": 60 - rank, "power_iters": "auto"}
    g = gradient(A, of_projector, rank, **options)
    assert distance(g, projector_gradient(A, rank)) <= rounding(A, gap)


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_the_identity(dtype):
    A = torch.eye(12, dtype=dtype)
    # U Uᴴ = Vh Vhᴴ = I whatever A, so only f(S) is left: exp(1)·I.
    g = gradient(A, lambda U, S, Vh: of_projector(U, S, Vh) + S.exp().sum(), 12)
    assert distance(g, math.e * A) <= rounding(A, 1.0)
    # The negative control.
    if not dtype.is_complex:
        B = A.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            of_projector(*torch.svd_lowrank(B, 12)).backward()
        assert B.grad.isnan().any()


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
@pytest.mark.parametrize("name", ["step", "clusters"])
def test_recipe_for_the_truncated_matrix_at_repeated_values(name, dtype):
    values, rank, gap = SPECTRA[name]
    A = with_spectrum(80, 60, values).to(dtype)
    B = A.clone().requires_grad_()
    U = la.randomized_svd(B, rank, oversample=60 - rank, **EXACT).U
    inner(1, U @ (U.mH @ B)).backward()
    # d(P A) = dP A + P dA, and Re tr(Wᴴ dP A) = Re tr((W Aᴴ)ᴴ dP).
    wide = exact(A)
    W = exact(normal(80, 60, dtype=torch.promote_types(dtype, torch.float64), seed=1))
    U, _, _ = scipy.linalg.svd(wide)
    P = U[:, :rank] @ U[:, :rank].conj().T
    reference = projector_gradient(A, rank, W @ wide.conj().T) + P @ W
    assert distance(B.grad, reference) <= rounding(A, gap)
    # The negative control: U diag(S) Vh is the same matrix, whose gradient its factors cannot tell.
    lost = gradient(A, lambda U, S, Vh: inner(1, (U * S) @ Vh), rank, oversample=60 - rank)
    assert distance(lost, reference) > 0.01


@pytest.mark.parametrize("gap", 10.0 ** -np.arange(3, 16))
def test_nearly_equal_kept_values(gap):
    """The gradient of a projector does not know how far they are apart, nor do its errors."""
    A = with_spectrum(20, 12, [1.0, 0.5, 0.5 - gap, *(0.25 * 0.8 ** np.arange(9))])
    g = gradient(A, of_projector, 3, oversample=9)
    assert distance(g, projector_gradient(A, 3)) <= rounding(A, 0.25 - gap)


@pytest.mark.parametrize("gap", 10.0 ** -np.arange(3, 15))
def test_cut_between_nearly_equal_values(gap):
    """The gradient grows as 1/gap, and so does its relative error."""
    A = with_spectrum(20, 12, [1.0, 0.5, 0.5 - gap, *(0.25 * 0.8 ** np.arange(9))])
    g = gradient(A, of_projector, 2, oversample=10)
    assert distance(g, projector_gradient(A, 2)) <= rounding(A, gap)


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
def test_single_vectors_of_repeated_values(dtype):
    def of_vectors(U, S, Vh):
        return inner(1, U) + inner(2, Vh)

    A = with_spectrum(14, 12, np.ones(12)).to(dtype)
    with pytest.warns(UserWarning, match="which has no derivative"):
        g = gradient(A, of_vectors, 12)
    # The largest factor left is 1 / σ.
    assert g.norm() <= 2 * (normal(14, 12, dtype=dtype).norm() + normal(12, 12, dtype=dtype).norm())
    # Nothing else is: vectors of distinct values keep their gradients.
    A = with_spectrum(14, 12, [1.0, *[0.5] * 11])
    with pytest.warns(UserWarning, match="which has no derivative"):
        both = gradient(A, lambda U, S, Vh: of_projector(U[:, :1], S, Vh) + inner(2, U[:, 1:]), 12)
    with pytest.warns(UserWarning, match="which has no derivative"):
        rest = gradient(A, lambda U, S, Vh: inner(2, U[:, 1:]), 12)
    assert distance(both - rest, projector_gradient(A, 1)) <= rounding(A, 0.5)


CUT = "singular values beyond the rank are as large as kept ones"


@pytest.mark.parametrize("dtype", REAL + COMPLEX)
@pytest.mark.parametrize("shape", [(70, 60), (9, 8)])
def test_cut_through_a_cluster(shape, dtype):
    A = torch.eye(*shape, dtype=dtype)
    with pytest.warns(UserWarning, match=CUT):
        g = gradient(A, of_projector, 3)
    # Nothing is divided by a difference: each of the at most 2·√3·‖W‖ of gU goes into g once.
    assert g.norm() <= 2 * math.sqrt(3) * normal(shape[0], shape[0], seed=1).norm()
    # No warning, where the loss does not depend on which of the vectors were taken.
    g = gradient(A, lambda U, S, Vh: ((U * S) @ Vh).abs().square().sum(), 3)
    assert distance(g @ g.mH @ g, 4 * g) <= rounding(A, 1.0)  # 2·U·Vh


def least_squares(A, U, S, Vh, gU):
    """The gradient from that of U, without components of Y where A⊥ has values of S."""
    A, U, S, V, gU = exact(A), exact(U), exact(S), exact(Vh).T, exact(gU)
    rest = A - U @ (U.T @ A) - (A @ V) @ V.T + U @ (U.T @ A @ V) @ V.T
    left, values, right = scipy.linalg.svd(rest)
    values = np.pad(values, (0, len(left) - len(values)))[:, None]
    f = left.T @ (gU - U @ (U.T @ gU))
    separation = S**2 - values**2
    equal = separation < 1e-10
    separation[equal] = np.inf
    X = left @ np.where(equal, f / S, S * f / separation)
    Y = right.T @ (values * f / separation)[: len(right)]
    return X @ V.T + U @ Y.T


@pytest.mark.parametrize("size", [3, 10, 30])
def test_what_is_left_when_a_cluster_is_cut(size):
    values = np.concatenate([np.ones(size), 0.9 * 0.95 ** np.arange(60 - size)])
    A = with_spectrum(80, 60, values).requires_grad_()
    U, S, Vh, _ = OPS.randomized_svd(A, 2, 58, 0, "subspace", "full", False, 0)
    gU = (normal(80, 80) + normal(80, 80).T) @ U.detach()
    with pytest.warns(UserWarning, match=CUT):
        (g,) = torch.autograd.grad(U, A, gU)
    factors = (factor.detach() for factor in (A, U, S, Vh, gU))
    # A column stops where its residual's Rayleigh quotient is 4·ε, ε = 4·√60·u: other directions,
    # whose eigenvalues are 1 − 0.9² at least, have up to √(4·ε/0.19) of it, and Y as much relative
    # to what is taken out of it, some ten times the gradient.
    noise = 4 * math.sqrt(60) * unit_roundoff(A)
    assert distance(g, least_squares(*factors)) <= 10 * math.sqrt(4 * noise / 0.19)


def test_cut_through_a_cluster_leaves_other_triplets_alone():
    values = [1.0, *[0.5] * 20]
    A = with_spectrum(40, 30, values)

    def of_first(U, S, Vh):
        return of_projector(U[:, :1], S, Vh)

    g = gradient(A, of_first, 3, oversample=27)
    assert distance(g, projector_gradient(A, 1)) <= rounding(A, 0.5)


@pytest.mark.parametrize("power_iters", [0, 1])
def test_triplets_that_have_not_converged(power_iters):
    A = with_spectrum(80, 60, 1 - INDEX / 600)
    with pytest.warns(UserWarning, match=CUT):
        g = gradient(A, of_projector, 6, power_iters=power_iters)
    assert g.isfinite().all()


def test_the_dense_solution_takes_over_where_iterations_do_not_converge():
    # 60 iterations are affordable, and a gap of 1e-7 with nothing flat beyond it wants thousands.
    values = np.concatenate([[1.0] * 4, 1 - 1e-7 - np.linspace(0, 1, 146) ** 3 / 10])
    A = with_spectrum(300, 150, values)
    g = gradient(A, of_projector, 4, oversample=146)
    assert distance(g, projector_gradient(A, 4)) <= rounding(A, 1e-7)


@given(A=matrices(), rank=st.integers(1, 60), seed=seeds, power_iters=st.integers(0, 3))
def test_no_blow_up(A, rank, seed, power_iters):
    """Whatever the spectrum, the cut and the quality of the triplets."""
    A.requires_grad_()
    rank = min(rank, *A.shape)
    U, S, Vh = la.randomized_svd(A, rank, oversample=5, power_iters=power_iters, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (inner(1, U) + inner(2, Vh) + inner(3, U @ Vh) + S.sum()).backward()
    # Nothing is divided by less than the rounding of A, 4·√min(m, n)·u·σ_1, and gU and gVh have
    # norms near √(2·m·rank) and √(2·n·rank), which is 2·(m + n) together at most.
    least = 4 * math.sqrt(min(A.shape)) * unit_roundoff(A) * float(S[0].detach())
    assert A.grad.norm() <= 2 * sum(A.shape) / least


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("shape", [(9, 7), (40, 30)])
@pytest.mark.parametrize("exact_rank", [0, 2])
def test_rank_deficient(shape, dtype, exact_rank):
    A = with_spectrum(*shape, np.ones(exact_rank)).to(dtype)
    assert gradient(A, gauge_invariant, 5).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (0, 4), (4, 0), (0, 4, 3)])
def test_smallest_shapes(shape):
    g = gradient(torch.ones(shape), lambda U, S, Vh: U.sum() + S.sum() + Vh.sum(), 1)
    assert g.shape == shape
    assert g.isfinite().all()


@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float64, 700), (torch.float32, 90)])
@pytest.mark.parametrize("shape", [(9, 7), (40, 30)])
def test_powers_of_two_go_through(shape, dtype, exponent):
    A = separated(*shape, dtype=dtype)

    def of_vectors(U, S, Vh):
        return inner(1, U) + inner(2, Vh)

    g = gradient(A, of_vectors, 3)
    for factor in (2.0**exponent, 2.0**-exponent):
        of_scaled = gradient(A * factor, of_vectors, 3) * factor
        assert distance(of_scaled, g) <= rounding(A, 1 / 8)
        scaled = gradient(A, lambda *factors, c=factor: of_vectors(*factors) * c, 3) / factor
        assert distance(scaled, g) <= rounding(A, 1 / 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    A = separated(40, 30).to(dtype)
    g = gradient(A, gauge_invariant, 2)
    assert g.dtype == dtype
    reference = gradient(A.float(), gauge_invariant, 2)
    # U, S, Vh and g are rounded to the dtype, and the loss is computed in it: sums of 40 terms.
    assert distance(g, reference) <= 40 * unit_roundoff(A)


def test_tolerance_mode():
    A = separated(90, 80)
    g = gradient(A, gauge_invariant, tol=1e-3)
    rank = len(la.randomized_svd(A, tol=1e-3, **EXACT).S)
    assert distance(g, gradient(A, gauge_invariant, rank)) <= rounding(A, 0.5**rank)


@pytest.mark.parametrize("center", [False, True])
def test_values_alone_need_no_pass(center):
    A = separated(40, 30)
    U, S, Vh, _ = OPS.randomized_svd(A, 3, 10, 5, "subspace", "full", center, 0)
    unreadable = torch.full_like(A, math.nan)
    g = OPS.svd_backward(unreadable, U, S, Vh, None, 2 * S, None, center)
    assert torch.equal(
        g, gradient(A, lambda U, S, Vh: S.square().sum(), 3, power_iters=5, center=center)
    )
    # The negative control.
    assert OPS.svd_backward(unreadable, U, S, Vh, U, None, None, center).isnan().all()


class Calls(TorchDispatchMode):
    """The arguments of the calls of `svd_backward`."""

    def __init__(self):
        super().__init__()
        self.arguments = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is OPS.svd_backward.default:
            self.arguments.append(args)
        return function(*args, **(kwargs or {}))


def test_factors_without_a_gradient_are_not_given_zeros():
    with Calls() as calls:
        gradient(separated(8, 6), lambda U, S, Vh: S.sum(), 3)
    ((_, _, _, _, gU, gS, gVh, _),) = calls.arguments
    assert (gU, gVh) == (None, None)
    assert torch.equal(gS, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("part", [0, 2])
def test_unused_factors(part):
    A = separated(8, 6, dtype=torch.complex128)
    used = gradient(A, lambda *factors: inner(1, factors[part]), 3)
    both = gradient(
        A, lambda *factors: inner(1, factors[part]) + 0 * sum(f.sum().real for f in factors), 3
    )
    assert torch.equal(used, both)


def test_second_derivatives_are_an_error():
    A = separated(8, 6).requires_grad_()
    (g,) = torch.autograd.grad(
        of_projector(*la.randomized_svd(A, 3, **EXACT)), A, create_graph=True
    )
    with pytest.raises(
        RuntimeError, match=r"gradient of fastlr\.linalg\.randomized_svd is not diff"
    ):
        g.sum().backward()


def test_error_numbers_have_no_gradient():
    A = separated(8, 6).requires_grad_()
    assert not OPS.randomized_svd(A, 3, 10, None, "subspace", "full", False, 0)[3].requires_grad


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_gradients_are_an_error(layout):
    A = separated(40, 30).to_sparse(layout=layout).requires_grad_()
    with pytest.raises(ValueError, match="a sparse A has no gradient"):
        la.randomized_svd(A, 3)
    with torch.no_grad():
        la.randomized_svd(A, 3)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_compiled(part):
    A = separated(40, 30)
    W = normal(*la.randomized_svd(A, 3)[part].shape)

    def loss(X):
        return (
            W * OPS.randomized_svd(X.sin(), 3, 10, 12, "subspace", "full", False, 0)[part]
        ).sum()

    one, two = A.clone().requires_grad_(), A.clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(one).backward()
    loss(two).backward()
    assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("shape", [(8, 6), (2, 30, 40)])
def test_opcheck_with_gradients(shape, dtype):
    A = separated(*shape, dtype=dtype).requires_grad_()
    torch.library.opcheck(OPS.randomized_svd.default, (A, 2, 10, 12, "subspace", "full", True, 0))

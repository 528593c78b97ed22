"""Diagonalization of matrices that have no good eigenvectors, by those of a matrix nearby."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_real, as_seed
from fastlr.linalg._arrays import adapt, number_or_batch
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning

_LinAlgError: Any = vars(torch.linalg)["LinAlgError"]  # which torch's types do not know

_CALLER = "perturb_then_diagonalize"
# Columns of the seed's random matrix, beyond all that sketches draw from.
_REAL_PART, _IMAGINARY_PART = (3 << 30) + (1 << 28), (3 << 30) + (3 << 28)


@dataclass(frozen=True)
class PerturbedEigInfo:
    """How far from A the diagonalized matrix is, and how good its eigenvectors are.

    Numbers for one matrix, real Tensors of the batch's shape for a batch.

    Attributes
    ----------
    perturbation : float or Tensor
        ‖E‖₂ / ‖A‖₂ of the perturbation that was made; 0 for a zero matrix.
    backward_error : float or Tensor
        ‖A − V·diag(λ)·V⁻¹‖₂ / ‖A‖₂, measured: `perturbation` and rounding, which is some
        u·`condition`.
    condition : float or Tensor
        ‖V‖₂·‖V⁻¹‖₂ for columns of unit length.
    residual : float or Tensor
        ‖(A + E)·V − V·diag(λ)‖₂ / ‖A‖₂, measured.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.diag(torch.ones(9, dtype=torch.float64), 1)  # a Jordan block
    >>> info = la.perturb_then_diagonalize(A, 1e-6, seed=0).info
    >>> f"{info.perturbation:.1e}", f"{info.backward_error:.1e}", info.condition < 1e7
    ('1.0e-06', '1.0e-06', True)
    """

    perturbation: Any
    backward_error: Any
    condition: Any
    residual: Any


class _PerturbedEigFields(NamedTuple):
    eigenvalues: Any
    V: Any


class PerturbedEig(_PerturbedEigFields):
    """A ≈ V·diag(eigenvalues)·V⁻¹.

    Attributes
    ----------
    eigenvalues : array, shape (..., n)
        Complex, in no particular order; of a real matrix in pairs of conjugates, beside each other.
    V : array, shape (..., n, n)
        Complex, with columns of unit length; of a real matrix in pairs of conjugates.
    info : PerturbedEigInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.tensor([[1.0, 1], [0, 1]], dtype=torch.float64)
    >>> eigenvalues, V = la.perturb_then_diagonalize(A, 1e-8, seed=0)
    >>> B = V @ torch.diag(eigenvalues) @ torch.linalg.inv(V)
    >>> bool(torch.linalg.matrix_norm(B - A, 2) < 1e-7)
    True
    """

    info: PerturbedEigInfo

    def __new__(cls, eigenvalues: Any, V: Any, info: PerturbedEigInfo) -> "PerturbedEig":
        self = super().__new__(cls, eigenvalues, V)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def perturb_then_diagonalize(A: Any, eps: float, *, seed: Seed = None) -> PerturbedEig:
    """Diagonalize A + E, for a random E so small that it does not matter and V is well conditioned.

    A matrix may have no basis of eigenvectors, or one that is useless: for the HiPPO matrices of
    state-space models the condition number of V grows exponentially with n. For A + E it is about
    n / eps at most, in all likelihood.

    Parameters
    ----------
    A : array or Tensor, shape (..., n, n)
        Real or complex; leading dimensions are batches. float16 and bfloat16 are computed in
        float32. Never written to.
    eps : float
        ‖E‖₂ / ‖A‖₂, at least 0 and below 1. With 0 A itself is diagonalized. Near √u, u being the
        unit roundoff, the error of V·diag(λ)·V⁻¹ is least; a larger one makes V better conditioned.
    seed : int, torch.Generator or None
        The matrices of a batch have different perturbations.

    Returns
    -------
    PerturbedEig
        ``eigenvalues`` (..., n) and ``V`` (..., n, n), complex, of the kind and precision of A
        (complex64 for float16 and bfloat16), and ``info``.

    Raises
    ------
    ValueError
        A is not square, an entry is not finite (its index is named), `eps` out of range.
    TypeError
        A sparse matrix, an `eps` that is no real number.
    torch.linalg.LinAlgError
        The condition number of V is 1/u or more, so that V has no inverse to speak of: `eps` is too
        small for A.

    Warns
    -----
    ConvergenceWarning
        ``info.backward_error`` is more than 2·eps and 10·√u, because of rounding.

    Notes
    -----
    E is Gaussian (real for a real A), scaled to ‖E‖₂ = eps·‖A‖₂. Its density makes eigenvalues and
    pseudospectra of A + E regular whatever A is: some complex perturbation leaves a condition
    number of 4·n^1.5·(1 + 1/eps) at most, and of random ones most leave much less. V·diag(λ)·V⁻¹
    differs from A by eps and some multiple of u·cond(V), relative to ‖A‖₂. All of `info` is
    measured. The eigenproblem is that of Qᴴ·(A + E)·Q for a random orthogonal Q, so that
    LAPACK's balancing cannot blow up the small entries, and rounding with them.

    An eigenproblem, 25·n³ flops, and five times the singular values of such a matrix. Not
    differentiable.

    Sources: Davies, "Approximate diagonalization", SIMAX 29 (2007); Banks, Kulkarni, Mukherjee,
    Srivastava, "Gaussian regularization of the pseudospectrum and Davies' conjecture", CPAM 74
    (2021); Jain, Sah, Sawhney, "On the real Davies' conjecture", Ann. Probab. 49 (2021); Yu,
    Nigmetov, Morozov, Mahoney, Erichson, "Robustifying state-space models for long sequences via
    approximate diagonalization", ICLR 2024.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> p = torch.arange(1, 129, 2, dtype=torch.float64).sqrt()
    >>> A = -torch.outer(p, p).tril() + torch.diag(torch.arange(64))  # HiPPO-LegS, n = 64
    >>> eigenvalues, V = result = la.perturb_then_diagonalize(A, 1e-6, seed=0)
    >>> result.info.backward_error < 1.001e-6, result.info.condition < 1e6
    (True, True)
    >>> la.perturb_then_diagonalize(A, 0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    torch._C._LinAlgError: perturb_then_diagonalize: ...
    """
    adapted = adapt(
        A.detach() if isinstance(A, Tensor) else A, _CALLER, batched=True, complex_=True
    )
    original = adapted.tensor.resolve_conj()
    _check(original)
    size = as_real(eps, _CALLER, "eps")
    if not 0 <= size < 1:
        raise ValueError(f"{_CALLER}: eps must be at least 0 and below 1, got {size:g}")
    scale = _scale(original)
    scaled = original / scale
    norm = _norm(scaled)
    rotation, E = _draws(scaled, as_seed(seed, _CALLER))
    E = E * _column(size * norm / _norm(E).clamp(min=torch.finfo(norm.dtype).tiny))
    eigenvalues, V = _rotated_eig(scaled + E, rotation) if size else torch.linalg.eig(scaled)
    condition = _condition(V)
    product = torch.linalg.solve(V, V * eigenvalues[..., None, :], left=False)
    info = PerturbedEigInfo(
        *(
            number_or_batch(value)
            for value in (
                _ratio(_norm(E), norm),
                _ratio(_norm(scaled - product), norm),
                condition,
                _ratio(_norm((scaled + E).to(V.dtype) @ V - V * eigenvalues[..., None, :]), norm),
            )
        )
    )
    _warn_of_rounding(info, size, norm.dtype)
    return PerturbedEig(adapted.restore(eigenvalues * scale[..., 0]), adapted.restore(V), info)


def _check(A: Tensor) -> None:
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{_CALLER}: A must be square, got shape {tuple(A.shape)}")
    finite = torch.isfinite(A)
    if not bool(finite.all()):
        index = tuple(finite.logical_not().nonzero()[0].tolist())
        raise ValueError(f"{_CALLER}: A must be finite, got {A[index].item()} at index {index}")


def _scale(A: Tensor) -> Tensor:
    """Powers of two for A's largest entries, shape (..., 1, 1): no square leaves the range."""
    parts = torch.view_as_real(A).flatten(-3) if A.is_complex() else A.flatten(-2)
    largest = torch.linalg.vector_norm(parts, float("inf"), dim=-1) if A.numel() else parts.sum(-1)
    # Neither the factor nor its inverse overflows.
    most = 126 if largest.dtype == torch.float32 else 1022
    exponents = torch.frexp(largest).exponent.clamp(-most, most)
    return torch.exp2(exponents.to(largest.dtype))[..., None, None]


def _draws(like: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Independent normal entries: a matrix for the rotation, and one for each of a batch."""
    n = like.shape[-1]
    count = like.shape[:-2].numel()
    real, *imaginary = (
        random_matrix(
            n,
            (1 + count) * n,
            seed=seed,
            column_offset=offset,
            dtype=like.dtype.to_real(),
            device=like.device,
        )
        for offset in (_REAL_PART, _IMAGINARY_PART)[: 1 + like.is_complex()]
    )
    G = torch.complex(real, imaginary[0]) if imaginary else real
    return G[:, :n], G[:, n:].reshape(n, count, n).transpose(0, 1).reshape(like.shape)


def _rotated_eig(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenproblem of QᴴAQ for a random orthogonal Q.

    LAPACK balances rows and columns first. In a matrix whose entries are zero but for a small
    perturbation it makes that as large as the others, and rounding with it: the residual for a
    Jordan block was a thousand times as large as without. A rotated matrix is balanced.
    """
    Q = torch.linalg.qr(G)[0]
    eigenvalues, V = torch.linalg.eig(Q.mH @ A @ Q)
    return eigenvalues, Q.to(V.dtype) @ V


def _norm(A: Tensor) -> Tensor:
    """‖A‖₂ of every matrix of a batch; 0 for one without entries."""
    if A.shape[-1] == 0:
        return torch.zeros(A.shape[:-2], dtype=A.dtype.to_real(), device=A.device)
    largest: Tensor = torch.linalg.svdvals(A)[..., 0]
    return largest


def _condition(V: Tensor) -> Tensor:
    """‖V‖₂·‖V⁻¹‖₂; LinAlgError where V is singular to rounding."""
    if V.shape[-1] == 0:
        return torch.ones(V.shape[:-2], dtype=V.dtype.to_real(), device=V.device)
    values = torch.linalg.svdvals(V)
    condition: Tensor = values[..., 0] / values[..., -1]
    most = 2 / torch.finfo(condition.dtype).eps
    if bool((condition >= most).any()):
        raise _LinAlgError(
            f"{_CALLER}: the eigenvectors have a condition number of {float(condition.max()):.1e}, "
            f"and no inverse in {condition.dtype}; take a larger eps"
        )
    return condition


def _warn_of_rounding(info: PerturbedEigInfo, eps: float, dtype: torch.dtype) -> None:
    error, condition = (
        float(value.max()) if isinstance(value, Tensor) and value.numel() else value
        for value in (info.backward_error, info.condition)
    )
    if isinstance(error, float) and error > max(2 * eps, 10 * (torch.finfo(dtype).eps / 2) ** 0.5):
        warn(
            f"{_CALLER}: rounding makes the relative error {error:.1e}, more than eps={eps:g}, as "
            f"the eigenvectors have a condition number of {condition:.1e}; take a larger eps",
            ConvergenceWarning,
        )


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)


def _column(values: Tensor) -> Tensor:
    return values[..., None, None]

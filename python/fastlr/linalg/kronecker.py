"""The nearest sum of Kronecker products."""

from typing import Any, NamedTuple

from torch import Tensor

from fastlr.linalg._arguments import as_integer, at_least
from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._balanced import (
    ProjectionInfo,
    balanced_factors,
    check_finite,
    info_of,
    measured,
    power_of_two,
)

_CALLER = "nearest_kronecker"


class _KroneckerFields(NamedTuple):
    B: Any
    C: Any


class KroneckerResult(_KroneckerFields):
    """A ≈ Σ_t B[t] ⊗ C[t].

    Attributes
    ----------
    B : array, shape (…, terms, m1, n1)
        Orthogonal to each other, the one of the largest term first; the largest entry of each is
        real and positive.
    C : array, shape (…, terms, m2, n2)
        Orthogonal to each other, of the same norms as B.
    info : ProjectionInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.nearest_kronecker(torch.eye(6), (2, 2))
    >>> B, C = result
    >>> torch.allclose(torch.kron(B[0], C[0]), torch.eye(6)), result.info.error < 1e-5
    (True, True)
    """

    info: ProjectionInfo

    def __new__(cls, B: Any, C: Any, info: ProjectionInfo) -> "KroneckerResult":
        self = super().__new__(cls, B, C)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def nearest_kronecker(A: Any, shape: tuple[int, int], *, terms: int = 1) -> KroneckerResult:
    """Find the sum of Kronecker products that is nearest to a matrix in the Frobenius norm.

    Parameters
    ----------
    A : array or Tensor, shape (…, m, n)
        Real or complex, leading dimensions are a batch. float16 and bfloat16 are computed in
        float32, integers in the default float type. Never written to.
    shape : (int, int)
        m1 and n1, the sizes of the left factors, divisors of m and n. Those of the right factors
        are m2 = m/m1 and n2 = n/n1.
    terms : int
        Between 1 and min(m1·n1, m2·n2), which is enough for any A.

    Returns
    -------
    KroneckerResult
        ``B`` (…, terms, m1, n1) and ``C`` (…, terms, m2, n2) with A ≈ Σ_t B[t] ⊗ C[t], of the kind,
        dtype and device of A, and ``info``.

    Raises
    ------
    ValueError
        A `shape` that does not divide A's, `terms` out of range, an entry that is not finite (its
        index is named).
    TypeError
        Sparse, or of another type.

    See Also
    --------
    monarch_project : another structure with products as fast.

    Notes
    -----
    The entries of B ⊗ C are those of vec(B)·vec(C)ᵀ, elsewhere. A rearranged in the same way is a
    matrix R of m1·n1 rows (one for each block of A) and m2·n2 columns, and its leading singular
    triplets are the terms. ‖A − Σ B ⊗ C‖_F is the norm of the singular values that are left out.
    The terms are nested: those of fewer terms are the first ones.

    A dense SVD, some 20·m·n·min(m1·n1, m2·n2) flops; for a sixteenth of all terms or fewer of more
    than 512, a block Krylov space to residuals of 1e-10·σ₁ (40·√(terms + 10)·u·σ₁). The error is
    measured in float64, 2·m·n·terms flops. Sources: C. F. Van Loan, N. Pitsianis, "Approximation
    with Kronecker products", Linear Algebra for Large Scale and Real-Time Applications (1993). Not
    differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.kron(torch.tensor([[1.0, 2.0]]), torch.eye(3)) + 0.1
    >>> B, C = la.nearest_kronecker(A, (1, 2), terms=2)
    >>> B.shape, C.shape
    (torch.Size([2, 1, 2]), torch.Size([2, 3, 3]))
    >>> torch.allclose(sum(map(torch.kron, B, C)), A, atol=1e-6)
    True
    """
    adapted = adapt(A, _CALLER, batched=True, complex_=True)
    given = adapted.tensor.detach()
    m1, n1 = _left_shape(shape, given.shape[-2:])
    m2, n2 = given.shape[-2] // m1, given.shape[-1] // n1
    # The one term of an empty matrix is empty, too.
    limit = max(1, min(m1 * n1, m2 * n2))
    count = as_integer(terms, _CALLER, "terms")
    if not 1 <= count <= limit:
        raise ValueError(
            f"{_CALLER}: terms must be between 1 and min(m1·n1, m2·n2) = {limit}, got {count}"
        )
    check_finite(given, _CALLER, "A")
    power = power_of_two(given)
    R = rearranged(given / power, m1, n1)
    left, right, method = balanced_factors(R, count)
    root = power.double().sqrt()
    scale = root.to(power.dtype)
    B, C = (adapted.restore(factor) for factor in (left.mT * scale, right * scale))
    info = info_of(method, *measured(R, B.swapaxes(-2, -1), C, root), power)
    return KroneckerResult(B.reshape(*B.shape[:-1], m1, n1), C.reshape(*C.shape[:-1], m2, n2), info)


def rearranged(A: Tensor, m1: int, n1: int) -> Tensor:
    """One row for each of m1 × n1 blocks of A: … × m1·n1 × m2·n2, of rank 1 for B ⊗ C."""
    *batch, m, n = A.shape
    m2, n2 = m // m1, n // n1
    blocks = A.reshape(*batch, m1, m2, n1, n2).transpose(-3, -2)
    return blocks.reshape(*batch, m1 * n1, m2 * n2)


def _left_shape(shape: Any, of: Any) -> tuple[int, int]:
    try:
        m1, n1 = shape
    except (TypeError, ValueError):
        raise ValueError(f"{_CALLER}: shape must be two integers, got {shape!r}") from None
    m1 = at_least(m1, 1, _CALLER, "shape[0]")
    n1 = at_least(n1, 1, _CALLER, "shape[1]")
    m, n = of
    if m % m1 or n % n1:
        raise ValueError(f"{_CALLER}: shape must divide that of A, ({m}, {n}), got ({m1}, {n1})")
    return m1, n1

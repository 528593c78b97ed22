"""Steps towards a CP decomposition: alternating least squares, and damped Gauss-Newton steps.

Factors are a list of matrices (n, rank) whose columns are multiplied and added up: the weights are
in them. They are double, whatever the tensor is; only products with the tensor are in its type.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Unknowns up to which the normal equations of a Gauss-Newton step are factored; above, conjugate
# gradients (docs/theory/cp.md).
_LARGEST_DENSE = 1000
_MOST_PRODUCTS = 100
# Of the residual of the normal equations, where conjugate gradients end.
_INEXACT = 1e-3
# Entries of the tensor whose residual is found at a time.
_BLOCK = 1 << 22
# Squares that are added up in the type of the tensor, vectorized.
_SHORT = 1024


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Products of rows, the last factor's running fastest, shape (Πn, rank)."""
    product = factors[0]
    for F in factors[1:]:
        product = (product.unsqueeze(1) * F).reshape(-1, F.shape[1])
    return product


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensor by columns that are equally long in all modes."""
    lengths = [torch.linalg.vector_norm(F, dim=0) for F in factors]
    # Each root first: a product of lengths may underflow.
    mean = torch.stack([length ** (1 / len(factors)) for length in lengths]).prod(0)
    return [
        F * torch.where(length > 0, mean / length, 0)
        for F, length in zip(factors, lengths, strict=True)
    ]


def residual(X: Tensor, factors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """What the factors leave of a contiguous X, in the memory of `out` if that is given."""
    first, *others = [F.to(X.dtype) for F in factors]
    rest = khatri_rao(others).mT
    rows = X.reshape(len(X), -1)
    place = None if out is None else out.view(rows.shape)
    return torch.addmm(rows, first, rest, alpha=-1, out=place).view(X.shape)


def distance(X: Tensor, factors: Sequence[Tensor]) -> float:
    """‖X − X̂‖_F, without a copy of X."""
    step = max(_BLOCK * len(X) // max(X.numel(), 1), 1)
    first, *others = factors
    parts = (
        norm(residual(X[i : i + step], [first[i : i + step], *others]))
        for i in range(0, len(X), step)
    )
    return math.hypot(*parts)


def norm(X: Tensor) -> float:
    """‖X‖_F of a contiguous tensor: short sums in its type, then one in double precision."""
    flat = X.view(-1)
    whole = len(flat) // _SHORT * _SHORT
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _SHORT), dim=1)
    lengths = torch.cat([rows, torch.linalg.vector_norm(flat[whole:]).unsqueeze(0)])
    return float(torch.linalg.vector_norm(lengths, dtype=torch.float64))


def each_product(X: Tensor, factors: list[Tensor], use: Callable[[int, Tensor], None]) -> None:
    """Hand `use` each mode, and the unfolding times the conjugate Khatri-Rao product of the others.

    Modes come in order, and what `use` puts in the place of a factor counts for the later ones. The
    modes are halved again and again: what a half needs of the others is multiplied once. No
    dimension of X is moved.
    """
    wide = factors[0].dtype

    def visit(part: Tensor, modes: range, whole: bool) -> None:
        if len(modes) == 1:
            use(modes[0], part.to(wide))
            return
        sizes = [len(factors[mode]) for mode in modes]
        cut = min(range(1, len(modes)), key=lambda i: math.prod(sizes[:i]) + math.prod(sizes[i:]))
        rows, columns = math.prod(sizes[:cut]), math.prod(sizes[cut:])
        left, right = modes[:cut], modes[cut:]

        def others(half: range) -> Tensor:
            return khatri_rao([factors[mode].to(X.dtype) for mode in half]).conj()

        if whole:
            matrix = part.reshape(rows, columns)
            visit(matrix @ others(right), left, False)
            visit(matrix.mT @ others(left), right, False)
        else:
            blocks = part.reshape(rows, columns, -1)
            visit(torch.einsum("abr,br->ar", blocks, others(right)), left, False)
            visit(torch.einsum("abr,ar->br", blocks, others(left)), right, False)

    visit(X, range(X.dim()), True)


def inner(A: Sequence[Tensor], B: Sequence[Tensor]) -> float:
    """The real part of Σ conj(A)·B."""
    return sum(float((a.conj() * b).sum().real) for a, b in zip(A, B, strict=True))


def largest_curvature(factors: Sequence[Tensor]) -> float:
    """The largest diagonal entry of JᴴJ, J the derivative of the tensor by its factors."""
    grams = [_gram(F) for F in factors]
    return max(
        float(_product_but(grams, mode).diagonal().real.max()) for mode in range(len(factors))
    )


def _gram(F: Tensor) -> Tensor:
    return F.mT @ F.conj()


def _product_but(grams: Sequence[Tensor], *skipped: int) -> Tensor:
    kept = [gram for mode, gram in enumerate(grams) if mode not in skipped]
    product = torch.ones_like(grams[0])
    for gram in kept:
        product = product * gram
    return product


def solved(M: Tensor, V: Tensor) -> Tensor:
    """F with F·V = M for a semidefinite V, the shortest one where there are many.

    By Cholesky with a diagonal of ones; where that breaks down, by eigenvectors.
    """
    scale = V.diagonal().real.clamp_min(0).sqrt()
    scale = torch.where(scale > 0, 1 / scale, 0).to(V.dtype)
    scaled = scale.unsqueeze(1) * V * scale
    rank = len(V)
    L, failed = torch.linalg.cholesky_ex(scaled)
    cut = 4 * rank * torch.finfo(V.dtype).eps
    right = M * scale
    if not int(failed) and float(L.diagonal().real.min()) ** 2 > cut:
        found: Tensor = torch.cholesky_solve(right.mH, L).mH
    else:
        values, vectors = torch.linalg.eigh(scaled)
        kept = values > cut * values[-1].clamp_min(0)
        inverse = torch.where(kept, 1 / values, 0).to(V.dtype)
        found = (right @ vectors * inverse) @ vectors.mH
    return found * scale


def als_sweep(X: Tensor, factors: Sequence[Tensor], ridge: float) -> list[Tensor]:
    """Every factor once by least squares, the others being what they are then."""
    found = list(factors)
    grams = [_gram(F) for F in found]
    eye = torch.eye(len(grams[0]), dtype=grams[0].dtype, device=X.device)

    def update(mode: int, M: Tensor) -> None:
        found[mode] = solved(M, _product_but(grams, mode) + ridge * eye)
        grams[mode] = _gram(found[mode])

    each_product(X, found, update)
    return balanced(found)


def gradient(E: Tensor, factors: list[Tensor], ridge: float) -> list[Tensor]:
    """Of −½·(‖E‖² + ridge·Σ‖F‖²) for the residual E of the factors."""
    found = [F * -ridge for F in factors]

    def add(mode: int, M: Tensor) -> None:
        found[mode] += M

    each_product(E, factors, add)
    return found


def damped_step(factors: Sequence[Tensor], slope: Sequence[Tensor], damping: float) -> list[Tensor]:
    """D with (JᴴJ + damping)·D = slope, J the derivative of the tensor by its factors.

    What is orthogonal to the columns of a factor is a small system for each row; the rest is one
    system for matrices that are no longer than the rank.
    """
    grams = [_gram(F) for F in factors]
    rank = len(grams[0])
    eye = torch.eye(rank, dtype=grams[0].dtype, device=grams[0].device)
    bases: list[Tensor | None] = []
    small, inside, steps = [], [], []
    for mode, (F, G) in enumerate(zip(factors, slope, strict=True)):
        if len(F) <= rank:
            bases.append(None)
            small.append(F)
            inside.append(G)
            steps.append(torch.zeros_like(G))
            continue
        Q, R = torch.linalg.qr(F)
        part = Q.mH @ G
        bases.append(Q)
        small.append(R)
        inside.append(part)
        steps.append(solved(G - Q @ part, _product_but(grams, mode) + damping * eye))
    solve = _dense_step if sum(F.numel() for F in small) <= _LARGEST_DENSE else _iterated_step
    for mode, (Q, D) in enumerate(zip(bases, solve(small, grams, inside, damping), strict=True)):
        steps[mode] = steps[mode] + (D if Q is None else Q @ D)
    return steps


def _dense_step(
    factors: Sequence[Tensor], grams: Sequence[Tensor], slope: Sequence[Tensor], damping: float
) -> list[Tensor]:
    sizes = [F.numel() for F in factors]
    ends = [sum(sizes[: mode + 1]) for mode in range(len(sizes))]
    places = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    H = factors[0].new_zeros(ends[-1], ends[-1])
    for k, F in enumerate(factors):
        eye = torch.eye(len(F), dtype=F.dtype, device=F.device)
        H[places[k], places[k]] = torch.kron(eye, _product_but(grams, k).mT.contiguous())
        for m in range(k):
            W = _product_but(grams, k, m)
            block = torch.einsum("is,sr,jr->irjs", F, W, factors[m].conj())
            H[places[k], places[m]] = block.reshape(sizes[k], sizes[m])
    # The Cholesky factorization reads the lower half alone.
    H.diagonal().add_(damping)
    L, failed = torch.linalg.cholesky_ex(H)
    if int(failed):  # damping below rounding
        H.diagonal().add_(float(H.diagonal().real.max()) * len(H) * torch.finfo(H.dtype).eps)
        L = torch.linalg.cholesky(H)
    right = torch.cat([G.reshape(-1) for G in slope])
    D = torch.cholesky_solve(right.unsqueeze(1), L).squeeze(1)
    return [D[place].reshape(F.shape) for place, F in zip(places, factors, strict=True)]


def _iterated_step(
    factors: Sequence[Tensor], grams: Sequence[Tensor], slope: Sequence[Tensor], damping: float
) -> list[Tensor]:
    """By conjugate gradients, preconditioned by what alternating least squares would solve."""
    modes = range(len(factors))
    eye = torch.eye(len(grams[0]), dtype=grams[0].dtype, device=grams[0].device)
    diagonal = [_product_but(grams, k) + damping * eye for k in modes]
    pairs = {(k, m): _product_but(grams, k, m) for k in modes for m in modes if m != k}
    conjugates = [F.conj() for F in factors]

    def product(D: Sequence[Tensor]) -> list[Tensor]:
        overlaps = [D[k].mT @ conjugates[k] for k in modes]
        return [
            D[k] @ diagonal[k]
            + factors[k] @ torch.stack([pairs[k, m] * overlaps[m] for m in modes if m != k]).sum(0)
            for k in modes
        ]

    left = [G.clone() for G in slope]
    step = [torch.zeros_like(G) for G in slope]
    Z = [solved(left[k], diagonal[k]) for k in modes]
    direction, rho = Z, inner(left, Z)
    end = rho * _INEXACT**2
    for _ in range(_MOST_PRODUCTS):
        if rho <= end:
            break
        image = product(direction)
        alpha = rho / inner(direction, image)
        step = [S + alpha * D for S, D in zip(step, direction, strict=True)]
        left = [R - alpha * A for R, A in zip(left, image, strict=True)]
        Z = [solved(left[k], diagonal[k]) for k in modes]
        before, rho = rho, inner(left, Z)
        direction = [z + rho / before * D for z, D in zip(Z, direction, strict=True)]
    return step

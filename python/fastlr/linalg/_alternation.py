"""Block coordinate descent for A ≈ X·Vᵀ with X nonnegative, and V either way."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Inner passes take at most this part of the time of the product before them, and end when one
# gains less than a hundredth of the first (both after Gillis and Glineur).
_INNER_WORK, _INNER_TOL = 0.5, 0.01
# A product with sparse data takes so many times the time of its flops in dense ones.
_SPARSE_COST = 8
# Entries of a residual that are in memory at once.
_BLOCK = 1 << 22
# Relative to row norms, in unit roundoffs: residual rows below that seed no component.
_ROUNDING = 100


class Data:
    """A, times a power of two that keeps squares in range, and its products."""

    def __init__(self, A: Tensor, largest: float) -> None:
        self.shape: tuple[int, int] = (A.shape[0], A.shape[1])
        self.power = _power(largest, A.dtype)
        self.sparse = A.layout != torch.strided
        self.matrix = A if self.power == 1 else A * (1 / self.power)
        self.adjoint = self.matrix.mT
        entries = self.matrix
        if self.sparse:
            self.adjoint = self.matrix.t().to_sparse_csr()
            entries = self.matrix.values()
        self.norm = float(torch.linalg.vector_norm(entries, dtype=torch.float64))
        self.count = entries.numel()

    @property
    def roundoff(self) -> float:
        """The unit roundoff of the entries."""
        return torch.finfo(self.matrix.dtype).eps / 2

    def zeros(self, rows: int, columns: int) -> Tensor:
        """Of the type and device of A."""
        return torch.zeros(rows, columns, dtype=self.matrix.dtype, device=self.matrix.device)

    def passes(self, side: int, rank: int) -> int:
        """How often coordinates of rows (side 0) or columns are worth a pass for one product."""
        cost = self.count * (_SPARSE_COST if self.sparse else 1)
        return 1 + int(_INNER_WORK * cost / (self.shape[side] * rank))

    def row_squares(self) -> Tensor:
        """The squared norms of the rows, in double precision."""
        if not self.sparse:
            lengths: Tensor = torch.linalg.vector_norm(self.matrix, dim=1, dtype=torch.float64)
            return lengths.square()
        entries = self.matrix.values().double()
        rows = torch.repeat_interleave(self.matrix.crow_indices().diff())
        return entries.new_zeros(self.shape[0]).index_add_(0, rows, entries.square())

    def squared_error(self, X: Tensor, V: Tensor) -> float:
        """‖A − X·Vᵀ‖². Sparse data by inner products, unless these would cancel."""
        if self.sparse:
            X64, V64 = X.double(), V.double()
            cross = (self.matrix.double() @ V64 * X64).sum()
            square = float(((X64.mT @ X64) * (V64.mT @ V64)).sum() - 2 * cross) + self.norm**2
            # Rounding is some units of 2⁻⁵³·‖A‖², which is a relative 1e-8 of more than this.
            if square > 1e-8 * self.norm**2:
                return square
        height = max(1, _BLOCK // max(1, self.shape[1]))
        total = 0.0
        for first in range(0, self.shape[0], height):
            last = min(first + height, self.shape[0])
            block = self._rows(first, last).addmm(X[first:last], V.mT, alpha=-1)
            total += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
        return total

    def _rows(self, first: int, last: int) -> Tensor:
        if not self.sparse:
            return self.matrix[first:last]
        starts = self.matrix.crow_indices()[first : last + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        rows = torch.repeat_interleave(starts.diff())
        block = self.zeros(last - first, self.shape[1])
        block[rows, self.matrix.col_indices()[entries]] = self.matrix.values()[entries]
        return block


def _power(largest: float, dtype: torch.dtype) -> float:
    """1 where squares of entries up to `largest` are in range, else a power of two near it."""
    exponent = math.frexp(largest)[1] if largest else 0
    if abs(exponent) <= (40 if dtype == torch.float32 else 400):
        return 1.0
    return max(math.ldexp(1.0, exponent), torch.finfo(dtype).tiny)


class Step(NamedTuple):
    """What a step in one factor did."""

    X: Tensor
    V: Tensor
    decrease: float  # of the objective
    residual: float  # ‖·‖_F of what is left to do in this factor, in units of A


# From X, V, XᵀX and AᵀX to a better V; X is rescaled with it.
Right = Callable[[Tensor, Tensor, Tensor, Tensor], Step]


@dataclass(frozen=True)
class Outcome:
    """The factors, and how they were found; objectives are relative to ‖A‖²/2."""

    X: Tensor
    V: Tensor
    iterations: int
    objective: tuple[float, ...]
    relative_error: float
    kkt_residual: float


def nonnegative_rows(
    X: Tensor, G: Tensor, B: Tensor, *, passes: int, penalty: float = 0.0
) -> tuple[Tensor, list[float]]:
    """Lower xᵀGx/2 − bᵀx + penalty·Σx over x ≥ 0 for all rows.

    Returns X, and the decrease and the KKT residuals before and after.
    """
    X, info = torch.ops.fastlr.nonnegative_rows(X, G, B, penalty, passes, _INNER_TOL)
    return X, info.tolist()


def nonnegative_step(data: Data) -> Right:
    """V ≥ 0."""

    def step(X: Tensor, V: Tensor, G: Tensor, Q: Tensor) -> Step:
        V, (decrease, _, after) = nonnegative_rows(V, G, Q, passes=data.passes(1, len(G)))
        return Step(X, V, decrease, after)

    return step


def least_squares_step(X: Tensor, V: Tensor, G: Tensor, Q: Tensor) -> Step:
    """V real, the best for X.

    It is corrected in the directions that G determines, and stays as it is in the others: the
    objective does not rise, whatever the rank of X.
    """
    wide = G.double()
    roots = wide.diagonal().sqrt()
    inverse = torch.where(roots > 0, 1 / roots, 0)
    values, vectors = torch.linalg.eigh(inverse[:, None] * wide * inverse)
    kept = values > len(G) * torch.finfo(V.dtype).eps * values[-1]
    root = inverse[:, None] * vectors[:, kept] / values[kept].sqrt()
    correction = (Q - V @ G).double() @ root  # root @ rootᵀ is the pseudo-inverse of G
    V = V + (correction @ root.mT).to(V.dtype)
    decrease = float(correction.square().sum()) / 2
    residual = torch.linalg.vector_norm((Q - V @ G) * inverse.to(V.dtype))
    return Step(X, V, decrease, float(residual))


def unit_ball_step(data: Data, penalty: float) -> Right:
    """V real, its columns of length at most 1, which is what gives the penalty of X a meaning."""

    def step(X: Tensor, V: Tensor, G: Tensor, Q: Tensor) -> Step:
        D, right = V.mT.contiguous(), Q.mT
        live = [(j, square) for j, square in enumerate(G.diagonal().tolist()) if square > 0]
        decrease, first = 0.0, None
        for _ in range(data.passes(1, len(G))):
            gain = D.new_zeros((), dtype=torch.float64)
            for j, square in live:
                slope = right[j] - G[j] @ D
                moved = D[j] + slope / square
                moved /= torch.linalg.vector_norm(moved).clamp_min(1)
                change = moved - D[j]
                gain += (slope - square / 2 * change) @ change
                D[j] = moved
            decrease += (gained := float(gain))
            first = gained if first is None else first
            if gained <= _INNER_TOL * first:
                break
        # Of a shorter direction, the codes are larger than they need to be.
        lengths = torch.linalg.vector_norm(D, dim=1)
        decrease += penalty * float(((1 - lengths).clamp_min(0) * X.sum(0)).sum())
        X, D = X * lengths, D / torch.where(lengths > 0, lengths, 1)[:, None]
        G, right = lengths[:, None] * G * lengths, lengths[:, None] * right
        squares = torch.where(G.diagonal() > 0, G.diagonal(), 1)[:, None]
        moved = D + (right - G @ D) / squares
        moved /= torch.linalg.vector_norm(moved, dim=1, keepdim=True).clamp_min(1)
        left = (moved - D) * G.diagonal().sqrt()[:, None]
        return Step(X, D.mT, decrease, float(torch.linalg.vector_norm(left)))

    return step


def alternate(
    data: Data,
    X: Tensor,
    V: Tensor,
    right: Right,
    *,
    penalty: float,
    signed: bool,
    tol: float,
    max_iters: int,
) -> Outcome:
    """Lower ½‖A − X·Vᵀ‖² + penalty·ΣX over X ≥ 0 and V until the KKT residual is tol·‖A‖.

    `signed` is whether V may have negative entries.
    """
    passes = data.passes(0, X.shape[1])
    X, V = unit_columns(X, V)
    decreases: list[float] = []
    of_right, last = math.inf, max_iters
    while True:
        next_X, (decrease, of_left, _) = nonnegative_rows(
            X, V.mT @ V, data.matrix @ V, passes=passes, penalty=penalty
        )
        residual = math.hypot(of_left, of_right) / data.norm
        if residual <= tol or len(decreases) == last:
            break
        X, V, gained, of_right = right(next_X, V, next_X.mT @ next_X, data.adjoint @ next_X)
        decreases.append(decrease + gained)
        if len(decreases) == last:
            continue
        X, V, seeded = _seeded(data, X, V, penalty, signed)
        # What rounding alone would gain; a new component has yet to.
        if not seeded and decreases[-1] <= (data.roundoff * data.norm) ** 2:
            last = len(decreases)
    X, V = _by_size(*unit_columns(X, V))
    return _outcome(data, X, V, penalty, decreases, residual)


def _outcome(
    data: Data, X: Tensor, V: Tensor, penalty: float, decreases: list[float], residual: float
) -> Outcome:
    """Objectives are the last one, which is computed, and what was gained until then."""
    square, unit = data.squared_error(X, V), data.norm**2 / 2
    objective = [square / 2 + penalty * float(X.sum(dtype=torch.float64))]
    for decrease in reversed(decreases):
        objective.append(objective[-1] + decrease)
    return Outcome(
        X,
        V,
        len(decreases),
        tuple(value / unit for value in reversed(objective)),
        math.sqrt(square) / data.norm,
        residual,
    )


def unit_columns(X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """The same X·Vᵀ with columns of V of length 1; both are zero where one of V is."""
    lengths = torch.linalg.vector_norm(V, dim=0)
    return X * lengths, V / torch.where(lengths > 0, lengths, 1)


def _by_size(X: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Components by descending size; both columns are zero where one of X is."""
    sizes = torch.linalg.vector_norm(X, dim=0)
    order = sizes.argsort(descending=True, stable=True)
    return X[:, order], torch.where(sizes > 0, V, 0)[:, order]


def _seeded(
    data: Data, X: Tensor, V: Tensor, penalty: float, signed: bool
) -> tuple[Tensor, Tensor, bool]:
    """Give components that are zero the rows of A that are approximated worst, to begin with.

    X is zero there, so that the objective is the same until the next step. Returns X and V, and
    whether V has new columns.
    """
    dead = ((X == 0).all(0) | (V == 0).all(0)).nonzero()[:, 0]
    if not len(dead):
        return X, V, False
    X, V = X.index_fill(1, dead, 0), V.index_fill(1, dead, 0)
    squares = data.row_squares()
    fitted = (data.matrix @ V - 0.5 * X @ (V.mT @ V)).double()
    worst = (squares - 2 * (X * fitted).sum(1)).topk(min(len(dead), len(X))).indices
    chosen = data.zeros(len(X), len(worst))
    chosen[worst, torch.arange(len(worst), device=worst.device)] = 1
    rows = data.adjoint @ chosen - V @ X[worst].mT
    rows = rows if signed else rows.clamp_min(0)
    lengths = torch.linalg.vector_norm(rows, dim=0)
    # Shorter ones would not be used, or are rounding.
    useful = lengths > penalty + _ROUNDING * data.roundoff * squares[worst].sqrt()
    V[:, dead[: len(worst)][useful]] = (rows / lengths)[:, useful]
    return X, V, bool(useful.any())

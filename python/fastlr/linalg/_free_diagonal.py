"""The matrix of low rank that is nearest to one whose diagonal is free.

M is a given matrix with zeros on its diagonal, and x in their place: p unknowns for p = min(m, n).
Least is to be f(x) = ‖M − L‖², where L is the truncated SVD of M.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlr.linalg._balanced import signed
from fastlr.linalg.random import random_matrix

# Ranks on the way to the one that is wanted, and what of the residual may be left on the diagonal
# there. With jumps of 2, spectra that fall by 0.7 or 0.8 a step end in other minima at times.
_GROWTH = 1.4
_LOOSE = 0.1
_MOST_LOOSE = 30
# Of the start, relative to the entries.
_APART = 1e-3
# Conjugate gradients for one step: relative to the gradient, which few steps need half of.
_INEXACT = 0.1
_MOST_PRODUCTS = 50
# A step is taken if it gains this part of what the quadratic model says; the region in which that
# is believed shrinks or grows beyond the others.
_ENOUGH, _POOR, _GOOD = 0.1, 0.25, 0.75
_SHRINK, _GROW = 4, 2.5


@dataclass(frozen=True)
class Point:
    """A diagonal, and what belongs to it.

    Attributes
    ----------
    x : Tensor, shape (p,)
    U, S, Vh : Tensor
        The SVD of M.
    rank : int
    step : Tensor, shape (p,)
        diag(L − M), to which the best diagonal for L is away: half the gradient, negative.
    error : float
        ‖M − L‖.
    """

    x: Tensor
    U: Tensor
    S: Tensor
    Vh: Tensor
    rank: int
    step: Tensor
    error: float

    def is_stationary(self, tol: float) -> bool:
        """Whether the step is below tol·error, or below the rounding of M's singular values."""
        rounding = max(len(self.U), self.Vh.shape[1]) * torch.finfo(self.S.dtype).eps / 2
        return norm(self.step) <= max(tol * self.error, rounding * float(self.S[:1].sum()))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L as two factors with columns and rows of the same lengths."""
        k = min(self.rank, len(self.S))
        U, Vh = signed(self.U[:, :k], self.Vh[:k])
        root = self.S[:k].sqrt()
        left = U.new_zeros(len(U), self.rank)
        right = U.new_zeros(self.rank, Vh.shape[1])
        left[:, :k], right[:k] = U * root, root[:, None] * Vh
        return left, right


class FreeDiagonal:
    """The search for one hollow matrix, in double precision and near 1 in scale."""

    def __init__(self, hollow: Tensor) -> None:
        self.hollow = hollow
        self.decompositions = 0
        self.products = 0

    def search(self, rank: int, own: Tensor, tol: float, most: int) -> tuple[Point, bool]:
        """A stationary point, or the best after `most` decompositions, and which of the two.

        `own` is a diagonal that the result is to be better than.
        """
        x = self._near_zero(own)
        for k in _ranks_below(rank):
            x = self.descend(self.at(x, k), _LOOSE, _MOST_LOOSE)[0].x
        start = self.at(x, rank)
        # Beyond that all other entries are rounding of the SVD.
        if float(own.abs().sum()) * torch.finfo(own.dtype).eps < 1:
            other = self.at(own, rank)
            start = min(start, self.at(own + other.step, rank), key=lambda point: point.error)
        return self.descend(start, tol, most)

    def _near_zero(self, like: Tensor) -> Tensor:
        """Zeros, but for what keeps a pattern in the entries from being a saddle point."""
        drawn = random_matrix(len(like), 1, seed=0, dtype=torch.float64, device=like.device)
        size = norm(self.hollow) / max(self.hollow.numel(), 1) ** 0.5
        x: Tensor = _APART * size * drawn[:, 0]
        return x.to(like.dtype)

    def at(self, x: Tensor, rank: int) -> Point:
        M = self.hollow.clone()
        M.diagonal().copy_(x)
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        self.decompositions += 1
        residual = M - (U[:, :rank] * S[:rank]) @ Vh[:rank]
        return Point(x, U, S, Vh, rank, -residual.diagonal(), norm(residual))

    def descend(self, point: Point, tol: float, most: int) -> tuple[Point, bool]:
        """Newton's method in a trust region: f never rises."""
        last = self.decompositions + most - 1
        radius = _SHRINK * norm(point.step)
        while not point.is_stationary(tol) and self.decompositions < last:
            hessian = self._hessian(point)
            shortest = norm(point.step)
            while True:
                step = _minimum(hessian, point.step, radius)
                # As short as the step of alternation, and that one gains ‖step‖² at least.
                safe = norm(step) <= shortest
                if safe:
                    step = point.step
                length = norm(step)
                expected = 2 * _dot(point.step, step) - _dot(step, hessian(step))
                new = self.at(point.x + step, point.rank)
                gain = (point.error - new.error) * (point.error + new.error)
                if safe or gain > _ENOUGH * expected or self.decompositions >= last:
                    break
                radius = length / _SHRINK
            if gain > _GOOD * expected and length > 0.8 * radius:
                radius *= _GROW
            elif gain < _POOR * expected:
                radius = max(length / 2, shortest)
            if new.error > point.error:
                # Rounding, where the step that never fails does; else the last of them, refused.
                return point, safe
            point = new
        return point, point.is_stationary(tol)

    def _hessian(self, point: Point) -> Callable[[Tensor], Tensor]:
        """The product of a vector with half the second derivative of f.

        diag(δ) − diag(dL) for the change dL of L with M. In the singular vectors its blocks are
        those of δ, but for a pair of one that L has and one that it lacks: with a = u_iᴴ·δ·v_j and
        b = u_jᴴ·δ·v_i they are (σ_i²·a + σ_i·σ_j·b̄)/(σ_i² − σ_j²), and the same with a and b̄
        exchanged; and but for two that it lacks, where they are zero.
        """
        p, r = len(point.x), point.rank
        U, V = point.U[:p], point.Vh[:, :p].mH
        inner, outer = point.S[:r, None], point.S[None, r:]
        gaps = (inner - outer) * (inner + outer)
        # Where two values are equal f has a ridge: a curvature without end, downwards.
        gaps = gaps.clamp(min=torch.finfo(gaps.dtype).eps * float(point.S[0]) ** 2)
        same, crossed = outer.square() / gaps, inner * outer / gaps
        kept = U[:, :r], V[:, :r]
        lost = U[:, r:], V[:, r:]
        alone = 1 - kept[0].abs().square().sum(1) - kept[1].abs().square().sum(1)

        def product(d: Tensor) -> Tensor:
            self.products += 1
            core = kept[0].mH @ (d[:, None] * kept[1])
            a = kept[0].mH @ (d[:, None] * lost[1])
            b = (lost[0].mH @ (d[:, None] * kept[1])).mH
            upper, lower = same * a + crossed * b, same * b + crossed * a
            back = (kept[0] @ core) * kept[1].conj()
            back = back - (lost[0] @ lower.mH) * kept[1].conj()
            return alone * d + back.sum(1) - ((kept[0] @ upper) * lost[1].conj()).sum(1)

        return product


def norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.vdot(x, y).real)


def _ranks_below(rank: int) -> Iterator[int]:
    k = 1
    while k < rank:
        yield k
        k = max(k + 1, int(_GROWTH * k))


def _minimum(hessian: Callable[[Tensor], Tensor], b: Tensor, radius: float) -> Tensor:
    """The least of xᴴ·H·x/2 − Re(bᴴ·x) in a ball, nearly: on its edge where H is not positive."""
    x, residual, direction = torch.zeros_like(b), b, b
    energy = first = _dot(b, b)
    for _ in range(_MOST_PRODUCTS):
        image = hessian(direction)
        curvature = _dot(direction, image)
        along, length = _dot(x, direction), _dot(direction, direction)
        room = max(radius**2 - _dot(x, x), 0.0)
        edge = (math.sqrt(along**2 + length * room) - along) / length
        if curvature <= 0 or energy >= edge * curvature:
            return x + edge * direction
        x = x + (energy / curvature) * direction
        residual = residual - (energy / curvature) * image
        before, energy = energy, _dot(residual, residual)
        if energy <= _INEXACT**2 * first:
            break
        direction = residual + (energy / before) * direction
    return x

"""Kernels that see the windows of a convolution through few directions, fitted to the outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlr.nn.compression.moments import Moments, ranked_directions
from fastlr.nn.compression.problem import sums_beyond
from fastlr.nn.compression.solver import solve

# So many widths are looked at, close to each other where they are small.
_WIDTHS = 32


class ReducedInputs:
    """W' = B (Qᵀ ⊗ I): of windows of v·s numbers, B sees r directions of the v at s places each.

    The directions Q are nested, and B is the least-squares fit of the outputs for each r.

    Parameters
    ----------
    weight : Tensor of shape (g, o, v·s)
        W, in groups.
    windows : Moments
        Of x, g × v·s.
    kept : int
        s: 1 × 1 × … × s is what is left to B of the kernel.
    """

    def __init__(self, weight: Tensor, windows: Moments, kept: int) -> None:
        covariance = windows.covariance
        self._shares = [_shrinkage(part, windows.count) for part in covariance]
        shrunk = self._shrunk(covariance)
        self.kept = kept
        self.basis = torch.stack(
            [directions(W, *_traces(part, kept)) for W, part in zip(weight, shrunk, strict=True)]
        )
        self.weight = self._turned(weight)
        half = self._turned(covariance)
        self.covariance = self._turned(half.mT)
        self.mean = self._turned(windows.mean[:, None]).mT
        self.outputs = self.weight @ self.covariance @ self.weight.mT
        self.widths = log_spaced(self.basis.shape[1], _WIDTHS)

    def fit(self, width: int) -> Fit:
        """The best B for r = `width`.

        The covariance is shrunk, and B pulled to the dense kernel without the other directions: few
        windows do not determine it. Errors are those of the covariance as it is.
        """
        cut = width * self.kept
        shrunk = self._shrunk(self.covariance)
        through, lost = self.weight[..., :cut], self.weight.clone()
        moved = self.weight[..., cut:] @ shrunk[:, cut:, :cut]
        factor = torch.linalg.cholesky(shrunk[:, :cut, :cut])
        made_up = torch.cholesky_solve(moved.mT, factor).mT
        lost[..., :cut] = -made_up
        return Fit(
            self.basis[..., :width].mT,
            through + made_up,
            self.outputs,
            lost @ self.covariance @ lost.mT,
            (lost @ self.mean)[..., 0],
            self.weight,
        )

    def _turned(self, matrices: Tensor) -> Tensor:
        """With the directions in place of the v, along the columns."""
        parts = matrices.reshape(*matrices.shape[:2], -1, self.kept)
        return torch.einsum("gmvs,gvr->gmrs", parts, self.basis).flatten(2)

    def _shrunk(self, covariance: Tensor) -> Tensor:
        return torch.stack(
            [
                (1 - share) * part + share * level * torch.eye(len(part)).to(part)
                for part, (share, level) in zip(covariance, self._shares, strict=True)
            ]
        )


@dataclass(frozen=True)
class Fit:
    """The outputs of B (Qᵀ ⊗ I) x, and how to see them through fewer channels.

    Attributes
    ----------
    inner : Tensor of shape (g, r, v)
        Qᵀ.
    outer : Tensor of shape (g, o, r·s)
        B.
    outputs, lost : Tensor of shape (g, o, o)
        The covariances of W x and of (W − W') x.
    missing : Tensor of shape (g, o)
        The mean of (W − W') x.
    weight : Tensor of shape (g, o, v·s)
    """

    inner: Tensor
    outer: Tensor
    outputs: Tensor
    lost: Tensor
    missing: Tensor
    weight: Tensor

    @property
    def error(self) -> float:
        return float(self.lost.diagonal(0, 1, 2).sum())

    def channels(self) -> tuple[Tensor, Tensor]:
        """Orthonormal U of shape (g, o, o), and the errors of U_k U_kᵀ B for k = 1, …, o.

        For y' = B (Qᵀ ⊗ I) x that error is tr C − tr Uᵀ(C − L)U with the covariances C of y and L
        of y − y': leading eigenvectors of C − L are the best U.
        """
        gained = self.outputs - self.lost
        basis = ranked_directions(gained, self.weight)
        energies = torch.einsum("gok,gop,gpk->k", basis, gained, basis)
        return basis, (self.error + sums_beyond(energies)[1:]).clamp(min=0)


def directions(weight: Tensor, across: Tensor, within: Tensor) -> Tensor:
    """All v directions, orthonormal, those first through which most of the outputs is seen.

    That is so of W x, W of shape o × v·s, if the covariance is a Kronecker product, of `across`
    (v × v) and `within` (s × s): then they are the right singular vectors of one unfolding of W,
    weighted on both sides.
    """
    o, s = len(weight), len(within)
    values, vectors = torch.linalg.eigh(within)
    weighted = weight.reshape(o, -1, s) @ (vectors * values.clamp(min=0).sqrt())
    rows = solve(weighted.transpose(1, 2).flatten(0, 1), across).projected
    found: Tensor = torch.linalg.qr(rows.mT, mode="complete").Q
    return found


def log_spaced(most: int, number: int) -> list[int]:
    """About so many integers from 1 to `most`, close to each other where they are small."""
    spread = torch.logspace(0, 1, number, base=float(most), dtype=torch.float64)
    return sorted({*spread.round().int().tolist(), most})


def _traces(covariance: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The partial traces: what is left if it were a Kronecker product, up to factors."""
    blocks = covariance.reshape(-1, kept, len(covariance) // kept, kept)
    return torch.einsum("asbs->ab", blocks), torch.einsum("asat->st", blocks)


def _shrinkage(covariance: Tensor, count: int) -> tuple[float, float]:
    """How far to go from the covariance to a multiple of the identity, and which.

    Y. Chen, A. Wiesel, Y. Eldar, A. Hero, "Shrinkage algorithms for MMSE covariance estimation",
    IEEE Trans. Signal Processing 58 (2010), oracle approximating shrinkage.
    """
    p = len(covariance)
    level = float(covariance.trace()) / p
    if level <= 0:
        return 1.0, 1.0
    spread = float((covariance / level).square().sum()) / p  # 1 for the identity
    above = (1 - 2 / p) * spread + p
    below = (count + 1 - 2 / p) * (spread - 1)
    return (min(1.0, above / below) if below > 0 else 1.0), level

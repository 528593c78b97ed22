"""Gradients through a truncated SVD: forward and backward, beside what torch has.

The loss is ‖BᵀU‖² for 30 Gaussian columns B, a function of the projector on the leading left
singular vectors. `gradient error` is relative, against the formula of that projector's derivative,
evaluated with the full SVD in float64. The floor is the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

M, N, RANK = 2000, 1000, 20

Svd = Callable[[Tensor], Tensor]  # from A to U


class Loss:
    """‖BᵀU‖² and its gradient with respect to A."""

    def __init__(self, A: Tensor) -> None:
        self.A = A
        self.B = la.random_matrix(M, 30, seed=4, dtype=A.dtype)
        self.reference = self._reference()

    def gradient(self, svd: Svd) -> Tensor:
        A = self.A.clone().requires_grad_()
        (self.B.T @ svd(A)).square().sum().backward()
        assert A.grad is not None
        return A.grad

    def error(self, gradient: Tensor) -> dict[str, Any]:
        error = torch.linalg.matrix_norm(gradient - self.reference)
        return {"gradient error": (error / torch.linalg.matrix_norm(self.reference)).item()}

    def _reference(self) -> Tensor:
        """From dU = U₂ Z with Z σ² − τ² Z = U₂ᵀ d(A Aᵀ) U, U₂ and τ the triplets left out."""
        U, S, _ = torch.linalg.svd(self.A.double(), full_matrices=True)
        squares = torch.zeros(M, dtype=torch.float64)
        squares[:N] = S.square()
        B = self.B.double()
        kept, rest = U[:, :RANK], U[:, RANK:]
        Z = (rest.T @ B) @ (2 * B.T @ kept) / (squares[:RANK] - squares[RANK:, None])
        product = rest @ Z @ kept.T
        return ((product + product.T) @ self.A.double()).to(self.A.dtype)


def fastlr(**options: Any) -> Svd:
    return lambda A: la.randomized_svd(A, RANK, seed=0, **options).U


def lowrank(A: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.svd_lowrank(A, q=RANK + 10, niter=4)[0][:, :RANK]


def full(A: Tensor) -> Tensor:
    return torch.linalg.svd(A, full_matrices=False)[0][:, :RANK]


def matrix(values: Tensor) -> Tensor:
    left, _ = torch.linalg.qr(la.random_matrix(M, N, seed=1, dtype=torch.float64))
    right, _ = torch.linalg.qr(la.random_matrix(N, N, seed=2, dtype=torch.float64))
    return (left * values) @ right.T


def compare(session: Session, title: str, values: Tensor, dtype: torch.dtype) -> None:
    A = matrix(values).to(dtype)
    loss = Loss(A)
    session.table(
        f"{M} × {N} {dtype}, rank {RANK}, {title}".replace("torch.", ""),
        [
            Case(name, lambda svd=svd: loss.gradient(svd), loss.error)
            for name, svd in {
                "fastlr, 4 power iterations": fastlr(power_iters=4),
                "fastlr, krylov": fastlr(method="krylov", oversample=RANK),
                "torch.svd_lowrank, 4 power iterations": lowrank,
                "torch.linalg.svd": full,
            }.items()
        ],
        floor=Case(
            "fastlr, 4 power iterations, without gradient", lambda: fastlr(power_iters=4)(A)
        ),
    )


def main() -> None:
    index = torch.arange(N, dtype=torch.float64)
    with Session(__doc__, repeats=5) as session:
        for dtype in (torch.float32, torch.float64):
            compare(session, "σ_j = 0.9^j", 0.9**index, dtype)
        compare(session, "σ_j = 1/(1 + j)", 1 / (1 + index), torch.float64)
        twenty = torch.where(index < RANK, 1.0, 0.5)
        compare(session, "20 values 1, the others 0.5", twenty, torch.float64)


if __name__ == "__main__":
    main()

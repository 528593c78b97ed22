"""The gradient of a least-squares solution."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastlr import _core


class DifferentiableSolution(torch.autograd.Function):
    """x as a function of A and B, by implicit differentiation of x = A⁺B at constant rank.

    dx = A⁺(dB − dA·x) + (AᴴA)⁺dAᴴ(B − A·x) + (I − A⁺A)dAᴴ(A⁺)ᴴx
    (G. H. Golub, V. Pereyra, SIAM J. Numer. Anal. 10 (1973)). The products with A⁺ and its adjoint
    are shortest solutions of least-squares problems again. With damping A has damp·I below it, or
    beside it where it has fewer rows than columns.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, x: Tensor, damp: float, rank: int) -> Tensor:
        ctx.save_for_backward(A, B, x)
        ctx.damp, ctx.rank = damp, rank
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        A, B, x = ctx.saved_tensors
        (m, n), tall = A.shape, A.shape[0] >= A.shape[1]
        lower_rank = ctx.rank < min(m, n)
        if ctx.damp:
            block = ctx.damp * torch.eye(min(m, n), dtype=A.dtype, device=A.device)
            A = torch.cat([A, block], 0 if tall else 1)
            if tall:
                B = torch.cat([B, torch.zeros_like(x)])
            else:
                x = _shortest(A, B)
                gradient = torch.cat([gradient, torch.zeros_like(B)])
        adjoint = A.mH.resolve_conj()
        by_B = _shortest(adjoint, gradient)
        by_A = -by_B @ x.mH
        if tall or lower_rank:
            by_A += (B - A @ x) @ _shortest(A, by_B).mH
        if not tall or lower_rank:
            by_A += _shortest(adjoint, x) @ (gradient - adjoint @ by_B).mH
        return by_A[:m, :n], by_B[:m], None, None, None


def _shortest(A: Tensor, B: Tensor) -> Tensor:
    operator = _core.operator_of_matrix(A)
    seed = 0
    return _core.lstsq(operator, B, "auto", "sparse_sign", None, 8, 0.0, None, None, seed)[0]

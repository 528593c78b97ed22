"""Products with a matrix that is stored as factors, each in one call.

Not public: :class:`fastlr.nn.LowRankLinear` and :class:`fastlr.nn.InterpolativeLinear` are.
float16, bfloat16, float32 and float64. What lies between the factors is never kept for all tokens:
the gradient computes it once more. For few tokens on a CPU the factors are read once, and all sums
are in float32 at least (but for float16, whose products are torch's own). An exported program
(`torch.export`) holds torch's own products, so that it runs without fastlr.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlr import _ops as _ops  # loads the operators


def low_rank_linear(X: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (B A)ᵀ + bias. Differentiable.

    Parameters
    ----------
    X : Tensor of shape (…, i)
    A : Tensor of shape (r, i)
    B : Tensor of shape (o, r)
    bias : Tensor of shape (o,), optional

    Returns
    -------
    Tensor of shape (…, o)

    Raises
    ------
    ValueError
        If the shapes do not fit together, or not all tensors are on one device.
    TypeError
        If the types differ, or are none of those above.

    Examples
    --------
    >>> import torch
    >>> low_rank_linear(torch.ones(1, 3), torch.ones(1, 3), torch.tensor([[1.0], [2.0]]))
    tensor([[3., 6.]])
    """
    if torch.compiler.is_exporting():
        return F.linear(F.linear(X, A), B, bias)
    result: Tensor = torch.ops.fastlr.low_rank_linear(X, A, B, bias)
    return result


def interpolative_linear(
    X: Tensor,
    skeleton: Tensor,
    coefficients: Tensor,
    order: Tensor,
    bias: Tensor | None = None,
    *,
    of_rows: bool,
) -> Tensor:
    """X Wᵀ + bias for a W some of whose rows, or columns, are kept: a skeleton. Differentiable.

    Parameters
    ----------
    X : Tensor of shape (…, i)
    skeleton : Tensor of shape (r, i) for rows, (o, r) for columns
    coefficients : Tensor of shape (o − r, r) for rows, (r, i − r) for columns
        What the other rows or columns are of the skeleton.
    order : Tensor of shape (o,) for rows, (i,) for columns, int32
        A permutation: for rows, where each output stands in [skeleton outputs, other outputs]; for
        columns, the inputs in the order [skeleton inputs, other inputs].
    bias : Tensor of shape (o,), optional
    of_rows : bool
        What the skeleton is taken from.

    Returns
    -------
    Tensor of shape (…, o)

    Raises
    ------
    ValueError
        If the shapes do not fit together, `order` is no permutation, or not all tensors are on one
        device.
    TypeError
        If the types differ, or are none of those above.

    Examples
    --------
    >>> import torch
    >>> order = torch.tensor([1, 0], dtype=torch.int32)  # the second output is the skeleton
    >>> interpolative_linear(
    ...     torch.ones(1, 3), torch.ones(1, 3), torch.tensor([[2.0]]), order, of_rows=True
    ... )
    tensor([[6., 3.]])
    """
    if torch.compiler.is_exporting():
        return _interpolative_products(X, skeleton, coefficients, order, bias, of_rows)
    result: Tensor = torch.ops.fastlr.interpolative_linear(
        X, skeleton, coefficients, order, bias, of_rows
    )
    return result


def _interpolative_products(
    X: Tensor,
    skeleton: Tensor,
    coefficients: Tensor,
    order: Tensor,
    bias: Tensor | None,
    of_rows: bool,
) -> Tensor:
    if of_rows:
        kept = F.linear(X, skeleton)
        outputs = torch.cat((kept, F.linear(kept, coefficients)), -1).index_select(-1, order)
        return outputs if bias is None else outputs + bias
    ordered, rank = X.index_select(-1, order), skeleton.shape[1]
    kept = ordered[..., :rank] + F.linear(ordered[..., rank:], coefficients)
    return F.linear(kept, skeleton, bias)

"""Matrices that keep some of their entries: the values in row-major order, and a bit per entry.

Not public: :class:`fastlr.nn.SparseLinear` is. The mask of an o × i matrix is uint8 of shape
(o, ⌈i/8⌉); bit j % 8 of byte j // 8 of a row says whether column j is kept, and the bits behind the
last column are zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlr import _ops as _ops  # loads the operators


def pack_mask(kept: Tensor) -> Tensor:
    """The bit mask of a boolean matrix.

    Parameters
    ----------
    kept : Tensor of shape (o, i), bool

    Returns
    -------
    Tensor of shape (o, ⌈i/8⌉), uint8

    Examples
    --------
    >>> import torch
    >>> pack_mask(torch.tensor([[True, False, True], [False, True, True]]))
    tensor([[5],
            [6]], dtype=torch.uint8)
    """
    rows, columns = kept.shape
    bits = F.pad(kept, (0, -columns % 8)).view(rows, -(-columns // 8), 8)
    return (bits * _place_values(kept.device)).sum(-1, dtype=torch.uint8)


def unpack_mask(mask: Tensor, columns: int) -> Tensor:
    """The boolean matrix, (o, `columns`), of a bit mask.

    Examples
    --------
    >>> import torch
    >>> unpack_mask(torch.tensor([[5], [6]], dtype=torch.uint8), columns=3)
    tensor([[ True, False,  True],
            [False,  True,  True]])
    """
    bits = mask.unsqueeze(-1).bitwise_and(_place_values(mask.device)).bool()
    return bits.flatten(1)[:, :columns]


def sparse_expand(values: Tensor, mask: Tensor, columns: int) -> Tensor:
    """The dense matrix, (o, `columns`), zero where nothing is kept. Differentiable.

    Parameters
    ----------
    values : Tensor of shape (nonzeros,)
        float16, bfloat16, float32 or float64.
    mask : Tensor of shape (o, ⌈columns/8⌉), uint8
    columns : int

    Raises
    ------
    ValueError
        If the shapes do not fit, or the mask does not keep as many entries as there are values (on
        the CPU; on a GPU a kernel that runs out of values ends with a device error).
    TypeError
        If the mask is not uint8.

    Examples
    --------
    >>> import torch
    >>> mask = torch.tensor([[5], [6]], dtype=torch.uint8)
    >>> sparse_expand(torch.tensor([1.0, 2.0, 3.0, 4.0]), mask, columns=3)
    tensor([[1., 0., 2.],
            [0., 3., 4.]])
    """
    dense: Tensor = torch.ops.fastlr.sparse_expand(values, mask, columns)
    return dense


def sparse_linear(input: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """``F.linear(input, W)`` for the matrix W of `values` and `mask`. Differentiable.

    Parameters
    ----------
    input : Tensor of shape (…, i)
        Of the type of `values`: float16, bfloat16, float32 or float64.
    values : Tensor of shape (nonzeros,)
    mask : Tensor of shape (o, ⌈i/8⌉), uint8

    Returns
    -------
    Tensor of shape (…, o)

    Raises
    ------
    ValueError, TypeError
        As :func:`sparse_expand`; and if `input` does not fit.

    Notes
    -----
    For few inputs the mask and the values are read once and W is never formed; for many, blocks of
    rows of W are expanded and multiplied, 2·o·i flops an input. The gradients expand and multiply
    blocks too: neither W nor its gradient is ever formed as a whole.

    Examples
    --------
    >>> import torch
    >>> mask = torch.tensor([[5], [6]], dtype=torch.uint8)
    >>> sparse_linear(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), mask)
    tensor([201., 430.])
    """
    output: Tensor = torch.ops.fastlr.sparse_linear(input, values, mask)
    return output


def _place_values(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)

"""A linear layer that computes some of its outputs from some of its inputs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastlr.nn.modules.base import CompressedLinear, check_bias
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision

_INDEX_BYTES = torch.int32.itemsize


class SubsetLinear(CompressedLinear):
    """A linear layer that computes some of its outputs from some of its inputs.

    y[rows] = S x[columns] + b, and zeros at the other outputs: a weight of which only some rows and
    columns are not zero, stored and multiplied as the smaller matrix S.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rows : int, optional
        How many outputs are computed, between 1 and o; by default all.
    columns : int, optional
        How many inputs are read, between 1 and i; by default all.
    bias : bool, default True
        Whether a bias is added to the outputs that are computed.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    submatrix : Parameter of shape (rows, columns)
        S.
    row_index, column_index : Tensor of shape (rows,) and (columns,), int32, or None
        Which outputs are computed and which inputs are read, ascending: buffers, not parameters.
        None where they are all.
    bias : Parameter of shape (rows,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive, or `rows` or `columns` is out of range.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    SparseLinear : keeps single entries.

    Notes
    -----
    2·rows·columns flops an input. Each index counts as what it is, four bytes.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import SubsetLinear
    >>> dense = torch.nn.Linear(16, 8)
    >>> layer = SubsetLinear.from_dense(dense, rows=torch.tensor([1, 2, 6]))
    >>> layer  # doctest: +NORMALIZE_WHITESPACE
    SubsetLinear(in_features=16, out_features=8, rows=3, columns=16, bias=True, parameters=51,
    flops=96)
    >>> layer.weight_parameters()  # 3·16 numbers and three indices
    51
    >>> layer(torch.ones(16)).nonzero().flatten().tolist()
    [1, 2, 6]
    """

    form = "structured"

    row_index: Tensor | None
    column_index: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rows: int | None = None,
        columns: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, False, device, dtype)
        self.rows = out_features if rows is None else rows
        self.columns = in_features if columns is None else columns
        for name, count, limit in (
            ("rows", self.rows, out_features),
            ("columns", self.columns, in_features),
        ):
            if not 1 <= count <= limit:
                raise ValueError(f"SubsetLinear: {name} must be between 1 and {limit}, got {count}")
        empty = torch.empty(self.rows, self.columns, device=device, dtype=dtype)
        self.submatrix = nn.Parameter(empty)
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.rows, device=device, dtype=dtype))
        for name, count, limit in (
            ("row_index", self.rows, out_features),
            ("column_index", self.columns, in_features),
        ):
            chosen = torch.empty(count, device=device, dtype=torch.int32)
            self.register_buffer(name, chosen if count < limit else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows and columns at random, values with the variance of a fresh ``nn.Linear``.

        1/(3·columns); the bias is zero.
        """
        for index, limit in (
            (self.row_index, self.out_features),
            (self.column_index, self.in_features),
        ):
            if index is not None:
                drawn = torch.randperm(limit, device=index.device)[: len(index)]
                index.copy_(drawn.sort().values)
        nn.init.kaiming_uniform_(self.submatrix, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        read = input if self.column_index is None else input.index_select(-1, self.column_index)
        output = functional.linear(read, self.submatrix, self.bias)
        if self.row_index is None:
            return output
        zeros = output.new_zeros((*output.shape[:-1], self.out_features))
        return zeros.index_copy(-1, self.row_index.long(), output)

    def compose(self) -> Tensor:
        values = high_precision(self.submatrix)
        for dim, index, size in (
            (0, self.row_index, self.out_features),
            (1, self.column_index, self.in_features),
        ):
            if index is not None:
                values = _spread(values, dim, index, size)
        return values

    def composed_bias(self) -> Tensor | None:
        if self.bias is None or self.row_index is None:
            return self.bias
        return _spread(self.bias.detach(), 0, self.row_index, self.out_features)

    @classmethod
    def from_dense(
        cls, linear: nn.Module, *, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> SubsetLinear:
        """The layer that keeps these rows and columns of a dense one.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        rows, columns : Tensor of ints, optional
            Which outputs are computed and which inputs are read, ascending. None for all.

        Returns
        -------
        SubsetLinear
            A new layer, of the dtype and on the device of `linear`, which is not changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or indices are not integers.
        ValueError
            If indices do not ascend or are out of range.
        """
        weight, bias = dense_weight(linear), dense_bias(linear)
        out_features, in_features = weight.shape
        rows = _checked(cls.__name__, "rows", rows, out_features)
        columns = _checked(cls.__name__, "columns", columns, in_features)
        if rows is not None:
            weight = weight[rows.to(weight.device)]
            bias = bias if bias is None else bias[rows.to(weight.device)]
        if columns is not None:
            weight = weight[:, columns.to(weight.device)]
        return cls.from_submatrix(
            weight,
            bias,
            in_features=in_features,
            out_features=out_features,
            rows=rows,
            columns=columns,
            dtype=weight.dtype,
        )

    @classmethod
    def from_submatrix(
        cls,
        submatrix: Tensor,
        bias: Tensor | None = None,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> SubsetLinear:
        """The layer with S = `submatrix` at these rows and columns.

        Parameters
        ----------
        submatrix : Tensor of shape (r, c)
        bias : Tensor of shape (r,), optional
        in_features, out_features : int, optional
            Needed where not all inputs are read, or not all outputs computed.
        rows, columns : Tensor of ints, of r and of c, optional
            Ascending; None for all.
        dtype, device : optional
            Of the new layer; by default the default float type, and the device of `submatrix`.

        Raises
        ------
        ValueError
            If the shapes do not fit together, or indices do not ascend or are out of range.
        """
        owner = cls.__name__
        if submatrix.ndim != 2:
            raise ValueError(
                f"{owner}: submatrix must be a matrix, got shape {tuple(submatrix.shape)}"
            )
        count, width = submatrix.shape
        sizes = (
            count if out_features is None else out_features,
            width if in_features is None else in_features,
        )
        indices = []
        for name, given, size, kept in zip(
            ("rows", "columns"), (rows, columns), sizes, (count, width), strict=True
        ):
            index = _checked(owner, name, given, size)
            expected = size if index is None else len(index)
            if expected != kept:
                raise ValueError(
                    f"{owner}: submatrix of shape {tuple(submatrix.shape)} must have {expected} "
                    f"{name}, got {kept}"
                )
            indices.append(index)
        check_bias(owner, bias, count)
        layer = cls.unfilled(
            sizes[1],
            sizes[0],
            count,
            width,
            bias is not None,
            device=device if device is not None else submatrix.device,
            dtype=dtype,
        )
        with torch.no_grad():
            layer.submatrix.copy_(submatrix)
            layer._store_bias(bias)
            for stored, index in zip((layer.row_index, layer.column_index), indices, strict=True):
                # Given, and yet all of them: nothing is stored.
                if stored is not None and index is not None:
                    stored.copy_(index)
        return layer

    @classmethod
    def in_place_of(
        cls,
        linear: nn.Module,
        submatrix: Tensor,
        bias: Tensor | None,
        *,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> SubsetLinear:
        """``from_submatrix`` with the dtype and the device of a dense layer.

        And with its sizes on the sides of which indices are given; on the others the new layer is
        as small as `submatrix`.
        """
        weight = dense_weight(linear)
        return cls.from_submatrix(
            submatrix,
            bias,
            out_features=None if rows is None else weight.shape[0],
            in_features=None if columns is None else weight.shape[1],
            rows=rows,
            columns=columns,
            dtype=weight.dtype,
            device=weight.device,
        )

    @staticmethod
    def index_numbers(count: int, size: int, dtype: torch.dtype) -> int:
        """How many numbers of `dtype` the indices of `count` among `size` features take up."""
        return 0 if count == size else -(-count * _INDEX_BYTES // dtype.itemsize)

    def numbers_beside(self) -> int:
        """The indices: four bytes each, as numbers of the layer's dtype, rounded up."""
        dtype = self.submatrix.dtype
        return self.index_numbers(self.rows, self.out_features, dtype) + self.index_numbers(
            self.columns, self.in_features, dtype
        )

    def damage(self) -> str | None:
        for name, index, limit in (
            ("row", self.row_index, self.out_features),
            ("column", self.column_index, self.in_features),
        ):
            if index is None or index.is_meta:
                continue
            if not _ascend_below(index, limit):
                return f"the {name} indices do not ascend from 0 on to below {limit}"
        return None

    def _size(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": self.columns}


def _spread(values: Tensor, dim: int, index: Tensor, size: int) -> Tensor:
    """Zeros of `size` along `dim`, with `values` at `index`."""
    shape = list(values.shape)
    shape[dim] = size
    return values.new_zeros(shape).index_copy(dim, index.long().to(values.device), values)


def _ascend_below(index: Tensor, limit: int) -> bool:
    ascending = bool((index.diff() > 0).all())
    return ascending and bool(index[0] >= 0) and bool(index[-1] < limit)


def _checked(owner: str, name: str, index: Tensor | None, size: int) -> Tensor | None:
    """`index`, if it is a selection of `size` features; ValueError, or TypeError, otherwise."""
    if index is None:
        return None
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{owner}: {name} must be integers, got {index.dtype}")
    if index.ndim != 1 or not len(index):
        raise ValueError(
            f"{owner}: {name} must be a vector, not empty, got shape {tuple(index.shape)}"
        )
    if not _ascend_below(index, size):
        raise ValueError(f"{owner}: {name} must ascend, from 0 on to below {size}")
    return index

"""What layers that keep some entries of a matrix have in common: values, and a bit per entry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.linalg.bit_mask import pack_mask, unpack_mask
from fastlr.nn.modules.base import CompressedLinear


class MaskedLinear(CompressedLinear):
    """A linear layer with the kept entries of an o × n matrix, in row-major order, and their mask.

    Bit j % 8 of byte j // 8 of a row of the mask says whether column j is kept; the bits behind the
    last column are zero.
    """

    nonzeros: int
    values: nn.Parameter
    mask: Tensor
    _columns: int

    def _create_entries(
        self,
        columns: int,
        counted: str,
        nonzeros: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Memory for `nonzeros` of o × `columns` entries; `counted` is what columns are called."""
        limit = self.out_features * columns
        if not 0 <= nonzeros <= limit:
            raise ValueError(
                f"{type(self).__name__}: nonzeros must be between 0 and out_features·{counted} = "
                f"{limit}, got {nonzeros}"
            )
        self.nonzeros = nonzeros
        self._columns = columns
        self.values = nn.Parameter(torch.empty(nonzeros, device=device, dtype=dtype))
        row_bytes = -(-columns // 8)
        empty = torch.empty(self.out_features, row_bytes, device=device, dtype=torch.uint8)
        self.register_buffer("mask", empty)

    def _draw_entries(self, variance: float) -> None:
        """Keep entries at random; `variance` is that of all entries, zeros included."""
        entries = self.out_features * self._columns
        kept = torch.zeros(entries, dtype=torch.bool, device=self.mask.device)
        kept[torch.randperm(entries, device=self.mask.device)[: self.nonzeros]] = True
        with torch.no_grad():
            self.mask.copy_(pack_mask(kept.view(self.out_features, self._columns)))
        if self.nonzeros:
            bound = (3 * variance * entries / self.nonzeros) ** 0.5
            nn.init.uniform_(self.values, -bound, bound)

    def _store_entries(self, matrix: Tensor, mask: Tensor) -> None:
        self.values.copy_(matrix[mask])
        self.mask.copy_(pack_mask(mask))

    def numbers_beside(self) -> int:
        """The mask: its o·⌈n/8⌉ bytes as numbers of the layer's dtype, rounded up."""
        return self.mask_numbers(self.out_features, self._columns, self.values.dtype)

    @staticmethod
    def mask_numbers(rows: int, columns: int, dtype: torch.dtype) -> int:
        """How many numbers of `dtype` the mask of such a matrix takes up."""
        return -(-rows * -(-columns // 8) // dtype.itemsize)

    def damage(self) -> str | None:
        if self.mask.is_meta:
            return None
        kept = unpack_mask(self.mask, self._columns)
        if not torch.equal(pack_mask(kept), self.mask):
            return f"the mask has bits set behind its last column, {self._columns - 1}"
        count = int(kept.sum())
        if count != len(self.values):
            return f"the mask keeps {count} entries, but there are {len(self.values)} values"
        return None


def check_masked(owner: str, name: str, matrix: Tensor, mask: Tensor) -> None:
    """Raise unless `mask` is a boolean matrix of the shape of `matrix`, whose name is `name`."""
    if matrix.ndim != 2 or mask.shape != matrix.shape:
        raise ValueError(
            f"{owner}: {name} and mask must be matrices of one shape, got shapes "
            f"{tuple(matrix.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"{owner}: mask must be bool, got {mask.dtype}")
    check_finite(owner, name, matrix)


def check_finite(owner: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError naming the first entry of `tensor` that is not finite."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        index = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"{owner}: {name} must be finite, got {float(tensor[index])} at index {index}"
        )

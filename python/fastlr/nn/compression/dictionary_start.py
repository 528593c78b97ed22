"""Which coefficients of the principal components are kept, and what is lost without the others.

The start of both dictionary methods: V = UΣ, whose columns are the coefficients of orthonormal
atoms. What is cut of them is lost and nothing else, so its energy is the error, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranked:
    """The coefficients of k atoms, each row sorted by its scores.

    Attributes
    ----------
    scores, energies : Tensor of shape (o, k)
        In the order of descending scores, of which the energies need not be a function.
    columns : Tensor of shape (o, k), int64
        To which atom each of them belongs.
    total : float
        The energy of all coefficients, those of atoms that are left out included.
    """

    scores: Tensor
    energies: Tensor
    columns: Tensor
    total: float

    @classmethod
    def of(cls, scores: Tensor, energies: Tensor) -> Ranked:
        """Sort the rows; equal scores stay in the order of the atoms."""
        ordered, columns = scores.sort(dim=1, descending=True, stable=True)
        total = float(energies.sum(dtype=torch.float64))
        return cls(ordered, energies.gather(1, columns), columns, total)

    def first(self, atoms: int) -> Ranked:
        """Those of the first atoms alone, in the same order: nothing is sorted again."""
        places = (self.columns < atoms).flatten().nonzero().view(-1, atoms)
        scores, energies, columns = (
            matrix.take(places) for matrix in (self.scores, self.energies, self.columns)
        )
        return Ranked(scores, energies, columns, self.total)

    def lost(self, kept: Tensor) -> float:
        """The energy of all that is not `kept` (o × k, bool, in the sorted order)."""
        return max(self.total - float((self.energies * kept).sum(dtype=torch.float64)), 0.0)

    def mask(self, kept: Tensor) -> Tensor:
        """`kept` in the order of the atoms."""
        return torch.zeros_like(kept).scatter_(1, self.columns, kept)


# From ranked coefficients and a number to those that are kept, o × k, bool, in the sorted order.
Choice = Callable[[Ranked, int], Tensor]


def row_by_row(ranked: Ranked, nonzeros: int) -> Tensor:
    """The same number from each row, and one more from those that have the most energy there."""
    kept = torch.zeros_like(ranked.columns, dtype=torch.bool)
    base, rest = divmod(nonzeros, len(kept))
    kept[:, :base] = True
    if rest:
        kept[ranked.energies[:, base].topk(rest).indices, base] = True
    return kept


# The share of the coefficients that rows lose first, for the best of them all to come back.
_OVER_PRUNED = 0.005


def with_return(ranked: Ranked, nonzeros: int) -> Tensor:
    """A little too few from each row, then those that score highest of all rows."""
    kept = torch.zeros_like(ranked.columns, dtype=torch.bool)
    base = int(nonzeros * (1 - _OVER_PRUNED)) // len(kept)
    kept[:, :base] = True
    others = ranked.scores[:, base:]
    back = others.flatten().topk(nonzeros - base * len(kept)).indices
    width = max(others.shape[1], 1)
    kept[back // width, base + back % width] = True
    return kept

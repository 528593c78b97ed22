"""The spectra of a module's weights, and what they say, matrix by matrix."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastlr.nn.diagnostics.kinds import depth, kinds
from fastlr.nn.diagnostics.page import page
from fastlr.nn.diagnostics.plot import draw
from fastlr.nn.diagnostics.tables import (
    BLOCK_COLUMNS,
    KIND_COLUMNS,
    MATRIX_COLUMNS,
    block_rows,
    hidden_states_line,
    kind_rows,
    matrix_row,
)
from fastlr.nn.text_table import aligned


@dataclass(frozen=True)
class MatrixSpectrum:
    """The singular values σ_1 ≥ … ≥ σ_n of one weight, outputs × inputs, and numbers made of them.

    Attributes
    ----------
    name : str
    shape : pair of int
        (outputs, inputs); a kernel's inputs are in_channels/groups × its places.
    layer : str
        The class of the layer that has it.
    others : tuple of str
        Other layers with this very weight.
    effective_rank : float
        exp(−Σ p log p) with p = σ²/Σσ², the exponential of the entropy of the energies. (Roy and
        Vetterli's effective rank has p = σ/Σσ instead, and is larger.)
    stable_rank : float
        ‖W‖_F² / ‖W‖₂², not above the effective rank.
    rank_90, rank_99 : int
        The least rank of an approximation that keeps 90 and 99 % of ‖W‖_F².
    norm : float
        ‖W‖₂ = σ_1.
    alpha : float
        The exponent of the tail of the eigenvalues σ² of WᵀW: p(λ) ~ λ^(−α), by Hill's estimator
        from the larger half. Smaller is heavier; NaN where there is nothing to fit.
    alpha_farms : float
        The same from submatrices of one aspect ratio (FARMS), so that layers of different shapes
        can be compared.
    singular_values : Tensor of shape (n,)
        float64, falling, on the CPU.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import spectra
    >>> layer = torch.nn.Linear(4, 3)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0]]))
    >>> found = spectra(layer).matrices[0]
    >>> found.shape, found.singular_values.tolist(), found.norm
    ((3, 4), [4.0, 3.0, 0.0], 4.0)
    >>> round(found.effective_rank, 3), found.stable_rank, found.rank_90, found.rank_99
    (1.922, 1.5625, 2, 2)
    """

    name: str
    shape: tuple[int, int]
    layer: str
    others: tuple[str, ...]
    effective_rank: float
    stable_rank: float
    rank_90: int
    rank_99: int
    norm: float
    alpha: float
    alpha_farms: float
    singular_values: Tensor = field(repr=False, compare=False)

    @property
    def depth(self) -> int | None:
        """The first number in the name: which block the layer is in; None without one."""
        return depth(self.name)

    def to_dict(self, *, spectra: bool = False) -> dict[str, Any]:
        """Plain Python values, for JSON; with `spectra` the singular values too."""
        values = {"singular_values": self.singular_values.tolist()} if spectra else {}
        return {
            "name": self.name,
            "shape": list(self.shape),
            "layer": self.layer,
            "others": list(self.others),
            "depth": self.depth,
            "effective_rank": self.effective_rank,
            "stable_rank": self.stable_rank,
            "rank_90": self.rank_90,
            "rank_99": self.rank_99,
            "norm": self.norm,
            "alpha": self.alpha,
            "alpha_farms": self.alpha_farms,
            **values,
        }


@dataclass(frozen=True)
class SpectraReport:
    """What :func:`fastlr.nn.spectra` found.

    Attributes
    ----------
    model : str
        The class of the module.
    matrices : tuple of MatrixSpectrum
        In the order of the module's layers.
    nuclear_norms : dict
        Block → the matrix nuclear-norm of its hidden states, between 0 and 1; empty without inputs.
    tokens : int
        How many tokens those are of.
    aspect_ratio, samples, seed : float, int, int
        Of the submatrices.
    seconds : float

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import spectra
    >>> report = spectra(torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 40)))
    >>> [(matrix.name, matrix.shape) for matrix in report.matrices]
    [('0', (30, 40)), ('1', (40, 30))]
    >>> list(report.by_kind()), report.matrix("1") is report.matrices[1]
    (['layers'], True)
    >>> sorted(report.to_dict())[:3], report.to_html()[:15]
    (['aspect_ratio', 'matrices', 'model'], '<!DOCTYPE html>')
    """

    model: str
    matrices: tuple[MatrixSpectrum, ...]
    nuclear_norms: dict[str, float]
    tokens: int
    aspect_ratio: float
    samples: int
    seed: int
    seconds: float

    def matrix(self, name: str) -> MatrixSpectrum:
        """The matrix of one layer; KeyError if there is none of that name."""
        for matrix in self.matrices:
            if name in (matrix.name, *matrix.others):
                return matrix
        raise KeyError(name)

    def by_kind(self) -> dict[str, list[MatrixSpectrum]]:
        """The matrices of each type of layer: names that differ in numbers only."""
        found: dict[str, list[MatrixSpectrum]] = {}
        for kind, matrix in zip(
            kinds([matrix.name for matrix in self.matrices]), self.matrices, strict=True
        ):
            found.setdefault(kind, []).append(matrix)
        return found

    def summary(self) -> str:
        """A table with a row for each type of layer, of means over its matrices."""
        lines = aligned([KIND_COLUMNS, *kind_rows(self)])
        if self.nuclear_norms:
            lines += ["", hidden_states_line(self)]
        return "\n".join(lines)

    def to_dict(self, *, spectra: bool = False) -> dict[str, Any]:
        """Plain Python values, for JSON; with `spectra` the singular values too."""
        return {
            "model": self.model,
            "matrices": [matrix.to_dict(spectra=spectra) for matrix in self.matrices],
            "nuclear_norms": dict(self.nuclear_norms),
            "tokens": self.tokens,
            "aspect_ratio": self.aspect_ratio,
            "samples": self.samples,
            "seed": self.seed,
            "seconds": self.seconds,
        }

    def to_html(self) -> str:
        """One page with all of it, that needs nothing else."""
        return page(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the singular values, relative to the largest, of each type of layer.

        Parameters
        ----------
        path : path, optional
            Where to save the figure, in the format of its suffix.

        Returns
        -------
        matplotlib.figure.Figure
            Outside of pyplot: it opens no window, and there is nothing to close.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        figure = draw(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def __str__(self) -> str:
        lines = [
            f"fastlr: spectra of {len(self.matrices)} matrices of {self.model}, "
            f"{self.seconds:.1f} s",
            "",
            self.summary(),
            "",
            *aligned([MATRIX_COLUMNS, *map(matrix_row, self.matrices)]),
        ]
        if self.nuclear_norms:
            lines += ["", *aligned([BLOCK_COLUMNS, *block_rows(self)])]
        return "\n".join(lines)

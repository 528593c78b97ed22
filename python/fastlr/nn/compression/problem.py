"""What a compression method is given of a layer, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastlr.nn.compression.gram import Gram
from fastlr.nn.modules.dense import dense_weight, high_precision


@dataclass(frozen=True)
class LayerProblem:
    """One linear layer, y = Wx + b, and what calibration found out about it.

    Attributes
    ----------
    name : str
    linear : nn.Module
        The dense layer, o outputs and i inputs; it must not be changed.
    inputs : Gram or None
        Σ x xᵀ over its inputs; None where they are not known.
    gradients : Gram or None
        Σ g gᵀ over the gradients of the model's loss at its outputs; None where not known.
    target : Tensor of shape (o, i), optional
        What is to be approximated in place of W, float64: the map that makes up for the errors of
        earlier layers.
    note : str
        What was out of the ordinary, for the report.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import LayerProblem
    >>> problem = LayerProblem("up", torch.nn.Linear(3, 5))
    >>> problem.weight.shape, problem.weight.dtype
    (torch.Size([5, 3]), torch.float64)
    """

    name: str
    linear: nn.Module
    inputs: Gram | None = None
    gradients: Gram | None = None
    target: Tensor | None = None
    note: str = ""

    @property
    def weight(self) -> Tensor:
        """What is to be approximated, o × i, float64."""
        return high_precision(dense_weight(self.linear)) if self.target is None else self.target

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        out_features, in_features = dense_weight(self.linear).shape
        return out_features, in_features

    @property
    def entries(self) -> int:
        """The numbers of the dense weight, o·i."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Candidates:
    """What a layer can become, from the smallest to the largest.

    Attributes
    ----------
    sizes : Tensor of shape (k,), int64
        The numbers that stand for the weight, what they need beside them (indices, masks, new
        biases) included. Ascending; the last one may be the dense layer.
    errors : Tensor of shape (k,), float64
        The squared error that is predicted for each, in the norm of the method.
    total : float
        The square of the weight in that norm.
    build : callable
        From an index to the new layer; None to keep the dense one. Of a :class:`LayerGroup`, a
        mapping from names to new layers, in which those that stay dense are missing.
    spectrum : Tensor or None
        Of a low-rank method: the squared singular values in its norm, descending, and `ranks`
        beside it.
    ranks : Tensor of shape (k,) or None
        The rank of each candidate.
    compared : bool
        False for a layer of which nothing is known: its errors mean nothing beside the others'.
    restored : callable or None
        Where new layers have other inputs or outputs than the dense ones: (index, layer name,
        o' × i' weight of the new layer) → the o × i weight that it stands for.

    Raises
    ------
    ValueError
        If sizes and errors are not of one length, or sizes do not ascend.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import Candidates
    >>> sizes, errors = torch.tensor([10, 20]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    >>> Candidates(sizes, errors, 4.0, lambda index: None).relative_errors.tolist()
    [0.25, 0.0]
    """

    sizes: Tensor
    errors: Tensor
    total: float
    build: Callable[[int], nn.Module | Mapping[str, nn.Module] | None]
    spectrum: Tensor | None = None
    ranks: Tensor | None = None
    compared: bool = True
    restored: Callable[[int, str, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.sizes.ndim != 1 or self.sizes.shape != self.errors.shape or not len(self.sizes):
            raise ValueError(
                "Candidates: sizes and errors must be vectors of one length, not empty, got shapes "
                f"{tuple(self.sizes.shape)} and {tuple(self.errors.shape)}"
            )
        if bool((self.sizes.diff() <= 0).any()):
            raise ValueError("Candidates: sizes must ascend")

    @property
    def relative_errors(self) -> Tensor:
        """`errors` / `total`; zeros where the total is zero."""
        return self.errors / self.total if self.total > 0 else torch.zeros_like(self.errors)

    def within(self, budget: float) -> int:
        """The index of the largest candidate of at most `budget` numbers, or else the smallest."""
        return max(0, int((self.sizes <= budget).sum()) - 1)

    def cut(self, least: float, most: float) -> Candidates:
        """Only the sizes between these two; the nearest one where there is none."""
        inside = ((self.sizes >= least) & (self.sizes <= most)).nonzero().squeeze(1)
        if not len(inside):
            inside = torch.tensor([self.within(most)])
        first, last = int(inside[0]), int(inside[-1]) + 1
        restored = self.restored
        return replace(
            self,
            sizes=self.sizes[first:last],
            errors=self.errors[first:last],
            build=lambda index: self.build(first + index),
            restored=restored and (lambda index, *of: restored(first + index, *of)),
            ranks=None if self.ranks is None else self.ranks[first:last],
        )


def sums_beyond(parts: Tensor) -> Tensor:
    """What the parts are worth without the first 0, 1, …, all of them, on the CPU."""
    parts = parts.cpu()
    return torch.cat((parts.flip(0).cumsum(0).flip(0), parts.new_zeros(1)))


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose new forms are decided together: one candidate stands for all of them.

    Attributes
    ----------
    name : str
        That of the layer, where there is only one.
    members : tuple of LayerProblem
    prepare : callable
        (form, rank multiple) → :class:`Candidates`, whose sizes are those of all members.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import LayerGroup, LayerProblem
    >>> members = tuple(LayerProblem(name, torch.nn.Linear(3, 5)) for name in ("up", "gate"))
    >>> LayerGroup("mlp", members, lambda form, multiple: None).entries
    30
    """

    name: str
    members: tuple[LayerProblem, ...]
    prepare: Callable[[str, int], Candidates]

    @property
    def entries(self) -> int:
        """The numbers of all dense weights."""
        return sum(problem.entries for problem in self.members)

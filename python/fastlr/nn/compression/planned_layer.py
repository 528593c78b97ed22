"""One layer of a plan: what it is to become."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.layer_report import relative_error
from fastlr.nn.compression.module_layers import FoundLayer
from fastlr.nn.compression.offers import Offer, Rank
from fastlr.nn.compression.problem import Candidates
from fastlr.nn.compression.report import LEFT_DENSE, LayerReport
from fastlr.nn.modules import LowRankEmbedding
from fastlr.nn.modules.dense import dense_bias


class PlannedLayer:
    """What is to become of one layer, of a :class:`CompressionPlan`.

    Attributes
    ----------
    name : str
    kind : str
        The class of the dense layer.
    shape : tuple of int
        Of its weight.
    note : str
        Why it cannot be compressed, or what is out of the ordinary.
    offer : Offer or None
        All that it can become.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import plan
    >>> layer = plan(torch.nn.Linear(64, 32), ratio=0.5)[""]
    >>> layer
    PlannedLayer('', Linear, 32×64, interpolative, rank 12, 2048 → 1008 numbers)
    >>> layer.choose(rank=4)
    >>> layer.rank, layer.parameters_after
    (4, 368)
    """

    def __init__(self, found: FoundLayer, offer: Offer | None, note: str = "") -> None:
        self.found = found
        self.name = found.name
        self.kind = type(found.layer).__name__
        self.shape = tuple(found.weight.shape)
        self.note = note or found.obstacle
        self.offer = offer
        self._index: int | None = None

    @property
    def form(self) -> str:
        """How the new weight is stored; "dense" if it stays."""
        if self.offer is None or self._index is None:
            return "dense"
        return self.offer.forms[self._index]

    @property
    def rank(self) -> Rank | None:
        """None if it stays dense."""
        if self.offer is None or self._index is None:
            return None
        return self.offer.rank(self._index)

    @property
    def parameters_before(self) -> int:
        """The numbers of the dense weight."""
        return math.prod(self.shape)

    @property
    def parameters_after(self) -> int:
        """The numbers that stand for it, with a bias that the dense layer does not have."""
        if self.offer is None or self._index is None:
            return self.parameters_before
        return int(self.offer.sizes[self._index])

    @property
    def predicted_error(self) -> float:
        """The relative squared error: of the features about their mean, or of the weight."""
        return 0.0 if self.offer is None else self.offer.error(self._index)

    def choose(
        self, *, rank: Rank | None = None, ratio: float | None = None, tol: float | None = None
    ) -> None:
        """Say what the layer becomes, by its rank, its size or its error; one of the three.

        Parameters
        ----------
        rank : int or pair of int
            For a convolution, of whatever split does best with it.
        ratio : float
            The share of its numbers to remove; the best that is not larger.
        tol : float
            What the error may be, relative, not squared; the smallest that is within.

        Raises
        ------
        ValueError
            If not one of the three is given, or nothing is as small, as good or of this rank.
        """
        if sum(given is not None for given in (rank, ratio, tol)) != 1:
            raise ValueError(
                f"choose: one of rank, ratio and tol must be given for {self.name!r}, got "
                f"rank={rank}, ratio={ratio}, tol={tol}"
            )
        offer = self._known()
        if rank is not None:
            index = offer.of_rank(rank)
            if index is None:
                limit = offer.rank(len(offer.sizes) - 1)
                raise ValueError(
                    f"choose: rank must be between 1 and that of the layer, {limit}, for "
                    f"{self.name!r}, got {rank}"
                )
            self._index = index
            return
        candidates, indices = offer.front()
        if ratio is not None:
            budget = (1 - ratio) * self.parameters_before
            if not 0 <= ratio < 1 or budget < int(candidates.sizes[0]):
                raise ValueError(
                    f"choose: ratio must leave the {int(candidates.sizes[0])} numbers of rank 1 "
                    f"for {self.name!r}, got {ratio}"
                )
            self._index = indices[candidates.within(budget)]
            return
        assert tol is not None
        if not 0 <= tol < 1:
            raise ValueError(f"choose: tol must be in [0, 1) for {self.name!r}, got {tol}")
        self._index = indices[int((candidates.relative_errors > tol**2).sum())]

    def keep_dense(self) -> None:
        """Leave the layer as it is."""
        self._index = None

    def front(self) -> tuple[Candidates, list[int | None]]:
        """What the budget is shared with."""
        return self._known().front()

    def take(self, index: int | None) -> None:
        """Choose by an index of `front`."""
        self._index = index

    def build(self) -> dict[str, nn.Module]:
        """The new layers by name: none if it stays dense."""
        if self.offer is None or self._index is None:
            return {}
        layer = self.found.layer
        new = self.offer.make(self._index).train(layer.training)
        built = dict.fromkeys(self.found.names, new)
        for name, linear in self.found.tied.items():
            assert isinstance(new, LowRankEmbedding)
            bias = dense_bias(linear)
            projection = new.projection(bias=bias is not None)
            if projection.bias is not None and bias is not None:
                with torch.no_grad():
                    projection.bias.copy_(bias)
            built[name] = projection
        new.requires_grad_(any(p.requires_grad for p in layer.parameters(recurse=False)))
        return built

    @property
    def centre(self) -> Tensor | None:
        """The mean of the outputs, about which errors are measured."""
        return None if self.offer is None else self.offer.centre

    def report(
        self, new: nn.Module | None, measured: float | None, *, observed: bool
    ) -> LayerReport:
        """What became of it: `new`, of this measured error; None if it stays dense."""
        weight = self.found.weight
        bytes_before = weight.numel() * weight.element_size()
        notes = [self.note] if self.note else []
        weight_error, bytes_after = 0.0, bytes_before
        if new is None:
            notes.append(LEFT_DENSE)
        else:
            composed: Any = new
            weight_error = relative_error(weight, composed.compose(), None)
            tensors = (*new.parameters(), *new.buffers())
            bytes_after = sum(t.numel() * t.element_size() for t in tensors)
            bias = getattr(self.found.layer, "bias", None)
            if isinstance(bias, Tensor):
                bytes_after -= bias.numel() * bias.element_size()
        return LayerReport(
            name=self.name,
            shape=self.shape,
            rank=self.rank,
            form=self.form,
            side=getattr(new, "side", None),
            parameters_before=self.parameters_before,
            parameters_after=self.parameters_after,
            bytes_before=bytes_before,
            bytes_after=bytes_after,
            predicted_error=self.predicted_error,
            output_error=(measured if new is not None else 0.0) if observed else None,
            weight_error=weight_error,
            note="; ".join(notes),
        )

    def _known(self) -> Offer:
        if self.offer is None:
            raise ValueError(f"choose: {self.name!r} cannot be compressed: {self.note}")
        return self.offer

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.shape))
        rank = "" if self.rank is None else f"rank {self.rank}, "
        return (
            f"PlannedLayer({self.name!r}, {self.kind}, {shape}, {self.form}, {rank}"
            f"{self.parameters_before} → {self.parameters_after} numbers)"
        )

"""A weight as the sum of a quantized matrix and one of low rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

import fastlr.linalg as la
from fastlr.nn.compression.gram import Gram
from fastlr.nn.modules.base import weighted_norm
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.quantized_linear import QuantizedLinear

_MOST_ROUNDS = 20
# A round that lowers the error by less is not worth the next one.
_LEAST_GAIN = 1e-2


@dataclass(frozen=True)
class Pair:
    """W ≈ Q + B A.

    Attributes
    ----------
    base : QuantizedLinear
        Q, with the layer's bias.
    B, A : Tensor of shapes (o, r) and (r, i)
        float64.
    error : float
        ‖(W − Q − B A)X‖² / ‖WX‖².
    """

    base: QuantizedLinear
    B: Tensor
    A: Tensor
    error: float


@dataclass(frozen=True)
class Alternation:
    """What the alternation between Q and B A has found.

    Attributes
    ----------
    first : Pair
        The weight rounded, then corrected.
    best : Pair
    rounds : int
        How many pairs were made.
    """

    first: Pair
    best: Pair
    rounds: int


class QuantizationProblem:
    """One layer whose weight is to be Q + B A.

    Parameters
    ----------
    linear : torch.nn.Linear or transformers Conv1D
    gram : Gram, optional
        Of its inputs X; without it the weight itself is approximated.
    rank : int
        Of B A.
    """

    def __init__(self, linear: nn.Module, gram: Gram | None, rank: int) -> None:
        self._linear = linear
        self._weight = high_precision(dense_weight(linear))
        self._rank = rank
        self._unit = None if gram is None else gram.unit
        out_features, in_features = self._weight.shape
        self._right: Tensor | tuple[Tensor, Tensor] | None = self._unit
        # Of the shorter side's weight the eigenvalues are needed, which layers share.
        if gram is not None and out_features > in_features:
            self._right = gram.eigen()
        self._size = float(weighted_norm(self._weight, self._unit))

    def first(self, quantization: str, block_size: int) -> Pair:
        """The weight rounded, then corrected."""
        return next(self._pairs(quantization, block_size, None))

    def alternate(self, quantization: str, block_size: int) -> Alternation:
        """The best of the first pair and of those of an alternation that begins with B A."""
        first = best = self.first(quantization, block_size)
        B, A, _ = self._low_rank(self._weight)
        rounds, last = 1, float("inf")
        for pair in islice(self._pairs(quantization, block_size, B @ A), _MOST_ROUNDS):
            rounds += 1
            best = pair if pair.error < best.error else best
            if not pair.error < (1 - _LEAST_GAIN) * last:
                break
            last = pair.error
        return Alternation(first, best, rounds)

    def _pairs(
        self, quantization: str, block_size: int, correction: Tensor | None
    ) -> Iterator[Pair]:
        """Q for a given B A, B A for that Q, and so on."""
        while True:
            left = self._weight if correction is None else self._weight - correction
            base = QuantizedLinear.in_place_of(self._linear, left, quantization, block_size)
            B, A, error = self._low_rank(self._weight - base.compose())
            yield Pair(base.train(self._linear.training), B, A, error)
            correction = B @ A

    def _low_rank(self, lost: Tensor) -> tuple[Tensor, Tensor, float]:
        """The best map of low rank on the inputs, and its relative squared error for W."""
        found = la.weighted_low_rank(lost, self._rank, right=self._right)
        return found.B, found.A, (found.info.error / self._size) ** 2 if self._size else 0.0

"""What a layer of any kind can become: all sizes, their errors, and the new layers themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.features import CONVOLUTIONS, Features, weight_by_groups
from fastlr.nn.compression.forms import form_named
from fastlr.nn.compression.methods.afm import with_bias_added
from fastlr.nn.compression.problem import Candidates, sums_beyond
from fastlr.nn.compression.solver import Solution, solve
from fastlr.nn.modules import (
    LowRankBilinear,
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankEmbedding,
)
from fastlr.nn.modules.conv_geometry import geometry_of
from fastlr.nn.modules.conv_splits import SPLITS, RankedSplit, SpatialSplit
from fastlr.nn.modules.dense import dense_bias, high_precision, is_dense_linear

LOW_RANK_CONV: dict[int, type[LowRankConv1d] | type[LowRankConv2d] | type[LowRankConv3d]] = {
    1: LowRankConv1d,
    2: LowRankConv2d,
    3: LowRankConv3d,
}

Rank = int | tuple[int, ...]


@dataclass(frozen=True)
class Offer:
    """Everything that one layer can become, in any order.

    Attributes
    ----------
    entries : int
        The numbers of the dense weight.
    sizes, errors : Tensor of shape (k,)
        Numbers that stand for the weight (a new bias included), and the squared errors that are
        predicted.
    total : float
        The squared error of nothing.
    ranks : Tensor of shape (k, numbers of a rank); 0 where a rank has fewer numbers.
    forms : sequence of str
        How each is stored.
    make : callable
        From an index to the new layer.
    centre : Tensor or None
        The mean of the outputs, in groups, about which errors are measured.
    """

    entries: int
    sizes: Tensor
    errors: Tensor
    total: float
    ranks: Tensor
    forms: Sequence[str]
    make: Callable[[int], nn.Module]
    centre: Tensor | None = None

    def rank(self, index: int) -> Rank:
        numbers = [n for n in self.ranks[index].tolist() if n]
        return numbers[0] if len(numbers) == 1 else tuple(numbers)

    def error(self, index: int | None) -> float:
        """The relative squared error; 0 of the dense layer."""
        if index is None or self.total <= 0:
            return 0.0
        return float(self.errors[index]) / self.total

    def front(self) -> tuple[Candidates, list[int | None]]:
        """Those of which none has fewer numbers and less error, and their indices here.

        The last one is the dense layer.
        """
        order = torch.argsort(self.errors, stable=True)
        order = order[torch.argsort(self.sizes[order], stable=True)]
        order = order[self.sizes[order] < self.entries]
        errors = self.errors[order]
        before = torch.cat((errors.new_full((1,), torch.inf), errors.cummin(0).values[:-1]))
        order = order[errors < before] if len(order) else order
        sizes = torch.cat((self.sizes[order], torch.tensor([self.entries])))
        errors = torch.cat((self.errors[order], self.errors.new_zeros(1)))
        return Candidates(sizes, errors, self.total, lambda _: None), [*order.tolist(), None]

    def of_rank(self, rank: Rank) -> int | None:
        """The one of this rank with the least error, or None."""
        wanted = [rank] if isinstance(rank, int) else list(rank)
        if len(wanted) > self.ranks.shape[1]:
            return None
        wanted += [0] * (self.ranks.shape[1] - len(wanted))
        found = (self.ranks == torch.tensor(wanted)).all(1).nonzero()[:, 0]
        return int(found[self.errors[found].argmin()]) if len(found) else None


def offer_of(
    layer: nn.Module, features: Features | None, counts: Tensor | None, form: str
) -> Offer:
    """What `layer` can become, by its features if they are known, and else by its weight."""
    if is_dense_linear(layer):
        return _linear_offer(layer, features, form)
    if isinstance(layer, nn.Embedding):
        return _embedding_offer(layer, counts)
    if isinstance(layer, nn.Bilinear):
        return _bilinear_offer(layer)
    return _conv_offer(layer) if features is None else _channel_offer(layer, features)


def _linear_offer(layer: nn.Module, features: Features | None, form: str) -> Offer:
    weight = weight_by_groups(layer)[0]
    stored, (o, i) = form_named(form), weight.shape
    if features is None:
        solution = solve(weight)
    else:
        basis, energies = features.basis[0], features.energies
        total = float(energies.sum())
        shares = energies / total if total > 0 else energies
        solution = Solution(weight, basis, basis.mT @ weight, shares, total)
    limit = min(o, i)
    sizes = _new_bias(layer, features) + torch.tensor(
        [stored.parameters(o, i, rank) for rank in range(1, limit + 1)]
    )
    errors = sums_beyond(solution.energies * solution.total)[1 : limit + 1]

    def make(index: int) -> nn.Module:
        truncation = solution.truncate(index + 1)
        module = stored.build(layer, truncation)
        if features is None:
            return module
        return with_bias_added(module, _left_out(features, index + 1)[0])

    return Offer(
        weight.numel(),
        sizes,
        errors,
        solution.total,
        torch.arange(1, limit + 1)[:, None],
        [form] * limit,
        make,
        _centre(layer, features),
    )


def _channel_offer(layer: nn.Module, features: Features) -> Offer:
    """The whole kernel to the leading features of each group, and from those to all."""
    weight = weight_by_groups(layer)
    g, o, rest = weight.shape
    limit = min(o, rest)
    ranks = torch.arange(1, limit + 1)

    def make(index: int) -> nn.Module:
        rank = index + 1
        basis = features.basis[..., :rank]
        correction = _left_out(features, rank).flatten()
        bias = dense_bias(layer)
        if bias is not None:
            correction = correction + high_precision(bias)
        factors = [basis.mT @ weight, basis]
        built: nn.Module = _conv_class(layer).in_place_of(
            layer, (rank,), factors, correction, split="channel"
        )
        return built

    return Offer(
        weight.numel(),
        g * ranks * (o + rest) + _new_bias(layer, features),
        sums_beyond(features.energies)[1 : limit + 1],
        float(features.energies.sum()),
        ranks[:, None],
        ["channel"] * limit,
        make,
        _centre(layer, features),
    )


def _conv_offer(layer: Any) -> Offer:
    """All ranks of all splits."""
    kind = _conv_class(layer)
    geometry = geometry_of(kind.__name__, layer)
    kernel = weight_by_groups(layer).reshape(geometry.kernel_shape)
    sizes, errors, ranks, forms = [], [], [], []
    for name, split in SPLITS.items():
        if split is SpatialSplit and len(geometry.kernel_size) < 2:
            continue
        ranked = split(kind.__name__, geometry)
        assert isinstance(ranked, RankedSplit)
        menu = ranked.menu(kernel)
        sizes.append(menu.sizes)
        errors.append(menu.losses)
        ranks.append(nn.functional.pad(menu.ranks, (0, 2 - menu.ranks.shape[1])))
        forms += [name] * len(menu.sizes)
    every = torch.cat(ranks)

    def make(index: int) -> nn.Module:
        rank = tuple(n for n in every[index].tolist() if n)
        given = rank if len(rank) > 1 else rank[0]
        built: nn.Module = kind.from_dense(layer, given, split=forms[index])
        return built

    total = float(kernel.square().sum())
    return Offer(
        kernel.numel(), torch.cat(sizes), torch.cat(errors) * total, total, every, forms, make
    )


def _embedding_offer(layer: nn.Embedding, counts: Tensor | None) -> Offer:
    n, d = layer.weight.shape
    table = high_precision(layer.weight)
    if counts is not None:
        table = table * counts.to(table).sqrt()[:, None]
    squares = torch.linalg.svdvals(torch.linalg.qr(table, mode="r").R).square()
    ranks = torch.arange(1, len(squares) + 1)
    return Offer(
        n * d,
        ranks * (n + d),
        sums_beyond(squares)[1:],
        float(squares.sum()),
        ranks[:, None],
        ["embedding"] * len(ranks),
        lambda index: LowRankEmbedding.from_dense(layer, index + 1, counts=counts),
    )


def _bilinear_offer(layer: nn.Bilinear) -> Offer:
    o, i1, i2 = layer.weight.shape
    squares = torch.linalg.svdvals(high_precision(layer.weight)).square().sum(0)
    ranks = torch.arange(1, len(squares) + 1)
    return Offer(
        layer.weight.numel(),
        ranks * o * (i1 + i2),
        sums_beyond(squares)[1:],
        float(squares.sum()),
        ranks[:, None],
        ["bilinear"] * len(ranks),
        lambda index: LowRankBilinear.from_dense(layer, index + 1),
    )


def _conv_class(layer: nn.Module) -> Any:
    assert isinstance(layer, CONVOLUTIONS)
    return LOW_RANK_CONV[len(layer.kernel_size)]


def _new_bias(layer: nn.Module, features: Features | None) -> int:
    """The numbers of a bias that the dense layer does not have, which takes up the mean."""
    if features is None or dense_bias(layer) is not None:
        return 0
    return features.mean.numel()


def _left_out(features: Features, rank: int) -> Tensor:
    """What the other directions have of the mean, g × o."""
    mean, basis = features.mean[..., None], features.basis[..., :rank]
    return (mean - basis @ (basis.mT @ mean))[..., 0]


def _centre(layer: nn.Module, features: Features | None) -> Tensor | None:
    """The mean of the outputs."""
    if features is None:
        return None
    bias = dense_bias(layer)
    mean = features.mean
    return mean if bias is None else mean + high_precision(bias).reshape(mean.shape)

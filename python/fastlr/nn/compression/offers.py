"""What a layer of any kind can become: all sizes, their errors, and the new layers themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.features import Features, weight_by_groups
from fastlr.nn.compression.forms import form_named
from fastlr.nn.compression.methods.afm import with_bias_added
from fastlr.nn.compression.partial_outputs import PartialOutputs
from fastlr.nn.compression.problem import Candidates, sums_beyond
from fastlr.nn.compression.reduced_inputs import ReducedInputs
from fastlr.nn.compression.solver import Solution, solve
from fastlr.nn.compression.windows import CONVOLUTIONS
from fastlr.nn.modules import (
    LowRankBilinear,
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankEmbedding,
)
from fastlr.nn.modules.conv_geometry import geometry_of
from fastlr.nn.modules.conv_splits import SPLITS, RankedSplit
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
    return _conv_offer(layer) if features is None else _seen_conv_offer(layer, features)


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
        return with_bias_added(module, _beyond(features.basis[..., : index + 1], features.mean)[0])

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
        correction = _beyond(basis, features.mean)
        return _conv_of(layer, (rank,), [basis.mT @ weight, basis], correction, "channel")

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


def _seen_conv_offer(layer: Any, features: Features) -> Offer:
    """All splits that are chosen by the features."""
    offers = []
    if features.windows is not None:
        weight, sizes = weight_by_groups(layer), layer.kernel_size
        reduced = ReducedInputs(weight, features.windows, math.prod(sizes))
        offers.append(_tucker_offer(layer, features, reduced))
        if len(sizes) > 1:
            reduced = ReducedInputs(weight, features.windows, math.prod(sizes[1:]))
            offers.append(_spatial_offer(layer, features, reduced))
    if features.partial is not None:
        offers.append(_tucker_offer(layer, features, features.partial))
    return _joined([*offers, _channel_offer(layer, features)])


def _tucker_offer(layer: Any, features: Features, reduced: ReducedInputs | PartialOutputs) -> Offer:
    """Fewer input channels, a kernel on those, and the leading features of that."""
    channels = torch.arange(1, features.mean.shape[1] + 1)
    ranks = torch.cartesian_prod(torch.tensor(reduced.widths), channels).flip(1)
    errors = torch.cat([reduced.fit(width).channels()[1] for width in reduced.widths])

    def make(index: int) -> nn.Module:
        rank, width = ranks[index].tolist()
        fit = reduced.fit(width)
        basis = fit.channels()[0][..., :rank]
        correction = _beyond(basis, features.mean) + _within(basis, fit.missing)
        factors = [fit.inner, basis.mT @ fit.outer, basis]
        return _conv_of(layer, (rank, width), factors, correction, "tucker")

    return _fitted_offer(layer, features, "tucker", ranks, errors, make)


def _spatial_offer(layer: Any, features: Features, reduced: ReducedInputs) -> Offer:
    """The first axis to fewer channels, and the rest of the kernel fitted to them."""
    (limit,) = _split_of(layer, "spatial").limits
    widths = [width for width in reduced.widths if width < limit] + [limit]
    errors = [reduced.fit(width).error for width in widths]

    def make(index: int) -> nn.Module:
        fit = reduced.fit(widths[index])
        return _conv_of(layer, (widths[index],), [fit.inner, fit.outer], fit.missing, "spatial")

    ranks = torch.tensor(widths)[:, None]
    return _fitted_offer(
        layer, features, "spatial", ranks, torch.tensor(errors, dtype=torch.float64), make
    )


def _fitted_offer(
    layer: nn.Module,
    features: Features,
    name: str,
    ranks: Tensor,
    errors: Tensor,
    make: Callable[[int], nn.Module],
) -> Offer:
    return Offer(
        weight_by_groups(layer).numel(),
        _split_of(layer, name).stored(ranks.unbind(1)) + _new_bias(layer, features),
        errors,
        float(features.energies.sum()),
        ranks,
        [name] * len(ranks),
        make,
        _centre(layer, features),
    )


def _joined(offers: Sequence[Offer]) -> Offer:
    """All that several offers of one layer have."""
    numbers = max(offer.ranks.shape[1] for offer in offers)
    places = [(offer, index) for offer in offers for index in range(len(offer.sizes))]

    def make(index: int) -> nn.Module:
        offer, own = places[index]
        return offer.make(own)

    return replace(
        offers[0],
        sizes=torch.cat([offer.sizes for offer in offers]),
        errors=torch.cat([offer.errors for offer in offers]),
        ranks=torch.cat(
            [
                nn.functional.pad(offer.ranks, (0, numbers - offer.ranks.shape[1]))
                for offer in offers
            ]
        ),
        forms=[form for offer in offers for form in offer.forms],
        make=make,
    )


def _conv_offer(layer: Any) -> Offer:
    """All ranks of all splits."""
    names = [name for name in SPLITS if name != "spatial" or len(layer.kernel_size) > 1]
    return _joined([_split_offer(layer, name) for name in names])


def _split_offer(layer: Any, name: str) -> Offer:
    """All ranks of one split of the kernel as it is."""
    split, kernel = _split_of(layer, name), high_precision(layer.weight)
    menu = split.menu(kernel.reshape(split.geometry.kernel_shape))
    total = float(kernel.square().sum())

    def make(index: int) -> nn.Module:
        rank = tuple(menu.ranks[index].tolist())
        given = rank if len(rank) > 1 else rank[0]
        built: nn.Module = _conv_class(layer).from_dense(layer, given, split=name)
        return built

    return Offer(
        kernel.numel(),
        menu.sizes,
        menu.losses * total,
        total,
        menu.ranks,
        [name] * len(menu.sizes),
        make,
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


def _split_of(layer: nn.Module, name: str) -> RankedSplit:
    owner = _conv_class(layer).__name__
    split = SPLITS[name](owner, geometry_of(owner, layer))
    assert isinstance(split, RankedSplit)
    return split


def _conv_of(
    layer: nn.Module, rank: tuple[int, ...], factors: list[Tensor], correction: Tensor, split: str
) -> nn.Module:
    """The layer of these factors, with a correction, g × o, added to the bias of the dense one."""
    bias = dense_bias(layer)
    added = correction.flatten() if bias is None else correction.flatten() + high_precision(bias)
    built: nn.Module = _conv_class(layer).in_place_of(layer, rank, factors, added, split=split)
    return built


def _new_bias(layer: nn.Module, features: Features | None) -> int:
    """The numbers of a bias that the dense layer does not have, which takes up the mean."""
    if features is None or dense_bias(layer) is not None:
        return 0
    return features.mean.numel()


def _within(basis: Tensor, vectors: Tensor) -> Tensor:
    """What these directions have of vectors in groups, g × o."""
    return (basis @ (basis.mT @ vectors[..., None]))[..., 0]


def _beyond(basis: Tensor, vectors: Tensor) -> Tensor:
    """What the other directions have of them."""
    return vectors - _within(basis, vectors)


def _centre(layer: nn.Module, features: Features | None) -> Tensor | None:
    """The mean of the outputs."""
    if features is None:
        return None
    bias = dense_bias(layer)
    mean = features.mean
    return mean if bias is None else mean + high_precision(bias).reshape(mean.shape)

"""Experts of a mixture that do the same are merged in a common subspace, where that loses less.

"Sub-MoE: Efficient mixture-of-expert LLMs compression via subspace expert merging",
arXiv 2506.23266. A cluster of experts is stored as one of them, the others borrow its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.clustering import clusters
from fastlr.nn.compression.expert_similarity import expert_similarities
from fastlr.nn.compression.methods import svd_llm
from fastlr.nn.compression.problem import Candidates, LayerGroup, LayerProblem
from fastlr.nn.compression.solver import solve
from fastlr.nn.modules import InterpolativeLinear
from fastlr.nn.modules.borrowed_linear import BorrowedLinear
from fastlr.nn.modules.dense import dense_bias, high_precision
from fastlr.nn.modules.experts import RoutedExperts

# An expert's layers by their names in it, such as "gate_up" and "down".
Expert = Mapping[str, LayerProblem]


def join(
    model: nn.Module,
    problems: Sequence[LayerProblem],
    ratio: float,
    form: str,
    batches: Sequence[Batch],
) -> list[LayerGroup]:
    """The experts of each mixture are a group; other layers are compressed alone, by ``svd_llm``.

    So are experts of which only some layers are to be compressed, and those that calibration never
    routes to: nothing says what they are alike to where they are used.

    Raises
    ------
    ValueError
        If the model has no experts, or there are no tokens to give them.
    """
    mixtures = _mixtures(model, problems)
    if not mixtures:
        raise ValueError(
            'method="sub_moe" needs a mixture of experts, two of them among the targets and routed '
            f"to by the calibration; {type(model).__name__} has none"
        )
    if not batches:
        raise ValueError("calibration: there is no text to run through the experts")
    # Typing knows no more than modules.
    named: Any = {name: model.get_submodule(name) for name in mixtures}
    similarities = expert_similarities(cast(Any, model), named, batches)
    groups = []
    for name, experts in mixtures.items():
        numbers = torch.tensor(list(experts))
        similarity = similarities[name][numbers][:, numbers]
        members = tuple(p for expert in experts.values() for p in expert.values())
        prepare = partial(_prepare, list(experts.values()), similarity)
        groups.append(LayerGroup(name, members, prepare))
    joined = {problem.name for group in groups for problem in group.members}
    rest = [problem for problem in problems if problem.name not in joined]
    return groups + [LayerGroup(p.name, (p,), partial(svd_llm.prepare, p)) for p in rest]


def _mixtures(
    model: nn.Module, problems: Sequence[LayerProblem]
) -> dict[str, dict[int, dict[str, LayerProblem]]]:
    """By mixture and number, the experts whose layers are all given and were all called."""
    found: dict[str, dict[int, dict[str, LayerProblem]]] = {}
    for problem in problems:
        place, _, layer = problem.name.rpartition(".")
        name, _, number = place.rpartition(".")
        if number.isdecimal() and isinstance(model.get_submodule(name), RoutedExperts):
            found.setdefault(name, {}).setdefault(int(number), {})[layer] = problem
    whole = {
        place: {
            expert: layers
            for expert, layers in experts.items()
            if len(layers) == len(list(model.get_submodule(f"{place}.{expert}").children()))
            and all(problem.inputs is not None for problem in layers.values())
        }
        for place, experts in found.items()
    }
    return {place: experts for place, experts in whole.items() if len(experts) > 1}


@dataclass(frozen=True)
class _Merged:
    """One layer of a cluster of experts, for every rank at once.

    Attributes
    ----------
    members : list of LayerProblem
    weights : Tensor of shape (n,)
        How often each is routed to, in all 1.
    mean : Tensor of shape (o, i)
        M = Σ f W.
    basis : Tensor of shape (s, s)
        Of the shorter side, orthonormal: the joint singular vectors of the experts' weights.
    errors : Tensor of shape (s + 1,)
        Σ ‖(W − W') X‖² at rank 0, 1, …, s.
    total : float
        Σ ‖W X‖².
    """

    members: list[LayerProblem]
    weights: Tensor
    mean: Tensor
    basis: Tensor
    errors: Tensor
    total: float

    @classmethod
    def of(cls, members: list[LayerProblem]) -> _Merged:
        grams = [problem.inputs for problem in members if problem.inputs is not None]
        counts = torch.tensor([max(1, gram.tokens) for gram in grams], dtype=torch.float64)
        shares = counts / counts.sum()
        weights = [problem.weight for problem in members]
        mean = sum((f * w for f, w in zip(shares.tolist(), weights, strict=True)), 0 * weights[0])
        wide = mean.shape[0] <= mean.shape[1]
        basis = solve(torch.cat([w if wide else w.T for w in weights], 1)).basis
        seen = [gram.matrix for gram in grams]
        total = sum(float((w @ g).mul(w).sum()) for w, g in zip(weights, seen, strict=True))
        both = sum((w @ g for w, g in zip(weights, seen, strict=True)), 0 * weights[0])
        gram = sum(seen, 0 * seen[0])
        if wide:  # W' = PM with the projector P: what each direction gains is its own
            rows = basis.T @ mean
            gained = 2 * ((basis.T @ both) * rows).sum(1) - ((rows @ gram) * rows).sum(1)
            kept = gained.cumsum(0)
        else:  # W' = MP: the directions that are kept see each other through the inputs
            columns = mean @ basis
            cross = ((both @ basis) * columns).sum(0).cumsum(0)
            squares = (basis.T @ gram @ basis) * (columns.T @ columns)
            kept = 2 * cross - squares.cumsum(0).cumsum(1).diagonal()
        errors = (total - torch.cat((kept.new_zeros(1), kept))).clamp(min=0).cpu()
        return cls(members, shares, mean, basis, errors, total)

    def layers(self, rank: int) -> dict[str, nn.Module]:
        """The new layers by name: the first expert's, which the others borrow."""
        lender = self._merged(rank)
        biases = [dense_bias(problem.linear) for problem in self.members]
        known = [high_precision(bias) for bias in biases if bias is not None]
        if lender.bias is not None:
            with torch.no_grad():
                lender.bias.copy_(self.weights.to(lender.bias.device) @ torch.stack(known))
        first, *others = self.members
        return {first.name: lender, **{p.name: BorrowedLinear.of(lender) for p in others}}

    def _merged(self, rank: int) -> InterpolativeLinear:
        kept = self.basis[:, :rank]
        if self.mean.shape[0] <= self.mean.shape[1]:
            basis, projected = kept, kept.T @ self.mean
        else:
            basis, triangle = torch.linalg.qr(self.mean @ kept)
            projected = triangle @ kept.T
        return InterpolativeLinear.in_place_of(self.members[0].linear, basis, projected)


def _prepare(experts: Sequence[Expert], similarity: Tensor, form: str, multiple: int) -> Candidates:
    """Of all numbers of clusters and all ranks, what is better than everything smaller.

    So experts are merged where that loses less than a lower rank of each. Errors are the mean over
    the kinds of layers of the relative errors of their outputs.
    """
    kinds = list(experts[0])
    ranks = _ranks(experts[0], multiple)
    a_cluster = torch.stack([_numbers(experts[0][kind], ranks[kind]) for kind in kinds]).sum(0)
    known: dict[tuple[int, ...], dict[str, _Merged]] = {}

    def merged(members: Sequence[int]) -> dict[str, _Merged]:
        key = tuple(members)
        if key not in known:
            known[key] = {kind: _Merged.of([experts[m][kind] for m in key]) for kind in kinds}
        return known[key]

    offered: list[tuple[int, float, list[list[int]], int]] = []
    for count in range(1, len(experts) + 1):
        chosen = clusters(similarity, count)
        errors = torch.zeros(len(a_cluster), dtype=torch.float64)
        for kind in kinds:
            parts = [merged(cluster)[kind] for cluster in chosen]
            total = sum(part.total for part in parts)
            lost = torch.stack([part.errors[ranks[kind]] for part in parts]).sum(0)
            errors += lost / total / len(kinds) if total > 0 else 0
        for index, (size, error) in enumerate(
            zip((count * a_cluster).tolist(), errors.tolist(), strict=True)
        ):
            offered.append((size, error, chosen, index))
    whole = sum(problem.entries for expert in experts for problem in expert.values())
    front: list[tuple[int, float, list[list[int]], int]] = []
    for one in sorted(offered, key=lambda one: one[:2]):
        better = not front or (one[0] > front[-1][0] and one[1] < front[-1][1])
        if better and one[0] < whole:
            front.append(one)

    def build(index: int) -> Mapping[str, nn.Module]:
        if index == len(front):
            return {}
        _, _, chosen, place = front[index]
        return {
            name: layer
            for cluster in chosen
            for kind in kinds
            for name, layer in merged(cluster)[kind].layers(int(ranks[kind][place])).items()
        }

    return Candidates(
        torch.tensor([*(one[0] for one in front), whole]),
        torch.tensor([*(one[1] for one in front), 0.0], dtype=torch.float64),
        1.0,
        build,
    )


def _ranks(expert: Expert, multiple: int) -> dict[str, Tensor]:
    """Ranks of the layers of an expert, all of about the same share of their numbers; ascending."""
    every = {
        kind: torch.arange(multiple, min(problem.shape) + 1, multiple)
        for kind, problem in expert.items()
    }
    lead = max(expert, key=lambda kind: len(every[kind]))
    shares = _numbers(expert[lead], every[lead]) / expert[lead].entries
    found = {}
    for kind, problem in expert.items():
        own = _numbers(problem, every[kind]) / problem.entries
        # The largest rank with no larger a share.
        place = torch.searchsorted(own, shares, right=True) - 1
        found[kind] = every[kind][place.clamp(min=0)]
    return found


def _numbers(problem: LayerProblem, ranks: Tensor) -> Tensor:
    """r·(o + i) − r², what an interpolative layer stores."""
    return ranks * (sum(problem.shape) - ranks)

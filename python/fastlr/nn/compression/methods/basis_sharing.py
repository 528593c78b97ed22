"""Layers of one kind in neighbouring blocks share a basis, where that is predicted to lose less.

J. Wang, Y.-G. Chen, I.-C. Lin, B. Li, G. L. Zhang, "Basis Sharing: Cross-layer parameter sharing
for large language model compression", ICLR 2025. Which pairs are joined is decided by the bound of
:func:`fastlr.linalg.joint_svd_bounds` here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import fastlr.linalg as la
from fastlr.nn.compression.methods import svd_llm
from fastlr.nn.compression.problem import Candidates, LayerGroup, LayerProblem, sums_beyond
from fastlr.nn.compression.solver import solve
from fastlr.nn.modules import SharedBasisLinear
from fastlr.nn.modules.shared_basis_linear import Shared

# Layers whose outputs add to the hidden states share a basis of outputs: their inputs, heads or
# hidden units, have nothing to do with each other from block to block.
_INTO_HIDDEN_STATES = ("o_proj", "out_proj", "c_proj", "down_proj", "fc2", "dense_4h_to_h")
# More than two hurt models with grouped queries.
_TOGETHER = 2


def join(
    model: nn.Module, problems: Sequence[LayerProblem], ratio: float, form: str
) -> list[LayerGroup]:
    """Pairs of a kind, in order; they share a basis where the bound of that error is the smaller.

    Otherwise each is on its own, as with ``svd_llm``, in the form `form`.
    """
    groups = []
    for members in _neighbours(problems):
        if _better_together(members, ratio, form):
            name = "+".join(problem.name for problem in members)
            groups.append(LayerGroup(name, members, partial(_prepare, members)))
        else:
            groups += [LayerGroup(p.name, (p,), partial(svd_llm.prepare, p)) for p in members]
    return groups


def _neighbours(problems: Sequence[LayerProblem]) -> list[tuple[LayerProblem, ...]]:
    """Layers that follow each other among those of the same kind and shape, two and two."""
    kinds: dict[tuple[str, tuple[int, int]], list[LayerProblem]] = {}
    for problem in problems:
        kinds.setdefault((problem.name.rpartition(".")[2], problem.shape), []).append(problem)
    return [
        tuple(members[start : start + _TOGETHER])
        for members in kinds.values()
        for start in range(0, len(members), _TOGETHER)
    ]


def _better_together(members: Sequence[LayerProblem], ratio: float, form: str) -> bool:
    """Whether a bound of the joint error is below the error that separate layers would have.

    Both with the share of the dense numbers that is to be left.
    """
    if len(members) < _TOGETHER or any(problem.inputs is None for problem in members):
        return False
    share = members[0].entries * (1 - ratio)
    offered = [svd_llm.prepare(problem, form, 1) for problem in members]
    total = sum(candidates.total for candidates in offered)
    rank = int(len(members) * share / _numbers_a_rank(members))
    if rank < 1 or total <= 0:
        return False
    alone = sum(float(c.errors[c.within(share)]) for c in offered)
    weights, grams = _seen_inputs(members)
    whitened = [weight @ _root(gram) for weight, gram in zip(weights, grams, strict=True)]
    axis = 0 if _shared_side(members) == "inputs" else 1
    bounds = la.joint_svd_bounds(whitened, rank, axis=axis, seed=0)
    return bounds.estimate <= math.sqrt(alone / total)


def _prepare(members: Sequence[LayerProblem], form: str, multiple: int) -> Candidates:
    """Minimise Σ ‖(W_l − W'_l) X_l‖² over weights with a common basis.

    For a basis of outputs that is the exact optimum. For one of inputs every layer counts the sum
    of all their Gram matrices, without which there is no closed form.
    """
    shared = _shared_side(members)
    axis = 0 if shared == "inputs" else 1
    weights, grams = _seen_inputs(members)
    joint = grams[0]
    if shared == "outputs":
        joint = torch.block_diag(*grams)  # type: ignore[no-untyped-call]
    solution = solve(torch.cat(weights, axis), joint)
    entries = sum(problem.entries for problem in members)
    a_rank = _numbers_a_rank(members)
    limit = min(len(solution.energies), members[0].shape[1 - axis])
    ranks = [r for r in range(multiple, limit + 1, multiple) if r * a_rank < entries]
    errors = sums_beyond(solution.energies * solution.total)

    def build(index: int) -> Mapping[str, nn.Module]:
        if index == len(ranks):
            return {}
        rank = ranks[index]
        basis, projected = solution.basis[:, :rank], solution.projected[:rank]
        common, own = (projected, basis) if shared == "inputs" else (basis, projected)
        factors = own.chunk(len(members), axis)
        linears = [problem.linear for problem in members]
        layers = SharedBasisLinear.in_place_of(linears, common, factors, shared)
        return {p.name: layer for p, layer in zip(members, layers, strict=True)}

    return Candidates(
        torch.tensor([*(rank * a_rank for rank in ranks), entries]),
        errors[torch.tensor([*ranks, len(errors) - 1])],
        solution.total,
        build,
    )


def _shared_side(members: Sequence[LayerProblem]) -> Shared:
    return "outputs" if members[0].name.endswith(_INTO_HIDDEN_STATES) else "inputs"


def _numbers_a_rank(members: Sequence[LayerProblem]) -> int:
    """What one direction of the common basis costs, with its coefficients in every layer."""
    o, i = members[0].shape
    return i + len(members) * o if _shared_side(members) == "inputs" else o + len(members) * i


def _seen_inputs(members: Sequence[LayerProblem]) -> tuple[list[Tensor], list[Tensor]]:
    """The weights, and the Gram matrix that counts for each: the sum, for a basis of inputs."""
    grams = [problem.inputs.matrix for problem in members if problem.inputs is not None]
    if _shared_side(members) == "inputs":
        grams = [sum(grams[1:], grams[0])] * len(members)
    return [problem.weight for problem in members], grams


def _root(gram: Tensor) -> Tensor:
    """A symmetric square root; eigenvalues that rounding has made negative are zero."""
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root

"""Sharing the budget of stored numbers between the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fastlr.nn.compression.problem import Candidates
from fastlr.nn.compression.targets import matches

# The units in which the knapsack counts the budget, and what it offers of one layer: beyond these
# it would only take longer. What rounding leaves over is spent afterwards.
_UNITS = 1 << 15
_OFFERED = 96


@dataclass(frozen=True)
class Budget:
    """How many numbers may be stored, and between what.

    Attributes
    ----------
    candidates : mapping from layer name to Candidates
    dense : mapping from layer name to int
        The numbers of each dense weight.
    ratio : float
        The share of all of them to remove.
    factors : mapping from layer name to float
        What the predicted errors of a layer are multiplied by to be comparable with the others'.
    influences : mapping from layer name to float
        How much the layer's block changes the hidden states; 0 where it is not known.
    """

    candidates: Mapping[str, Candidates]
    dense: Mapping[str, int]
    ratio: float
    factors: Mapping[str, float]
    influences: Mapping[str, float] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """What may be stored in all."""
        return math.floor(sum(self.dense.values()) * (1 - self.ratio))

    def share(self, name: str) -> float:
        """What the layer would have if all lost the same share."""
        return self.dense[name] * (1 - self.ratio)

    def without(self, names: set[str], chosen: Mapping[str, int]) -> Budget:
        """What is left for the other layers once these have got theirs."""
        spent = sum(int(self.candidates[name].sizes[chosen[name]]) for name in names)
        others = {name: c for name, c in self.candidates.items() if name not in names}
        dense = {name: self.dense[name] for name in others}
        left = (self.numbers - spent) / max(sum(dense.values()), 1)
        return replace(self, candidates=others, dense=dense, ratio=1 - left)


Choice = dict[str, int]

# A relative error of one has a finite cost, so that sums of costs are finite.
_ALMOST_ALL = 1 - 2.0**-30


def uniform(budget: Budget) -> Choice:
    """The same share of numbers removed from every layer."""
    return {
        name: candidates.within(budget.share(name))
        for name, candidates in budget.candidates.items()
    }


def svd_llm_v2(budget: Budget) -> Choice:
    """Inside each type of layer, shares removed in proportion to 1 / log(error at the mean share).

    X. Wang, S. Alam, Z. Wan, H. Shen, M. Zhang, "SVD-LLM V2: Optimizing singular value truncation
    for large language model compression", NAACL 2025. The errors of a type are scaled so that the
    least of them is e: the logarithm of the published formula depends on their unit.
    """
    chosen: Choice = {}
    for names in by_type(budget.candidates).values():
        errors = {}
        for name in names:
            candidates = budget.candidates[name]
            errors[name] = math.sqrt(
                float(candidates.errors[candidates.within(budget.share(name))])
            )
        least = min((error for error in errors.values() if error > 0), default=1.0)
        weights = {name: 1 / (1 + math.log(max(e / least, 1.0))) for name, e in errors.items()}
        mean = math.fsum(weights.values()) / len(names)
        for name in names:
            removed = min(budget.ratio * weights[name] / mean, 1.0)
            chosen[name] = budget.candidates[name].within(budget.dense[name] * (1 - removed))
    return spend_rest(budget, chosen)


# The share of the ranks of queries and keys that goes to the values.
_TO_VALUES = 0.35


def d_rank(budget: Budget) -> Choice:
    """Ranks in proportion to √(effective rank / numbers a rank), some of q's and k's moved to v.

    The effective rank is exp of the entropy of the whitened squared singular values. "D-Rank:
    layer-wise dynamic rank for compressing large language models", arXiv, 2025.
    """
    wanted: dict[str, float] = {}
    costs: dict[str, float] = {}
    for name, candidates in budget.candidates.items():
        spectrum, ranks = _spectrum_of(name, candidates, "d_rank")
        shares = spectrum / spectrum.sum().clamp(min=1e-300)
        entropy = -float(torch.special.xlogy(shares, shares).sum())
        costs[name] = float(candidates.sizes[-1]) / float(ranks[-1])
        wanted[name] = math.sqrt(math.exp(entropy) / costs[name])
    scale = budget.numbers / math.fsum(wanted[name] * costs[name] for name in wanted)
    ranks_of = {name: scale * weight for name, weight in wanted.items()}
    for name in ranks_of:
        if not name.endswith("v_proj"):
            continue
        for other in (name.removesuffix("v_proj") + letter + "_proj" for letter in "qk"):
            if other in ranks_of:
                moved = _TO_VALUES * ranks_of[other]
                ranks_of[other] -= moved
                ranks_of[name] += moved * costs[other] / costs[name]
    return _scaled_ranks(budget, ranks_of)


def welore(budget: Budget) -> Choice:
    """One threshold for all normalised singular values; the budget is of numbers, not of ranks.

    A. Jaiswal, L. Yin, Z. Zhang, S. Liu, J. Zhao, Y. Tian, Z. Wang, "From GaLore to WeLore: How
    low-rank weights non-uniformly emerge from low-rank gradients", arXiv:2407.11239, 2024.
    """
    normalised = {}
    for name, candidates in budget.candidates.items():
        values = _spectrum_of(name, candidates, "welore")[0].sqrt()
        spread = float(values[0] - values[-1])
        normalised[name] = (values - values[-1]) / spread if spread > 0 else values * 0 + 1

    def at(threshold: float) -> Choice:
        return {
            name: _index_of_rank(c, int((normalised[name] >= threshold).sum()))
            for name, c in budget.candidates.items()
        }

    # The higher the threshold, the less is kept.
    _, least = _bisected(lambda threshold: _size(budget, at(threshold)) <= budget.numbers, 1.0)
    return spend_rest(budget, at(least))


def knapsack(budget: Budget) -> Choice:
    """The least sum of relative errors, none of them above a multiple of their mean.

    The multiple is the smallest with which the budget can be kept, plus a tenth. "ROCKET", as
    described in the theory page: a multiple-choice knapsack by dynamic programming.
    """
    relative = {name: c.relative_errors for name, c in budget.candidates.items()}
    at_uniform = uniform(budget)
    mean = math.fsum(float(relative[n][k]) for n, k in at_uniform.items()) / len(at_uniform)

    def capped(alpha: float) -> dict[str, Candidates]:
        return {
            name: c.cut(float(c.sizes[_first_below(relative[name], alpha * mean)]), math.inf)
            for name, c in budget.candidates.items()
        }

    _, least = _bisected(lambda alpha: _least_size(capped(alpha)) <= budget.numbers, 2.0**40)
    kept = capped(1.1 * least)
    costs = {name: c.relative_errors for name, c in kept.items()}
    chosen = solve_knapsack(kept, costs, budget.numbers)
    return spend_rest(budget, _indices_in(budget.candidates, kept, chosen))


def product(budget: Budget) -> Choice:
    """The largest product of the shares of energy, 1 − relative error, that the layers keep.

    Of a signal that passes one layer after the other so much is left, if what each takes away is
    independent of the others. A layer that keeps nothing is never worth it.
    """
    costs = {
        name: -torch.log1p(-c.relative_errors.clamp(max=_ALMOST_ALL))
        for name, c in budget.candidates.items()
    }
    return spend_rest(budget, solve_knapsack(budget.candidates, costs, budget.numbers))


def loss(budget: Budget) -> Choice:
    """The least predicted increase of the model's loss."""
    costs = {
        name: c.errors * budget.factors.get(name, 1.0) for name, c in budget.candidates.items()
    }
    return spend_rest(budget, solve_knapsack(budget.candidates, costs, budget.numbers))


# The differences of influence that count: a block with so much less loses e times as much.
_INFLUENCE_SCALE = 0.1


def block_influence(budget: Budget) -> Choice:
    """Shares removed in proportion to exp(−influence of the block / 0.1).

    C.-H. Lin et al., "MoDeGPT: Modular decomposition for large language model compression", ICLR
    2025, whose softmax over the blocks that is.
    """
    least = min(budget.influences.values(), default=0.0)
    weights = {
        name: math.exp((least - budget.influences.get(name, 0.0)) / _INFLUENCE_SCALE)
        for name in budget.candidates
    }

    def at(factor: float) -> Choice:
        return {
            name: c.within(budget.dense[name] * (1 - factor * weights[name]))
            for name, c in budget.candidates.items()
        }

    _, removed = _bisected(lambda factor: _size(budget, at(factor)) <= budget.numbers, 2.0**20)
    return spend_rest(budget, at(removed))


ALLOCATIONS: dict[str, Callable[[Budget], Choice]] = {
    "uniform": uniform,
    "svd_llm_v2": svd_llm_v2,
    "d_rank": d_rank,
    "welore": welore,
    "knapsack": knapsack,
    "product": product,
    "loss": loss,
    "block_influence": block_influence,
}


def allocate(
    budget: Budget, allocation: str | Mapping[str, float], *, cap: float | None = None
) -> Choice:
    """The index of the candidate that each layer becomes.

    Parameters
    ----------
    budget : Budget
    allocation : str or mapping from layer names or patterns to shares
        A name of `ALLOCATIONS`, or the share to remove from each layer; the first pattern that a
        layer matches counts, and the others lose the share of the budget.
    cap : float, optional
        The most that may be removed from any layer, a share of its numbers.

    Raises
    ------
    ValueError
        If there is no allocation of that name, a share is not between 0 and 1, a pattern matches
        no layer, or the cap is below the share that is to be removed in all.
    """
    check_allocation(allocation, budget.ratio, cap)
    if cap is not None:
        offered = {
            name: c.cut(budget.dense[name] * (1 - cap), math.inf)
            for name, c in budget.candidates.items()
        }
        chosen = allocate(replace(budget, candidates=offered), allocation)
        return _indices_in(budget.candidates, offered, chosen)
    if isinstance(allocation, Mapping):
        return _given(budget, allocation)
    unknown = {name for name, c in budget.candidates.items() if not c.compared}
    if allocation in ("uniform", "block_influence") or not unknown:
        return ALLOCATIONS[allocation](budget)
    # Errors in another unit cannot be weighed against the others'.
    chosen = {name: k for name, k in uniform(budget).items() if name in unknown}
    if len(unknown) < len(budget.candidates):
        chosen.update(ALLOCATIONS[allocation](budget.without(unknown, chosen)))
    return chosen


def check_allocation(
    allocation: str | Mapping[str, float], ratio: float, cap: float | None
) -> None:
    """Raise ValueError for a name that is unknown, or a cap that leaves too much."""
    if not isinstance(allocation, Mapping) and allocation not in ALLOCATIONS:
        raise ValueError(
            f"allocation must be one of {', '.join(sorted(ALLOCATIONS))} or a mapping from layers "
            f"to shares, got {allocation!r}"
        )
    if cap is not None and not ratio <= cap <= 1:
        raise ValueError(f"max_layer_ratio must be between ratio = {ratio} and 1, got {cap}")


def solve_knapsack(
    candidates: Mapping[str, Candidates], costs: Mapping[str, Tensor], numbers: int
) -> Choice:
    """One candidate a layer, of the least total cost within `numbers`, by dynamic programming.

    Exact where `numbers` is at most 32768 and no layer has more than 96 candidates; otherwise the
    sizes are rounded up to units of `numbers` / 32768, and 96 sizes of a layer are tried. Where
    even the smallest candidates exceed the budget, these.

    Notes
    -----
    O(layers · 96 · 32768) operations, 2 · 32768 bytes a layer.
    """
    names = list(candidates)
    unit = max(1, -(-numbers // _UNITS))
    units = numbers // unit
    offers: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for name in names:
        sizes, cost = candidates[name].sizes.numpy(), costs[name].numpy()
        index = _offered(sizes)
        offers.append((index, -(-sizes[index] // unit), cost[index]))
    least = np.full(units + 1, np.inf)
    least[0] = 0.0
    choices = []
    for _, sizes, cost in offers:
        best = np.full(units + 1, np.inf)
        choice = np.zeros(units + 1, dtype=np.int16)
        for k, (size, added) in enumerate(zip(sizes.tolist(), cost.tolist(), strict=True)):
            if size > units:
                break
            total = least[: units + 1 - size] + added
            better = total < best[size:]
            best[size:][better] = total[better]
            choice[size:][better] = k
        least = best
        choices.append(choice)
    if not np.isfinite(least).any():
        return dict.fromkeys(names, 0)
    place = int(np.argmin(least))
    chosen: Choice = {}
    for name, choice, (index, sizes, _) in zip(
        reversed(names), reversed(choices), reversed(offers), strict=True
    ):
        k = int(choice[place])
        chosen[name] = int(index[k])
        place -= int(sizes[k])
    return chosen


def spend_rest(budget: Budget, chosen: Mapping[str, int]) -> Choice:
    """Keep the budget exactly: take steps back while it is exceeded, and use what is left.

    Each step is the one that costs the least error, or saves the most, a number.
    """
    result = dict(chosen)
    rest = budget.numbers - _size(budget, result)

    def gain(name: str, step: int) -> tuple[float, int]:
        candidates, k = budget.candidates[name], result[name]
        if not 0 <= k + step < len(candidates.sizes):
            return -math.inf, 0
        size = int(candidates.sizes[k + step] - candidates.sizes[k])
        saved = float(candidates.errors[k] - candidates.errors[k + step])
        return saved * budget.factors.get(name, 1.0) / abs(size), size

    while rest < 0:
        steps = {name: gain(name, -1) for name in result}
        name = max(steps, key=lambda n: steps[n][0])
        if steps[name][1] == 0:
            break
        result[name] -= 1
        rest -= steps[name][1]
    open_ = {name: gain(name, 1) for name in result}
    while open_:
        name = max(open_, key=lambda n: open_[n][0])
        _, size = open_.pop(name)
        if size == 0 or size > rest:
            continue
        result[name] += 1
        rest -= size
        open_[name] = gain(name, 1)
    return result


def by_type(names: Mapping[str, object]) -> dict[str, list[str]]:
    """The layers by the last part of their name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[2], []).append(name)
    return groups


def _given(budget: Budget, shares: Mapping[str, float]) -> Choice:
    for pattern, share in shares.items():
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(
                f"allocation[{pattern!r}] must be at least 0 and below 1, got {share!r}"
            )
        if not any(matches(name, [pattern]) for name in budget.candidates):
            raise ValueError(f"allocation: {pattern!r} matches no layer that is compressed")
    chosen = {}
    for name, candidates in budget.candidates.items():
        found = (share for pattern, share in shares.items() if matches(name, [pattern]))
        chosen[name] = candidates.within(budget.dense[name] * (1 - next(found, budget.ratio)))
    return chosen


def _scaled_ranks(budget: Budget, wanted: Mapping[str, float]) -> Choice:
    """Ranks in these proportions, as large as the budget allows."""

    def at(factor: float) -> Choice:
        return {
            name: _index_of_rank(c, math.floor(factor * wanted[name]))
            for name, c in budget.candidates.items()
        }

    most, _ = _bisected(lambda factor: _size(budget, at(factor)) > budget.numbers, 2.0**20)
    return spend_rest(budget, at(most))


def _bisected(holds: Callable[[float], bool], limit: float) -> tuple[float, float]:
    """The last number above 0 at which `holds` is false and the first at which it is true.

    It must be true from some number on; numbers beyond `limit` are not tried.
    """
    low, high = 0.0, min(1.0, limit)
    while high < limit and not holds(high):
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high


def _spectrum_of(name: str, candidates: Candidates, allocation: str) -> tuple[Tensor, Tensor]:
    if candidates.spectrum is None or candidates.ranks is None:
        raise ValueError(
            f"allocation={allocation!r} needs a low-rank method: layer {name!r} has no spectrum"
        )
    return candidates.spectrum, candidates.ranks


def _index_of_rank(candidates: Candidates, rank: int) -> int:
    ranks = candidates.ranks
    assert ranks is not None
    return max(0, int((ranks <= rank).sum()) - 1)


def _first_below(errors: Tensor, limit: float) -> int:
    """The smallest candidate with an error of at most `limit` (errors descend), else the last."""
    return min(int((errors > limit).sum()), len(errors) - 1)


def _size(budget: Budget, chosen: Mapping[str, int]) -> int:
    return sum(int(budget.candidates[name].sizes[k]) for name, k in chosen.items())


def _least_size(candidates: Mapping[str, Candidates]) -> int:
    return sum(int(c.sizes[0]) for c in candidates.values())


def _indices_in(
    whole: Mapping[str, Candidates], part: Mapping[str, Candidates], chosen: Mapping[str, int]
) -> Choice:
    """Indices of what was cut, as indices of the whole."""
    return {
        name: int((whole[name].sizes < part[name].sizes[k]).sum()) for name, k in chosen.items()
    }


def _offered(sizes: np.ndarray) -> np.ndarray:
    """Evenly spread indices of at most 96 candidates, the first and the last among them."""
    if len(sizes) <= _OFFERED:
        return np.arange(len(sizes))
    return np.unique(np.linspace(0, len(sizes) - 1, _OFFERED).round().astype(np.int64))

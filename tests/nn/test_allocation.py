"""Sharing a budget between layers."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn.compression import Candidates
from fastlr.nn.compression.allocation import (
    ALLOCATIONS,
    Budget,
    allocate,
    by_type,
    solve_knapsack,
    spend_rest,
)


def candidates(sizes, errors, total=1.0, *, compared=True, low_rank=False):
    ranks = torch.arange(1, len(sizes) + 1) if low_rank else None
    return Candidates(
        torch.tensor(sizes),
        torch.tensor(errors, dtype=torch.float64),
        total,
        lambda index: None,
        -torch.tensor([*errors, 0.0], dtype=torch.float64).diff() if low_rank else None,
        ranks,
        compared,
    )


@st.composite
def layers(draw):
    """Up to six layers with up to five candidates, errors falling."""
    found = {}
    for k in range(draw(st.integers(1, 6))):
        sizes = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=5)))
        fall = draw(st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes)))
        errors = [float(sum(fall[j:])) for j in range(len(sizes))]
        found[f"layer.{k}"] = candidates(sizes, errors, errors[0])
    return found


@given(layers(), st.floats(0, 1))
def test_the_knapsack_is_solved_exactly(found, share):
    """Against every combination: the same least cost, within the same budget."""
    least = sum(int(c.sizes[0]) for c in found.values())
    most = sum(int(c.sizes[-1]) for c in found.values())
    numbers = least + math.floor(share * (most - least))
    costs = {name: c.errors for name, c in found.items()}
    chosen = solve_knapsack(found, costs, numbers)

    def size(indices):
        return sum(int(c.sizes[k]) for c, k in zip(found.values(), indices, strict=True))

    def cost(indices):
        return sum(float(c.errors[k]) for c, k in zip(found.values(), indices, strict=True))

    every = itertools.product(*(range(len(c.sizes)) for c in found.values()))
    best = min(cost(indices) for indices in every if size(indices) <= numbers)
    picked = [chosen[name] for name in found]
    assert size(picked) <= numbers
    assert cost(picked) == best  # sums of small whole numbers: exact


@pytest.mark.parametrize("factor", [1, 1000, 12345])
def test_sizes_beyond_the_units_never_exceed_the_budget(factor):
    found = {
        f"layer.{k}": candidates(
            [factor * (7 + k) * j + 1 for j in range(1, 30)], [1.0 / (k + j) for j in range(1, 30)]
        )
        for k in range(9)
    }
    numbers = 800 * factor
    chosen = solve_knapsack(found, {name: c.errors for name, c in found.items()}, numbers)
    used = sum(int(found[name].sizes[k]) for name, k in chosen.items())
    assert 0.9 * numbers < used <= numbers


@given(layers(), st.floats(0, 0.9))
def test_the_product_of_what_is_kept_is_largest(found, ratio):
    dense = {name: int(c.sizes[-1]) for name, c in found.items()}
    budget = Budget(found, dense, ratio, {})
    chosen = allocate(budget, "product")

    def kept(choice):
        return math.prod(1 - float(found[n].relative_errors[k]) for n, k in choice.items())

    every = itertools.product(*(range(len(c.sizes)) for c in found.values()))
    choices = [dict(zip(found, each, strict=True)) for each in every]
    allowed = [
        choice
        for choice in choices
        if sum(int(found[n].sizes[k]) for n, k in choice.items()) <= budget.numbers
    ]
    if allowed:
        assert chosen in allowed
        # Sums of logarithms, of a relative error of one cut at 2^-30.
        assert kept(chosen) >= max(map(kept, allowed)) * (1 - 1e-12) - 2.0**-29


def test_no_layer_of_the_knapsack_is_far_above_the_mean():
    """The control: the least sum alone leaves the steepest spectra behind."""
    found, dense = spectra()
    budget = Budget(found, dense, 0.5, {})

    def largest(chosen):
        return max(float(found[name].relative_errors[k]) for name, k in chosen.items())

    costs = {name: c.relative_errors for name, c in found.items()}
    free = largest(solve_knapsack(found, costs, budget.numbers))
    # The smallest multiple with which the budget can be kept is where all errors are equal.
    equal = min(
        level
        for level in torch.logspace(-6, 0, 400).tolist()
        if sum(int(c.sizes[int((c.relative_errors > level).sum())]) for c in found.values())
        <= budget.numbers
    )
    capped = largest(allocate(budget, "knapsack"))
    assert capped <= 1.15 * equal
    assert free > 1.3 * equal


def test_ranks_go_by_the_root_of_what_they_cost():
    """One spectrum, layers of the same height and of different widths."""
    spectrum = torch.exp(-0.02 * torch.arange(64).double())
    tails = spectrum.flip(0).cumsum(0).flip(0)
    found, dense = {}, {}
    for name, width in {"narrow": 64, "wide": 1024}.items():
        found[name] = Candidates(
            torch.tensor([rank * (64 + width) for rank in range(1, 65)]),
            torch.cat((tails[1:], tails.new_zeros(1))),
            float(spectrum.sum()),
            lambda index: None,
            spectrum,
            torch.arange(1, 65),
        )
        dense[name] = 64 * (64 + width)
    chosen = allocate(Budget(found, dense, 0.7, {}), "d_rank")
    ratio = (chosen["narrow"] + 1) / (chosen["wide"] + 1)
    assert ratio == pytest.approx(((64 + 1024) / 128) ** 0.5, rel=0.1)


def test_what_cannot_be_afforded_gets_the_smallest():
    found = {"a": candidates([5, 9], [2.0, 1.0]), "b": candidates([7, 8], [2.0, 1.0])}
    costs = {name: c.errors for name, c in found.items()}
    assert solve_knapsack(found, costs, 3) == {"a": 0, "b": 0}


def spectra(count=6, size=40, seed=0):
    """Low-rank layers of q, k, v and others, with spectra that fall at different rates."""
    generator = torch.Generator().manual_seed(seed)
    found, dense = {}, {}
    kinds = ["q_proj", "k_proj", "v_proj", "up_proj"]
    for k in range(count):
        for kind in kinds:
            rate = 0.02 + 0.4 * float(torch.rand((), generator=generator))
            squares = torch.exp(-rate * torch.arange(size).double())
            tails = squares.flip(0).cumsum(0).flip(0)
            errors = [*tails[1:].tolist(), 0.0]
            sizes = [r * (2 * size - r) for r in range(1, size + 1)]
            name = f"layers.{k}.{kind}"
            found[name] = Candidates(
                torch.tensor(sizes),
                torch.tensor(errors, dtype=torch.float64),
                float(squares.sum()),
                lambda index: None,
                squares,
                torch.arange(1, size + 1),
            )
            dense[name] = size * size
    return found, dense


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_the_budget_is_kept_within_a_step(name, ratio):
    found, dense = spectra()
    budget = Budget(found, dense, ratio, {})
    chosen = allocate(budget, name)
    used = sum(int(found[layer].sizes[k]) for layer, k in chosen.items())
    assert used <= budget.numbers
    if name == "uniform":
        for layer, k in chosen.items():
            assert int(found[layer].sizes[k]) <= budget.share(layer)
            assert k + 1 == len(found[layer].sizes) or (
                int(found[layer].sizes[k + 1]) > budget.share(layer)
            )
    else:  # what is left does not pay for one more step anywhere
        for layer, k in chosen.items():
            sizes = found[layer].sizes
            if k + 1 < len(sizes):
                assert used + int(sizes[k + 1] - sizes[k]) > budget.numbers


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_loss_spends_no_worse_than_the_others(ratio):
    """It minimises the sum of the errors, so that none has a smaller one (but for rounding)."""
    found, dense = spectra()
    budget = Budget(found, dense, ratio, {})

    def errors(name):
        return sum(float(found[n].errors[k]) for n, k in allocate(budget, name).items())

    least = errors("loss")
    for name in ALLOCATIONS:
        assert least <= errors(name) * (1 + 1e-3)
    assert least < 0.9 * errors("uniform")  # and it is worth it


def test_factors_weigh_layers():
    found = {"a": candidates([1, 9], [4.0, 0.0]), "b": candidates([1, 9], [4.0, 0.0])}
    dense = {"a": 10, "b": 10}
    for favoured in "ab":
        chosen = allocate(Budget(found, dense, 0.5, {favoured: 2.0}), "loss")
        assert chosen[favoured] == 1
        assert sum(chosen.values()) == 1


def test_values_get_ranks_of_queries_and_keys():
    found, dense = spectra()
    same = {  # one spectrum for all, so that only the transfer makes a difference
        name: Candidates(
            c.sizes, next(iter(found.values())).errors, c.total, c.build,
            next(iter(found.values())).spectrum, c.ranks,
        )
        for name, c in found.items()
    }  # fmt: skip
    chosen = allocate(Budget(same, dense, 0.4, {}), "d_rank")
    mean = {
        kind: sum(chosen[name] for name in names) / len(names)
        for kind, names in by_type(chosen).items()
    }
    assert mean["v_proj"] > mean["up_proj"] > mean["q_proj"]


def test_the_cap_holds():
    found, dense = spectra()
    free = allocate(Budget(found, dense, 0.4, {}), "loss")
    removed = {n: 1 - int(found[n].sizes[k]) / dense[n] for n, k in free.items()}
    assert max(removed.values()) > 0.6  # the control: without a cap there is more
    capped = allocate(Budget(found, dense, 0.4, {}), "loss", cap=0.6)
    for name, k in capped.items():
        assert 1 - int(found[name].sizes[k]) / dense[name] <= 0.6
    assert sum(int(found[n].sizes[k]) for n, k in capped.items()) <= 0.6 * sum(dense.values())


def test_given_shares():
    found, dense = spectra(2)
    budget = Budget(found, dense, 0.5, {})
    chosen = allocate(budget, {"layers.0.q_proj": 0.8, "q_proj": 0.1, "layers.1.*": 0.3})
    for name, share in {
        "layers.0.q_proj": 0.8,
        "layers.1.q_proj": 0.1,
        "layers.1.k_proj": 0.3,
        "layers.0.k_proj": 0.5,
    }.items():
        assert chosen[name] == found[name].within(dense[name] * (1 - share))


def test_layers_of_which_nothing_is_known_lose_the_same_share():
    found, dense = spectra(2)
    name = "layers.0.up_proj"
    found[name] = Candidates(
        found[name].sizes, found[name].errors * 1e9, 1e9, found[name].build, compared=False
    )
    budget = Budget(found, dense, 0.4, {})
    chosen = allocate(budget, "loss")
    assert chosen[name] == found[name].within(0.6 * dense[name])
    assert sum(int(found[n].sizes[k]) for n, k in chosen.items()) <= budget.numbers


def test_steps_back_and_forth():
    found = {
        "a": candidates([2, 4, 6], [9.0, 4.0, 3.0], low_rank=True),
        "b": candidates([2, 4, 6], [8.0, 2.0, 0.0], low_rank=True),
    }
    budget = Budget(found, {"a": 10, "b": 10}, 0.6, {})  # 8 numbers
    assert spend_rest(budget, {"a": 2, "b": 2}) == {"a": 1, "b": 1}
    assert spend_rest(budget, {"a": 0, "b": 0}) == {"a": 1, "b": 1}


def test_bad_arguments():
    found, dense = spectra(1)
    budget = Budget(found, dense, 0.4, {})
    with pytest.raises(
        ValueError, match="allocation must be one of block_influence, d_rank, knapsack, loss"
    ):
        allocate(budget, "magic")
    with pytest.raises(ValueError, match=r"allocation\['q_proj'\] must be at least 0 and below 1"):
        allocate(budget, {"q_proj": 1.5})
    with pytest.raises(ValueError, match="'nothing' matches no layer"):
        allocate(budget, {"nothing": 0.5})
    with pytest.raises(ValueError, match=r"max_layer_ratio must be between ratio = 0\.4 and 1"):
        allocate(budget, "loss", cap=0.3)
    plain = {"a": candidates([1, 2], [1.0, 0.0])}
    for name in ("d_rank", "welore"):
        with pytest.raises(ValueError, match="needs a low-rank method: layer 'a' has no spectrum"):
            allocate(Budget(plain, {"a": 2}, 0.4, {}), name)
    with pytest.raises(ValueError, match="sizes must ascend"):
        candidates([2, 2], [1.0, 0.0])
    with pytest.raises(ValueError, match="vectors of one length"):
        candidates([2, 3], [1.0])


def fine(size=1000):
    """A layer of which any number of entries can be kept."""
    errors = torch.linspace(1, 0, size, dtype=torch.float64).tolist()
    return candidates(list(range(1, size + 1)), errors)


@pytest.mark.parametrize("compared", [True, False])
def test_the_blocks_that_do_little_lose_most(compared):
    found = {name: fine() for name in "abc"}
    found["b"] = Candidates(
        found["b"].sizes, found["b"].errors, 1.0, lambda index: None, compared=compared
    )
    # With 0.1 as the unit, removed in proportion 4 : 2 : 1.
    influences = {"a": 0.3, "b": 0.3 + 0.1 * math.log(2), "c": 0.3 + 0.1 * math.log(4)}
    budget = Budget(found, dict.fromkeys("abc", 1000), 0.35, {}, influences)
    chosen = allocate(budget, "block_influence")
    removed = [1000 - int(found[name].sizes[chosen[name]]) for name in "abc"]
    # 1050 numbers in all; rounding to whole ones may move one from each to another.
    assert removed == pytest.approx([600, 300, 150], abs=2)
    alike = allocate(Budget(found, budget.dense, 0.35, {}), "block_influence")
    assert all(abs(1000 - int(found[n].sizes[k]) - 350) <= 2 for n, k in alike.items())


def test_no_block_loses_more_than_it_has():
    found = {name: fine() for name in "abc"}
    influences = {"a": 0.0, "b": 1.0, "c": 1.0}
    budget = Budget(found, dict.fromkeys("abc", 1000), 0.6, {}, influences)
    chosen = allocate(budget, "block_influence")
    kept = {name: int(found[name].sizes[k]) for name, k in chosen.items()}
    assert kept["a"] == 1
    assert kept["b"] + kept["c"] == 1199
    assert abs(kept["b"] - kept["c"]) <= 2
    capped = allocate(budget, "block_influence", cap=0.7)
    assert int(found["a"].sizes[capped["a"]]) == 300

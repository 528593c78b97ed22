"""What a rank costs in each form, and the ranks for a budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn.compression import LayerProblem
from fastlr.nn.compression.forms import FORMS, form_named
from fastlr.nn.compression.methods.low_rank import low_rank_candidates

SIZES = st.integers(1, 24)


@pytest.mark.parametrize("form", sorted(FORMS))
@given(o=SIZES, i=SIZES, ratio=st.floats(0.001, 0.999))
def test_the_rank_is_the_largest_within_the_budget(form, o, i, ratio):
    """Against a plain search over all ranks; the dense layer where no rank is smaller."""
    found = low_rank_candidates(LayerProblem("layer", torch.nn.Linear(i, o)), form)
    budget = o * i * (1 - ratio)
    sizes = {r: FORMS[form].parameters(o, i, r) for r in range(1, min(o, i) + 1)}
    smaller = {r: size for r, size in sizes.items() if size < o * i}
    fitting = [r for r, size in smaller.items() if size <= budget]
    expected = max(fitting, default=min(smaller, default=min(o, i)))
    index = found.within(budget)
    assert int(found.ranks[index]) == expected
    assert int(found.sizes[index]) == smaller.get(expected, o * i)


@pytest.mark.parametrize("multiple", [3, 8])
def test_only_multiples_are_offered(multiple):
    found = low_rank_candidates(
        LayerProblem("layer", torch.nn.Linear(30, 20)), "interpolative", multiple=multiple
    )
    assert all(rank % multiple == 0 for rank in found.ranks[:-1].tolist())
    assert len(found.ranks) > 2


def test_known_sizes():
    assert FORMS["factored"].parameters(576, 1536, 335) == 335 * (576 + 1536)
    assert FORMS["interpolative"].parameters(576, 576, 576) == 576**2
    assert FORMS["dense"].parameters(9, 5, 2) == FORMS["interpolative"].parameters(9, 5, 2) == 24


def test_unknown_names_list_the_known():
    with pytest.raises(
        ValueError, match="form must be one of dense, factored, interpolative, got 'x'"
    ):
        form_named("x")

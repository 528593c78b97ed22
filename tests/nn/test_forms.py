"""Ranks for a budget of parameters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlr.nn.compress.allocation import allocation_named, uniform
from fastlr.nn.compress.forms import FORMS, form_named

SIZES = st.integers(1, 5000)


@pytest.mark.parametrize("form", sorted(FORMS))
@given(o=SIZES, i=SIZES, ratio=st.floats(0.001, 0.999))
def test_the_rank_is_the_largest_within_the_budget(form, o, i, ratio):
    chosen = FORMS[form]
    rank = uniform({"layer": (o, i)}, ratio, chosen)["layer"]
    budget = o * i * (1 - ratio)
    assert 1 <= rank <= min(o, i)
    if rank > 1:
        assert chosen.parameters(o, i, rank) <= budget
    if rank < min(o, i):
        assert chosen.parameters(o, i, rank + 1) > budget
    if form != "factored":
        assert chosen.parameters(o, i, rank) <= o * i


def test_known_ranks():
    shapes = {"q": (576, 576), "k": (192, 576), "up": (1536, 576)}
    assert uniform(shapes, 0.2, FORMS["factored"]) == {"q": 230, "k": 115, "up": 335}
    interpolative = uniform(shapes, 0.2, FORMS["interpolative"])
    assert interpolative["q"] == int(576 * (1 - 0.2**0.5))
    assert uniform(shapes, 0.2, FORMS["dense"]) == interpolative
    # Nearly nothing removed: the interpolative form is exact, the factored one halves the rank.
    assert uniform(shapes, 1e-9, FORMS["interpolative"])["q"] == 575
    assert uniform(shapes, 1e-9, FORMS["factored"])["q"] == 287


def test_unknown_names_list_the_known():
    with pytest.raises(
        ValueError, match="form must be one of dense, factored, interpolative, got 'x'"
    ):
        form_named("x")
    with pytest.raises(ValueError, match="allocation must be one of uniform, got 'x'"):
        allocation_named("x")

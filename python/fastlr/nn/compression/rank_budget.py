"""Sharing a budget of numbers between maps of low rank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor


def shared_ranks(
    gains: Mapping[str, Tensor], costs: Mapping[str, int], numbers: int
) -> dict[str, int]:
    """The ranks that gain the most in all, within a budget.

    Parameters
    ----------
    gains : mapping from layer name to Tensor of shape (k,)
        What each further direction of a layer is worth; descending.
    costs : mapping from layer name to int
        The numbers of one direction.
    numbers : int
        What all may cost together.

    Returns
    -------
    dict
        A rank for each layer, perhaps 0: directions without any gain are not taken.

    Notes
    -----
    The total gain is a sum of concave functions of the ranks, so that one multiplier λ shares the
    budget: a layer takes the directions whose gain a number is above λ. That is the best choice of
    its size. Where the first direction below λ does not fit in, what is left over goes to those of
    other layers that do, in the same order. One sort of all gains.
    """
    names = list(gains)
    owner = np.repeat(np.arange(len(names)), [len(gains[name]) for name in names])
    worth = np.concatenate([gains[name].cpu().numpy() / costs[name] for name in names])
    ranks = dict.fromkeys(names, 0)
    full: set[str] = set()
    # Stable: a layer's equal gains stay in their order.
    for place in np.argsort(-worth, kind="stable"):
        if worth[place] <= 0:
            break
        name = names[owner[place]]
        if costs[name] > numbers:
            full.add(name)
        if name not in full:
            ranks[name] += 1
            numbers -= costs[name]
        elif len(full) == len(names):
            break
    return ranks

"""One choice for every layer within a budget of bits: an integer program, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def best_choices(
    errors: Mapping[str, Sequence[float]], costs: Mapping[str, Sequence[int]], budget: int
) -> dict[str, int]:
    """The choice of each layer for which the sum of the errors is least.

    Parameters
    ----------
    errors, costs : mapping
        Layer → the error and the bits of each of its choices.
    budget : int
        The most bits of all layers.

    Returns
    -------
    dict
        Layer → the index of its choice.

    Raises
    ------
    ValueError
        If the cheapest choices exceed the budget.

    Notes
    -----
    The multiple-choice knapsack problem, by lists of undominated pairs of bits and error that take
    one layer after the other [1]_. A list is no longer than there are sums of bits; those of the
    layers of a model have large common divisors.

    References
    ----------
    .. [1] G. L. Nemhauser, Z. Ullmann, "Discrete dynamic programming and capital allocation",
       Management Science 15, 1969.
    """
    # The least that layers from here on take.
    rest = sum(map(min, costs.values()))
    if rest > budget:
        raise ValueError(f"the cheapest choices take {rest} bits, the budget is {budget}")
    bits, error = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for name in errors:
        rest -= min(costs[name])
        all_bits = np.add.outer(bits, np.asarray(costs[name], np.int64)).ravel()
        all_errors = np.add.outer(error, np.asarray(errors[name])).ravel()
        fits = np.flatnonzero(all_bits + rest <= budget)
        order = fits[np.lexsort((all_errors[fits], all_bits[fits]))]
        least = np.minimum.accumulate(all_errors[order])
        order = order[np.concatenate([[True], least[1:] < least[:-1]])]
        bits, error = all_bits[order], all_errors[order]
        steps.append(np.divmod(order, len(costs[name])))
    chosen = {}
    place = len(bits) - 1
    for name, (before, choice) in zip(reversed(list(errors)), reversed(steps), strict=True):
        chosen[name] = int(choice[place])
        place = int(before[place])
    return {name: chosen[name] for name in errors}

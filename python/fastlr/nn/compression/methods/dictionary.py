"""What the dictionary methods share: sizes that a layer may take, and the errors they start at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastlr.nn.compression.dictionary_solver import Combination, Targets, start
from fastlr.nn.compression.dictionary_start import Choice, Ranked
from fastlr.nn.compression.problem import Candidates, LayerProblem
from fastlr.nn.compression.solver import Solution, solve
from fastlr.nn.modules import DictionaryLinear
from fastlr.nn.modules.dense import dense_weight

# The sizes that are offered, in parts of the dense one.
_STEPS = 4096
# The steps between the numbers of atoms of which the error is computed: a part of the atoms, at
# most a part of all that there can be. With all atoms, so many numbers of coefficients.
_STEP_OF_ATOMS = 1 / 12
_STEP_OF_ALL = 1 / 48
_MORE = 8


@dataclass(frozen=True)
class Sizes:
    """What a layer of o outputs and i inputs may become: so many atoms and coefficients.

    Each size has the number of atoms that comes nearest to it where a row has half of them; what
    is left, or missing, is made up for by coefficients.

    Attributes
    ----------
    numbers, atoms, nonzeros : Tensor of shape (n,), int64
        What is stored, ascending, and what makes it.
    beside : Tensor of shape (m,), int64
        What the dictionary and the mask take, for each number of atoms from 1.
    """

    numbers: Tensor
    atoms: Tensor
    nonzeros: Tensor
    beside: Tensor

    @classmethod
    def of(cls, rows: int, columns: int, dtype: torch.dtype, most: int | None = None) -> Sizes:
        """Below the dense size, a dictionary of no more atoms than the shorter side.

        With `most`, up to it.
        """
        entries = rows * columns
        steps = {round(entries * step / _STEPS) for step in range(1, _STEPS)} - {entries}
        if most is not None:
            steps = {step for step in steps if step < most} | {most}
        numbers = torch.tensor(sorted(steps - {0}), dtype=torch.int64)
        counts = range(1, min(rows, columns) + 1)
        masks = [DictionaryLinear.mask_numbers(rows, k, dtype) for k in counts]
        beside = torch.tensor(counts) * columns + torch.tensor(masks)
        whole = beside + torch.tensor(counts) * rows // 2
        place = torch.searchsorted((whole[1:] + whole[:-1]) // 2, numbers)
        nonzeros = numbers - beside[place]
        possible = (nonzeros > 0) & (nonzeros <= rows * (place + 1))
        return cls(numbers[possible], (place + 1)[possible], nonzeros[possible], beside)


@dataclass(frozen=True)
class Node:
    """A number of atoms and of coefficients for which the error of the start is computed."""

    atoms: int
    nonzeros: int


def nodes(rows: int, columns: int, sizes: Sizes) -> list[Node]:
    """From one atom to all, with half of the coefficients, then with more of them."""
    most, largest = len(sizes.beside), rows * columns - 1
    found = [Node(1, -(-rows // 2))]
    while found[-1].atoms < most:
        atoms = found[-1].atoms
        step = min(_STEP_OF_ATOMS * atoms, _STEP_OF_ALL * most)
        atoms = min(most, atoms + max(1, int(step)))
        found.append(Node(atoms, -(-rows * atoms // 2)))
    half, room = found[-1].nonzeros, largest - int(sizes.beside[-1])
    steps = (half + (room - half) * step // _MORE for step in range(1, _MORE + 1))
    found.extend(Node(most, nonzeros) for nonzeros in steps if room > half)
    return [node for node in found if sizes.beside[node.atoms - 1] + node.nonzeros <= largest]


def dictionary_candidates(
    problem: LayerProblem,
    scores: Callable[[Solution], Tensor],
    choose: Choice,
    refine: Callable[[Targets, Combination], Combination],
) -> Candidates:
    """Sparse combinations S D of atoms, started at the principal components of the outputs.

    `scores` (o × m) and `choose` say which coefficients are kept, `refine` fits what has been
    started. The errors are those of the start: energies, known without any fit, at some sizes, and
    between these on a straight line.
    """
    dtype = dense_weight(problem.linear).dtype
    working = _working(dtype)
    solution = solve(problem.weight, problem.inputs)
    sizes = Sizes.of(*problem.shape, dtype)

    def build(index: int) -> nn.Module | None:
        if index == len(sizes.numbers):
            return None
        size = int(sizes.atoms[index]), int(sizes.nonzeros[index])
        return fitted(problem.linear, solution, *size, scores, choose, refine)

    known = {0: 1.0, problem.entries: 0.0}
    ranked = _ranked(solution, scores, working)
    # From the most atoms to the fewest: each selection is made of the one before.
    for node in reversed(nodes(*problem.shape, sizes)):
        ranked = ranked.first(node.atoms)
        size = int(sizes.beside[node.atoms - 1]) + node.nonzeros
        known[size] = ranked.lost(choose(ranked, node.nonzeros))
    numbers = np.append(sizes.numbers.numpy(), problem.entries)
    places = sorted(known)
    shares = np.interp(numbers, places, [known[place] for place in places])
    return Candidates(
        torch.from_numpy(numbers),
        torch.from_numpy(shares) * solution.total,
        solution.total,
        build,
        compared=problem.inputs is not None,
    )


def fitted(
    linear: nn.Module,
    solution: Solution,
    atoms: int,
    nonzeros: int,
    scores: Callable[[Solution], Tensor],
    choose: Choice,
    refine: Callable[[Targets, Combination], Combination],
) -> DictionaryLinear:
    """The layer of so many atoms and coefficients in place of a dense one."""
    working = _working(dense_weight(linear).dtype)
    ranked = _ranked(solution, scores, working).first(atoms)
    mask = ranked.mask(choose(ranked, nonzeros))
    targets = Targets.of(solution, working)
    found = refine(targets, start(solution, targets, mask))
    dictionary = found.atoms[:, targets.seen :].double() * targets.scale
    return DictionaryLinear.in_place_of(linear, dictionary, found.coefficients, found.mask)


def _working(dtype: torch.dtype) -> torch.dtype:
    """What is fitted need not be exact, only no worse: float32, but for a float64 layer."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _ranked(solution: Solution, scores: Callable[[Solution], Tensor], dtype: torch.dtype) -> Ranked:
    energies = solution.basis.square() * solution.energies
    return Ranked.of(scores(solution).to(dtype), energies.to(dtype))

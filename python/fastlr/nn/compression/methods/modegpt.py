"""Whole hidden units of the MLPs and dimensions of the heads are left out: layers become smaller.

C.-H. Lin, S. Gao, J. S. Smith, A. Patel, S. Tuli, Y. Shen, H. Jin, Y.-C. Hsu, "MoDeGPT: Modular
decomposition for large language model compression", ICLR 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.methods import svd_llm
from fastlr.nn.compression.problem import Candidates, LayerGroup, LayerProblem, sums_beyond
from fastlr.nn.compression.solver import solve
from fastlr.nn.compression.sparse_solver import inverse_diagonal
from fastlr.nn.compression.structure import Attention, Mlp, find_structures
from fastlr.nn.modules import SubsetLinear
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision

# Of the mean of the units' energies: directions that hold less than one unit count little. Ten
# times as much or as little changes the errors by a few percent.
RIDGE = 1.0
# Of each unit's own energy, added to it: dead units and copies of others have a Cholesky factor.
# Far above its rounding, n·2⁻⁵³, and far below what shows in an error.
_DAMPING = 2.0**-32


def join(
    model: nn.Module, problems: Sequence[LayerProblem], ratio: float, form: str
) -> list[LayerGroup]:
    """Each MLP is a group, and of each attention queries with keys, and values with the output.

    What is in no such structure is compressed alone, by ``svd_llm``.
    """
    return [group for part in find_structures(model, problems) for group in _groups(part)]


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """A layer alone: of low rank, with the inputs as weights, in the interpolative form."""
    # Its error is in the unit of its own output, not in that of what a block adds.
    return replace(svd_llm.prepare(problem, "interpolative", multiple), compared=False)


def unit_candidates(mlp: Mlp) -> Candidates:
    """All numbers of hidden units; the reader is refitted to those that are kept.

    With C = Σ h hᵀ of the hidden units h, ridge leverage scores diag(C (C + λI)⁻¹) say which are
    kept, J; and W C[:, J] C[J, J]⁻¹ is the reader of these with the least Σ ‖Wh − W'h_J‖². The
    errors of all numbers come from one Cholesky factor of C, in the order of the scores.
    """
    reader = mlp.reader
    inputs = _inputs(reader)
    order = _by_leverage(inputs.unit)
    scaled, scales = _unit_diagonal(inputs.unit)
    factor = torch.linalg.cholesky(scaled[order][:, order])
    lost = ((reader.weight * scales)[:, order] @ factor).square().sum(0) * inputs.scale
    units = len(order)
    each = reader.shape[0] + sum(maker.shape[1] for maker in mlp.makers)

    def kept(count: int) -> Tensor:
        return order[:count].sort().values

    def build(count: int) -> dict[str, nn.Module]:
        chosen = kept(count)
        layers: dict[str, nn.Module] = {
            maker.name: _with_rows(maker, chosen, in_place=False) for maker in mlp.makers
        }
        layers[reader.name] = SubsetLinear.in_place_of(
            reader.linear, _refitted(reader.weight, inputs.unit, chosen), dense_bias(reader.linear)
        )
        return layers

    def restored(count: int, name: str, composed: Tensor) -> Tensor:
        chosen = kept(count).to(composed.device)
        dim = 1 if name == reader.name else 0
        shape = list(composed.shape)
        shape[dim] = units
        return composed.new_zeros(shape).index_copy(dim, chosen, composed)

    numbers = [each * count for count in range(1, units)]
    return _candidates((*mlp.makers, reader), numbers, lost, build, restored=restored)


def score_candidates(attention: Attention) -> Candidates:
    """All numbers of dimensions of the heads of queries and keys.

    A dimension, or a pair that positions rotate, is worth E‖q_t‖²·E‖k_t‖²: the mean square of what
    it adds to a product q·k, if queries and keys do not depend on each other, summed over the query
    heads that use one key head. All key heads keep as many, each its own. The other outputs are
    zeros, which add nothing to any product.
    """
    queries, keys = attention.queries, attention.keys
    heads, sharing, width = attention.key_heads, attention.sharing, attention.head_dim
    rotated = 2 if attention.rotated else 1
    parts = width // rotated
    of_queries, of_keys = (
        _output_energies(problem).view(heads, -1, rotated, parts).sum((1, 2))
        for problem in (queries, keys)
    )
    worth = of_queries * of_keys
    order = worth.argsort(dim=1, descending=True, stable=True)

    def rows(count: int, copies: int) -> Tensor:
        steps = parts * torch.arange(rotated, device=order.device)
        chosen = (order[:, None, :count] + steps[:, None]).flatten(1).sort(dim=1).values
        return _in_heads(chosen.repeat_interleave(copies, dim=0), width)

    def build(count: int) -> dict[str, nn.Module]:
        return {
            problem.name: _with_rows(problem, rows(count, copies), in_place=True)
            for problem, copies in ((queries, sharing), (keys, 1))
        }

    def stored(count: int) -> int:
        return sum(
            _numbers(problem, rows=copies * heads * rotated * count)
            for problem, copies in ((queries, sharing), (keys, 1))
        )

    numbers = [stored(count) for count in range(1, parts)]
    lost = worth.gather(1, order).sum(0)
    # Squares of scores: not in the unit that the errors of outputs have.
    return _candidates((queries, keys), numbers, lost, build, compared=False)


@dataclass(frozen=True)
class _Subspace:
    """What one head of values is replaced by: z ↦ basis @ coordinates, of r dimensions.

    `values` is r × (i + 1), the coordinates of a value from its input and a one; `coordinates` is
    r × d, the same from the whole value.
    """

    basis: Tensor
    values: Tensor
    coordinates: Tensor


def value_candidates(attention: Attention) -> Candidates:
    """All dimensions r of the heads of values.

    Of each head V, the V' of rank r with the least Σ_j ‖O_j (V − V')x‖² over its inputs x and over
    the columns O_j of the output layer that belong to the query heads j that use it. V' = B A is
    stored as A in the first r outputs of the head, and O_j B in the columns for them.
    """
    values, output = attention.values, attention.output
    heads, sharing, width = attention.key_heads, attention.sharing, attention.head_dim
    weight, inputs = _with_bias(values)
    read = output.weight.reshape(-1, heads, sharing, width)
    importances = torch.einsum("okjs,okjt->kst", read, read)
    solutions = [
        solve(head, inputs, left=importance)
        for head, importance in zip(weight.reshape(heads, width, -1), importances, strict=True)
    ]

    def subspaces(count: int) -> Iterator[_Subspace]:
        for solution, importance in zip(solutions, importances, strict=True):
            truncation = solution.truncate(count)
            # Orthonormal: values stay as large as they are, which half types need.
            basis, triangle = torch.linalg.qr(truncation.basis)
            seen = basis.T @ importance
            coordinates = torch.linalg.pinv(seen @ basis, hermitian=True) @ seen
            yield _Subspace(basis, triangle @ truncation.projected, coordinates)

    def build(count: int) -> dict[str, nn.Module]:
        found = list(subspaces(count))
        coordinates = torch.cat([head.values for head in found])
        bias = None if dense_bias(values.linear) is None else coordinates[:, -1]
        columns = torch.cat(
            [(read[:, k] @ head.basis).flatten(1) for k, head in enumerate(found)], dim=1
        )
        first = torch.arange(count, device=weight.device)
        return {
            values.name: SubsetLinear.in_place_of(
                values.linear,
                coordinates[:, : values.shape[1]],
                bias,
                rows=_in_heads(first.expand(heads, -1), width),
            ),
            output.name: SubsetLinear.in_place_of(
                output.linear,
                columns,
                dense_bias(output.linear),
                columns=_in_heads(first.expand(heads * sharing, -1), width),
            ),
        }

    def restored(count: int, name: str, composed: Tensor) -> Tensor:
        new = composed.to(weight.device)
        found = subspaces(count)
        if name == values.name:
            by_head = new.view(heads, width, -1)[:, :count]
            return torch.cat([h.basis @ v for h, v in zip(found, by_head, strict=True)])
        by_head = new.view(-1, heads, sharing, width)[..., :count].movedim(1, 0)
        columns = [o @ h.coordinates for h, o in zip(found, by_head, strict=True)]
        return torch.cat([part.flatten(1) for part in columns], dim=1)

    def stored(count: int) -> int:
        return _numbers(values, rows=heads * count) + _numbers(
            output, columns=heads * sharing * count
        )

    numbers = [stored(count) for count in range(1, min(width, weight.shape[1]))]
    lost = torch.stack([s.energies * s.total for s in solutions]).sum(0)
    return _candidates((values, output), numbers, lost, build, restored=restored)


def _groups(part: Mlp | Attention | LayerProblem) -> Iterator[LayerGroup]:
    if isinstance(part, Mlp):
        yield _group((*part.makers, part.reader), partial(unit_candidates, part))
    elif isinstance(part, Attention):
        if part.obstacle:
            yield _alone(part.queries, part.obstacle)
            yield _alone(part.keys, part.obstacle)
        else:
            yield _group((part.queries, part.keys), partial(score_candidates, part))
        yield _group((part.values, part.output), partial(value_candidates, part))
    else:
        yield _alone(part, "it is in no structure that is recognised")


def _group(members: tuple[LayerProblem, ...], found: Callable[[], Candidates]) -> LayerGroup:
    parent = members[0].name.rpartition(".")[0]
    children = "+".join(problem.name.rpartition(".")[2] for problem in members)
    # There is one form, and multiples are asked of ranks only.
    return LayerGroup(f"{parent}.{children}", members, lambda form, multiple: found())


def _alone(problem: LayerProblem, why: str) -> LayerGroup:
    note = "; ".join(
        part for part in (problem.note, f"compressed alone, by svd_llm: {why}") if part
    )
    return LayerGroup(problem.name, (replace(problem, note=note),), partial(prepare, problem))


def _candidates(
    members: Sequence[LayerProblem],
    numbers: Sequence[int],
    lost: Tensor,
    build: Callable[[int], dict[str, nn.Module]],
    *,
    compared: bool = True,
    restored: Callable[[int, str, Tensor], Tensor] | None = None,
) -> Candidates:
    """Those of 1, 2, … kept parts that need fewer numbers than the dense layers, and these.

    `lost` is the error that each part saves, in the order in which they are kept.
    """
    dense = sum(problem.entries for problem in members)
    smaller = [size for size in numbers if size < dense]
    errors = sums_beyond(lost)
    return Candidates(
        torch.tensor([*smaller, dense]),
        torch.cat((errors[1 : len(smaller) + 1], errors.new_zeros(1))),
        float(errors[0]),
        lambda index: build(index + 1) if index < len(smaller) else {},
        compared=compared,
        restored=restored and (lambda index, *of: restored(index + 1, *of)),
    )


def _inputs(problem: LayerProblem) -> Gram:
    """The moments of the inputs, which are known of all layers in a structure."""
    assert problem.inputs is not None
    return problem.inputs


def _with_bias(problem: LayerProblem) -> tuple[Tensor, Gram]:
    """[W b] and the moments of (x, 1): a bias is one more column, whose input is one."""
    weight, inputs, bias = problem.weight, _inputs(problem), dense_bias(problem.linear)
    if bias is None:
        return weight, inputs
    # Where the sum of the inputs was not collected they count as centred.
    total = inputs.matrix.new_zeros(len(inputs.matrix)) if inputs.total is None else inputs.total
    corner = total.new_full((1,), inputs.tokens)
    lower = torch.cat((total, corner))
    moments = torch.cat((torch.cat((inputs.matrix, total[:, None]), dim=1), lower[None]))
    return torch.cat((weight, high_precision(bias)[:, None]), dim=1), Gram(moments, inputs.tokens)


def _output_energies(problem: LayerProblem) -> Tensor:
    """Σ y² of each output over the calibration tokens."""
    weight, inputs = _with_bias(problem)
    return ((weight @ inputs.matrix) * weight).sum(1).clamp(min=0)


def _by_leverage(moments: Tensor) -> Tensor:
    """The units by descending diag(C (C + λI)⁻¹), which is 1 − λ·diag((C + λI)⁻¹)."""
    ridge = RIDGE * moments.diagonal().mean()
    if ridge <= 0:
        return torch.arange(len(moments), device=moments.device)
    damped = moments + ridge * torch.eye(len(moments)).to(moments)
    return inverse_diagonal(damped, len(moments)).argsort(stable=True)


def _unit_diagonal(moments: Tensor) -> tuple[Tensor, Tensor]:
    """C between the inverses of the roots of its diagonal, damped, and these roots.

    Ones for the roots of units that are never active.
    """
    scales = moments.diagonal().clamp(min=0).sqrt()
    scales = torch.where(scales > 0, scales, 1.0)
    scaled = moments / scales / scales[:, None]
    scaled.diagonal().add_(_DAMPING)
    return scaled, scales


def _refitted(weight: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """W C[:, J] C[J, J]⁻¹: the kept columns, and what makes up for the others."""
    dropped = torch.ones(len(moments), dtype=torch.bool, device=moments.device)
    dropped[kept] = False
    scaled, scales = _unit_diagonal(moments)
    factor = torch.linalg.cholesky(scaled[kept][:, kept])
    shared = ((weight * scales)[:, dropped] @ scaled[dropped][:, kept]).T
    return weight[:, kept] + torch.cholesky_solve(shared, factor).T / scales[kept]


def _with_rows(problem: LayerProblem, rows: Tensor, *, in_place: bool) -> SubsetLinear:
    """Only these outputs: where they were, or, if not `in_place`, as the only ones there are."""
    bias = dense_bias(problem.linear)
    return SubsetLinear.in_place_of(
        problem.linear,
        problem.weight[rows],
        None if bias is None else bias[rows.to(bias.device)],
        rows=rows if in_place else None,
    )


def _in_heads(dims: Tensor, width: int) -> Tensor:
    """Of h × c dimensions, c in each of h heads, the numbers among all outputs."""
    return (dims + width * torch.arange(len(dims), device=dims.device)[:, None]).flatten()


def _numbers(problem: LayerProblem, *, rows: int | None = None, columns: int | None = None) -> int:
    """What is stored of a layer that keeps so many rows and columns in their places."""
    height, width = problem.shape
    rows, columns = rows or height, columns or width
    dtype = dense_weight(problem.linear).dtype
    beside = SubsetLinear.index_numbers(rows, height, dtype)
    return rows * columns + beside + SubsetLinear.index_numbers(columns, width, dtype)

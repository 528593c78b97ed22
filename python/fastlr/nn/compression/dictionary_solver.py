"""A weight as sparse combinations of a few atoms, seen through the layer's inputs.

W' = S D with S sparse, o × k, and D, k × i; least is to be ‖(W − S D)X‖. With G = X Xᵀ and the
eigenvectors U and eigenvalues σ² of W G Wᵀ, WX is V = UΣ up to a rotation from the right, which no
norm sees, and D X becomes A: least is ‖V − S A‖. For given S the best atoms A = S⁺V belong to
D = S⁺W, whatever G is. So neither a square root of G nor its inverse is needed, and G may be
singular: what the inputs never reach is fitted in the plain norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlr.nn.compression.gram import power_of_two_above
from fastlr.nn.compression.solver import Solution
from fastlr.nn.compression.sparse_solver import descent

# Iterations of conjugate gradients for the coefficients on their support.
_ITERATIONS = 12
# What a column of S, scaled to length one, is damped by: a few roundings of a Gram matrix.
_RIDGE = 16


@dataclass(frozen=True)
class Combination:
    """S and its mask, and the atoms, both as the outputs see them and as the inputs do.

    Attributes
    ----------
    coefficients : Tensor of shape (o, k)
        S, zero outside of the mask.
    mask : Tensor of shape (o, k), bool
    atoms : Tensor of shape (k, m + i)
        A and D, side by side: whatever is done to the rows of one is done to the other.
    """

    coefficients: Tensor
    mask: Tensor
    atoms: Tensor


@dataclass(frozen=True)
class Targets:
    """V and W side by side, o × (m + i), of which the first `seen` = m columns count.

    Their scales differ: V has norm one, and W is divided by `scale`.
    """

    both: Tensor
    seen: int
    scale: float

    @classmethod
    def of(cls, solution: Solution, dtype: torch.dtype) -> Targets:
        """In `dtype`, from all the best low-rank approximations of a weight."""
        scale = power_of_two_above(solution.weight)
        outputs = solution.basis * solution.energies.sqrt()
        both = torch.cat((outputs, solution.weight / scale), 1)
        return cls(both.to(dtype), outputs.shape[1], scale)

    @property
    def outputs(self) -> Tensor:
        """V."""
        return self.both[:, : self.seen]

    def residuals(self, found: Combination) -> Tensor:
        """V − S A."""
        return self.outputs - found.coefficients @ found.atoms[:, : self.seen]

    def error(self, found: Combination) -> float:
        """‖V − S A‖², relative to ‖V‖²."""
        return float(self.residuals(found).square().sum(dtype=torch.float64))


def start(solution: Solution, targets: Targets, mask: Tensor) -> Combination:
    """The first k principal components of the outputs, their coefficients cut to `mask` (o × k).

    The error is the energy beyond them and that of the coefficients that are cut.
    """
    count = mask.shape[1]
    dtype = targets.both.dtype
    seen = torch.diag(solution.energies.sqrt())[:count]
    atoms = torch.cat((seen, solution.projected[:count] / targets.scale), 1)
    coefficients = solution.basis[:, :count].to(dtype) * mask
    return Combination(coefficients, mask, atoms.to(dtype))


def with_best_atoms(targets: Targets, found: Combination) -> Combination:
    """The same coefficients with the atoms that suit them best: least squares for A and D at once.

    Notes
    -----
    What is added to the atoms is damped, not they: the error never rises, and an atom that no row
    has stays as it is. 2·o·k·(k + 2m + 2i) + k³/3 flops.
    """
    S = found.coefficients
    lengths = S.norm(dim=0)
    S = S / torch.where(lengths > 0, lengths, 1)
    normal = S.T @ S
    normal.diagonal().add_(_RIDGE * torch.finfo(S.dtype).eps * len(normal))
    missing = targets.both - found.coefficients @ found.atoms
    added = torch.cholesky_solve(S.T @ missing, torch.linalg.cholesky(normal))
    atoms = found.atoms + added / torch.where(lengths > 0, lengths, 1)[:, None]
    return Combination(found.coefficients, found.mask, atoms)


def with_best_coefficients(targets: Targets, found: Combination) -> Combination:
    """The same atoms and mask with nearly the best coefficients: the error never rises.

    Notes
    -----
    Conjugate gradients for all rows at once, 2·o·k² flops an iteration; atoms that principal
    components start are nearly orthogonal, and few iterations do.
    """
    atoms = found.atoms[:, : targets.seen]
    residuals = targets.residuals(found)
    added = descent(
        residuals @ atoms.T,
        float(residuals.square().sum()),
        found.mask.to(residuals.dtype),
        None,
        atoms @ atoms.T,
        most=_ITERATIONS,
    )
    return Combination(found.coefficients + added, found.mask, found.atoms)


def pursue(targets: Targets, atoms: Tensor, counts: Tensor, stages: int) -> Combination:
    """Choose the atoms of each row anew: orthogonal matching pursuit, all rows at once.

    Parameters
    ----------
    targets : Targets
    atoms : Tensor of shape (k, m + i)
    counts : Tensor of shape (o,), int64
        How many atoms each row gets, at most k.
    stages : int
        In how many stages. In each the atoms that are the most parallel to what is left of a row
        join it, then all its coefficients are fitted. As many stages as a row gets atoms make the
        textbook method of one atom at a time.

    Notes
    -----
    Each stage costs one product with the Gram matrix of the atoms, 2·o·k² flops, and the fit, in
    place of the progressive Cholesky factors of batch OMP [1]_, of which every row would need its
    own.

    References
    ----------
    .. [1] R. Rubinstein, M. Zibulevsky, M. Elad, "Efficient implementation of the K-SVD algorithm
       using batch orthogonal matching pursuit", Technion, 2008.
    """
    seen = atoms[:, : targets.seen]
    lengths = seen.norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, 1)
    empty = targets.both.new_zeros(len(counts), len(atoms))
    found = Combination(empty, empty.bool(), atoms)
    for stage in range(1, stages + 1):
        scores = (targets.residuals(found) @ seen.T).abs_() / lengths
        scores.masked_fill_(found.mask, torch.inf)
        quotas = -(-counts * stage // stages)
        mask = largest_of_rows(scores, quotas)
        found = with_best_coefficients(targets, Combination(found.coefficients, mask, atoms))
    return found


def largest_of_rows(scores: Tensor, counts: Tensor) -> Tensor:
    """A mask of the `counts[j]` largest entries of each row j."""
    most = int(counts.max())
    chosen = scores.topk(most).indices
    wanted = torch.arange(most, device=counts.device) < counts[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, wanted)


def better_rows(targets: Targets, old: Combination, new: Combination) -> Combination:
    """Row by row the better one of two combinations of the same atoms."""
    errors = [targets.residuals(found).square().sum(1, keepdim=True) for found in (old, new)]
    better = errors[1] < errors[0]
    return Combination(
        torch.where(better, new.coefficients, old.coefficients),
        torch.where(better, new.mask, old.mask),
        old.atoms,
    )

"""Arguments of the methods that all compressed forms of a tensor have."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import as_integer, as_real
from fastlr.linalg._arrays import as_tensor
from fastlr.linalg._observed import as_indices


def expanded(index: Any, dimensions: int, caller: str) -> list[Any]:
    """An integer or a slice for every dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError(f"{caller}: an index can have one Ellipsis, got {index!r}")
    for place, part in enumerate(parts):
        if part is not Ellipsis and not isinstance(part, slice):
            parts[place] = as_integer(part, caller, "an index (other than slices and Ellipsis)")
    given = sum(part is not Ellipsis for part in parts)
    if given > dimensions:
        raise IndexError(f"{caller}: {dimensions} dimensions were indexed by {given} indices")
    missing = [slice(None)] * (dimensions - given)
    if Ellipsis in parts:
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        return [*parts[:place], *missing, *parts[place + 1 :]]
    return [*parts, *missing]


def selected(X: Tensor, dimension: int, part: Any) -> Tensor:
    """What an integer or a slice, of any step, leaves of a dimension."""
    if isinstance(part, int):
        return X.select(dimension, part)
    places = torch.arange(X.shape[dimension], device=X.device).cpu().numpy()[part]
    return X.index_select(dimension, torch.as_tensor(places.copy(), device=X.device))


def entry_columns(
    indices: Any, sizes: Sequence[int], caller: str, device: torch.device
) -> list[Tensor]:
    """Places of entries, (p, d), as an index for each mode."""
    places = indices if isinstance(indices, Tensor) else torch.as_tensor(np.asarray(indices))
    d = len(sizes)
    if places.dim() != 2 or places.shape[1] != d:
        raise ValueError(f"{caller}: indices must have shape (p, {d}), got {tuple(places.shape)}")
    return [
        as_indices(places[:, mode], n, caller, f"indices[:, {mode}]").to(device)
        for mode, n in enumerate(sizes)
    ]


def mode_matrix(A: Any, n: int, like: Tensor, caller: str, *, numpy: bool) -> Tensor:
    """A matrix (p, n) or a vector (n,) that fibres of length n are multiplied by."""
    if isinstance(A, Tensor) is numpy:
        raise TypeError(f"{caller}: A must be of the kind of the tensor, NumPy or torch")
    matrix = A if isinstance(A, Tensor) else as_tensor(np.asarray(A))
    if matrix.dim() not in (1, 2) or matrix.shape[-1] != n:
        raise ValueError(
            f"{caller}: A must have shape (p, {n}) or ({n},), got {tuple(matrix.shape)}"
        )
    return matrix.detach().to(like)


def as_scale(number: Any, caller: str, *, complex_: bool) -> complex | float:
    """A number that a tensor is multiplied by."""
    if isinstance(number, complex | np.complexfloating):
        if not complex_:
            raise TypeError(f"{caller}: a real tensor takes a real number, got {number}")
        return complex(number)
    return as_real(number, caller, "the other side")


def as_divisor(number: Any, caller: str) -> float:
    """A real number other than zero."""
    divisor = as_real(number, caller, "the divisor")
    if divisor == 0:
        raise ZeroDivisionError(f"{caller}: division by zero")
    return divisor


def check_same(pairs: Sequence[tuple[Any, Any, str]], caller: str) -> None:
    """Refuse two tensors that differ in something: (of the one, of the other, its name)."""
    for mine, its, what in pairs:
        if mine != its:
            raise ValueError(
                f"{caller}: both tensors must have the same {what}, got {mine} and {its}"
            )

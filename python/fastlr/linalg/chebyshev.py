"""Chebyshev polynomials in one variable, on [−1, 1]: values, coefficients, calculus, degrees."""

import math

import torch
from torch import Tensor

# A tail is believed when so many more coefficients than are kept have been seen to be small, a
# share and a number: odd and even functions have zeros between their coefficients.
_MORE = 1.25
_AND = 5
# Coefficients are noise where those of the last tenth are above this part of as many from the
# middle on: 1/j falls to 0.56, and maxima of 50 independent ones hardly below 0.7.
_FLAT = 0.7


def nodes(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The extrema of the polynomial of this degree, cos(jπ/n), descending; 0 for degree 0.

    Nodes of degree n are every second one of degree 2n, to the bit.
    """
    if degree == 0:
        return torch.zeros(1, dtype=dtype, device=device)
    # The sine is odd to the bit, so that the nodes are symmetric.
    j = torch.arange(degree, -degree - 1, -2, dtype=torch.float64, device=device)
    points: Tensor = torch.sin(j / degree * (math.pi / 2)).to(dtype)
    return points


def coefficients(values: Tensor, dim: int = 0) -> Tensor:
    """From the values at the nodes, along a dimension, to the coefficients of the interpolant."""
    degree = values.shape[dim] - 1
    if degree == 0:
        return values.clone()
    inner = values.narrow(dim, 1, degree - 1).flip(dim)
    around = torch.cat([values, inner], dim)  # even on the circle, where t = cos θ
    if values.is_complex():
        transformed = torch.fft.fft(around, dim=dim).narrow(dim, 0, degree + 1)
    else:
        transformed = torch.fft.rfft(around, dim=dim).real
    scaled: Tensor = transformed / degree
    for end in (0, degree):
        scaled.select(dim, end).mul_(0.5)
    return scaled


def basis(points: Tensor, degree: int) -> Tensor:
    """All polynomials up to a degree at points of [−1, 1], shape (points, degree + 1)."""
    j = torch.arange(degree + 1, dtype=points.dtype, device=points.device)
    return torch.cos(torch.arccos(points)[:, None] * j)


def derivative(c: Tensor) -> Tensor:
    """The coefficients (degree + 1, …) of the derivative, one fewer, at least one."""
    if len(c) == 1:
        return torch.zeros_like(c)
    j = torch.arange(1, len(c), dtype=c.real.dtype, device=c.device)
    terms = c[1:] * (2 * j).reshape(-1, *[1] * (c.dim() - 1))
    # d_k is the sum of the terms 2j·c_j with j = k + 1, k + 3, …; half of it for k = 0.
    result = torch.empty_like(terms)
    for first in (0, 1):
        result[first::2] = terms[first::2].flip(0).cumsum(0).flip(0)
    result[0] /= 2
    return result


def integrals(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of every polynomial up to a degree over [−1, 1]."""
    j = torch.arange(degree + 1, dtype=torch.float64, device=device)
    even = torch.remainder(j, 2) == 0
    return torch.where(even, 2 / (1 - torch.where(even, j, 0) ** 2), 0).to(dtype)


def padded(c: Tensor, degree: int) -> Tensor:
    """Coefficients of a higher degree, zeros."""
    return torch.cat([c, c.new_zeros(degree + 1 - len(c), *c.shape[1:])])


def tails(c: Tensor, rounding: float) -> Tensor:
    """For every degree and function (degree + 1, functions), the sum of |c| above that degree.

    An interpolant of that degree differs from the polynomial by twice this at most, as every
    coefficient above is there once, and once in the alias of one below. Coefficients of the size of
    `rounding` at most count as zeros.
    """
    sizes = c.abs()
    sums = torch.where(sizes > rounding, sizes, 0).flip(0).cumsum(0).flip(0)
    return torch.cat([sums[1:], torch.zeros_like(sums[:1])])


def least_degree(tail: Tensor, allowed: float) -> int:
    """The first degree at which all tails are small enough."""
    return int((tail > allowed).any(1).sum())


def is_resolved(degree: int, seen: int) -> bool:
    """Whether coefficients up to `seen` show that those above `degree` are a tail."""
    return seen >= _MORE * degree + _AND


def largest_judged(most: int) -> int:
    """What has to be seen to judge a degree of `most`."""
    return math.ceil(_MORE * most) + _AND


def noise_level(c: Tensor) -> float:
    """The size of the last coefficients (degree + 1,) where they have ceased to fall; 0 else."""
    sizes, half, tenth = c.abs(), len(c) // 2, len(c) // 10
    early, late = float(sizes[half : half + tenth].max()), float(sizes[-tenth:].max())
    return float(sizes[half:].max()) if late >= _FLAT * early else 0.0


def last_above(c: Tensor, level: float) -> int:
    """The last degree with a coefficient above a level; 0 if there is none."""
    above = (c.abs() > level).nonzero()
    return int(above[-1, 0]) if len(above) else 0

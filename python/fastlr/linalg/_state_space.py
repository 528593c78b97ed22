"""Gaussian processes with Matérn kernels as linear systems, smoothed by scans over time."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# From here on exp(−gap) is zero, and powers of the gap do not overflow.
_FAR = 800.0


class Segment(NamedTuple):
    """What the states x, y at the two ends of a piece of time have to do with each other.

    y given x and the observations in between is N(F·x + mean, cov), and these observations alone
    say exp(linear·x − ½·x·precision·x) of x. Vectors have shape (times, ..., n), matrices
    (times, ..., n, n).
    """

    F: Tensor
    mean: Tensor
    cov: Tensor
    linear: Tensor
    precision: Tensor

    def at(self, times: slice | Tensor) -> "Segment":
        """Some of the times."""
        return Segment(*(part[times] for part in self))


class Smoothed(NamedTuple):
    """Processes at the times of their observations.

    Attributes
    ----------
    mean, cov : tensor, shapes (times, ..., rank) and (times, ..., rank, rank)
        Given all observations.
    past : (tensor, tensor)
        Mean and covariance of the states given the observations up to their own time.
    future : (tensor, tensor)
        What the observations from their own time on say of the states: linear term and precision.
    log_evidence : tensor, shape (...)
        log E exp(Σ linear·u − ½·u·precision·u), the expectation over the processes u.
    log_determinant : tensor, shape (...)
        Of I + K·Λ: K the covariance of the processes, Λ the precisions of the observations.
    """

    mean: Tensor
    cov: Tensor
    past: tuple[Tensor, Tensor]
    future: tuple[Tensor, Tensor]
    log_evidence: Tensor
    log_determinant: Tensor


class Matern:
    """`rank` independent processes of variance 1 and smoothness ν = p − 1/2, p = 1, 2, 3.

    The state has n = rank·p entries, the processes first, then their derivatives, by the time
    √(2ν)·|t − s|/length_scale: in it the spectral density is ∝ (1 + ω²)^−p, so that
    (d/dt + 1)ᵖ u is white noise. With A its companion matrix, A + I is nilpotent. Hence
    exp(A·x) = e^−x·Σ_{k<p} xᵏ(A + I)ᵏ/k!, and what noise adds in a time x is an integral of
    e^−2s·sᵏ, which incomplete gamma functions give without cancellation.
    """

    def __init__(self, nu: float, rank: int, device: torch.device) -> None:
        p = round(nu + 0.5)
        self.nu, self.rank, self.size = nu, rank, rank * p
        N = torch.eye(p, dtype=torch.float64) + torch.diag(torch.ones(p - 1).double(), 1)
        N[-1] -= torch.tensor([float(math.comb(p, k)) for k in range(p)], dtype=torch.float64)
        powers = [torch.linalg.matrix_power(N, k) / math.factorial(k) for k in range(p)]
        noise = torch.zeros(2 * p - 1, p, p, dtype=torch.float64)
        for k, m in itertools.product(range(p), repeat=2):
            integral = math.factorial(k + m) / 2.0 ** (k + m + 1)
            noise[k + m] += torch.outer(powers[k][:, -1], powers[m][:, -1]) * integral
        self._powers = torch.stack(powers).to(device)
        self._noise = (noise / noise.sum(0)[0, 0]).to(device)

    def rate(self, length_scale: float) -> float:
        """Of its time."""
        return math.sqrt(2 * self.nu) / length_scale

    def transition(self, gap: Tensor) -> Segment:
        """A piece of time without observations; infinite ones end in the stationary state."""
        x = gap.clamp(max=_FAR)[..., None, None]
        F = (-x).exp() * sum(x**k * power for k, power in enumerate(self._powers))
        Q = sum(
            torch.special.gammainc(torch.full_like(x, k + 1.0), 2 * x) * term
            for k, term in enumerate(self._noise)
        )
        zero, nothing = (x.new_zeros(*gap.shape, *[self.size] * k) for k in (1, 2))
        F = torch.where(x < _FAR, F, 0.0)
        return Segment(self._copies(F), zero, self._copies(Q), zero, nothing)

    def observation(self, linear: Tensor, precision: Tensor) -> Segment:
        """No time, and an observation that says exp(linear·u − ½·u·precision·u)."""
        left = self.size - self.rank
        h = torch.nn.functional.pad(linear, (0, left))
        J = torch.nn.functional.pad(precision, (0, left, 0, left))
        return known(h, J)

    def _copies(self, block: Tensor) -> Tensor:
        """The same matrix for each of the processes."""
        eye = torch.eye(self.rank, dtype=block.dtype, device=block.device)
        copies = block[..., :, None, :, None] * eye[:, None, :]
        return copies.reshape(*block.shape[:-2], self.size, self.size)


def known(linear: Tensor, precision: Tensor) -> Segment:
    """No time; of the state is said exp(linear·x − ½·x·precision·x)."""
    eye = torch.eye(linear.shape[-1], dtype=linear.dtype, device=linear.device)
    return Segment(
        eye.expand_as(precision),
        torch.zeros_like(linear),
        torch.zeros_like(precision),
        linear,
        precision,
    )


def join(first: Segment, second: Segment) -> Segment:
    """One piece of time after the other.

    Source: Särkkä, García-Fernández, "Temporal parallelization of Bayesian smoothers" (2021).
    """
    n = first.mean.shape[-1]
    known_next = torch.cat([second.precision, second.linear[..., None]], -1)
    product = first.cov @ known_next
    product.diagonal(dim1=-2, dim2=-1).add_(1)
    middle = first.mean[..., None] + product[..., n:]
    right = torch.cat([first.F, middle, first.cov], -1)
    solved = torch.linalg.solve(product[..., :n], right)
    moved = second.F @ solved
    F = solved[..., :n]
    told = second.precision @ torch.cat([F, first.mean[..., None]], -1)
    left_over = second.linear - told[..., n]
    return Segment(
        moved[..., :n],
        moved[..., n] + second.mean,
        _symmetric(moved[..., n + 1 :] @ second.F.mT) + second.cov,
        (F * left_over[..., None]).sum(-2) + first.linear,
        _symmetric(first.F.mT @ told[..., :n]) + first.precision,
    )


def smooth(kernel: Matern, gaps: Tensor, linear: Tensor, precision: Tensor) -> Smoothed:
    """Condition the processes on observations at `len(gaps) + 1` times.

    Parameters
    ----------
    kernel : Matern
    gaps : tensor, shape (times − 1, ...)
    linear : tensor, shape (times, rank)
    precision : tensor, shape (times, rank, rank)

    Notes
    -----
    2·log₂(times) batched joins from either end. No covariance is inverted, so that times may be
    as close as they are.
    """
    batch = gaps.shape[1:]
    stationary = gaps.new_full((1, *batch), math.inf)
    steps = kernel.transition(torch.cat([stationary, gaps]))
    seen = kernel.observation(
        linear.reshape(len(linear), *[1] * len(batch), -1).expand(-1, *batch, -1),
        precision.reshape(len(linear), *[1] * len(batch), *precision.shape[1:]).expand(
            -1, *batch, -1, -1
        ),
    )
    pieces = join(steps, seen)
    past = _scan(join, pieces)
    nothing = known(*(torch.zeros_like(part[:1]) for part in (past.linear, past.precision)))
    later = pieces.at(torch.arange(len(linear) - 1, 0, -1, device=linear.device))
    after = _scan(lambda last, first: join(first, last), later) if len(gaps) else later
    linear_after = torch.cat([after.linear.flip(0), nothing.linear])
    precision_after = torch.cat([after.precision.flip(0), nothing.precision])
    whole = join(past, known(linear_after, precision_after))
    rank = kernel.rank
    mean = whole.mean[..., :rank]
    ahead = steps.F[1:] @ past.cov[:-1] @ steps.F[1:].mT + steps.cov[1:]
    ahead = torch.cat([steps.cov[:1], ahead])[..., :rank, :rank]
    eye = torch.eye(rank, dtype=mean.dtype, device=mean.device)
    ratio = eye + ahead @ seen.precision[..., :rank, :rank]
    log_determinant = torch.linalg.slogdet(ratio).logabsdet.sum(0)
    fitted = (mean * seen.linear[..., :rank]).sum((0, -1))
    return Smoothed(
        mean,
        whole.cov[..., :rank, :rank],
        (past.mean, past.cov),
        (seen.linear + linear_after, seen.precision + precision_after),
        (fitted - log_determinant) / 2,
        log_determinant,
    )


def between(
    kernel: Matern,
    past: tuple[Tensor, Tensor],
    future: tuple[Tensor, Tensor],
    before: Tensor,
    after: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the processes at times between observations.

    `past` is of the observation before each time and `future` of the one after, `before` and
    `after` are the gaps to them: infinite where there is none.
    """
    zero = torch.zeros_like(past[1])
    start = Segment(zero, past[0], past[1], torch.zeros_like(past[0]), zero)
    here = join(start, kernel.transition(before))
    ahead = join(kernel.transition(after), known(*future))
    whole = join(here, known(ahead.linear, ahead.precision))
    return whole.mean[:, : kernel.rank], whole.cov[:, : kernel.rank, : kernel.rank]


def _scan(combine: Callable[[Segment, Segment], Segment], pieces: Segment) -> Segment:
    """Each piece joined to all before it."""
    size = len(pieces.mean)
    if size == 1:
        return pieces
    pairs = combine(pieces.at(slice(0, size - 1, 2)), pieces.at(slice(1, None, 2)))
    odd = _scan(combine, pairs)
    even = combine(odd.at(slice(0, (size - 1) // 2)), pieces.at(slice(2, None, 2)))
    whole = Segment(*(torch.empty_like(part) for part in pieces))
    for part, given, at_odd, at_even in zip(whole, pieces, odd, even, strict=True):
        part[0], part[1::2], part[2::2] = given[0], at_odd, at_even
    return whole


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2

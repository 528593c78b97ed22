"""Variational posterior of a Tucker decomposition whose factors are Gaussian processes."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlr.linalg._state_space import Matern, Smoothed, between, smooth
from fastlr.linalg.random import random_matrix

# Entries of the largest temporary.
_BLOCK = 1 << 21
# Shape of the prior of the core's precision, the mean of which belongs to the size of the values:
# else a few of them would be taken for noise, whatever they are.
_CORE_SHAPE = 1.0
# Noise is no smaller than that, relative to the largest value: its variance is learned with a
# prior that says so, and nothing else.
_VAGUE = 1e-12
LEAST_NOISE = 2.0**-20
# Of the first sweeps, relative to the mean square of the values: noise that is learned from
# functions that do not fit yet drowns weak ones, and they do not come back.
_FIRST_NOISE = 1e-3
# The first length scale, relative to the range of the coordinates; the search begins with a factor
# of 2, and ends with the last one, both ways without gain.
_FIRST_LENGTH = 0.25
_FINEST_SEARCH = 2.0**-3
# Sweeps before noise and length scales are learned.
WARM_UP = 10


class Precision:
    """A Gamma posterior of the precision of Gaussian variables, or a known precision."""

    def __init__(self, shape: float, rate: float, first: float, *, known: bool = False) -> None:
        self.prior = shape, rate
        self.shape, self.rate = 1.0, 1 / first
        self.known = known

    @property
    def mean(self) -> float:
        return self.shape / self.rate

    @property
    def mean_log(self) -> float:
        if self.known:
            return -math.log(self.rate)
        return float(torch.digamma(torch.tensor(self.shape, dtype=torch.float64))) - math.log(
            self.rate
        )

    def update(self, count: int, squares: float) -> None:
        """Take in the expected sum of the squares of `count` variables."""
        if not self.known:
            shape, rate = self.prior
            self.shape, self.rate = shape + count / 2, rate + squares / 2

    def divergence(self) -> float:
        """From the prior (Kullback, Leibler)."""
        if self.known:
            return 0.0
        (shape, rate), mean_log = self.prior, self.mean_log
        return (
            (self.shape - shape) * mean_log
            - math.lgamma(self.shape)
            + math.lgamma(shape)
            + self.shape * math.log(self.rate)
            - shape * math.log(rate)
            + self.mean * (rate - self.rate)
        )


class Mode:
    """The functions of one mode: their posterior at the distinct coordinates."""

    def __init__(self, column: Tensor, nu: float, rank: int, length: float | None) -> None:
        self.knots, self.where = torch.unique(column, return_inverse=True)
        self.kernel = Matern(nu, rank, column.device)
        self.step = 1.0 if length is None and len(self.knots) > 1 else 0.0
        width = float(self.knots[-1] - self.knots[0])
        self.length = length or (width * _FIRST_LENGTH if width > 0 else 1.0)
        self.mean = column.new_zeros(len(self.knots), rank)
        self.cov = column.new_zeros(len(self.knots), rank, rank)
        self.divergence = math.inf

    @property
    def rank(self) -> int:
        return self.kernel.rank

    def start(self, seed: int, offset: int) -> None:
        """Smooth random functions with a mean square of 1 over the observations."""
        noise = random_matrix(
            len(self.knots),
            self.rank,
            seed=seed,
            row_offset=offset,
            dtype=torch.float64,
            device=self.knots.device,
        )
        eye = torch.eye(self.rank, dtype=noise.dtype, device=noise.device)
        drawn = self._smoothed(noise, eye.expand(len(noise), -1, -1), [self.length]).mean[:, 0]
        counts = torch.bincount(self.where).to(noise)
        self.mean = drawn / (counts @ drawn.square() / counts.sum()).sqrt()

    def update(self, linear: Tensor, precision: Tensor, *, search: bool) -> None:
        """The best posterior given what the observations say of the functions, and length scale."""
        search = search and self.step > 0
        factors = [1.0, 2.0**self.step, 2.0**-self.step] if search else [1.0]
        lengths = [self.length * factor for factor in factors]
        smoothed = self._smoothed(linear, precision, lengths)
        best = int(smoothed.log_evidence.argmax())
        if search and best == 0:
            self.step = max(self.step / 2, _FINEST_SEARCH)
        self.length = lengths[best]
        self.mean, self.cov = smoothed.mean[:, best], smoothed.cov[:, best]
        self.past, self.future = (
            tuple(part[:, best].clone() for part in parts)
            for parts in (smoothed.past, smoothed.future)
        )
        # log of the density ratio to the prior, in expectation: of the exponent completed at the
        # mean, m·K⁻¹·m = m·(linear − Λm).
        left_over = linear - (precision @ self.mean[..., None])[..., 0]
        excess = left_over.mT @ self.mean - (precision @ self.cov).sum(0)
        self.squares = len(linear) * torch.eye(self.rank).to(excess) + (excess + excess.mT) / 2
        self.divergence = 0.5 * float(excess.trace() + smoothed.log_determinant[best])

    def mix(self, T: Tensor) -> None:
        """Multiply the functions by a matrix."""
        self.mean, self.cov = self.mean @ T.mT, T @ self.cov @ T.mT
        self.squares = T @ self.squares @ T.mT

    def _smoothed(self, linear: Tensor, precision: Tensor, lengths: list[float]) -> Smoothed:
        rates = [self.kernel.rate(length) for length in lengths]
        gaps = self.knots.diff()[:, None] * linear.new_tensor(rates)
        return smooth(self.kernel, gaps, linear, precision)


def contract(
    mean: Tensor, cov: Tensor, factors: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a random tensor times random vectors, one for each leading mode.

    All are independent. `mean` has shape (R,), `cov` (R, R); each factor is a mean (N, r) and a
    covariance (N, r, r) for each of N products.
    """
    first, spread = mean[None], cov[None]
    for vector, covariance in factors:
        r = vector.shape[1]
        rest = first.shape[1] // r
        second = _second(vector, covariance)
        first = first.reshape(-1, r, rest)
        spread = (
            spread.reshape(-1, r, rest, r, rest).transpose(2, 3).reshape(-1, r * r, rest * rest)
        )
        # var(x·y) = var(x)·E[y²] + E[x]²·var(y): sums of squares only.
        if len(spread) == 1:
            spread = second.flatten(1) @ spread[0]
        else:
            spread = (second.flatten(1)[:, None] @ spread)[:, 0]
        half = covariance @ first
        spread = spread.reshape(-1, rest, rest) + first.mT @ half
        first = (vector[:, None] @ first)[:, 0]
    return first, spread


def at(
    points: Tensor,
    nu: float,
    rank: int,
    length: float,
    knots: Tensor,
    past_mean: Tensor,
    past_cov: Tensor,
    future_linear: Tensor,
    future_precision: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the functions of a mode at any coordinates."""
    kernel = Matern(nu, rank, knots.device)
    following = torch.searchsorted(knots, points, right=True)
    before, after = (following - 1).clamp(min=0), following.clamp(max=len(knots) - 1)
    back = torch.where(following > 0, points - knots[before], math.inf)
    ahead = torch.where(following < len(knots), knots[after] - points, math.inf)
    rate = kernel.rate(length)
    past = past_mean[before], past_cov[before]
    future = future_linear[after], future_precision[after]
    return between(kernel, past, future, back * rate, ahead * rate)


class Posterior:
    """Of core, functions, noise and the size of the core, and how they are found."""

    def __init__(
        self,
        modes: list[Mode],
        values: Tensor,
        noise_variance: float | None,
        seed: int,
        number: int = 0,
    ) -> None:
        self.modes, self.values = modes, values
        square = max(float(values.square().mean()), LEAST_NOISE**2)
        if noise_variance is None:
            first = 1 / max(_FIRST_NOISE * square, LEAST_NOISE**2)
            self.noise = Precision(_VAGUE, len(values) * LEAST_NOISE**2 / 2, first)
        else:
            self.noise = Precision(1.0, 1.0, 1 / noise_variance, known=True)
        self.ranks = [mode.rank for mode in modes]
        size = math.prod(self.ranks)
        self.core = values.new_zeros(size)
        self.core_cov = values.new_zeros(size, size)
        self.core_log_det = self.core_square = 0.0
        self.squares = 0.0
        self.scale = Precision(_CORE_SHAPE, _CORE_SHAPE * square / size, size / square)
        self.sweeps = 0
        # Every start has rows of its own in one random matrix.
        offset = number * sum(len(mode.knots) for mode in modes)
        for mode in modes:
            mode.start(seed, offset)
            offset += len(mode.knots)

    @property
    def training_error(self) -> float:
        """The root of the mean square of what is left of the values."""
        return float((self.values - self.fitted).square().mean().sqrt())

    @property
    def relative_residual(self) -> float:
        size = float(self.values.square().mean().sqrt())
        return self.training_error / size if size > 0 else 0.0

    def sweep(self) -> None:
        """Update all parts once, each to the best that it can be, given the others."""
        if self.sweeps:
            self._balance()
        self._update_core()
        for index, mode in enumerate(self.modes):
            linear, precision = self._messages(index)
            turn = self.sweeps >= WARM_UP and self.sweeps % len(self.modes) == index
            mode.update(linear, precision, search=turn)
        self.fitted, variance = self._moments()
        self.squares = float((self.values - self.fitted).square().sum() + variance.sum())
        if self.sweeps >= WARM_UP:
            self.noise.update(len(self.values), self.squares)
        self.sweeps += 1

    def bound(self) -> float:
        """On the logarithm of the evidence, from below."""
        noise, scale, size = self.noise, self.scale, len(self.core)
        logs = len(self.values) * (noise.mean_log - math.log(2 * math.pi))
        logs += size * (scale.mean_log + 1) + self.core_log_det
        squares = noise.mean * self.squares + scale.mean * self.core_square
        divergences = [mode.divergence for mode in self.modes]
        return (logs - squares) / 2 - noise.divergence() - scale.divergence() - sum(divergences)

    def _balance(self) -> None:
        """Mix the functions of each mode, u ← Tu, and the core by T⁻ᵀ, for the largest bound.

        The fit stays. Of the core only the precision follows: it is updated next.
        """
        size, count = len(self.core), len(self.modes)
        moment = (self.core_cov + torch.outer(self.core, self.core)).reshape(self.ranks * 2)
        for index, mode in enumerate(self.modes):
            rest = size // mode.rank
            pairs = moment.movedim((index, index + count), (0, 1)).reshape(-1, rest, rest)
            squares = pairs.diagonal(dim1=1, dim2=2).sum(-1).reshape(mode.rank, mode.rank)
            T = _mixing(mode.squares, self.scale.mean * squares, len(mode.knots) - rest)
            if T is None:
                continue
            mode.mix(T)
            for axis in (index, index + count):
                moment = torch.linalg.solve(T.mT, moment.movedim(axis, 0).flatten(1)).reshape(
                    mode.rank, *[r for d, r in enumerate(self.ranks * 2) if d != axis]
                )
                moment = moment.movedim(0, axis)
        self.scale.update(size, float(moment.reshape(size, size).trace()))
        for mode in self.modes:
            # The precision of the core goes with the length of the functions: their best length.
            shape, rate = self.scale.prior
            total = float(mode.squares.trace()) + 2 * rate * self.scale.mean
            factor = math.sqrt((mode.mean.numel() + 2 * shape) / total)
            mode.mix(factor * torch.eye(mode.rank).to(mode.mean))
            self.scale.rate /= factor**2

    def _update_core(self) -> None:
        size = len(self.core)
        gram, right = self.core.new_zeros(size, size), self.core.new_zeros(size)
        shape = [r for r in self.ranks for _ in range(2)]
        order = [*range(0, len(shape), 2), *range(1, len(shape), 2)]
        for part in self._blocks(size**2 // self.ranks[0] ** 2):
            factors = self._factors(part)
            right += self.values[part] @ _rowwise([mean for mean, _ in factors])
            seconds = [_second(*factor).flatten(1) for factor in factors]
            total = seconds[0].mT @ _rowwise(seconds[1:]) if seconds[1:] else seconds[0].sum(0)
            gram += total.reshape(shape).permute(order).reshape(size, size)
        values, vectors = torch.linalg.eigh(gram)
        inverse = 1 / (self.scale.mean + self.noise.mean * values.clamp(min=0))
        self.core = vectors @ (inverse * (vectors.mT @ (self.noise.mean * right)))
        self.core_cov = (vectors * inverse) @ vectors.mT
        self.core_log_det = float(inverse.log().sum())
        self.core_square = float(self.core.square().sum() + inverse.sum())
        self.scale.update(size, self.core_square)

    def _messages(self, index: int) -> tuple[Tensor, Tensor]:
        """What the observations say of the functions of a mode, given all else."""
        mode, r = self.modes[index], self.ranks[index]
        others = [d for d in range(len(self.modes)) if d != index]
        order = [*others, index]
        core = self.core.reshape(self.ranks).permute(order).reshape(-1)
        places = torch.arange(len(core), device=core.device).reshape(self.ranks)
        places = places.permute(order).reshape(-1)
        cov = self.core_cov[places[:, None], places]
        linear = core.new_zeros(len(mode.knots), r)
        precision = core.new_zeros(len(mode.knots), r, r)
        for part in self._blocks(self._largest(order)):
            factors = self._factors(part)
            mean, spread = contract(core, cov, [factors[d] for d in others])
            mean, spread = (x.expand(len(self.values[part]), *x.shape[1:]) for x in (mean, spread))
            linear.index_add_(0, mode.where[part], self.values[part, None] * mean)
            precision.index_add_(0, mode.where[part], _second(mean, spread))
        return self.noise.mean * linear, self.noise.mean * precision

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Means and variances of what is fitted to the observations."""
        parts = [
            contract(self.core, self.core_cov, self._factors(part))
            for part in self._blocks(self._largest(range(len(self.modes))))
        ]
        return torch.cat([mean[:, 0] for mean, _ in parts]), torch.cat(
            [v[:, 0, 0] for _, v in parts]
        )

    def _factors(self, part: slice) -> list[tuple[Tensor, Tensor]]:
        return [(mode.mean[mode.where[part]], mode.cov[mode.where[part]]) for mode in self.modes]

    def _largest(self, order: Sequence[int]) -> int:
        """Entries for each observation, of what `contract` makes in this order."""
        return (len(self.core) // self.ranks[order[0]]) ** 2 + max(self.ranks) ** 2

    def _blocks(self, entries: int) -> Iterator[slice]:
        height = max(1, _BLOCK // entries)
        return (slice(i, i + height) for i in range(0, len(self.values), height))


def _second(mean: Tensor, cov: Tensor) -> Tensor:
    return cov + mean[:, :, None] * mean[:, None, :]


def _mixing(Q: Tensor, S: Tensor, c: int) -> Tensor | None:
    """T with the largest c·log|T| − tr(TQTᵀ)/2 − tr(T⁻ᵀT⁻¹S)/2; None where rounding hides it.

    M = TᵀT solves MQM = cM + S, a quadratic equation for Q^½·M·Q^½.
    """
    lengths, axes = torch.linalg.eigh(Q)
    if _degenerate(lengths):
        return None
    root, inverse = (axes * lengths**power @ axes.mT for power in (0.5, -0.5))
    values, vectors = torch.linalg.eigh(root @ S @ root)
    half = (c**2 / 4 + values.clamp(min=0)).sqrt() + abs(c) / 2
    wanted = half if c >= 0 else values / half
    return None if _degenerate(wanted) else (vectors * wanted.sqrt()).mT @ inverse


def _degenerate(values: Tensor) -> bool:
    return not float(values.min()) > torch.finfo(values.dtype).eps ** 0.5 * float(values.max())


def _rowwise(factors: Sequence[Tensor]) -> Tensor:
    """Kronecker products of the rows."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, :, None] * factor[:, None, :]).flatten(1)
    return product

"""Distributions of eigenvalues."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_out, as_seed
from fastlr.linalg._arrays import as_tensor
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import open_operator


class SpectralEstimate(NamedTuple):
    """A number or array of them, and two kinds of error.

    Attributes
    ----------
    value : float or array
    std_error : float or array
        Of the mean over the random vectors; NaN for a single one.
    quadrature_error : float or array
        Bound of what the quadratures may be off by for these vectors; 0.0 where they are exact.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> la.spectral_density(torch.eye(90), seed=0).count(0.5, 2.0).quadrature_error
    0.0
    """

    value: Any
    std_error: Any
    quadrature_error: Any


@dataclass(frozen=True)
class SpectralDensity:
    """A discrete density of eigenvalues; returned by `spectral_density`.

    Attributes
    ----------
    nodes : array, shape (n_vectors, steps)
        Ascending in every row.
    weights : array, shape (n_vectors, steps)
        Not negative; every row sums to n, and so does the mean over the rows: the number of
        eigenvalues near a node.
    resolution : array, shape (n_vectors,)
        Not NaN where a row is the vector's whole measure, not a quadrature of it: each node is then
        within this distance of the eigenvalues that it stands for.
    n : int
        Order of the matrix.
    passes : int
        Over A.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> density = la.spectral_density(torch.diag(torch.arange(300.0)), n_vectors=40, seed=0)
    >>> value, std_error, quadrature_error = density.count(99.5, 199.5)
    >>> abs(value - 100) < 3 * std_error + quadrature_error
    True
    """

    nodes: Any
    weights: Any
    resolution: Any
    n: int
    passes: int

    def cdf(self, x: Any) -> SpectralEstimate:
        """Estimate how many eigenvalues are at most x.

        Parameters
        ----------
        x : float or array

        Returns
        -------
        SpectralEstimate
            Of the shape of x. The bound of the quadrature's error is that of Chebyshev, Markov and
            Stieltjes, the weights of the nodes next to x; for whole measures, those of the nodes
            within their `resolution` of x.
        """
        points = self._points(x)
        nodes, weights = self._rows()
        below = torch.searchsorted(nodes, points.expand(len(nodes), -1).contiguous(), right=True)
        zero = torch.zeros_like(weights[:, :1])
        sums = torch.cat([zero, weights.cumsum(1)], 1).gather(1, below)
        padded = torch.cat([zero, weights, zero], 1)
        beside = torch.maximum(padded.gather(1, below), padded.gather(1, below + 1))
        resolution = _tensor(self.resolution).cpu()[:, None]
        within = (nodes[:, None, :] - points[:, None]).abs() <= resolution[:, :, None]
        unresolved = (weights[:, None, :] * within).sum(2)
        bound = torch.where(resolution.isnan(), beside, unresolved)
        return self._estimate(sums, bound, x)

    def count(self, a: float, b: float) -> SpectralEstimate:
        """Estimate how many eigenvalues are in (a, b].

        Parameters
        ----------
        a, b : float
            a ≤ b.

        Returns
        -------
        SpectralEstimate
        """
        if not a <= b:
            raise ValueError(f"SpectralDensity.count: a must be at most b, got {a} and {b}")
        nodes, weights = self._rows()
        inside = (weights * ((nodes > a) & (nodes <= b))).sum(1)
        ends = self.cdf(torch.tensor([a, b], dtype=torch.float64)).quadrature_error
        value, std_error, _ = self._estimate(inside[:, None], torch.zeros(len(nodes), 1), 0.0)
        return SpectralEstimate(value, std_error, float(ends.sum()))

    def density(self, x: Any, width: float) -> Any:
        """Return the density at x, smoothed by a Gaussian of standard deviation `width`.

        Its integral over the line is n.

        Parameters
        ----------
        x : float or array
        width : float
            Positive; some range/steps at least, or single nodes show.

        Returns
        -------
        float or array
            Eigenvalues for each unit of x.
        """
        if not width > 0:
            raise ValueError(f"SpectralDensity.density: width must be positive, got {width}")
        nodes, weights = self._rows()
        points = self._points(x)
        value = torch.stack(
            [(weights * torch.exp(-(((point - nodes) / width) ** 2) / 2)).sum() for point in points]
        )
        return self._shaped(value / (len(nodes) * width * math.sqrt(2 * math.pi)), x)

    def moment(self, k: int) -> SpectralEstimate:
        """Estimate tr(A^k), without an error of the quadrature up to k = 2·steps − 1.

        Parameters
        ----------
        k : int
            Not negative.

        Returns
        -------
        SpectralEstimate
            ``quadrature_error`` is NaN where the quadratures are not exact.
        """
        k = as_integer(k, "SpectralDensity.moment", "k")
        if k < 0:
            raise ValueError(f"SpectralDensity.moment: k must be non-negative, got {k}")
        nodes, weights = self._rows()
        known = k < 2 * nodes.shape[1] or not bool(_tensor(self.resolution).isnan().any())
        quadrature = torch.full((len(nodes), 1), 0.0 if known else math.nan, dtype=torch.float64)
        return self._estimate((weights * nodes**k).sum(1, keepdim=True), quadrature, 0.0)

    def _rows(self) -> tuple[Tensor, Tensor]:
        return _tensor(self.nodes).cpu().double(), _tensor(self.weights).cpu().double()

    def _points(self, x: Any) -> Tensor:
        points = x if isinstance(x, Tensor) else torch.as_tensor(x)
        return points.detach().cpu().double().reshape(-1)

    def _shaped(self, values: Tensor, x: Any) -> Any:
        """A float for a number, otherwise an array of the kind and shape of x."""
        if not hasattr(x, "shape"):
            return values.item() if not hasattr(x, "__len__") else values
        values = values.reshape(tuple(x.shape))
        return values.to(x.device) if isinstance(x, Tensor) else values.numpy()

    def _estimate(self, samples: Tensor, quadrature: Tensor, x: Any) -> SpectralEstimate:
        """The mean over the random vectors, of which each row has one sample a point."""
        count = len(samples)
        error = samples.std(0) / math.sqrt(count) if count > 1 else samples[0] * math.nan
        return SpectralEstimate(
            *(self._shaped(part, x) for part in (samples.mean(0), error, quadrature.mean(0)))
        )


@as_written
def spectral_density(
    A: Any,
    *,
    n_vectors: int = 20,
    steps: int = 40,
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> SpectralDensity:
    """Estimate how the eigenvalues of a Hermitian matrix are distributed.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (n, n)
        Hermitian, of every kind that `randomized_svd` takes, but no batch. Never written to.
    n_vectors : int
        Random vectors; standard errors fall with the root of their number.
    steps : int
        Nodes for each vector (n at most), and passes over A: details of the width
        range/steps are resolved.
    seed, out
        As in `randomized_svd`.

    Returns
    -------
    SpectralDensity
        Nodes and weights in float64, and methods: ``count(a, b)``, ``cdf(x)``,
        ``density(x, width)``, ``moment(k)``.

    Raises
    ------
    torch.linalg.LinAlgError
        The first products show that A is not Hermitian, relatively by 100·√n·u or more.
    ValueError
        A matrix that is not square or has no rows, a batch, numbers that are not positive, an entry
        that is not finite.
    TypeError
        See `randomized_svd`.

    Notes
    -----
    Stochastic Lanczos quadrature. The eigenvalues of a tridiagonal matrix of order `steps` and the
    squares of the first entries of its eigenvectors are the Gauss quadrature of vᴴf(A)v, exact for
    polynomials of degree 2·steps − 1; the mean over random vectors v of the unit sphere, times n,
    is tr f(A). All vectors advance together, one product with `n_vectors` columns a step; they are
    orthogonalised against all that came before, so that no eigenvalue appears twice:
    2·n²·n_vectors·steps flops for the products, 8·n·steps²·n_vectors besides, and
    n·steps·n_vectors numbers of memory. A recurrence that ends early (few distinct eigenvalues) has
    found the whole measure of its vector.

    Sources: Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature",
    SIMAX 38 (2017); Lin, Saad, Yang, "Approximating spectral densities of large matrices", SIAM
    Review 58 (2016). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> density = la.spectral_density(torch.diag(torch.arange(300.0)), seed=0)
    >>> density.nodes.shape, density.passes
    (torch.Size([20, 40]), 40)
    >>> round(density.moment(0).value)
    300
    """
    caller = "spectral_density"
    matrix = open_operator(A, caller)
    out = as_out(out, caller)
    nodes, weights, resolution, passes = _core.spectral_density(
        matrix.data,
        as_integer(n_vectors, caller, "n_vectors"),
        as_integer(steps, caller, "steps"),
        as_seed(seed, caller),
    )
    n = matrix.data.shape[1]

    def restore(result: Tensor) -> Any:
        numpy = matrix.numpy if out is None else out == "numpy"
        return result.cpu().numpy() if numpy else result

    return SpectralDensity(restore(nodes), restore(n * weights), restore(resolution), n, passes)


def _tensor(array: Any) -> Tensor:
    return array if isinstance(array, Tensor) else as_tensor(array)

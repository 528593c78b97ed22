"""The long-range part of the Newton potential of particles: mesh-free, and from a fine grid.

    OMP_NUM_THREADS=1 python benchmarks/chebyshev_newton.py --plot chebyshev_newton.png

Particles at random places of the cube [−1, 1]³. 1/r = (2/√π)·∫ exp(s − e^{2s}·r²) ds over the real
line, by the trapezoidal rule with step h, is a sum of Gaussians exp(−t_k²·r²) with t_k = e^{kh}.
Those with t_k of at most e^{1.5} = 4.5 are the long-range part: smooth, but with as many terms as
there are particles and Gaussians. Compared at equal relative tolerances:

- `chebyshev_tucker` of the sum, with full grids of Chebyshev nodes, and by fibres ("cross");
- `tucker` (alternating least squares) of all values on a uniform grid. Its tolerance is of the
  Frobenius norm.

Errors are the largest ones at 10000 fresh random points, relative to the largest value; of `tucker`
at the points of its grid.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import duration, machine_line, markdown

STEP = 0.5
FIRST, LAST = -8, 3
TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10]
CUBE = [(-1.0, 1.0)] * 3
POINTS = 10000


class LongRange:
    """The potential of unit charges, as a function of points and on tensor grids."""

    def __init__(self, particles: int, seed: int) -> None:
        unit = la.random_matrix(particles, 3, kind="uniform", seed=seed, dtype=torch.float64)
        self.places = 2 * unit - 1
        self.t = torch.exp(STEP * torch.arange(FIRST, LAST + 1, dtype=torch.float64))
        self.weights = 2 / math.sqrt(math.pi) * STEP * self.t

    def __call__(self, points: Tensor) -> Tensor:
        return torch.cat([self._block(block) for block in points.split(2000)])

    def _block(self, points: Tensor) -> Tensor:
        squares = torch.cdist(points, self.places, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        terms = (
            w * torch.exp(-(t**2) * squares) for t, w in zip(self.t, self.weights, strict=True)
        )
        return sum(terms).sum(1)

    def on_grid(self, axis: Tensor) -> Tensor:
        """Gaussians are products of one for each axis."""
        rows = [
            torch.exp(-((self.t[:, None, None] * (axis - x[:, None])) ** 2)).flatten(0, 1)
            for x in self.places.T
        ]
        weights = self.weights.repeat_interleave(len(self.places))
        values = axis.new_empty([len(axis)] * 3)
        for i in range(len(axis)):
            values[i] = (rows[1].T * (weights * rows[0][:, i])) @ rows[2]
        return values


def timed(run: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def row(f: LongRange, grid: Tensor, tol: float, seed: int) -> dict[str, Any]:
    full, full_time = timed(lambda: la.chebyshev_tucker(f, CUBE, tol=tol, seed=seed))
    cross, cross_time = timed(lambda: la.chebyshev_tucker(f, CUBE, tol=tol, max_grid=1, seed=seed))
    als, als_time = timed(lambda: la.tucker(grid, tol=tol, seed=seed))
    points = (
        2 * la.random_matrix(POINTS, 3, kind="uniform", seed=seed + 99, dtype=torch.float64) - 1
    )
    values = f(points)
    errors = [float((T(points) - values).abs().max() / values.abs().max()) for T in (full, cross)]
    return {
        "tol": tol,
        "degrees": full.degrees,
        "ranks, full grid": full.ranks,
        "ranks, cross": cross.ranks,
        "ranks, tucker": als.ranks,
        "evaluations, full grid": full.info.evaluations,
        "evaluations, cross": cross.info.evaluations,
        "error, full grid": errors[0],
        "error, cross": errors[1],
        "error, tucker": float((als.full() - grid).abs().max() / grid.abs().max()),
        "full grid time": full_time,
        "cross time": cross_time,
        "tucker time": als_time,
    }


def plot(rows: list[dict[str, Any]], size: int, path: Path) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    tolerances = [each["tol"] for each in rows]
    styles = {"full grid": "C0o-", "cross": "C1s--", "tucker": "C2^:"}
    for name, style in styles.items():
        label = f"tucker of {size}³ values" if name == "tucker" else f"chebyshev_tucker, {name}"
        left.loglog(tolerances, [each[f"error, {name}"] for each in rows], style, label=label)
        errors = [each[f"error, {name}"] for each in rows]
        right.semilogx(errors, [max(each[f"ranks, {name}"]) for each in rows], style)
    left.loglog(tolerances, tolerances, "k-", linewidth=1, label="tol")
    for panel, label in ((left, "tol"), (right, "largest error / largest value")):
        panel.set_xlabel(label)
        panel.invert_xaxis()
        panel.grid(alpha=0.3)
    left.set_ylabel("largest error / largest value")
    right.set_ylabel("largest rank")
    left.legend(fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--particles", type=int, default=200)
    parser.add_argument("--grid", type=int, default=129, help="of tucker, points an axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    print(machine_line())
    f = LongRange(options.particles, options.seed)
    axis = torch.linspace(-1, 1, options.grid, dtype=torch.float64)
    grid, seconds = timed(lambda: f.on_grid(axis))
    print(f"{options.particles} particles, {len(f.t)} Gaussians; the grid in {duration(seconds)}\n")
    rows = [row(f, grid, tol, options.seed) for tol in TOLERANCES]
    print(markdown(rows))
    if options.plot:
        plot(rows, options.grid, options.plot)


if __name__ == "__main__":
    main()

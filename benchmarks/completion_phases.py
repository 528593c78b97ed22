"""How many entries determine a matrix of rank k: exact recovery by both methods of la.complete.

    OMP_NUM_THREADS=1 python benchmarks/completion_phases.py --plot completion_phases.png

Square matrices UVᵀ, U and V Gaussian, without noise, a share of the entries observed, drawn
uniformly. Recovered is a matrix of which less than 1e-6 is left, ‖fit − A‖ / ‖A‖ over all entries;
the table and the plot show how many of the seeds. Two lines are necessary for any method:

- as many entries as a matrix of rank k has degrees of freedom, k(2n − k);
- k entries in every row and column. Where the line is, half of the draws have them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

import fastlr.linalg as la
from harness import machine_line, markdown

SWEEPS = 200
RECOVERED = 1e-6
METHODS: dict[str, dict[str, Any]] = {
    "altmin": {"method": "altmin"},
    "als without a ridge": {"method": "als", "ridge": 0.0, "tol": 0},
}


def recovered(n: int, rank: int, share: float, seed: int) -> list[bool]:
    """By each of the methods, from the same entries."""
    rng = np.random.default_rng([seed, rank])
    U, V = rng.standard_normal((2, n, rank))
    A = U @ V.T
    rows, cols = np.divmod(rng.choice(n * n, round(share * n * n), replace=False), n)
    found = []
    for arguments in METHODS.values():
        completion = la.complete(
            rows, cols, A[rows, cols], A.shape, rank, max_sweeps=SWEEPS, seed=seed, **arguments
        )
        found.append(np.linalg.norm(completion.dense() - A) < RECOVERED * np.linalg.norm(A))
    return found


def shares_with_enough(n: int, ranks: list[int]) -> list[float]:
    """Where half of the draws have `rank` entries in all rows and columns."""
    return [
        brentq(lambda p, k=k: binom.sf(k - 1, n, p) ** (2 * n) - 0.5, 1e-6, 1 - 1e-6) for k in ranks
    ]


def plot(rates: Any, n: int, ranks: list[int], shares: list[float], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(METHODS), figsize=(9, 4.2), sharex=True, sharey=True, layout="constrained"
    )
    for panel, rate, name in zip(axes, rates, METHODS, strict=True):
        mesh = panel.pcolormesh(ranks, shares, rate.T, cmap="gray", vmin=0, vmax=1)
        freedom = [k * (2 * n - k) / n**2 for k in ranks]
        panel.plot(ranks, freedom, "C1-", linewidth=2, label="degrees of freedom, k(2n − k)")
        enough = shares_with_enough(n, ranks)
        panel.plot(ranks, enough, "C0--", linewidth=2, label="k entries in every row and column")
        panel.set_title(name)
        panel.set_xlabel("rank k")
        panel.set_xticks(ranks)
        panel.set_ylim(shares[0] - (shares[1] - shares[0]) / 2, None)
    axes[0].set_ylabel("share of the entries observed")
    axes[0].yaxis.set_major_formatter("{x:.0%}")
    axes[1].legend(loc="upper left", fontsize=9)
    figure.colorbar(mesh, ax=axes, label="share of the seeds recovered")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(range(1, 13)))
    parser.add_argument("--shares", type=float, nargs="+", default=np.arange(1, 13) * 0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="write the picture here")
    options = parser.parse_args()
    # Where too few entries are observed, sweeps end nothing.
    warnings.simplefilter("ignore", la.ConvergenceWarning)
    rates = np.zeros((len(METHODS), len(options.ranks), len(options.shares)))
    for i, rank in enumerate(options.ranks):
        for j, share in enumerate(options.shares):
            for seed in range(options.seeds):
                rates[:, i, j] += recovered(options.size, rank, share, seed)
        print(f"rank {rank}", file=sys.stderr, flush=True)
    rates /= options.seeds
    print(machine_line())
    shown = [f"{share:.0%}" for share in options.shares]
    for name, rate in zip(METHODS, rates, strict=True):
        rows = [
            {name: f"rank {rank}", **dict(zip(shown, (f"{r:.2f}" for r in line), strict=True))}
            for rank, line in zip(options.ranks, rate, strict=True)
        ]
        print("\n" + markdown(rows))
    if options.plot:
        plot(rates, options.size, options.ranks, options.shares, options.plot)


if __name__ == "__main__":
    main()

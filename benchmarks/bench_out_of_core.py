"""Randomized SVD of a file that need not fit into memory: rank 50 + 10, two reads.

The floor is a loop that reads the file twice, block by block, and multiplies each block by the 60
columns of the basis (and in the first read the 10 of the probe), and its transpose by 60: what one
power iteration costs. The file leaves the cache of the system before every run, as far as the
system lets go of it. `resident` is the peak above that of the imports, in a process of its own; of
a memmap, the pages that are looked at count, too.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastlr.linalg as la
from harness import Case, Session

COLUMNS, RANK, WIDTH, PROBES = 5000, 50, 60, 10
BLOCK_ROWS = 1600  # 32 MB


def write(path: Path, gigabytes: float) -> None:
    """Columns of falling size, in float32."""
    block = la.random_matrix(BLOCK_ROWS, COLUMNS, seed=1) / torch.arange(1, COLUMNS + 1).sqrt()
    blocks = max(1, round(gigabytes * 1e9 / (block.numel() * block.element_size())))
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (blocks * BLOCK_ROWS, COLUMNS)}
        )
        for index in range(blocks):
            file.write((block * (1 + index % 7)).numpy().data)
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Ask the system to drop the file from its cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_twice_and_multiply(path: Path) -> None:
    forget(path)
    block = torch.empty(BLOCK_ROWS, COLUMNS)
    right, left = torch.ones(COLUMNS, WIDTH + PROBES), torch.ones(BLOCK_ROWS, WIDTH)
    for columns in (WIDTH + PROBES, WIDTH):
        with open(path, "rb", buffering=0) as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            while file.readinto(block.numpy().data):
                block @ right[:, :columns]
                block.T @ left


def svd(path: Path) -> Any:
    forget(path)
    mapped = np.load(path, mmap_mode="r")
    return la.randomized_svd(mapped, RANK, oversample=WIDTH - RANK, power_iters=1, seed=0)


def resident_of(run: Callable[[Path], Any], path: Path) -> int:
    """Peak bytes above those of the imports, of a process that does nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_resident, run, path).result()


def _resident(run: Callable[[Path], Any], path: Path) -> int:
    before = _peak()
    run(path)
    return _peak() - before


def _peak() -> int:
    # Not getrusage: its peak survives exec, and would be that of the benchmark itself.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def quality(path: Path) -> Any:
    def columns(result: Any) -> dict[str, Any]:
        return {"resident": f"{resident_of(svd, path) / 1e9:.2f} GB", "reads": result.info.passes}

    return columns


@contextmanager
def file_of(write: Callable[[Path, float], None], gigabytes: float) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "A.npy"
        write(path, gigabytes)
        yield path


def main() -> None:
    with (
        Session(__doc__, repeats=3, options={"gigabytes": 8.0}) as session,
        file_of(write, session.options.gigabytes) as path,
    ):
        rows = np.load(path, mmap_mode="r").shape[0]
        session.table(
            f"{rows:,} × {COLUMNS:,} float32 in a file, rank {RANK} + {WIDTH - RANK}",
            [Case("fastlr, memmap", lambda: svd(path), quality(path))],
            floor=Case(
                "floor: two reads and their products", lambda: read_twice_and_multiply(path)
            ),
        )


if __name__ == "__main__":
    main()

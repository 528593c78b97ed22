"""Streaming SVD: 1000 columns in blocks of 1000 rows, rank 20; and a directory of shards.

The floor of the first tables is the products of the blocks alone: with the 60 columns of the sketch
and of the probe and with the image, or the upper triangle of AᵀA. `above optimum` compares
‖A − A Vᵀ V‖_F with the best approximation of the rank. The peer is timed on some of the rows.

The floor of the second is reading the shards, block by block. They leave the cache of the system
before every run, as far as the system lets go of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import IncrementalPCA

import fastlr.linalg as la
from bench_out_of_core import resident_of
from harness import Case, Session

COLUMNS, RANK, BLOCK_ROWS = 1000, 20, 1000
WIDTH, PROBES, TILE = 50, 10, 256
# Different blocks in memory, of which the stream consists.
KEPT = 20


def kept_blocks() -> list[torch.Tensor]:
    """Rows with singular values that fall slowly, j^(-1/2), in random directions."""
    basis = la.orthonormalize(la.random_matrix(COLUMNS, COLUMNS, seed=1))
    spread = torch.arange(1, COLUMNS + 1) ** -0.5
    rows = la.random_matrix(KEPT * BLOCK_ROWS, COLUMNS, seed=2)
    return list(((rows * spread) @ basis).split(BLOCK_ROWS))


def stream(blocks: list[torch.Tensor], turns: int, **options: Any) -> Any:
    state = la.StreamingSVD(RANK, seed=0, **options)
    for _ in range(turns):
        for block in blocks:
            state.update(block)
    return state.result()


def sketch_products(blocks: list[torch.Tensor], turns: int) -> None:
    right = torch.ones(COLUMNS, WIDTH + PROBES)
    for _ in range(turns):
        for block in blocks:
            image = block @ right
            image[:, :WIDTH].T @ block


def gram_products(blocks: list[torch.Tensor], turns: int) -> None:
    for _ in range(turns):
        for block in blocks:
            for start in range(0, COLUMNS, TILE):
                block[:, : start + TILE].T @ block[:, start : start + TILE]


def incremental_pca(blocks: list[torch.Tensor]) -> Any:
    model = IncrementalPCA(RANK)
    for block in blocks:
        model.partial_fit(block.numpy())
    return model


def errors(blocks: list[torch.Tensor]) -> Any:
    A = torch.cat(blocks).double()
    values = torch.linalg.eigvalsh(A.T @ A)
    best, energy = values[:-RANK].sum(), values.sum()

    def above(V: Any) -> dict[str, str]:
        kept = (A @ torch.as_tensor(V).double().T).square().sum()
        return {"above optimum": f"{((energy - kept) / best).sqrt() - 1:.1e}"}

    return above


def write_shards(folder: Path, gigabytes: float) -> int:
    block = la.random_matrix(50_000, COLUMNS, seed=3)
    count = max(1, round(gigabytes * 1e9 / (block.numel() * block.element_size())))
    for index in range(count):
        np.save(folder / f"shard_{index:04}.npy", (block * (1 + index % 7)).numpy())
    os.sync()
    return count * len(block)


def forget(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_shards(folder: Path) -> None:
    forget(folder)
    buffer = bytearray(32 << 20)
    for path in sorted(folder.iterdir()):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def stream_shards(folder: Path) -> Any:
    forget(folder)
    return la.streaming_svd(folder, RANK, oversample=WIDTH - RANK, seed=0)


@contextmanager
def shards(gigabytes: float) -> Iterator[tuple[Path, int]]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name), write_shards(Path(name), gigabytes)


def main() -> None:
    options = {"rows": 1_000_000, "gigabytes": 8.0}
    with Session(__doc__, repeats=3, options=options) as session:
        blocks = kept_blocks()
        rows = session.options.rows
        turns = max(1, rows // (KEPT * BLOCK_ROWS))
        above = errors(blocks)
        shape = f"{turns * KEPT * BLOCK_ROWS:,} × {COLUMNS:,} float32"
        title = f"{shape} in blocks of {BLOCK_ROWS}, rank {RANK}"
        session.table(
            title + f", a sketch of {WIDTH} columns",
            [
                Case(
                    f"fastlr, oversample={WIDTH - RANK}",
                    lambda: stream(blocks, turns, oversample=WIDTH - RANK),
                    lambda result: above(result.Vh),
                )
            ],
            floor=Case("floor: its products", lambda: sketch_products(blocks, turns)),
        )
        session.table(
            title + ", AᵀA",
            [Case("fastlr", lambda: stream(blocks, turns), lambda result: above(result.Vh))],
            floor=Case("floor: its products", lambda: gram_products(blocks, turns)),
        )
        session.table(
            f"{KEPT * BLOCK_ROWS:,} of these rows",
            [
                Case("fastlr", lambda: stream(blocks, 1), lambda result: above(result.Vh)),
                Case(
                    "fastlr, frequent directions",
                    lambda: stream(blocks, 1, method="frequent_directions"),
                    lambda result: above(result.Vh),
                ),
                Case(
                    "sklearn IncrementalPCA",
                    lambda: incremental_pca(blocks),
                    lambda model: above(model.components_),
                ),
            ],
        )
        with shards(session.options.gigabytes) as (folder, count):
            session.table(
                f"{count:,} × {COLUMNS:,} float32 in a directory of .npy files, rank {RANK}",
                [
                    Case(
                        "fastlr",
                        lambda: stream_shards(folder),
                        lambda _: {
                            "resident": f"{resident_of(stream_shards, folder) / 1e9:.2f} GB"
                        },
                    )
                ],
                floor=Case("floor: reading", lambda: read_shards(folder)),
            )


if __name__ == "__main__":
    main()

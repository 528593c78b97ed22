"""Matrices that are read in blocks of rows, each read while the one before is multiplied.

A tensor is read in the same way: a row is then everything that has one index of the first mode.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arrays import Array, as_tensor, computed_dtype, torch_dtype
from fastlr.linalg._files import (
    BLOCK_BYTES,
    FileMatrix,
    behind_memmap,
    block_height,
    open_path,
    open_tensor,
    tensor_behind_memmap,
)

T = TypeVar("T")

# How much taller than usual a block may be to hold whole chunks of a file.
_TALLEST = 8


class Source(Protocol):
    """Rows that can be read in blocks."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def shape(self) -> tuple[int | None, int]:
        """The number of rows is None where it shows only when they are read."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of a row: the number of columns, or the sizes of a tensor but the first."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries, which may not be what is computed in."""

    @property
    def device(self) -> torch.device | None:
        """None: the rows are NumPy's, and so are the results."""

    @property
    def in_memory(self) -> bool:
        """Whether there is nothing to wait for."""

    def blocks(self) -> Iterator[Array]:
        """Read the rows; a block lasts until the second one after it is asked for."""


class _Asked(NamedTuple):
    """The argument that is opened, as errors call it, and whether it is a tensor of any order."""

    caller: str
    name: str
    tensor: bool

    def allows(self, dimensions: Any) -> bool:
        """Whether a source may have so many."""
        return isinstance(dimensions, int) and (dimensions == 2 or (self.tensor and dimensions > 2))


def source_of(A: Any, caller: str) -> Source | None:
    """Describe what is to be read in blocks; None for whatever else A may be."""
    return _source(A, _Asked(caller, "A", False))


def tensor_source_of(X: Any, caller: str) -> Source | None:
    """The same for a tensor X; None also for a memmap of at most a block, or not in C order."""
    if isinstance(X, np.memmap) and X.nbytes <= BLOCK_BYTES:
        return None
    return _source(X, _Asked(caller, "X", True))


def _source(A: Any, asked: _Asked) -> Source | None:
    if isinstance(A, str | os.PathLike):
        return _directory(Path(A), asked) if os.path.isdir(A) else _file(A, asked)
    if isinstance(A, np.memmap):
        return _mapped(A, asked)
    if _is_dataset(A, asked):
        return _Dataset(A, asked.name, asked)
    if hasattr(A, "__array__"):
        return None
    if isinstance(A, list | tuple):
        blocks = bool(A) and (isinstance(A[0], str | os.PathLike) or _is_block(A[0], asked))
        return _stacked(A, asked) if blocks else None
    return _iterated(A, asked) if isinstance(A, Iterable) else None


def _file(path: str | os.PathLike[str], asked: _Asked) -> FileMatrix:
    return (open_tensor if asked.tensor else open_path)(path, asked.caller)


def _mapped(A: "np.memmap[Any, Any]", asked: _Asked) -> FileMatrix | None:
    if not asked.allows(A.ndim):
        return None
    return (tensor_behind_memmap if asked.tensor else behind_memmap)(A, asked.caller)


def operator_of(source: Source, rows: int | None, caller: str) -> _core.Operator:
    """Return the operator of the core that reads once for a product."""
    by_columns = isinstance(source, FileMatrix) and source.better_by_columns()
    if isinstance(source, FileMatrix) and by_columns:
        source, rows = source.T, source.shape[1]
    dtype = computed_dtype(source.dtype, promoted(source), caller, source.name)[1]

    def read() -> Iterator[Tensor]:
        for block in tensors_of(source):
            tensor = block.to(dtype)
            # The rows are those of the adjoint, not of the transpose.
            yield tensor.conj_physical() if by_columns else tensor

    device = source.device or torch.device("cpu")
    return _core.operator_of_blocks(rows, source.shape[1], dtype, device, by_columns, read)


def tensors_of(source: Source) -> Iterator[Tensor]:
    """Read the rows once, ahead where there is something to wait for."""
    for block in source.blocks() if source.in_memory else read_ahead(source.blocks()):
        tensor = block if isinstance(block, Tensor) else as_tensor(block)
        yield tensor.view(torch.bfloat16) if source.dtype == torch.bfloat16 else tensor


def promoted(source: Source) -> torch.dtype:
    """Return what integers become."""
    return torch.float64 if source.device is None else torch.get_default_dtype()


def count_rows(source: Source) -> int:
    """Read once."""
    return sum(block.shape[0] for block in read_ahead(source.blocks()))


def read_ahead(blocks: Iterator[T]) -> Iterator[T]:
    """Yield what `blocks` yields, the next one fetched by a thread that ends with the generator."""
    with ThreadPoolExecutor(1, thread_name_prefix="fastlr-reader") as reader:
        upcoming = reader.submit(next, blocks, None)
        while (block := upcoming.result()) is not None:
            upcoming = reader.submit(next, blocks, None)
            yield block


@contextmanager
def leaving_a_thread(source: Source) -> Iterator[None]:
    """Compute with one thread fewer while a source is read ahead, so that its reader has one.

    Threads of the pool wait for each other in a loop: with as many as there are cores, the reader
    takes one of them off its core, and the others wait as long.
    """
    threads = torch.get_num_threads()
    if source.in_memory or threads == 1:
        yield
        return
    torch.set_num_threads(threads - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_block(item: Any, asked: _Asked) -> bool:
    return asked.allows(getattr(item, "ndim", None))


def _is_dataset(A: Any, asked: _Asked) -> bool:
    """Whether A is in a file, whose rows A[i:j] are read: no array that is in memory."""
    shape = getattr(A, "shape", None)
    return (
        isinstance(shape, tuple)
        and asked.allows(len(shape))
        and all(hasattr(A, name) for name in ("dtype", "__getitem__"))
        and not any(hasattr(A, name) for name in ("__array_interface__", "__dlpack__"))
    )


class _Dataset:
    """A dataset of HDF5, zarr or their like."""

    device = None
    in_memory = False

    def __init__(self, data: Any, name: str, asked: _Asked) -> None:
        self.name = name
        self.sizes = tuple(map(int, data.shape[1:]))
        self.shape = (int(data.shape[0]), math.prod(self.sizes))
        self.dtype = torch_dtype(data.dtype, asked.caller, name, type(data).__name__)
        self._data = data
        self._asked = asked

    def blocks(self) -> Iterator[Array]:
        m, n = self.shape
        caller = self._asked.caller
        expected = np.dtype(self._data.dtype)
        computed = computed_dtype(self.dtype, torch.float64, caller, self.name)[1]
        step = self._height(n * computed.itemsize)
        for start in range(0, m, step):
            stop = min(start + step, m)
            block = np.asarray(self._data[start:stop])
            if block.shape != (stop - start, *self.sizes) or block.dtype != expected:
                raise ValueError(
                    f"{caller}: rows {start}:{stop} of {self.name} must have shape "
                    f"{(stop - start, *self.sizes)} and dtype {expected}, got {block.shape} and "
                    f"{block.dtype}"
                )
            yield block

    def _height(self, row_bytes: int) -> int:
        """Whole chunks, unless they are huge: what is stored together is read once."""
        height = block_height(row_bytes, tensor=self._asked.tensor)
        chunks = getattr(self._data, "chunks", None)
        chunk = chunks[0] if isinstance(chunks, tuple) else 1
        if not isinstance(chunk, int) or not 0 < chunk <= _TALLEST * height:
            return height
        return max(chunk, height // chunk * chunk)


@dataclass(frozen=True)
class _Block:
    """A matrix or a tensor in memory, as one block."""

    name: str
    array: Array
    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device | None
    in_memory = True

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix of its rows."""
        return self.array.shape[0], math.prod(self.sizes)

    def blocks(self) -> Iterator[Array]:
        yield self.array


def _block(item: Any, name: str, asked: _Asked) -> _Block:
    caller = asked.caller
    array = item.detach() if isinstance(item, Tensor) else np.asarray(item)
    if isinstance(array, Tensor):
        if array.layout != torch.strided:
            raise TypeError(f"{caller}: {name} must be dense, got layout {array.layout}")
        dtype, device = array.dtype, array.device
    else:
        dtype, device = torch_dtype(array.dtype, caller, name, type(item).__name__), None
    if not asked.allows(array.ndim):
        number = "at least 2" if asked.tensor else "2"
        raise ValueError(
            f"{caller}: {name} must have {number} dimensions, got shape {tuple(array.shape)}"
        )
    return _Block(name, array, tuple(array.shape[1:]), dtype, device)


def _check_agreement(source: Source, first: Source, caller: str) -> None:
    if source.sizes != first.sizes:
        if len(source.sizes) == len(first.sizes) == 1:
            raise ValueError(
                f"{caller}: {source.name} must have the {first.shape[1]} columns of {first.name}, "
                f"got {source.shape[1]}"
            )
        raise ValueError(
            f"{caller}: {source.name} must have the sizes of {first.name} but for the first one, "
            f"{first.sizes}, got {source.sizes}"
        )
    if source.dtype != first.dtype:
        raise TypeError(
            f"{caller}: {source.name} must have the dtype of {first.name}, {first.dtype}, "
            f"got {source.dtype}"
        )
    if source.device != first.device:
        places = ["NumPy" if each.device is None else each.device for each in (first, source)]
        raise TypeError(
            f"{caller}: {source.name} must be of the kind of {first.name}, {places[0]}, "
            f"got {places[1]}"
        )


class _Stacked:
    """Sources one below the other."""

    def __init__(self, parts: list[Source], asked: _Asked) -> None:
        first = parts[0]
        for part in parts:
            _check_agreement(part, first, asked.caller)
        self.name = asked.name
        self.shape = (sum(part.shape[0] or 0 for part in parts), first.shape[1])
        self.sizes = first.sizes
        self.dtype = first.dtype
        self.device = first.device
        self.in_memory = all(part.in_memory for part in parts)
        self._parts = parts

    def blocks(self) -> Iterator[Array]:
        return itertools.chain.from_iterable(part.blocks() for part in self._parts)


def _stacked(items: Iterable[Any], asked: _Asked) -> _Stacked:
    def part(item: Any, name: str) -> Source:
        if isinstance(item, str | os.PathLike):
            return _file(item, asked)
        if isinstance(item, np.memmap):
            return _mapped(item, asked) or _block(item, name, asked)
        if _is_dataset(item, asked):
            return _Dataset(item, name, asked)
        return _block(item, name, asked)

    parts = [part(item, f"block {index} of {asked.name}") for index, item in enumerate(items)]
    return _Stacked(parts, asked)


def _directory(path: Path, asked: _Asked) -> _Stacked:
    """Shards: the `.npy` and `.safetensors` files, in the order of their names."""
    names = sorted(each for each in path.iterdir() if each.suffix in (".npy", ".safetensors"))
    if not names:
        raise ValueError(
            f"{asked.caller}: {path} is a directory without .npy or .safetensors files"
        )
    return _stacked(names, asked)


class _Iterated:
    """What an iterable yields, from its beginning in every read; an iterator can be read once."""

    in_memory = False

    def __init__(self, blocks: Iterable[Any], first: _Block, asked: _Asked) -> None:
        self.name = asked.name
        self.shape = (None, first.shape[1])
        self.sizes = first.sizes
        self.dtype = first.dtype
        self.device = first.device
        self._blocks = blocks
        self._asked = asked

    def blocks(self) -> Iterator[Array]:
        for index, item in enumerate(self._blocks):
            block = _block(item, f"block {index} of {self.name}", self._asked)
            _check_agreement(block, self, self._asked.caller)
            yield block.array


def _iterated(A: Iterable[Any], asked: _Asked) -> _Iterated | None:
    """Look at the first block; an iterable of something else may be an array for NumPy."""
    iterator = iter(A)
    item = next(iterator, None)
    once = iterator is A
    if not once and not _is_block(item, asked):
        return None
    if item is None:
        raise ValueError(f"{asked.caller}: {asked.name} is an iterator that yields no blocks")
    first = _block(item, f"block 0 of {asked.name}", asked)
    return _Iterated(itertools.chain([item], iterator) if once else A, first, asked)

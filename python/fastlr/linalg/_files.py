"""Matrices in files, read through descriptors: `.npy`, `.safetensors`, and what is behind a memmap.

A page of a mapping counts as resident memory, and one beyond the end of a file that has shrunk is a
SIGBUS. A read fills a buffer that is used again, and says where the file ends.
"""

import json
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fastlr.linalg._arrays import computed_dtype, torch_dtype

# Large enough for sequential reading and for products, small enough that two are little memory.
BLOCK_BYTES = 32 << 20
# With fewer rows the time of a product would be that of reading its other factor.
LEAST_HEIGHT = 64

# A matrix so much longer than wide, or wider, is read along its long side even against its order.
_LONG = 8

# safetensors' own limit.
_LONGEST_HEADER = 100_000_000
# A bfloat16 is the upper half of a float32; NumPy knows its bits only.
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "C64": "<c8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def block_height(row_bytes: int, *, tensor: bool = False) -> int:
    """Return how many rows a block has; those of a tensor are products of their own."""
    return max(1 if tensor else LEAST_HEIGHT, BLOCK_BYTES // max(row_bytes, 1))


class _Pieces(NamedTuple):
    """Where a block lies in its file, and how in memory when its pieces are put together."""

    number: int
    apart: int
    extent: int
    before: int  # bytes of a piece in front of its first entry
    strides: tuple[int, int]


@dataclass(frozen=True)
class FileMatrix:
    """A matrix that lies in a file, in any order; every read opens the file anew.

    Attributes
    ----------
    path : str
    identity : tuple
        Of the file, which has to be the same in every read.
    stored : numpy.dtype
        Of the bytes.
    dtype : torch.dtype
        Of the entries: bfloat16 is stored as uint16.
    offset : int
        Of entry (0, 0), in bytes.
    shape : (int, int)
    strides : (int, int)
        In bytes.
    caller : str
        Whom errors name.
    row : tuple of int
        Where this is a tensor, its sizes but the first: a row of the matrix has these.
    """

    path: str
    identity: tuple[int, ...]
    stored: np.dtype[Any]
    dtype: torch.dtype
    offset: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    caller: str
    row: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of a row."""
        return self.row or self.shape[1:]

    @property
    def device(self) -> None:
        """Of NumPy's memory."""
        return None

    @property
    def in_memory(self) -> bool:
        """Not yet."""
        return False

    @property
    def T(self) -> "FileMatrix":
        """The transpose."""
        return replace(self, shape=self.shape[::-1], strides=self.strides[::-1])

    def better_by_columns(self) -> bool:
        """Whether the rows of the transpose are better to read than the rows.

        A long matrix is read along its long side: blocks of a few long rows would be slow to
        multiply. Another one is read in its order, sequentially.
        """
        m, n = self.shape
        return n > m if max(m, n) > _LONG * min(m, n) else self._by_columns()

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """Read the rows once; a block lasts until the second one after it is asked for."""
        m, n = self.shape
        computed = computed_dtype(self.dtype, torch.float64, self.caller, self.path)[1]
        added = self._bytes(self._pieces(2)) - self._bytes(self._pieces(1))
        row_bytes = max(added, n * computed.itemsize)
        step = max(1, min(m, block_height(row_bytes, tensor=bool(self.row))))
        buffers = [np.empty(self._bytes(self._pieces(step)), np.uint8) for _ in range(2)]
        with FileIO(self.path) as file:
            if _identity(file) != self.identity:
                raise ValueError(
                    f"{self.caller}: {self.path} was replaced by another file while it was in use"
                )
            for start in range(0, m, step):
                yield self._read(file, start, min(step, m - start), buffers[0])
                buffers.reverse()

    def _by_columns(self) -> bool:
        return abs(self.strides[0]) < abs(self.strides[1])

    def _pieces(self, rows: int) -> _Pieces:
        """Give one piece, where rows lie close to each other, or one a row or a column."""
        lengths = (rows, self.shape[1])
        outer, inner = (1, 0) if self._by_columns() else (0, 1)
        span = (lengths[inner] - 1) * self.strides[inner]
        before, extent = max(0, -span), abs(span) + self.stored.itemsize
        apart = self.strides[outer]
        # What lies between rows is read along, if it is shorter than a row or a page.
        if outer == 0 and 0 <= apart <= extent + max(extent, mmap.PAGESIZE):
            return _Pieces(1, 0, (rows - 1) * apart + extent, before, self.strides)
        strides = (extent, self.strides[1]) if outer == 0 else (self.strides[0], extent)
        return _Pieces(lengths[outer], apart, extent, before, strides)

    @staticmethod
    def _bytes(pieces: _Pieces) -> int:
        return pieces.number * pieces.extent

    def _read(
        self, file: FileIO, start: int, rows: int, buffer: npt.NDArray[np.uint8]
    ) -> npt.NDArray[Any]:
        pieces = self._pieces(rows)
        first = self.offset + start * self.strides[0] - pieces.before
        for index in range(pieces.number):
            piece = buffer[index * pieces.extent : (index + 1) * pieces.extent]
            self._fill(file, first + index * pieces.apart, piece.data)
        shape = (rows, self.shape[1])
        block = np.ndarray(shape, self.stored, buffer, pieces.before, pieces.strides)
        return block.reshape(rows, *self.row) if self.row else block

    def _fill(self, file: FileIO, position: int, piece: memoryview) -> None:
        file.seek(position)
        while piece:
            got = file.readinto(piece)
            if not got:
                raise ValueError(
                    f"{self.caller}: {self.path} is truncated: it ends at byte "
                    f"{os.fstat(file.fileno()).st_size}, a block at {position + len(piece)}"
                )
            piece, position = piece[got:], position + got


def open_path(path: str | os.PathLike[str], caller: str) -> FileMatrix:
    """Describe the matrix in a `.npy` or `.safetensors` file, by its header."""
    return _described(path, caller, tensor=False)


def open_tensor(path: str | os.PathLike[str], caller: str) -> FileMatrix:
    """Describe the tensor in such a file, of at least 2 dimensions."""
    return _described(path, caller, tensor=True)


def _described(path: str | os.PathLike[str], caller: str, *, tensor: bool) -> FileMatrix:
    name, kind = os.fspath(path), "tensor" if tensor else "matrix"
    read_header = {".npy": _npy_header, ".safetensors": _safetensors_header}.get(Path(name).suffix)
    if read_header is None:
        raise ValueError(f"{caller}: a file must end in .npy or .safetensors, got {name!r}")
    with open(name, "rb") as file:
        try:
            header = read_header(file)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{caller}: {name} has no header of a {kind}: {error}") from None
        identity, size = _identity(file), os.fstat(file.fileno()).st_size
    dimensions = len(header.shape)
    if dimensions < 2 or (dimensions > 2 and not tensor):
        raise ValueError(f"{caller}: {name} must hold a {kind}, got shape {header.shape}")
    if dimensions > 2 and header.by_columns:
        raise ValueError(f"{caller}: {name} must be in C order, its first index the slowest")
    m, *row = header.shape
    n, itemsize = math.prod(row), header.stored.itemsize
    end = header.offset + m * n * itemsize
    if size < end:
        raise ValueError(
            f"{caller}: {name} is truncated: it has {size} bytes, its header promises {end}"
        )
    dtype = header.dtype or torch_dtype(header.stored, caller, name, "a file")
    strides = (itemsize, m * itemsize) if header.by_columns else (n * itemsize, itemsize)
    file_matrix = FileMatrix(
        name, identity, header.stored, dtype, header.offset, (m, n), strides, caller
    )
    return replace(file_matrix, row=tuple(row)) if tensor else file_matrix


def tensor_behind_memmap(A: "np.memmap[Any, Any]", caller: str) -> FileMatrix | None:
    """Describe what a memmap of a tensor shows; None also where it is not in C order."""
    if not A.size or not A.flags.c_contiguous:
        return None
    rows: Any = A.reshape(len(A), -1)
    file_matrix = behind_memmap(rows, caller)
    return file_matrix and replace(file_matrix, row=A.shape[1:])


def behind_memmap(A: "np.memmap[Any, Any]", caller: str) -> FileMatrix | None:
    """Describe what a memmap shows of its file, or None where only the mapping shows it.

    That is a copy-on-write mapping, and one of a file that has no name, or has lost it.
    """
    mapping: Any = A
    while isinstance(mapping, np.ndarray):
        mapping = mapping.base
    if not isinstance(mapping, mmap.mmap) or A.mode == "c" or A.filename is None or not A.size:
        return None
    dtype = torch_dtype(A.dtype, caller, "A", "a memmap")
    mapped = np.frombuffer(mapping, np.uint8)
    start = A.offset - A.offset % mmap.ALLOCATIONGRANULARITY
    first = A.ctypes.data - mapped.ctypes.data
    spans = [(size - 1) * stride for size, stride in zip(A.shape, A.strides, strict=True)]
    low = first + sum(min(0, span) for span in spans)
    end = first + sum(max(0, span) for span in spans) + A.itemsize
    path = os.fspath(A.filename)
    if mapping.size() < start + end:
        raise ValueError(
            f"{caller}: {path} is truncated: it has {mapping.size()} bytes, the memmap needs "
            f"{start + end}"
        )
    try:
        with FileIO(path) as file:
            identity = _identity(file)
            # Another file that has the name by now shows at the ends.
            for position in (low, max(low, end - mmap.PAGESIZE)):
                shown = mapped[position : min(position + mmap.PAGESIZE, end)].tobytes()
                file.seek(start + position)
                if file.read(len(shown)) != shown:
                    return None
    except FileNotFoundError:
        return None
    shape, strides = (A.shape[0], A.shape[1]), (A.strides[0], A.strides[1])
    return FileMatrix(path, identity, A.dtype, dtype, start + first, shape, strides, caller)


def _identity(file: BinaryIO | FileIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


class _Header(NamedTuple):
    stored: np.dtype[Any]
    dtype: torch.dtype | None  # None: what NumPy's means
    offset: int
    shape: tuple[int, ...]
    by_columns: bool


def _npy_header(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, by_columns, stored = np.lib.format.read_array_header_1_0(file)
    else:
        shape, by_columns, stored = np.lib.format.read_array_header_2_0(file)
    return _Header(stored, None, file.tell(), shape, by_columns)


def _safetensors_header(file: BinaryIO) -> _Header:
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    tensors = json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    if len(tensors) != 1:
        raise ValueError(f"expected one tensor, got {len(tensors)}: {', '.join(tensors)}")
    ((name, entry),) = tensors.items()
    if entry["dtype"] not in _SAFETENSORS:
        raise ValueError(f"tensor {name} of dtype {entry['dtype']}")
    stored, shape = np.dtype(_SAFETENSORS[entry["dtype"]]), tuple(map(int, entry["shape"]))
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * stored.itemsize:
        raise ValueError(f"tensor {name} of shape {shape} in {end - begin} bytes")
    dtype = torch.bfloat16 if entry["dtype"] == "BF16" else None
    return _Header(stored, dtype, 8 + length + begin, shape, False)

"""The tensors of a safetensors file, read where they lie on disk."""

from __future__ import annotations

import json
import math
import mmap
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class MappedTensors:
    """A safetensors file in memory that the system reads when it is used, and may forget again.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    tensors : dict of str to Tensor
        On the CPU. What is written to them stays in memory, and is lost by
        :meth:`MappedFiles.release`.
    metadata : dict of str to str
    memory : mmap.mmap
        What the tensors are views of; it lives as long as any of them.

    Raises
    ------
    ValueError
        If the file is no whole safetensors file, or holds a dtype that torch has no name for.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise ValueError(f"{path} is no safetensors file: it has {size} bytes")
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        header, start = _header_of(path, self.memory)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.tensors = {
            name: self._tensor(path, name, entry, start) for name, entry in header.items()
        }

    def _tensor(self, path: Path, name: str, entry: dict[str, Any], start: int) -> Tensor:
        dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
        if dtype is None:
            raise ValueError(f"{path}: tensor {name!r} has the unknown dtype {entry['dtype']}")
        count = math.prod(shape)
        begin, end = entry["data_offsets"]
        if end - begin != count * dtype.itemsize or start + end > len(self.memory):
            raise ValueError(f"{path} was not written completely: tensor {name!r} does not fit in")
        if not count:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=start + begin)
        return flat.view(shape)


class MappedFiles:
    """Files that are mapped to memory, as long as any of their tensors is there."""

    def __init__(self) -> None:
        self._memories: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def read(self, path: Path) -> MappedTensors:
        """One file more."""
        mapped = MappedTensors(path)
        self._memories.add(mapped.memory)
        return mapped

    def release(self) -> None:
        """Take the pages of all files out of memory until they are used again."""
        for memory in self._memories:
            if hasattr(memory, "madvise"):  # not on Windows
                memory.madvise(mmap.MADV_DONTNEED)


def _header_of(path: Path, content: mmap.mmap) -> tuple[dict[str, Any], int]:
    """What the file says that it holds, and where its data begin.

    The format: eight bytes with the length of a JSON text, that text, and the data.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    if start > len(content):
        raise ValueError(f"{path} is no whole safetensors file: its header is cut off")
    try:
        header: dict[str, Any] = json.loads(content[8:start])
    except ValueError as error:
        raise ValueError(f"{path} is no safetensors file: its header is no JSON") from error
    return header, start
